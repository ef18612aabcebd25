"""Stretches of documents to sequences that never leak: tokens, labels, segments, positions, weights. NumPy only.

A sequence is filled to its last token across documents, or, where it is said where each stretch begins, up to the next one with
padding between. Segments number the documents within a sequence from 1; positions
count from 0 within each segment, so a document that is continued in the next sequence starts there again at position 0. The
label of a token is the next token of its document, also where that lies in the next sequence; a document's last token (its
end mark) has none and weight 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from argosy.data.order import Span
from argosy.data.shards import Shards


def pack(
    parts: Sequence[Span],
    length: int,
    rows: int,
    first_sequence: int,
    shards: Shards,
    places: Sequence[int] | None = None,
) -> dict[str, NDArray[Any]]:
    """The fields of a Batch, `rows` sequences of `length` tokens from `parts`.

    `places` says where each begins, counted over all sequences; else they follow each other. What they do not fill is padding
    (segment 0, weight 0).
    """
    size = rows * length
    tokens, labels = np.zeros(size, np.int32), np.zeros(size, np.int32)
    kinds, weights = np.zeros(size, np.int32), np.ones(size, np.float32)
    filled = np.zeros(size, np.bool_)
    starts = np.zeros(size + 1, np.bool_)
    starts[::length] = True
    at = 0
    for number, (_, document, begin, end) in enumerate(parts):
        at = at if places is None else places[number]
        after = at + end - begin
        filled[at:after] = True
        last = end == shards.lengths[document]
        text = shards.part(document, begin, end + (not last))
        starts[at] = True
        tokens[at:after] = text[: end - begin]
        labels[at : after - last] = text[1:]
        if shards.masked:
            mask = shards.part(document, begin, end + (not last), "mask")
            if len(mask):
                weights[at : after - last] = mask[1:] != 0
        if shards.has_kinds:
            kind = shards.part(document, begin, end, "kinds")
            kinds[at : at + len(kind)] = kind
        if last:
            weights[after - 1] = 0
        at = after
    weights[~filled] = 0
    starts = starts[:size]
    place = np.arange(size, dtype=np.int32)
    positions = place - np.maximum.accumulate(np.where(starts, place, 0))
    segments = np.cumsum(starts.reshape(rows, length), axis=1, dtype=np.int32)
    segments.reshape(-1)[~filled] = 0
    positions[~filled] = 0
    shape = (rows, length)
    sequence = np.arange(first_sequence, first_sequence + rows, dtype=np.int64)
    return {
        "tokens": tokens.reshape(shape),
        "labels": labels.reshape(shape),
        "segments": segments,
        "positions": positions.astype(np.int32).reshape(shape),
        "kinds": kinds.reshape(shape),
        "weights": weights.reshape(shape),
        "sequence": sequence,
    }
