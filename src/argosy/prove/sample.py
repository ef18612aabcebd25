"""The global batches that layouts are compared on: NumPy, by the counter generator, the same for every rank and the judge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from argosy.random import bits, key

if TYPE_CHECKING:
    from argosy.data.batch import Batch

SEED = 3
FIRST = 40  # global number of the first sequence: no rank's numbers begin at 0 by chance


def batch_of(step: int, rows: int, sequence: int, vocabulary: int, packed: bool) -> Batch:
    """The global batch [rows, sequence] of `step`: some labels do not count; `packed`: several documents a row, padding."""
    from argosy.data.batch import Batch

    def draw(name: str, below: int) -> Any:
        """Whole numbers from 0 to `below`, [rows, sequence], the same everywhere."""
        index = np.arange(rows * sequence, dtype=np.int64).reshape(rows, sequence)
        with np.errstate(over="ignore"):
            return (bits(key(SEED, "parity", f"{name} {step}"), index) & 0x7FFFFFFF) % below

    tokens = draw("tokens", vocabulary).astype(np.int32)
    begins = (draw("begins", 6) == 0) & packed
    begins[:, 0] = True
    segments = np.cumsum(begins, axis=1, dtype=np.int32)
    places = np.arange(sequence, dtype=np.int32)
    positions = (places - np.maximum.accumulate(np.where(begins, places, 0), axis=1)).astype(np.int32)
    labels = np.roll(tokens, -1, axis=1)
    weights = (np.roll(begins, -1, axis=1) == 0).astype(np.float32)  # the last token of a document has no label
    weights[draw("masked", 7) == 0] = 0
    weights[:, -1] = 0
    if packed:
        segments[-1, -3:] = 0  # padding
        weights[-1, -4:] = 0
    numbers = np.arange(rows, dtype=np.int64) + FIRST + rows * step
    return Batch(tokens, labels, segments, positions, np.zeros_like(tokens), weights, numbers)
