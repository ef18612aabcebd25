"""Which source each sequence of a run comes from: a pure function of the ledger. NumPy only.

The ledger's `data.mix` names the sources by the digest of what was prepared, with weights. Sequences are dealt by a pattern of
PERIOD places in which every source has its share, spread evenly; so how many sequences of a source lie before any sequence of
the run is arithmetic, and no step is replayed. Each source keeps its own place: it goes on where it stood whatever is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from argosy.data.shards import Shards
from argosy.errors import Refused
from argosy.run.ledger import Ledger

KEY = "data.mix"
SIZES = ("batch.sequence", "batch.tokens")
PERIOD = 8192  # sequences after which the pattern repeats: shares are kept to 1/8192


class Share(NamedTuple):
    """One source of a mix: the digest of what was prepared, and its share of the sequences, in any unit."""

    digest: str
    weight: float


class Stretch(NamedTuple):
    """Steps between two changes: how many sequences of which length one source gave."""

    sequence: int
    sequences: int


@dataclass(frozen=True)
class Pattern:
    """The dealing of sequences to sources. places [period] the source of each; before [sources, period + 1] counts."""

    places: NDArray[np.int64]
    before: NDArray[np.int64]

    def count(self, source: int, sequences: int) -> int:
        """How many of the first `sequences` come from `source`."""
        turns, rest = divmod(sequences, len(self.places))
        return turns * int(self.before[source, -1]) + int(self.before[source, rest])

    def sources(self, first: int, count: int) -> NDArray[np.int64]:
        """The source of each of `count` sequences from `first` on."""
        return self.places[np.arange(first, first + count) % len(self.places)]


@lru_cache(maxsize=64)
def pattern(weights: tuple[float, ...]) -> Pattern:
    """The dealing by `weights`; a source whose share is not zero has one place at least. Pure."""
    if len(weights) == 1:
        return Pattern(np.zeros(1, np.int64), np.array([[0, 1]]))
    counts = _counts(weights)
    keys = np.concatenate([(2 * np.arange(count) + 1) / (2 * count) for count in counts if count])
    names = np.concatenate([np.full(count, source) for source, count in enumerate(counts)])
    places = names[np.lexsort((names, keys))].astype(np.int64)
    before = np.zeros((len(weights), PERIOD + 1), np.int64)
    for source in range(len(weights)):
        before[source, 1:] = np.cumsum(places == source)
    return Pattern(places, before)


def _counts(weights: Sequence[float]) -> list[int]:
    """Places of each source in a period: the nearest to its share, at least one where it has any."""
    total = sum(weights)
    exact = [weight / total * PERIOD for weight in weights]
    counts = [max(int(share), 1 if share > 0 else 0) for share in exact]
    by_rest = sorted(range(len(exact)), key=lambda source: (-(exact[source] - int(exact[source])), source))
    for source in by_rest:
        if sum(counts) < PERIOD and exact[source] > 0:
            counts[source] += 1
    while sum(counts) > PERIOD:  # many sources of less than a place
        counts[counts.index(max(counts))] -= 1
    return counts


def mix_at(step: int, ledger: Ledger, shards: Shards) -> tuple[Share, ...]:
    """The mix in force at `step`. A run without an entry reads the only source there is. Refused where the entry is none."""
    return _shares(_value(step, ledger), shards)


def _value(step: int, ledger: Ledger) -> object:
    try:
        return ledger.at(step, KEY)
    except KeyError:
        return None


def _shares(value: object, shards: Shards) -> tuple[Share, ...]:
    if value is None:
        return (Share(shards.parts[0].digest, 1.0),)
    try:
        found = tuple(Share(str(row["digest"]), float(row["weight"])) for row in value)  # type: ignore[attr-defined]
    except (TypeError, KeyError, ValueError) as error:
        raise Refused("the ledger's data.mix is damaged.", found=str(value)[:200]) from error
    if not found or not all(0 <= share.weight < float("inf") for share in found) or not sum(s.weight for s in found):
        raise Refused("the weights of data.mix sum to nothing.", found=str(value)[:200])
    return found


def digests(ledger: Ledger, begun: str, *, now: bool = False) -> list[str]:
    """All sources that any step of a run reads, by digest; now: those from its last change on. `begun`: where it names none."""
    values = [_value(max(1, at), ledger) for at in ledger.changes([KEY])][-1 if now else 0 :]
    found = [[str(row["digest"]) for row in value] if isinstance(value, list) else [begun] for value in values]
    return list(dict.fromkeys(digest for some in found for digest in some))


def rows(sources: Sequence[tuple[str, str, float, str]]) -> list[dict[str, object]]:
    """The ledger's value of `data.mix`: (source, digest, weight, licence) of each."""
    return [
        {"source": source, "digest": digest, "weight": weight, "license": terms}
        for source, digest, weight, terms in sources
    ]


def sizes_at(step: int, ledger: Ledger) -> tuple[int, int]:
    """(tokens of a sequence, tokens of a step) in force at `step`. Refused where they do not divide."""
    length, tokens = (ledger.at(step, key) for key in SIZES)
    if not isinstance(length, int) or not isinstance(tokens, int) or length < 1 or tokens < 1 or tokens % length:
        raise Refused(
            "batch.tokens must be a multiple of batch.sequence.", where=f"step {step}", found=f"{tokens} and {length}"
        )
    return length, tokens


class Dealt(NamedTuple):
    """The sequences of one step: of each source that has any, what it gave before, and the places it has in this step."""

    sequence: int
    rows: int
    sources: list[tuple[str, list[Stretch], NDArray[np.int64]]]  # digest, before (the last of this length), places


def dealt(step: int, ledger: Ledger, shards: Shards) -> Dealt:
    """Who gives which sequence of `step` (counted from 1), found without replaying the steps before. Pure."""
    bounds = sorted({max(1, at) for at in ledger.changes((*SIZES, KEY)) if at <= step})
    before: dict[str, list[Stretch]] = {}
    number = 0  # sequences since the mix last changed
    mix: tuple[Share, ...] = ()
    for begin, end in zip(bounds, [*bounds[1:], step], strict=True):
        now = mix_at(begin, ledger, shards)
        if now != mix:
            mix, number = now, 0
        length, tokens = sizes_at(begin, ledger)
        count = (end - begin) * (tokens // length)
        made = pattern(tuple(share.weight for share in mix))
        for source, share in enumerate(mix):
            given = made.count(source, number + count) - made.count(source, number)
            _add(before.setdefault(share.digest, []), length, given)
        number += count
    length, tokens = sizes_at(step, ledger)
    sources = pattern(tuple(share.weight for share in mix)).sources(number, tokens // length)
    found = []
    for source, share in enumerate(mix):
        places = np.flatnonzero(sources == source)
        if len(places):
            found.append((share.digest, [*before[share.digest]], places))
    return Dealt(length, tokens // length, found)


def _add(stretches: list[Stretch], sequence: int, count: int) -> None:
    """Add so many sequences to what a source gave; those of one length follow each other as one."""
    if not count:
        return
    if stretches and stretches[-1].sequence == sequence:
        count += stretches.pop().sequences
    stretches.append(Stretch(sequence, count))
