"""The global batch of a step, a pure function of (seed, ledger, step), and what one machine reads of it. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from argosy.data.order import Read, Span, read_at, rows_at
from argosy.data.pack import pack
from argosy.data.shards import Shards
from argosy.layout.layout import share
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


@dataclass(frozen=True)
class Given:
    """What a machine is given of a step's global batch: the sequences that its ranks read, and what is known of all.

    `batch` holds those with the numbers `rows` (ascending, within the global batch) of `whole`. counted: labels of the whole
    that count, the divisor of the loss; bytes: the UTF-8 bytes they stand for, None where nobody on this machine is to know.
    """

    batch: Batch
    rows: Longs
    whole: int
    counted: int
    bytes: int | None = None

    def part(self, wanted: range) -> Batch:
        """The sequences `wanted` of the global batch, as views. Raises ValueError where they are not among its own."""
        at = int(np.searchsorted(self.rows, wanted.start))
        there = self.rows[at : at + len(wanted)]
        if len(there) < len(wanted) or (len(wanted) and (there[0], there[-1]) != (wanted.start, wanted.stop - 1)):
            raise ValueError(f"sequences {wanted.start} to {wanted.stop} are another machine's")
        return self.batch.rows(slice(at, at + len(wanted)))


def global_batch(step: int, seed: int, ledger: Ledger, shards: Shards) -> Batch:
    """What `step` (counted from 1) trains on: the same for any layout, any number of ranks, after any restart. Pure."""
    return given(step, seed, ledger, shards, weigh=False).batch


def given(
    step: int,
    seed: int,
    ledger: Ledger,
    shards: Shards,
    parts: tuple[Sequence[int], int] | None = None,
    weigh: bool = True,
) -> Given:
    """What a machine reads of `step`: shares `parts[0]` of `parts[1]`, as ranks cut the global batch; None = all of it.

    Of other machines' sequences the tokens are not read: which labels count is known from where documents end and from their
    masks. weigh: count the bytes of the whole too, for which all of it is read. Pure.
    """
    reads, rows = read_at(step, ledger), rows_at(step, seed, ledger, shards)
    whole = len(rows)
    own: Longs = np.arange(whole)
    if parts is not None:
        mine, of = parts
        shares = [np.array(share(whole, of, part), np.int64) for part in sorted(set(mine))]
        own = np.concatenate([np.zeros(0, np.int64), *shares])
    if weigh or len(own) == whole:
        batch = _packed(reads, rows, np.arange(whole), shards)
        size = counted_bytes(batch, shards.bytes_of) if weigh else None
        return Given(batch if len(own) == whole else batch.rows(own.tolist()), own, whole, batch.counted, size)
    kept = set(own.tolist())
    others = sum(_counted(row, shards) for number, row in enumerate(rows) if number not in kept)
    batch = _packed(reads, rows, own, shards)
    return Given(batch, own, whole, others + batch.counted)


def _packed(reads: Read, rows: list[list[Span]], chosen: Longs, shards: Shards) -> Batch:
    """The sequences `chosen` of those that a step reads."""
    parts, places = [], []
    for number, row in enumerate(chosen.tolist()):
        at = number * reads.sequence
        for span in rows[row]:
            parts.append(span)
            places.append(at)
            at += span.end - span.begin
    fields = pack(parts, reads.sequence, len(chosen), 0, shards, places)
    return Batch(**{**fields, "sequence": reads.first_sequence + chosen})


def _counted(row: list[Span], shards: Shards) -> int:
    """How many labels of a sequence count, without its tokens."""
    found = 0
    for _, document, begin, end in row:
        last = end == shards.lengths[document]
        mask = shards.part(document, begin, end + (not last), "mask") if shards.masked else ()
        found += int(np.count_nonzero(mask[1:])) if len(mask) else end - begin - int(last)
    return found


def held_out_batches(
    shards: Shards, sequence: int, rows: int, tokens: int, documents: Longs | None = None
) -> Iterator[Batch]:
    """At most `tokens` tokens of `documents` (None = the held-out ones, by hash): batches [rows, sequence], all alike.

    The last one is filled with padding and rows of weight zero. Sequence numbers count from 0 over the evaluation.
    """
    held = HeldOut(shards, sequence, tokens, documents)
    number = 0
    while (batch := held.batch(number, rows)) is not None:
        yield batch
        number += 1


class HeldOut:
    """Text that a run measures itself on, by the number of a batch: at most `tokens` tokens of `documents`, in their order.

    None = the held-out documents in the order of their hash.
    """

    def __init__(self, shards: Shards, sequence: int, tokens: int, documents: Longs | None = None):
        self.shards, self.sequence, self.tokens = shards, sequence, tokens
        self.documents = shards.held_documents if documents is None else documents
        self._cut: tuple[int, list[list[Span]]] = (0, [])

    def batch(self, number: int, rows: int) -> Batch | None:
        """The batch `number` (from 0) of `rows` sequences; None behind the last one. See held_out_batches."""
        if self._cut[0] != rows:
            self._cut = (rows, list(_blocks(self._parts(), rows * self.sequence)))
        blocks = self._cut[1]
        if number >= len(blocks):
            return None
        filled = -(-sum(part.end - part.begin for part in blocks[number]) // self.sequence)
        batch = Batch(**pack(blocks[number], self.sequence, filled, number * rows, self.shards))
        return batch if filled == rows else joined(batch, filler(batch, rows - filled))

    def _parts(self) -> list[Span]:
        parts, left = [], self.tokens
        for document in self.documents.tolist():
            length = min(left, int(self.shards.lengths[document]))
            if not length:
                break
            parts.append(Span(-1, document, 0, length))
            left -= length
        return parts


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
