"""The pool of persistent ranks: answers, and what happens when a rank raises, dies or hangs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from argosy.prove.pool import Failed, Pool

HERE = str(Path(__file__))


def fails(rank: int, ranks: int, board: str, how: str) -> None:
    if rank == 1 and how == "raise":
        raise ValueError("on purpose")
    if rank == 1 and how == "die":
        os._exit(9)
    if rank == 1 and how == "hang":
        time.sleep(3600)


def test_the_pool_tells_who_failed_and_goes_on(pool: Pool) -> None:
    with pytest.raises(Failed, match=r"rank 1:(.|\n)*on purpose"):
        pool.call(f"{HERE}:fails", "raise", ranks=2)
    with pytest.raises(Failed, match="rank 1 died"):
        pool.call(f"{HERE}:fails", "die", ranks=2)
    assert pool.call(f"{HERE}:fails", "not", ranks=2) == [None, None]


def test_a_rank_that_hangs_is_named_and_ended(pool: Pool) -> None:
    with pytest.raises(Failed, match=r"ranks \[1\] of 2 did not answer in 1 s"):
        pool.call(f"{HERE}:fails", "hang", ranks=2, limit=1.0)
    assert pool.call(f"{HERE}:fails", "not", ranks=2) == [None, None]
