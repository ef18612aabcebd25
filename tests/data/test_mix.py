"""Several sources: each keeps its place whatever is changed, and gives every token of every document once an epoch."""

from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from argosy.data.batch import Batch, global_batch
from argosy.data.mix import PERIOD, dealt, digests, mix_at, pattern
from argosy.data.order import read_at, rows_at
from argosy.data.shards import Shards
from argosy.errors import Refused
from argosy.layout.layout import share
from argosy.run.ledger import Ledger

SOURCES = (
    ([7, 1, 64, 30, 2, 2, 33, 50, 1, 12, 90], (4, 9)),
    ([5, 9, 3, 40], (1,)),
    ([200, 11, 6], (1,)),
)
SIZES = some.sampled_from([(8, 32), (8, 16), (16, 16), (4, 64), (32, 128), (5, 35), (64, 64)])
WEIGHTS = some.lists(some.sampled_from([0.0, 0.1, 1.0, 2.5, 7.0]), min_size=3, max_size=3).filter(any)
CHANGES = some.lists(some.tuples(some.integers(1, 7), some.none() | SIZES, some.none() | WEIGHTS), max_size=5)
LAST = 40  # a step behind all random changes


@pytest.fixture
def shards(make_mix: Callable[..., Shards]) -> Shards:
    return make_mix(*SOURCES)


def mix_of(weights: list[float], first: int = 0) -> list[dict[str, object]]:
    """The ledger's value; sources of no weight are left out of it."""
    return [{"digest": f"d{number}", "weight": weight} for number, weight in enumerate(weights) if weight]


def ledger_of(changes: list, packing: str, weights: list[float]) -> Ledger:
    ledger = Ledger.start(
        data__order=2, data__mix=mix_of(weights), batch__sequence=8, batch__tokens=32, batch__packing=packing
    )
    step = 1
    for after, sizes, mixed in changes:
        step += after
        if sizes is not None:
            ledger = ledger.changed(step, "batch.sequence", sizes[0], "x").changed(step, "batch.tokens", sizes[1], "x")
        if mixed is not None:
            ledger = ledger.changed(step, "data.mix", mix_of(mixed), "x")
    return ledger


