import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from argosy.data import order
from argosy.data.order import epoch as epoch_of
from argosy.data.order import read_at, refuse_backdated, spans_at, tokens_before
from argosy.data.order import spans as spans_of
from argosy.data.shards import Shards
from argosy.errors import Refused
from argosy.run.ledger import Entry, Ledger

MakeShards = Callable[..., Shards]
LENGTHS = [7, 1, 64, 300, 2, 2, 33, 500, 1, 12, 90]  # 1 = an empty text's end mark alone
HELD = (4, 9)


@pytest.fixture
def shards(make_shards: MakeShards) -> Shards:
    return make_shards(LENGTHS, HELD, files=3)


def epoch(seed: int, number: int, shards: Shards) -> order.Epoch:
    return epoch_of(seed, number, shards.parts[0], shards)


CHANGES = some.lists(
    some.tuples(some.integers(1, 9), some.sampled_from([(8, 16), (16, 16), (4, 64), (32, 128), (5, 35)])), max_size=5
)


def ledger_of(changes: list[tuple[int, tuple[int, int]]]) -> Ledger:
    """A run that begins with 8 x 4 tokens and changes both numbers so many steps after each other."""
    ledger, step = Ledger.start(data__order=2, batch__sequence=8, batch__tokens=32), 1
    for after, (sequence, tokens) in changes:
        step += after
        ledger = ledger.changed(step, "batch.sequence", sequence, "x").changed(step, "batch.tokens", tokens, "x")
    return ledger


