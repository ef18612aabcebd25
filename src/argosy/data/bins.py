"""Best-fit packing: documents are kept whole where they fit, the rest of a sequence is padding. NumPy only.

The training documents of a source, in an order of their own, are taken a window at a time; what is longer than a sequence is
cut into whole sequences and a remainder; remainders, longest first, go into the fullest sequence of the window that has room.
The sequences of an epoch are these, in an order drawn for the epoch. Where the length changes within an epoch, what was not
read of it is packed anew: an epoch gives every token once.
Source: Ding et al. 2024, "Fewer truncations improve language modeling".
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from argosy import random
from argosy.data.document import each
from argosy.data.mix import Stretch
from argosy.data.shards import Part, Shards

WINDOW = 4096  # remainders looked at together
KEPT = 4  # packings held in memory for each source

Longs = NDArray[np.int64]


@dataclass(frozen=True)
class Bins:
    """Sequences of at most `sequence` tokens. Stretch k of sequence n: k in [starts[n], starts[n + 1])."""

    sequence: int
    starts: Longs  # [sequences + 1]
    documents: Longs
    begins: Longs
    ends: Longs

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def padding(self) -> float:
        """The share of places that hold no token."""
        return 1 - int((self.ends - self.begins).sum()) / (len(self) * self.sequence)

    def stretches(self, number: int) -> list[tuple[int, int, int]]:
        """(document, begin, end) of each stretch of a sequence."""
        some = slice(int(self.starts[number]), int(self.starts[number + 1]))
        rows = zip(self.documents[some], self.begins[some], self.ends[some], strict=True)
        return [(int(document), int(begin), int(end)) for document, begin, end in rows]


@dataclass(frozen=True)
class Place:
    """Where a source stands: in which epoch, with which sequences of it left, in the order `order`, how many of them read."""

    epoch: int
    bins: Bins
    order: Longs
    read: int
    path: tuple[tuple[int, int], ...] = ()  # (length, sequences read) before each change of the length within the epoch


def pack(documents: Longs, begins: Longs, ends: Longs, sequence: int) -> Bins:
    """The stretches, in their order, as sequences. Pure."""
    counts, numbers = array("q", [0]), array("q")  # 24 bytes a stretch, however many documents there are
    rest: list[tuple[int, int, int]] = []

    def fill(some: list[tuple[int, int, int]]) -> None:
        """One more sequence."""
        counts.append(len(some))
        for stretch in some:
            numbers.extend(stretch)

    for document, begin, end in zip(each(documents), each(begins), each(ends), strict=True):
        while end - begin >= sequence:
            fill([(document, begin, begin + sequence)])
            begin += sequence
        if begin < end:
            rest.append((document, begin, end))
        if len(rest) == WINDOW:
            for some in _fitted(rest, sequence):
                fill(some)
            rest = []
    for some in _fitted(rest, sequence):
        fill(some)
    flat = np.array(numbers, np.int64).reshape(-1, 3)
    return Bins(sequence, np.cumsum(counts).astype(np.int64), flat[:, 0], flat[:, 1], flat[:, 2])


def _fitted(rest: list[tuple[int, int, int]], sequence: int) -> list[list[tuple[int, int, int]]]:
    """One window: each stretch, longest first, where the least room is left that is enough."""
    made: list[list[tuple[int, int, int]]] = []
    rooms: list[tuple[int, int]] = []  # (room, sequence of `made`), ascending
    for stretch in sorted(rest, key=lambda one: one[1] - one[2]):
        size = stretch[2] - stretch[1]
        at = bisect_left(rooms, (size, -1))
        if at == len(rooms):
            made.append([stretch])
            room, number = sequence - size, len(made) - 1
        else:
            room, number = rooms.pop(at)
            made[number].append(stretch)
            room -= size
        if room:
            insort(rooms, (room, number))
    return made


def whole(seed: int, part: Part, sequence: int, shards: Shards) -> Bins:
    """All training documents of a source as sequences: the same for every epoch. Pure, and remembered."""
    found: Bins | None = part.orders.get((seed, sequence))
    if found is None:
        documents = part.train_documents[np.argsort(_ranks(seed, part, part.train_documents), kind="stable")]
        found = pack(documents, np.zeros_like(documents), shards.lengths[documents], sequence)
        remember(part, (seed, sequence), found, KEPT)
    return found


def remember(part: Part, key: tuple[object, ...], value: object, most: int) -> None:
    """Keep `value` with the source, and of its like only the `most` that were made last."""
    alike = [old for old in part.orders if len(old) == len(key) and type(part.orders[old]) is type(value)]
    for old in alike[: max(0, len(alike) + 1 - most)]:
        part.orders.pop(old, None)
    part.orders[key] = value


def place(before: Sequence[Stretch], sequence: int, seed: int, part: Part, shards: Shards) -> Place:
    """Where a source stands that gave `before`, and gives sequences of `sequence` now. Pure."""
    now: Place | None = None
    for length, count in before:
        now = _advanced(_turned(now, length, seed, part, shards), count, seed, part, shards)
    return _turned(now, sequence, seed, part, shards)


def given(
    now: Place, count: int, seed: int, part: Part, shards: Shards
) -> list[tuple[int, list[tuple[int, int, int]]]]:
    """(epoch, stretches) of the next `count` sequences. Pure."""
    found: list[tuple[int, list[tuple[int, int, int]]]] = []
    while len(found) < count:
        if now.read == len(now.bins):
            now = _advanced(now, 0, seed, part, shards)
        number = int(now.order[now.read])
        found.append((now.epoch, now.bins.stretches(number)))
        now = replace(now, read=now.read + 1)
    return found


def _turned(now: Place | None, sequence: int, seed: int, part: Part, shards: Shards) -> Place:
    """The same place with sequences of another length: what was not read of the epoch is packed anew."""
    if now is None:
        return _begun(0, sequence, seed, part, shards)
    if now.bins.sequence == sequence:
        return now
    if now.read == len(now.bins):
        return _begun(now.epoch + 1, sequence, seed, part, shards)
    left = now.order[now.read :]
    path = (*now.path, (now.bins.sequence, now.read))
    key = (seed, now.epoch, sequence, path)
    found: Bins | None = part.orders.get(key)
    if found is None:
        found = pack(*_joined(now.bins, left, seed, part), sequence)
        remember(part, key, found, KEPT)
    return Place(now.epoch, found, _order(seed, now.epoch, found, part, left=len(left)), 0, path)


def _joined(bins: Bins, left: Longs, seed: int, part: Part) -> tuple[Longs, Longs, Longs]:
    """The stretches of the sequences `left`, those that follow each other in a document as one, in the source's own order."""
    chosen = np.zeros(len(bins), np.bool_)
    chosen[left] = True
    kept = np.repeat(chosen, np.diff(bins.starts))
    documents, begins, ends = bins.documents[kept], bins.begins[kept], bins.ends[kept]
    order = np.lexsort((begins, documents, _ranks(seed, part, documents)))
    documents, begins, ends = documents[order], begins[order], ends[order]
    first = np.ones(len(documents), np.bool_)
    first[1:] = (documents[1:] != documents[:-1]) | (begins[1:] != ends[:-1])
    starts = np.flatnonzero(first)
    return documents[starts], begins[starts], ends[np.append(starts[1:] - 1, len(ends) - 1)]


