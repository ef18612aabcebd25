"""The global batch of a step, a pure function of (seed, ledger, step), and a rank's share of it. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from argosy.data.order import Span, read_at, rows_at
from argosy.data.pack import pack
from argosy.data.shards import Shards
from argosy.run.ledger import Ledger

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """Sequences of one step: arrays [B, S], `sequence` [B]. In the engine the same class holds torch tensors.

    labels are the next token of the same document; weights are 0 where a label is not counted (a document's last token,
    padding, masked roles). segments number the documents within a sequence from 1; 0 = padding. positions restart per
    document. kinds are the roles of chat records, 0 for plain text. sequence is the number of each sequence over the whole
    run; it keys dropout, so that no result depends on which rank computes it.
    """

    tokens: Any  # Ints
    labels: Any  # Ints
    segments: Any  # Ints
    positions: Any  # Ints
    kinds: Any  # Ints
    weights: Any  # Floats
    sequence: Any  # Longs

    def rows(self, chosen: slice | list[int]) -> Batch:
        """The sequences `chosen`, as views where they can be."""
        return Batch(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    @property
    def counted(self) -> int:
        """How many labels are counted: the divisor of the loss."""
        return int((self.weights != 0).sum())

    def __len__(self) -> int:
        return len(self.sequence)


def global_batch(step: int, seed: int, ledger: Ledger, shards: Shards) -> Batch:
    """What `step` (counted from 1) trains on: the same for any layout, any number of ranks, after any restart. Pure."""
    reads = read_at(step, ledger)
    parts, places = [], []
    for number, row in enumerate(rows_at(step, seed, ledger, shards)):
        at = number * reads.sequence
        for span in row:
            parts.append(span)
            places.append(at)
            at += span.end - span.begin
    rows = reads.tokens // reads.sequence
    return Batch(**pack(parts, reads.sequence, rows, reads.first_sequence, shards, places))


def held_out_batches(shards: Shards, sequence: int, rows: int, tokens: int) -> Iterator[Batch]:
    """At most `tokens` tokens of the held-out documents, in the order of their hash: batches [rows, sequence], all alike.

    The last one is filled with padding and rows of weight zero. Sequence numbers count from 0 over the evaluation.
    """
    parts, left = [], tokens
    for document in shards.held_documents.tolist():
        length = min(left, int(shards.lengths[document]))
        if length:
            parts.append(Span(-1, document, 0, length))
        left -= length
    number = 0
    for block in _blocks(parts, rows * sequence):
        size = sum(part.end - part.begin for part in block)
        filled = -(-size // sequence)
        batch = Batch(**pack(block, sequence, filled, number, shards))
        number += filled
        yield batch if filled == rows else joined(batch, filler(batch, rows - filled))


def _blocks(parts: list[Span], size: int) -> Iterator[list[Span]]:
    """`parts` in order, cut into blocks of `size` tokens; the last one is shorter."""
    block: list[Span] = []
    room = size
    for part in parts:
        begin = part.begin
        while begin < part.end:
            end = min(part.end, begin + room)
            block.append(Span(part.epoch, part.document, begin, end))
            begin, room = end, room - (end - begin)
            if not room:
                yield block
                block, room = [], size
    if block:
        yield block


def joined(first: Batch, second: Batch) -> Batch:
    """The sequences of two batches, one after the other."""
    names = [field.name for field in fields(Batch)]
    return Batch(**{name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in names})


def counted_bytes(batch: Batch, bytes_of: Longs) -> int:
    """UTF-8 bytes that the counted labels stand for: nats / ln 2 / these are bits per byte. `bytes_of` is the tokenizer's."""
    return int(bytes_of[batch.labels[batch.weights != 0]].sum())


def filler(like: Batch, rows: int) -> Batch:
    """`rows` sequences of weight zero with the shape of `like`: what a rank computes so that all ranks do equally many."""
    shape = (rows, like.tokens.shape[1])
    zeros: Ints = np.zeros(shape, np.int32)
    ones: Ints = np.ones(shape, np.int32)  # one whole document, so that every attention row sees something
    positions: Ints = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape).copy()
    return Batch(zeros, zeros, ones, positions, zeros, np.zeros(shape, np.float32), np.full(rows, -1, np.int64))
