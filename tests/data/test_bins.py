from collections import Counter
from collections.abc import Callable
from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from argosy.data import bins
from argosy.data.mix import Stretch
from argosy.data.order import rows_at
from argosy.data.shards import Shards
from argosy.run.ledger import Ledger

MakeShards = Callable[..., Shards]
LENGTHS = [7, 1, 64, 30, 2, 2, 33, 50, 1, 12, 90, 5, 5, 5, 17, 40]


def packed(lengths: list[int], sequence: int) -> bins.Bins:
    documents = np.arange(len(lengths))
    return bins.pack(documents, np.zeros_like(documents), np.array(lengths), sequence)


@given(some.lists(some.integers(1, 200), min_size=1, max_size=80), some.integers(1, 64))
def test_every_token_is_in_one_sequence_and_what_fits_is_whole(lengths: list[int], sequence: int) -> None:
    made = packed(lengths, sequence)
    counted: Counter[tuple[int, int]] = Counter()
    pieces: Counter[int] = Counter()
    for number in range(len(made)):
        stretches = made.stretches(number)
        assert 0 < sum(end - begin for _, begin, end in stretches) <= sequence
        for document, begin, end in stretches:
            counted.update((document, token) for token in range(begin, end))
            pieces[document] += 1
    assert counted == Counter((number, token) for number, length in enumerate(lengths) for token in range(length))
    assert all(pieces[number] == -(-length // sequence) for number, length in enumerate(lengths))
    assert made.padding == pytest.approx(1 - sum(lengths) / (len(made) * sequence))
    half_empty = sum(
        sum(end - begin for _, begin, end in made.stretches(number)) * 2 <= sequence for number in range(len(made))
    )
    assert half_empty <= 1, "two sequences that fit into one"


def by_hand(lengths: list[int], sequence: int) -> list[list[int]]:
    """Best fit, looking at every sequence for every document."""
    made: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        rooms = [(sequence - sum(one), number) for number, one in enumerate(made) if sequence - sum(one) >= length]
        if rooms:
            made[min(rooms)[1]].append(length)
        else:
            made.append([length])
    return made


@given(some.lists(some.integers(1, 31), min_size=1, max_size=60))
def test_it_is_the_best_fit(lengths: list[int]) -> None:
    made = packed(lengths, 32)
    found = [[end - begin for _, begin, end in made.stretches(number)] for number in range(len(made))]
    assert found == by_hand(lengths, 32)


def test_a_window_bounds_what_is_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bins, "WINDOW", 3)
    found = packed([5, 5, 5, 3, 3, 3], 8)
    assert [[end - begin for _, begin, end in found.stretches(number)] for number in range(len(found))] == [
        [5], [5], [5], [3, 3], [3],
    ]  # fmt: skip
    monkeypatch.setattr(bins, "WINDOW", 6)
    assert packed([5, 5, 5, 3, 3, 3], 8).padding == 0


def test_epochs_hold_the_same_sequences_in_another_order(make_shards: MakeShards) -> None:
    shards = make_shards(LENGTHS, (0,))
    ledger = Ledger.start(data__order=2, batch__sequence=32, batch__tokens=32, batch__packing="best-fit")
    count = len(bins.whole(1, shards.parts[0], 32, shards))
    first, second = (
        [tuple(span[1:] for span in rows_at(step, 1, ledger, shards)[0]) for step in range(begin, begin + count)]
        for begin in (1, count + 1)
    )
    assert sorted(first) == sorted(second)
    assert first != second
    assert [rows_at(step, 1, ledger, shards)[0][0].epoch for step in (1, count, count + 1)] == [0, 0, 1]


def test_documents_of_a_source_do_not_depend_on_what_lies_beside_it(make_mix: Callable[..., Shards]) -> None:
    """Its sequences are the same, alone or among others: documents are drawn by their own numbers."""
    one = make_mix((LENGTHS, (0,)))
    two = make_mix(([4, 5, 6], (0,)), (LENGTHS, (0,)))
    alone, beside = bins.whole(3, one.parts[0], 32, one), bins.whole(3, two.parts[1], 32, two)
    assert (beside.documents - 3).tolist() == alone.documents.tolist()
    assert beside.starts.tolist() == alone.starts.tolist()


def test_a_rest_is_packed_anew_and_what_it_was_read_by_is_remembered(make_shards: MakeShards) -> None:
    shards = make_shards(LENGTHS, (0,))
    part = shards.parts[0]
    count = len(bins.whole(1, part, 32, shards))
    now = bins.place([Stretch(32, count - 2)], 8, 1, part, shards)
    rest = bins.place([Stretch(32, count - 2)], 32, 1, part, shards)
    tokens = sum(
        end - begin for number in rest.order[rest.read :] for _, begin, end in rest.bins.stretches(int(number))
    )
    assert int((now.bins.ends - now.bins.begins).sum()) == tokens
    assert (now.epoch, now.read, now.bins.sequence) == (0, 0, 8)
    other = bins.place([Stretch(32, count - 3)], 8, 1, part, shards)
    assert len(other.bins) > len(now.bins)
    later = bins.place([Stretch(32, count - 2), Stretch(8, len(now.bins) + 1)], 8, 1, part, shards)
    assert (later.epoch, later.read) == (1, 1)


def test_these_sequences_never_change(make_shards: MakeShards) -> None:
    """A run that goes on under a later Argosy must read what it would have read: this digest never changes."""
    shards = make_shards(LENGTHS, (0,))
    start = Ledger.start(data__order=2, batch__sequence=32, batch__tokens=64, batch__packing="best-fit")
    ledger = start.changed(5, "batch.sequence", 16, "x")

    def read(shards: Shards) -> str:
        rows = [[tuple(span) for span in row] for step in range(1, 20) for row in rows_at(step, 1, ledger, shards)]
        return blake2b(str(rows).encode(), digest_size=8).hexdigest()

    assert read(shards) == read(Shards(shards.folder)) == "fb004f9834fb8c5c"
