"""A rank's micro-batches: together all ranks hold every row once, all have equally many of one shape."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from argosy.data.batch import Batch


def numbered(rows: int) -> Batch:
    tokens = np.arange(rows * 3, dtype=np.int32).reshape(rows, 3)
    ones = np.ones_like(tokens)
    return Batch(tokens, tokens, ones, ones, ones, ones.astype(np.float32), np.arange(rows, dtype=np.int64))


@given(rows=st.integers(1, 17), parts=st.integers(1, 6), micro=st.integers(1, 5))
def test_every_row_is_computed_once_and_all_ranks_do_equally_many(rows: int, parts: int, micro: int) -> None:
    from argosy.train.feed import cut

    pieces: list[list[Any]] = [cut(numbered(rows), parts, part, micro) for part in range(parts)]
    assert len({len(mine) for mine in pieces}) == 1
    assert {piece.tokens.shape for mine in pieces for piece in mine} == {(micro, 3)}
    real = [int(number) for mine in pieces for piece in mine for number in piece.sequence if number >= 0]
    assert sorted(real) == list(range(rows))
    assert sum(piece.counted for mine in pieces for piece in mine) == 3 * rows  # fillers count nothing


def test_tensors_are_copies() -> None:
    import torch

    from argosy.train.feed import tensors

    batch = numbered(2)
    copied = tensors(batch, torch.device("cpu"))
    batch.tokens[:] = -1
    assert copied.tokens.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_device_is_never_asked_how_many_documents_there_are() -> None:
    import torch

    from argosy.model import kernels
    from argosy.train.feed import tensors

    batch = numbered(2)
    batch.segments[:, 2] = 2
    there = tensors(batch, torch.device("meta"))  # holds no values: whoever asked it would fail
    assert kernels.offsets(torch.as_tensor(there.segments)).shape == (5,)
