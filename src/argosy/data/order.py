"""Which tokens step n reads, found without replaying the steps before: a pure function of (seed, ledger, n). NumPy only.

An epoch is all training documents once, end to end in an order of its own. Read front to back, one long file would fill
many steps, and the loss would follow the files; so an epoch is cut into lanes of equal length, and the sequences of a step
come from lanes far apart, one after the other in turn. Where the ledger changes `batch.tokens`, later steps go on where
the earlier ones ended; where it changes `batch.sequence`, every lane goes on where it stood: an epoch is read to its last
token before the next begins, and nothing is dropped or repeated by a change or a restart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from argosy import random
from argosy.data.shards import Shards
from argosy.errors import Refused
from argosy.run.ledger import Entry, Ledger

KEYS = ("batch.sequence", "batch.tokens")
ORDER = 2  # the number of the rule below, "data.order" in a run's ledger; 1 read every epoch front to back
LANES = 256  # at most: more would mix no better, and every border of a lane cuts a document
ROWS = 32  # sequences in a lane at least: at a lane's end a sequence is put together from the ends of several lanes
KEPT = 3  # orders of epochs held in memory: this one, the next, and one for who looks back


class Read(NamedTuple):
    """What one step reads, in numbers."""

    first_token: int  # counted over the whole run
    first_sequence: int  # likewise
    tokens: int
    sequence: int  # tokens in each sequence


class Span(NamedTuple):
    """Tokens [begin, end) of a document, in the order of the stream."""

    epoch: int
    document: int
    begin: int
    end: int


@dataclass(frozen=True)
class Epoch:
    """One epoch's order: documents [n], and where each begins in the epoch's stream [n + 1]."""

    documents: NDArray[np.int64]
    starts: NDArray[np.int64]


def read_at(step: int, ledger: Ledger) -> Read:
    """What `step` (counted from 1) reads: a sum over the ledger's changes, however many steps lie before. Pure."""
    if step < 1:
        raise ValueError(f"steps are counted from 1, not {step}")
    bounds = [at for at in ledger.changes(KEYS) if at <= step]
    token = sequence = 0
    for begin, end in zip(bounds, [*bounds[1:], step], strict=True):
        begin = max(1, begin)  # entry 0 is the start
        if end > begin:
            length, tokens = _sizes(begin, ledger)
            token += (end - begin) * tokens
            sequence += (end - begin) * (tokens // length)
    length, tokens = _sizes(step, ledger)
    return Read(token, sequence, tokens, length)


def tokens_before(step: int, ledger: Ledger) -> int:
    """Tokens that all steps before `step` read. Pure."""
    return read_at(step, ledger).first_token


def known(ledger: Ledger) -> None:
    """Refused where the run was begun with another rule than this one: its steps would read other tokens from here on."""
    found = next((entry.new for entry in ledger.entries if entry.key == "data.order"), 1)
    if found != ORDER:
        raise Refused(
            f"this run reads its text in an order that this version of Argosy does not know (number {found}, not {ORDER}).",
            do="Go on with the version that began it (its number is in run.json), or begin a new run: --run DIR.",
        )


def refuse_backdated(folder: Path, entries: Sequence[Entry], step: int) -> None:
    """Refused where one of the ledger's `entries`, written after the checkpoint of `step`, says what steps up to it read.

    Over several nodes a checkpoint may be committed after a change was dated by the one before.
    """
    for entry in entries:
        if entry.key in KEYS and entry.from_step <= step:
            raise Refused(
                f"{entry.key} was changed from step {entry.from_step:,} on, but the run is at step {step:,} without it.",
                where=str(folder / "ledger.jsonl"),
                do="Remove that line there and give the same command again: it is written anew, for the steps to come.",
            )


def _sizes(step: int, ledger: Ledger) -> tuple[int, int]:
    length, tokens = (ledger.at(step, key) for key in KEYS)
    if not isinstance(length, int) or not isinstance(tokens, int) or length < 1 or tokens < 1 or tokens % length:
        raise Refused(
            "batch.tokens must be a multiple of batch.sequence.", where=f"step {step}", found=f"{tokens} and {length}"
        )
    return length, tokens


def epoch(seed: int, number: int, shards: Shards) -> Epoch:
    """The order of epoch `number` (from 0): training documents by the counter generator's bits. Pure, and remembered."""
    known: Epoch | None = shards.epochs.get((seed, number))
    if known is None:
        stream = random.key(seed, "data.order", number)
        ranks = random.bits(stream, shards.train_documents)
        documents = shards.train_documents[np.argsort(ranks, kind="stable")]
        starts = np.concatenate([[0], np.cumsum(shards.lengths[documents])])
        known = Epoch(documents, starts)
        for old in list(shards.epochs)[: max(0, len(shards.epochs) + 1 - KEPT)]:
            shards.epochs.pop(old, None)
        shards.epochs[seed, number] = known
    return known


@dataclass(frozen=True)
class Lanes:
    """What is left of an epoch, as stretches [begin, end) of its stream that take turns of `sequence` tokens each.

    Turns are counted in tokens from the first one. A lane that is read up shares no more in the turns; its last one may be
    shorter. An epoch that begins in the middle of a sequence has a first lane that begins so many tokens before its text;
    those are never asked for.
    """

    begins: NDArray[np.int64]  # [lanes], in the order of their turns
    ends: NDArray[np.int64]
    sequence: int

    def before(self, turn: int) -> int:
        """Tokens read when every lane has had `turn` turns."""
        return int(np.minimum(self.ends - self.begins, turn * self.sequence).sum())

    def turn(self, token: int) -> int:
        """The turn of all lanes in which `token` is read."""
        low, high = 0, int((self.ends - self.begins).max()) // self.sequence + 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.before(middle) <= token else (low, middle - 1)
        return low

    def turns(self, token: int, count: int) -> Iterator[tuple[int, int]]:
        """Tokens [token, token + count) as stretches (begin, end) of the epoch's stream, in the order they are read."""
        turn, stop = self.turn(token), token + count
        at = self.before(turn)
        while at < stop:
            begins = self.begins + turn * self.sequence
            lengths = np.clip(self.ends - begins, 0, self.sequence)
            reached = at + np.cumsum(lengths)
            for lane in range(int(np.searchsorted(reached, token, side="right")), len(reached)):
                first = int(reached[lane] - lengths[lane])
                if first >= stop:
                    return
                low, high = max(token, first), min(stop, int(reached[lane]))
                if high > low:
                    yield int(begins[lane]) + low - first, int(begins[lane]) + high - first
            at, turn = int(reached[-1]), turn + 1

    def left(self, token: int, sequence: int) -> Lanes:
        """What is left when `token` tokens are read, in turns of another length."""
        turn = self.turn(token)
        begins = np.minimum(self.ends, self.begins + turn * self.sequence)
        lengths = np.minimum(self.ends - begins, self.sequence)
        into = (
            token - self.before(turn) - (np.cumsum(lengths) - lengths)
        )  # of this turn's tokens, what each lane has read
        return Lanes(begins + np.clip(into, 0, lengths), self.ends, sequence)


def lanes(total: int, sequence: int, skipped: int) -> Lanes:
    """A whole epoch of `total` tokens, its first turn without the `skipped` tokens that its sequence has already. Pure."""
    count = min(LANES, max(1, total // (ROWS * sequence)))
    stride = next(step for step in range(max(1, round(count * 0.618)), count + 1) if math.gcd(step, count) == 1)
    order = (
        np.arange(count, dtype=np.int64) * stride % count
    )  # golden section: neighbours in turn are far apart in the text
    begins, ends = total * order // count, total * (order + 1) // count
    begins[0] -= skipped
    return Lanes(begins, ends, sequence)


def spans_at(step: int, seed: int, ledger: Ledger, shards: Shards) -> Iterator[Span]:
    """What `step` reads as stretches of documents, sequence after sequence. Pure; no step before is replayed.

    Refused for a run that was begun with another rule (`known`).
    """
    known(ledger)
    reads = read_at(step, ledger)
    token, stop, total = reads.first_token, reads.first_token + reads.tokens, shards.train_tokens
    while token < stop:
        number = token // total
        left, first = _lanes_at(token, step, number * total, total, ledger)
        count = min(stop, (number + 1) * total) - token
        for begin, end in left.turns(token - first, count):
            yield from spans(number * total + begin, end - begin, seed, shards)
        token += count


def _lanes_at(token: int, step: int, start: int, total: int, ledger: Ledger) -> tuple[Lanes, int]:
    """The lanes in force at `token` of the run, in the epoch that begins at `start`, and the token they are counted from."""
    changes = [max(1, at) for at in ledger.changes(KEYS[:1]) if at <= step]
    begins = [(read_at(at, ledger).first_token, _sizes(at, ledger)[0]) for at in changes]
    begins = [entry for entry, before in zip(begins, [(0, 0), *begins], strict=False) if entry[1] != before[1]]
    since, sequence = [at for at in begins if at[0] <= start][-1]
    skipped = (start - since) % sequence
    found, first = lanes(total, sequence, skipped), start - skipped
    for since, sequence in begins:
        if start < since <= token:
            found, first = found.left(since - first, sequence), since
    return found, first


def spans(first: int, count: int, seed: int, shards: Shards) -> Iterator[Span]:
    """Tokens [first, first + count) of all epochs end to end, as stretches of documents. Pure; O(log documents + spans)."""
    size = shards.train_tokens
    while count > 0:
        number, at = divmod(first, size)
        order = epoch(seed, number, shards)
        stop = min(at + count, size)
        low = int(np.searchsorted(order.starts, at, side="right")) - 1
        high = int(np.searchsorted(order.starts, stop, side="left"))
        for place in range(low, high):
            start = int(order.starts[place])
            end = min(stop, int(order.starts[place + 1]))
            yield Span(number, int(order.documents[place]), max(at, start) - start, end - start)
        first, count = first + stop - at, count - (stop - at)
