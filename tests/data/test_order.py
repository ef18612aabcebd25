from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from argosy.data.order import epoch, read_at, spans, tokens_before
from argosy.data.shards import Shards
from argosy.errors import Refused
from argosy.run.ledger import Ledger

MakeShards = Callable[..., Shards]
LENGTHS = [7, 1, 64, 300, 2, 2, 33, 500, 1, 12, 90]  # 1 = an empty text's end mark alone
HELD = (4, 9)


@pytest.fixture
def shards(make_shards: MakeShards) -> Shards:
    return make_shards(LENGTHS, HELD, files=3)


CHANGES = some.lists(
    some.tuples(some.integers(1, 9), some.sampled_from([(8, 16), (16, 16), (4, 64), (32, 128), (5, 35)])), max_size=5
)


def ledger_of(changes: list[tuple[int, tuple[int, int]]]) -> Ledger:
    """A run that begins with 8 x 4 tokens and changes both numbers so many steps after each other."""
    ledger, step = Ledger.start(batch__sequence=8, batch__tokens=32), 1
    for after, (sequence, tokens) in changes:
        step += after
        ledger = ledger.changed(step, "batch.sequence", sequence, "x").changed(step, "batch.tokens", tokens, "x")
    return ledger


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES, seed=some.integers(0, 2**63 - 1), resumes=some.sets(some.integers(1, 60)))
def test_two_epochs_read_every_token_of_every_document_exactly_twice(
    shards: Shards, changes: list[tuple[int, tuple[int, int]]], seed: int, resumes: set[int]
) -> None:
    ledger = ledger_of(changes)
    read: Counter[tuple[int, int, int]] = Counter()
    step, at = 1, 0
    while at < 2 * shards.train_tokens:
        if step in resumes:
            shards = Shards(shards.folder)  # another process, which replays nothing
        now = read_at(step, ledger)
        assert now.first_token == at == tokens_before(step, ledger)
        for number, document, begin, end in spans(now.first_token, now.tokens, seed, shards):
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


@given(changes=CHANGES)
def test_sequence_numbers_follow_each_other_without_a_gap(changes: list[tuple[int, tuple[int, int]]]) -> None:
    ledger, number = ledger_of(changes), 0
    for step in range(1, 60):
        now = read_at(step, ledger)
        assert now.first_sequence == number
        number += now.tokens // now.sequence


def test_a_step_far_away_needs_no_replay(shards: Shards) -> None:
    ledger = Ledger.start(batch__sequence=8, batch__tokens=32).changed(10**9, "batch.tokens", 64, "x")
    now = read_at(10**12, ledger)
    assert now.first_token == 32 * (10**9 - 1) + 64 * (10**12 - 10**9)
    assert sum(span.end - span.begin for span in spans(now.first_token, now.tokens, 3, shards)) == 64


def test_epochs_and_seeds_have_orders_of_their_own_the_same_in_every_process(shards: Shards) -> None:
    orders = {(seed, number): tuple(epoch(seed, number, shards).documents) for seed in (1, 2) for number in (0, 1)}
    assert len(set(orders.values())) == 4
    assert all(sorted(order) == shards.train_documents.tolist() for order in orders.values())
    fresh = Shards(shards.folder)
    assert {key: tuple(epoch(*key, fresh).documents) for key in reversed(orders)} == orders
    assert len(fresh.epochs) <= 3
    # Part of every run's identity: another order would read other text after an update of Argosy.
    assert orders[1, 0] == (1, 5, 10, 0, 8, 2, 7, 6, 3)


def test_all_orders_occur_about_equally_often(shards: Shards) -> None:
    first = Counter(int(epoch(seed, 0, shards).documents[0]) for seed in range(2000))
    assert sorted(first) == shards.train_documents.tolist()
    assert 150 < min(first.values()) <= max(first.values()) < 300


def test_impossible_sizes_and_steps_are_refused() -> None:
    with pytest.raises(Refused, match=r"multiple of batch.sequence\. Found: 30 and 8"):
        read_at(1, Ledger.start(batch__sequence=8, batch__tokens=30))
    with pytest.raises(ValueError, match="counted from 1"):
        read_at(0, Ledger.start(batch__sequence=8, batch__tokens=32))


def test_documents_within_an_epoch_follow_the_stream(shards: Shards) -> None:
    order = epoch(5, 0, shards)
    parts = list(spans(0, shards.train_tokens, 5, shards))
    assert [part.document for part in parts] == order.documents.tolist()
    assert np.cumsum([0, *(part.end for part in parts)]).tolist() == order.starts.tolist()