def _advanced(now: Place, count: int, seed: int, part: Part, shards: Shards) -> Place:
    """The place `count` sequences later; at the end of an epoch the next one's beginning."""
    left = len(now.bins) - now.read
    if count < left:
        return replace(now, read=now.read + count)
    epochs, read = divmod(count - left, len(whole(seed, part, now.bins.sequence, shards)))
    begun = _begun(now.epoch + 1 + epochs, now.bins.sequence, seed, part, shards)
    return replace(begun, read=read)


def _begun(epoch: int, sequence: int, seed: int, part: Part, shards: Shards) -> Place:
    bins = whole(seed, part, sequence, shards)
    return Place(epoch, bins, _order(seed, epoch, bins, part), 0)


def _order(seed: int, epoch: int, bins: Bins, part: Part, left: int = 0) -> Longs:
    """The order in which the sequences of an epoch are read; left: of a rest, how many were left before it was packed anew."""
    key = (seed, epoch, bins.sequence, len(bins), left)
    found: Longs | None = part.orders.get(key)
    if found is None:
        stream = random.key(seed, "data.bins", epoch, bins.sequence, left)
        found = np.argsort(random.bits(stream, np.arange(len(bins), dtype=np.int64)), kind="stable")
        remember(part, key, found, KEPT)
    return found


def _ranks(seed: int, part: Part, documents: Longs) -> Longs:
    """A number for each document that puts them in the order in which they are packed."""
    ranks: Longs = random.bits(random.key(seed, "data.window"), documents - part.first)
    return ranks
