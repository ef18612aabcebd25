"""Which tokens step n reads, found without replaying the steps before: a pure function of (seed, ledger, n). NumPy only.

An epoch of a source is all its training documents once, end to end in an order of its own. Read front to back, one long file
would fill many steps, and the loss would follow the files; so an epoch is cut into lanes of equal length, and the sequences of
a step come from lanes far apart, one after the other in turn. Where the ledger changes `batch.tokens` or the mix, later steps
go on where the earlier ones ended; where it changes `batch.sequence`, every lane goes on where it stood: an epoch is read to
its last token before the next begins, and nothing is dropped or repeated by a change or a restart. `mix` says which source
gives which sequence; with `batch.packing = "best-fit"` it is `bins` that says what is in it.
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
from argosy.data import bins, mix
from argosy.data.mix import SIZES, Stretch
from argosy.data.shards import Part, Shards
from argosy.errors import Refused
from argosy.job.schema import BatchSection
from argosy.run.ledger import Entry, Ledger

KEYS = (*SIZES, mix.KEY)
MIX = mix.KEY
PACKING = "batch.packing"
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
    bounds = [at for at in ledger.changes(SIZES) if at <= step]
    token = sequence = 0
    for begin, end in zip(bounds, [*bounds[1:], step], strict=True):
        begin = max(1, begin)  # entry 0 is the start
        if end > begin:
            length, tokens = mix.sizes_at(begin, ledger)
            token += (end - begin) * tokens
            sequence += (end - begin) * (tokens // length)
    length, tokens = mix.sizes_at(step, ledger)
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
        if entry.key in KEYS and 0 < entry.from_step <= step:  # 0: what the run began with, said belatedly
            raise Refused(
                f"{entry.key} was changed from step {entry.from_step:,} on, but the run is at step {step:,} without it.",
                where=str(folder / "ledger.jsonl"),
                do="Remove that line there and give the same command again: it is written anew, for the steps to come.",
            )


def epoch(seed: int, number: int, part: Part, shards: Shards) -> Epoch:
    """The order of a source's epoch `number` (from 0): by the counter generator's bits. Pure, and remembered."""
    known: Epoch | None = part.orders.get((seed, number, "epoch"))
    if known is None:
        stream = random.key(seed, "data.order", number)
        ranks = random.bits(stream, part.train_documents - part.first)
        documents = part.train_documents[np.argsort(ranks, kind="stable")]
        starts = np.concatenate([[0], np.cumsum(shards.lengths[documents])])
        known = Epoch(documents, starts)
        bins.remember(part, (seed, number, "epoch"), known, KEPT)
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
    for row in rows_at(step, seed, ledger, shards):
        yield from row


def rows_at(step: int, seed: int, ledger: Ledger, shards: Shards) -> list[list[Span]]:
    """The same for each sequence: what is in it from its first place on; behind its last stretch is padding. Pure."""
    known(ledger)
    deal = mix.dealt(step, ledger, shards)
    fitted = packing(ledger) == "best-fit"
    found: list[list[Span]] = [[] for _ in range(deal.rows)]
    for digest, before, places in deal.sources:
        part = shards.known(digest)
        if fitted:
            now = bins.place(before, deal.sequence, seed, part, shards)
            rows = [
                [Span(number, *stretch) for stretch in stretches]
                for number, stretches in bins.given(now, len(places), seed, part, shards)
            ]
        else:
            rows = _in_turn(before, deal.sequence, len(places), seed, part, shards)
        for place, row in zip(places.tolist(), rows, strict=True):
            found[place] = row
    return found


def packing(ledger: Ledger) -> str:
    """How documents fill sequences in this run: "greedy" or "best-fit". It cannot change on the way."""
    return str(next((entry.new for entry in ledger.entries if entry.key == PACKING), "greedy"))


def ramp(batch: BatchSection) -> list[tuple[int, int]]:
    """(first step, tokens of a step) of each size that the batch grows through; one alone where it does not. Pure."""
    found, grows = [], batch.ramp
    step, read, size = 1, 0, batch.tokens if grows is None else grows.start
    while grows is not None and size < batch.tokens:
        found.append((step, size))
        until = grows.tokens * len(found) * grows.by // (batch.tokens - grows.start)
        steps = max(1, -(-(until - read) // size))
        step, read, size = step + steps, read + steps * size, size + grows.by
    return [*found, (step, batch.tokens)]


def _in_turn(
    before: list[Stretch], sequence: int, count: int, seed: int, part: Part, shards: Shards
) -> list[list[Span]]:
    """The next `count` sequences of a source that gave `before`, filled to the last token from its lanes."""
    token = first = sum(stretch.sequence * stretch.sequences for stretch in before)
    stop, total = token + count * sequence, part.train_tokens
    rows: list[list[Span]] = [[] for _ in range(count)]
    begins, at = [], 0
    for stretch in before:
        begins.append((at, stretch.sequence))
        at += stretch.sequence * stretch.sequences
    if not begins or begins[-1][1] != sequence:
        begins.append((first, sequence))
    while token < stop:
        number = token // total
        left, since = _lanes_at(token, begins, number * total, total)
        end = min(stop, (number + 1) * total)
        at = token
        for low, high in left.turns(token - since, end - token):
            for span in spans(number * total + low, high - low, seed, part, shards):
                at = _fill(rows, span, at - first, sequence) + first
        token = end
    return rows


def _fill(rows: list[list[Span]], span: Span, at: int, sequence: int) -> int:
    """Put `span` into the rows from place `at` on, cut where a row ends; gives the place behind it."""
    begin = span.begin
    while begin < span.end:
        end = min(span.end, begin + sequence - at % sequence)
        rows[at // sequence].append(Span(span.epoch, span.document, begin, end))
        at, begin = at + end - begin, end
    return at


def _lanes_at(token: int, begins: list[tuple[int, int]], start: int, total: int) -> tuple[Lanes, int]:
    """The lanes in force at `token` of a source, in its epoch that begins at `start`, and the token they are counted from.

    begins: (token, length of a sequence) of each change of the length, the first at 0.
    """
    since, sequence = [at for at in begins if at[0] <= start][-1]
    skipped = (start - since) % sequence
    found, first = lanes(total, sequence, skipped), start - skipped
    for since, sequence in begins:
        if start < since <= token:
            found, first = found.left(since - first, sequence), since
    return found, first


def spans(first: int, count: int, seed: int, part: Part, shards: Shards) -> Iterator[Span]:
    """Tokens [first, first + count) of a source's epochs end to end, as stretches of documents. Pure; O(log documents)."""
    size = part.train_tokens
    while count > 0:
        number, at = divmod(first, size)
        order = epoch(seed, number, part, shards)
        stop = min(at + count, size)
        low = int(np.searchsorted(order.starts, at, side="right")) - 1
        high = int(np.searchsorted(order.starts, stop, side="left"))
        for place in range(low, high):
            start = int(order.starts[place])
            end = min(stop, int(order.starts[place + 1]))
            yield Span(number, int(order.documents[place]), max(at, start) - start, end - start)
        first, count = first + stop - at, count - (stop - at)
