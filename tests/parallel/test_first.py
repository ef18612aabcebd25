"""What rank 0 does first: the others wait for it over their store, however long it takes."""

from __future__ import annotations

import threading
import time

import pytest

from argosy.layout.layout import Layout
from argosy.parallel import mesh
from argosy.parallel.mesh import Mesh

LONG = 60  # seconds; only a failure waits so long


def test_who_waits_for_the_first_rank_waits_as_long_as_it_takes() -> None:
    import torch.distributed as dist

    store = dist.HashStore()
    leader, follower = (Mesh(Layout(dp_replicate=2), rank, _store=store) for rank in (0, 1))
    for _ in range(2):  # a second word is not taken for the first
        pauses: list[float] = []
        often, done = threading.Event(), threading.Event()

        def pause(seconds: float, pauses: list[float] = pauses, often: threading.Event = often) -> None:
            pauses.append(seconds)
            if len(pauses) > 30:
                often.set()
            time.sleep(0.001)

        def follow(pause=pause, done: threading.Event = done) -> None:  # type: ignore[no-untyped-def]
            follower.first(lambda: pytest.fail("this is rank 0's work"), pause)
            done.set()

        thread = threading.Thread(target=follow)
        thread.start()

        def work(often: threading.Event = often, done: threading.Event = done) -> None:
            assert often.wait(LONG), "the other rank looks again and again"
            assert not done.is_set()

        leader.first(work)
        thread.join(LONG)
        assert done.is_set()
        assert pauses[0] < 0.01 and max(pauses) == mesh.LONGEST_PAUSE


def test_a_rank_alone_just_works() -> None:
    worked: list[int] = []
    Mesh(Layout(), 0).first(lambda: worked.append(1))
    assert worked == [1]