@pytest.mark.parametrize("packing", ["greedy", "best-fit"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(
    changes=CHANGES,
    weights=WEIGHTS,
    seed=some.integers(0, 2**63 - 1),
    resumes=some.sets(some.integers(1, LAST + 15)),
    ranks=some.lists(some.integers(1, 5), min_size=1),
)
def test_two_epochs_of_every_source_give_every_token_of_every_document_once(
    shards: Shards,
    packing: str,
    changes: list,
    weights: list[float],
    seed: int,
    resumes: set[int],
    ranks: list[int],
) -> None:
    """Counted from what the ranks hold: documents are told apart in the batches by their own tokens and places.

    After the random changes all sources are read alike, until each has begun its third epoch.
    """
    ledger = ledger_of(changes, packing, weights)
    for key, value in (("batch.sequence", 32), ("batch.tokens", 256), ("data.mix", mix_of([1.0, 1.0, 1.0]))):
        ledger = ledger.changed(LAST, key, value, "x")
    counted: Counter[tuple[int, int, int]] = Counter()  # (epoch, document, token)
    given_by: dict[int, set[int]] = {number: set() for number in range(3)}
    step = 0
    while step < LAST or min(max(epochs, default=0) for epochs in given_by.values()) < 2:
        step += 1
        assert step < LAST + 60, "it does not come to an end"
        if step in resumes:
            shards = Shards(shards.folder)  # another process, which replays nothing
        rows = rows_at(step, seed, ledger, shards)
        batch = global_batch(step, seed, ledger, shards)
        now = read_at(step, ledger)
        assert batch.tokens.shape == (now.tokens // now.sequence, now.sequence) == (len(rows), now.sequence)
        world = ranks[step % len(ranks)]
        held = [number for rank in range(world) for number in share(len(rows), world, rank)]
        assert held == list(range(len(rows)))
        for number in held:
            check_row(batch, number, rows[number], shards)
            for epoch, document, begin, end in rows[number]:
                counted.update((epoch, document, token) for token in range(begin, end))
                given_by[shards.parts.index(shards.part_of(document))].add(epoch)
    assert set(counted.values()) <= {1}, "a token was repeated within an epoch"
    for source, part in enumerate(shards.parts):
        for epoch in range(max(given_by[source])):  # every epoch but the last was read to its end: two at least
            expected = {
                (document, token) for document in part.train_documents for token in range(shards.lengths[document])
            }
            read = {(document, token) for number, document, token in counted if number == epoch}
            assert expected <= read, f"source {source} lost {sorted(expected - read)[:5]} in epoch {epoch}"


def check_row(batch: Batch, number: int, row: list, shards: Shards) -> None:
    """The sequence holds the stretches from its first place on, padding behind them, and no document sees another."""
    at = 0
    for segment, (_, document, begin, end) in enumerate(row, 1):
        text, after = shards.document(document), at + end - begin
        assert batch.tokens[number, at:after].tolist() == text[begin:end].tolist()
        assert set(batch.segments[number, at:after].tolist()) == {segment}
        assert batch.positions[number, at:after].tolist() == list(range(end - begin))
        labels = [*text[begin + 1 : end + 1].tolist(), 0][: end - begin]
        assert batch.labels[number, at:after].tolist() == labels
        assert batch.weights[number, at:after].sum() == end - begin - (end == len(text))
        at = after
    assert not batch.segments[number, at:].any()
    assert not batch.weights[number, at:].any()


def by_queues(steps: int, ledger: Ledger, shards: Shards) -> list[list[str]]:
    """Which source gives each sequence, by dealing them one after the other: the one that is furthest behind its share.

    Not the rule of the pattern, which is written down for any place; both keep every source within two of its share.
    """
    told, number, counts, mix = [], 0, {}, None
    for step in range(1, steps + 1):
        now = mix_at(step, ledger, shards)
        if now != mix:
            mix, number, counts = now, 0, {share.digest: 0 for share in now}
        total = sum(share.weight for share in now)
        found = []
        for _ in range(read_at(step, ledger).tokens // read_at(step, ledger).sequence):
            number += 1
            behind = {one.digest: one.weight / total * number - counts[one.digest] for one in now}
            chosen = max(behind, key=lambda name: behind[name])
            counts[chosen] += 1
            found.append(chosen)
        told.append(found)
    return told


def test_the_shares_are_those_of_a_dealer_who_looks_at_every_sequence(shards: Shards) -> None:
    ledger = ledger_of([(5, (4, 64), None), (9, None, [1.0, 0.0, 7.0])], "greedy", [1.0, 2.5, 0.1])
    expected = by_queues(40, ledger, shards)
    mine, theirs = Counter(), Counter()
    for step in range(1, 41):
        deal = dealt(step, ledger, shards)
        found = {place: digest for digest, _, places in deal.sources for place in places.tolist()}
        assert sorted(found) == list(range(deal.rows))
        mine.update(found.values())
        theirs.update(expected[step - 1])
        assert all(abs(mine[name] - theirs[name]) <= 4 for name in ("d0", "d1", "d2"))


def test_what_lies_before_is_what_the_steps_before_gave(shards: Shards) -> None:
    """The closed form, against a sum over all steps."""
    changes = [
        (3, (4, 64), None),
        (4, None, [0.0, 1.0, 1.0]),
        (2, (32, 128), [1.0, 1.0, 0.0]),
        (5, None, [1.0, 1.0, 1.0]),
    ]
    ledger = ledger_of(changes, "greedy", [1.0, 2.5, 0.1])
    given_before: Counter[tuple[str, int]] = Counter()
    for step in range(1, 60):
        deal = dealt(step, ledger, shards)
        for digest, before, _ in deal.sources:
            told = Counter()
            for stretch in before:
                told[digest, stretch.sequence] += stretch.sequences
            assert told == Counter({key: count for key, count in given_before.items() if key[0] == digest})
        for digest, _, places in deal.sources:
            given_before[digest, deal.sequence] += len(places)


@given(some.lists(some.floats(0, 1e6), min_size=1, max_size=12).filter(lambda weights: sum(weights) > 0))
def test_a_pattern_keeps_every_share_at_every_place(weights: list[float]) -> None:
    made = pattern(tuple(weights))
    total = sum(Fraction(weight) for weight in weights)
    for source, weight in enumerate(weights):
        exact = Fraction(weight) / total
        for sequences in (1, 7, 100, PERIOD - 1, PERIOD, 3 * PERIOD + 11):
            drift = abs(made.count(source, sequences) - exact * sequences)
            assert drift <= 2 + len(weights) + sequences * Fraction(2 * len(weights), PERIOD)
        assert (made.count(source, 10 * PERIOD) > 0) == (weight > 0) or weight / sum(weights) == 0
    some_sources = made.sources(PERIOD - 3, 9).tolist()
    counts = [
        sum(made.count(source, number + 1) - made.count(source, number) for source in [one])
        for number, one in zip(range(PERIOD - 3, PERIOD + 6), some_sources, strict=True)
    ]
    assert counts == [1] * 9


def test_a_mixed_run_reads_the_same_for_ever(shards: Shards) -> None:
    """A run that goes on under a later Argosy must read what it would have read: these digests never change."""
    changes = [
        (3, (4, 64), None),
        (4, None, [0.0, 1.0, 1.0]),
        (2, (32, 128), [1.0, 1.0, 0.0]),
        (5, None, [1.0, 1.0, 1.0]),
    ]
    found = []
    for packing in ("greedy", "best-fit"):
        ledger = ledger_of(changes, packing, [1.0, 2.5, 0.1])
        rows = [[tuple(span) for span in row] for step in range(1, 40) for row in rows_at(step, 1, ledger, shards)]
        found.append(blake2b(str(rows).encode(), digest_size=8).hexdigest())
    assert found == ["bd79294df495ce7b", "db7bcfc89a1e7c42"]


def test_a_step_far_away_needs_no_replay(shards: Shards) -> None:
    ledger = ledger_of([(5, (4, 64), None)], "greedy", [1.0, 2.5, 0.1])
    rows = rows_at(10**12, 3, ledger, shards)
    assert sum(span.end - span.begin for row in rows for span in row) == 64


def test_a_source_goes_on_where_it_stood(make_mix: Callable[..., Shards]) -> None:
    """Left out for a while and taken in again, alone or among others: its own stream of sequences is the same."""
    shards = make_mix(([100] * 20, (0,)), ([90] * 20, (0,)))
    alone = Ledger.start(data__order=2, data__mix=mix_of([1.0]), batch__sequence=8, batch__tokens=32)
    mixed = alone
    for step, weights in ((3, [0.0, 1.0]), (5, [1.0, 3.0]), (9, [1.0])):
        mixed = mixed.changed(step, "data.mix", mix_of(weights), "x")

    def stream(ledger: Ledger, steps: int) -> list:
        rows = [row for step in range(1, steps + 1) for row in rows_at(step, 1, ledger, shards)]
        return [row for row in rows if row[0].document < 20]

    mine = stream(mixed, 20)
    assert mine == stream(alone, 20)[: len(mine)]
    assert len(mine) == 2 * 4 + 4 * 1 + 12 * 4


def test_a_run_without_a_mix_reads_as_it_always_did(make_shards: Callable[..., Shards]) -> None:
    shards = make_shards([40, 10, 25, 3], (1,))
    before = Ledger.start(data__order=2, batch__sequence=8, batch__tokens=64)
    named = Ledger.start(data__order=2, data__mix=[{"digest": "d", "weight": 0.5}], batch__sequence=8, batch__tokens=64)
    for step in (1, 2, 30):
        one, other = global_batch(step, 1, before, shards), global_batch(step, 1, named, shards)
        assert np.array_equal(one.tokens, other.tokens) and np.array_equal(one.segments, other.segments)


def test_mixes_that_are_none_are_refused(shards: Shards) -> None:
    start = Ledger.start(data__order=2, data__mix=mix_of([1.0]), batch__sequence=8, batch__tokens=32)
    with pytest.raises(Refused, match=r"the weights of data\.mix sum to nothing"):
        rows_at(2, 1, start.changed(2, "data.mix", [{"digest": "d0", "weight": 0.0}], "x"), shards)
    with pytest.raises(Refused, match=r"the ledger's data\.mix is damaged"):
        rows_at(2, 1, start.changed(2, "data.mix", [{"weight": 0.0}], "x"), shards)
    with pytest.raises(Refused, match=r"does not hold a source that this run reads\. Found: no gone among d0, d1, d2"):
        rows_at(2, 1, start.changed(2, "data.mix", [{"digest": "gone", "weight": 1.0}], "x"), shards)
    assert digests(start.changed(2, "data.mix", mix_of([1.0, 1.0]), "x"), "d0") == ["d0", "d1"]
    assert digests(Ledger.start(data__order=2), "begun") == ["begun"]