@pytest.fixture(params=[1, 4, 32], ids="rows-{}".format)
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Sequences in a lane at least: so few that a small text has many lanes, down to those of one sequence."""
    monkeypatch.setattr(order, "ROWS", request.param)
    return int(request.param)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES, seed=some.integers(0, 2**63 - 1), resumes=some.sets(some.integers(1, 60)))
def test_two_epochs_read_every_token_of_every_document_exactly_twice(
    rows: int, shards: Shards, changes: list[tuple[int, tuple[int, int]]], seed: int, resumes: set[int]
) -> None:
    ledger = ledger_of(changes)
    read: Counter[tuple[int, int, int]] = Counter()
    step, at = 1, 0
    while at < 2 * shards.train_tokens:
        if step in resumes:
            shards = Shards(shards.folder)  # another process, which replays nothing
        now = read_at(step, ledger)
        assert now.first_token == at == tokens_before(step, ledger)
        for number, document, begin, end in spans_at(step, seed, ledger, shards):
            read.update((number, document, token) for token in range(begin, end))
        at, step = at + now.tokens, step + 1
    expected = {
        (number, document, token)
        for number in range(2)
        for document in shards.train_documents.tolist()
        for token in range(LENGTHS[document])
    }
    assert {key for key in read if key[0] < 2} == expected
    assert set(read.values()) == {1}


def by_hand(steps: int, seed: int, ledger: Ledger, shards: Shards) -> list[list[tuple[int, int, int]]]:
    """The same read step after step by queues: (epoch, document, token) of each place of each step."""
    total, number, queues, lane, quota = shards.train_tokens, 0, [], 0, 0  # quota: what is left of this lane's turn
    told: list[list[tuple[int, int, int]]] = []
    for step in range(1, steps + 1):
        now, found = read_at(step, ledger), []
        if step > 1 and now.sequence != read_at(step - 1, ledger).sequence:
            lane, quota = 0, now.sequence
        for _ in range(now.tokens // now.sequence):
            room = now.sequence
            while room:
                if not any(queues):
                    documents = epoch(seed, number, shards).documents.tolist()
                    text = [(number, document, token) for document in documents for token in range(LENGTHS[document])]
                    count = max(1, min(order.LANES, total // (order.ROWS * now.sequence)))
                    stride = next(n for n in range(max(1, round(0.618 * count)), 9999) if math.gcd(n, count) == 1)
                    cuts = [total * place // count for place in range(count + 1)]
                    places = [place * stride % count for place in range(count)]
                    queues = [text[cuts[place] : cuts[place + 1]] for place in places]
                    lane, quota, number = 0, room, number + 1  # the first turn ends where the sequence does
                taken = queues[lane][: min(room, quota)]
                del queues[lane][: len(taken)]
                found += taken
                room, quota = room - len(taken), quota - len(taken)
                if not quota or not queues[lane]:
                    lane, quota = (lane + 1) % len(queues), now.sequence
        told.append(found)
    return told


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(changes=CHANGES, seed=some.integers(0, 2**63 - 1))
def test_every_step_reads_what_lanes_read_in_turn_give(
    rows: int, shards: Shards, changes: list[tuple[int, tuple[int, int]]], seed: int
) -> None:
    ledger = ledger_of(changes)
    for step, expected in enumerate(by_hand(60, seed, ledger, shards), 1):
        found = [
            (number, document, token)
            for number, document, begin, end in spans_at(step, seed, ledger, shards)
            for token in range(begin, end)
        ]
        assert found == expected


def test_one_long_file_does_not_fill_a_step(make_shards: MakeShards) -> None:
    """Half of the text is one file: about half of every step is, not all of the first half."""
    shards = make_shards([10, 100_000, *[250] * 400])
    ledger = Ledger.start(data__order=2, batch__sequence=64, batch__tokens=64 * 32)
    share = [
        sum(end - begin for _, document, begin, end in spans_at(step, 1, ledger, shards) if document == 1) / (64 * 32)
        for step in range(1, 95)
    ]
    assert 0.3 < min(share) <= max(share) < 0.7


@given(changes=CHANGES)
def test_sequence_numbers_follow_each_other_without_a_gap(changes: list[tuple[int, tuple[int, int]]]) -> None:
    ledger, number = ledger_of(changes), 0
    for step in range(1, 60):
        now = read_at(step, ledger)
        assert now.first_sequence == number
        number += now.tokens // now.sequence


def test_a_step_far_away_needs_no_replay(shards: Shards) -> None:
    ledger = Ledger.start(data__order=2, batch__sequence=8, batch__tokens=32).changed(10**9, "batch.tokens", 64, "x")
    now = read_at(10**12, ledger)
    assert now.first_token == 32 * (10**9 - 1) + 64 * (10**12 - 10**9)
    assert sum(span.end - span.begin for span in spans_at(10**12, 3, ledger, shards)) == 64


def test_epochs_and_seeds_have_orders_of_their_own_the_same_in_every_process(shards: Shards) -> None:
    orders = {(seed, number): tuple(epoch(seed, number, shards).documents) for seed in (1, 2) for number in (0, 1)}
    assert len(set(orders.values())) == 4
    assert all(sorted(order) == shards.train_documents.tolist() for order in orders.values())
    fresh = Shards(shards.folder)
    assert {key: tuple(epoch(*key, fresh).documents) for key in reversed(orders)} == orders
    assert len(fresh.parts[0].orders) <= 3
    # Part of every run's identity: another order would read other text after an update of Argosy.
    assert orders[1, 0] == (1, 5, 10, 0, 8, 2, 7, 6, 3)


def test_all_orders_occur_about_equally_often(shards: Shards) -> None:
    first = Counter(int(epoch(seed, 0, shards).documents[0]) for seed in range(2000))
    assert sorted(first) == shards.train_documents.tolist()
    assert 150 < min(first.values()) <= max(first.values()) < 300


def test_impossible_sizes_and_steps_are_refused() -> None:
    with pytest.raises(Refused, match=r"multiple of batch.sequence\. Found: 30 and 8"):
        read_at(1, Ledger.start(data__order=2, batch__sequence=8, batch__tokens=30))
    with pytest.raises(ValueError, match="counted from 1"):
        read_at(0, Ledger.start(data__order=2, batch__sequence=8, batch__tokens=32))


def test_a_run_begun_with_another_rule_is_refused(shards: Shards) -> None:
    """Also one from before the rules had numbers; how many tokens its steps read is still known."""
    for begun, number in (({}, 1), ({"data__order": 3}, 3)):
        ledger = Ledger.start(**begun, batch__sequence=8, batch__tokens=32)
        with pytest.raises(Refused, match=rf"does not know \(number {number}, not 2\)"):
            next(spans_at(1, 1, ledger, shards))
        assert tokens_before(3, ledger) == 64


def test_a_change_of_steps_that_were_taken_without_it_is_refused(tmp_path: Path) -> None:
    entries = [Entry(101, "batch.tokens", 32, 64, "--change"), Entry(90, "optim.lr", 1.0, 2.0, "--change")]
    refuse_backdated(tmp_path, entries, 100)  # a rate is no matter of the order
    with pytest.raises(Refused, match=r"batch\.tokens was changed from step 101 on, but the run is at step 150"):
        refuse_backdated(tmp_path, entries, 150)


def test_documents_within_an_epoch_follow_the_stream(shards: Shards) -> None:
    order = epoch(5, 0, shards)
    parts = list(spans_of(0, shards.train_tokens, 5, shards.parts[0], shards))
    assert [part.document for part in parts] == order.documents.tolist()
    assert np.cumsum([0, *(part.end for part in parts)]).tolist() == order.starts.tolist()
