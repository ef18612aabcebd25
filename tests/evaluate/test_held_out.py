"""Measuring: the sum over counted labels, split over ranks or not; windows over one text."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st


def test_a_model_that_knows_nothing_has_the_entropy_of_its_vocabulary() -> None:
    import torch

    from argosy.evaluate.held_out import held_out
    from argosy.evaluate.trained import windows

    def uniform(micro: Any, *, scale: float, backward: bool = True) -> Any:
        assert not backward
        return sum(torch.tensor(batch.counted * math.log(256.0), dtype=torch.float64) for batch in micro)

    held = held_out(windows(list(range(100)), 8, rows=2), uniform, lambda batch: [batch], lambda batch: batch.counted)
    assert held.counted == held.bytes == 99
    assert held.loss == pytest.approx(math.log(256))
    assert held.bits_per_byte == pytest.approx(8.0)
    assert held.perplexity == pytest.approx(256.0)


def test_nothing_counted_is_no_number() -> None:
    from argosy.evaluate.held_out import Held

    nothing = Held(0.0, 0, 0, 0)
    assert math.isnan(nothing.loss)
    assert nothing.bits_per_byte is None


@given(length=st.integers(2, 70), sequence=st.integers(1, 9), rows=st.integers(1, 4))
def test_each_id_but_the_first_is_a_label_once(length: int, sequence: int, rows: int) -> None:
    from argosy.evaluate.trained import windows

    batches = list(windows(list(range(length)), sequence, rows))
    labels = np.concatenate([batch.labels[batch.weights > 0] for batch in batches])
    assert labels.tolist() == list(range(1, length))
    for batch in batches:
        assert batch.tokens.shape == (rows, sequence)
        counted = batch.weights > 0
        assert (batch.tokens[counted] + 1 == batch.labels[counted]).all()
        assert ((batch.segments > 0) == counted).all()


def test_documents_are_counted_where_they_begin() -> None:
    from argosy.data.batch import filler
    from argosy.evaluate.held_out import begun
    from argosy.evaluate.trained import windows

    [batch] = windows(list(range(9)), 8, rows=1)
    assert begun(batch) == 1
    assert begun(filler(batch, 3)) == 0


@pytest.mark.parametrize(("sequence", "rows"), [(8, 1), (8, 3), (64, 2)])
def test_a_document_cut_over_sequences_is_one(sequence: int, rows: int) -> None:
    """The start said that one document was held out, and the evaluation that there were two: it was longer than a sequence."""
    from argosy.data.batch import Batch
    from argosy.evaluate.held_out import begun, unended

    ends = np.cumsum([20, 4, 8, 33])
    place, size = np.arange(int(ends[-1])), sequence * rows
    first = np.isin(place, [0, *ends[:-1]]) | (place % sequence == 0)
    last = np.isin(place, ends - 1)
    position = place - np.maximum.accumulate(np.where(first, place, 0))
    found, within = 0, False
    for begin in range(0, len(place), size):
        here = slice(begin, begin + size)

        def rows_of(values: np.ndarray, here: slice = here) -> np.ndarray:
            return np.pad(values[here], (0, size - len(values[here]))).reshape(rows, sequence)

        segments = rows_of(np.cumsum(first))
        filled = np.where((segments > 0).any(axis=1), np.arange(rows), -1)
        zeros = np.zeros((rows, sequence), np.int32)
        batch = Batch(
            zeros, rows_of(np.where(last, 0, 7)), segments, rows_of(position), zeros, rows_of(1.0 - last), filled
        )
        found += begun(batch, within)
        within = unended(batch)
    assert found == len(ends)
    assert not within
