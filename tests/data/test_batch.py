from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from argosy.data import batch as batches
from argosy.data import shard_file
from argosy.data.batch import Batch, counted_bytes, filler, global_batch, held_out_batches
from argosy.data.order import read_at, rows_at, spans_at
from argosy.data.shards import Shards
from argosy.layout.layout import share
from argosy.run.ledger import Ledger

MakeShards = Callable[..., Shards]
LENGTHS = [7, 1, 64, 300, 2, 2, 33, 500, 1, 12, 90, 200, 40]
HELD = (4, 9, 11, 12)
FIELDS = ("tokens", "labels", "segments", "positions", "kinds", "weights", "sequence")


@pytest.fixture
def shards(make_shards: MakeShards) -> Shards:
    return make_shards(LENGTHS, HELD, files=2)


def digest(batch: Batch) -> str:
    return blake2b(b"".join(getattr(batch, name).tobytes() for name in FIELDS), digest_size=8).hexdigest()


def check(batch: Batch, rows: list[list[tuple[int, int]]], shards: Shards) -> None:
    """`rows` names the (document, token) of each place; everything else in the batch follows from that."""
    for row, places in enumerate(rows):
        segment, position, before = 0, 0, None
        for column, (document, token) in enumerate(places):
            text = shards.document(document)
            follows = column > 0 and before == (document, token - 1)
            segment, position = (segment, position + 1) if follows else (segment + 1, 0)
            last = token == len(text) - 1
            assert batch.tokens[row, column] == text[token]
            assert batch.weights[row, column] == (not last)
            assert batch.labels[row, column] == (0 if last else text[token + 1])
            assert (batch.segments[row, column], batch.positions[row, column]) == (segment, position)
            before = (document, token)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    step=some.integers(1, 200),
    seed=some.integers(0, 2**63 - 1),
    sizes=some.sampled_from([(8, 32), (1, 5), (64, 64), (100, 1000), (256, 4096)]),
)
def test_a_batch_is_what_its_documents_say(shards: Shards, step: int, seed: int, sizes: tuple[int, int]) -> None:
    sequence, tokens = sizes
    ledger = Ledger.start(data__order=2, batch__sequence=sequence, batch__tokens=tokens)
    batch = global_batch(step, seed, ledger, shards)
    reads = read_at(step, ledger)
    places = [
        (document, token)
        for _, document, begin, end in spans_at(step, seed, ledger, shards)
        for token in range(begin, end)
    ]
    rows = [places[at : at + sequence] for at in range(0, tokens, sequence)]
    check(batch, rows, shards)
    assert batch.sequence.tolist() == list(range(reads.first_sequence, reads.first_sequence + tokens // sequence))
    assert not set(HELD) & {document for document, _ in places}
    kinds = {name: getattr(batch, name).dtype for name in FIELDS}
    assert kinds == dict.fromkeys(FIELDS, np.int32) | {"weights": np.float32, "sequence": np.int64}
    assert batch.counted == int(batch.weights.sum())


def test_a_batch_is_the_same_for_ever(shards: Shards) -> None:
    """A run that goes on under a later Argosy must read what it would have read: these digests never change."""
    ledger = Ledger.start(data__order=2, batch__sequence=32, batch__tokens=256).changed(3, "batch.sequence", 64, "x")
    found = [digest(global_batch(step, 1, ledger, shards)) for step in (1, 2, 3, 50)]
    assert found == ["d01b2f0f0bb78ede", "c45300ffcef98d3e", "3dbbf7d58e41fdd1", "5b794418006e926d"]


def test_a_batch_of_many_lanes_is_the_same_for_ever(make_shards: MakeShards) -> None:
    shards = make_shards([10, 9000, *range(1, 200)])
    ledger = Ledger.start(data__order=2, batch__sequence=16, batch__tokens=256).changed(30, "batch.sequence", 64, "x")
    found = [digest(global_batch(step, 1, ledger, shards)) for step in (1, 29, 31, 500)]
    assert found == ["da4157a0dc74088a", "c67c5f3a5d3657d0", "7a86000b8e659355", "49ed089095af07a6"]


def test_masks_and_kinds_of_a_shard_are_honoured() -> None:
    shards = Shards(Path(__file__).parent / "fixtures" / "prepared-1")
    batch = global_batch(1, 1, Ledger.start(data__order=2, batch__sequence=20, batch__tokens=20), shards)
    at = (
        batch.tokens[0].tolist().index(97 + 2) - 2
    )  # "abc" and the end mark; of its tokens only c and the mark are counted
    assert batch.tokens[0, at : at + 4].tolist() == [97, 98, 99, 256]
    assert batch.weights[0, at : at + 4].tolist() == [0, 1, 1, 0]
    assert batch.kinds[0, at : at + 4].tolist() == [1, 1, 2, 2]
    assert batch.counted == 15 + 2


def test_counted_bytes_are_those_of_the_labels(shards: Shards) -> None:
    batch = global_batch(1, 1, Ledger.start(data__order=2, batch__sequence=64, batch__tokens=1024), shards)
    bytes_of = np.arange(shards.vocabulary)
    expected = sum(
        int(label) for label, weight in zip(batch.labels.ravel(), batch.weights.ravel(), strict=True) if weight
    )
    assert counted_bytes(batch, bytes_of) == expected > 0


@pytest.mark.parametrize("tokens", [10**6, 254, 200, 64, 5, 1])
def test_held_out_batches_read_each_held_token_once_in_fixed_shapes(shards: Shards, tokens: int) -> None:
    batches = list(held_out_batches(shards, 32, 3, tokens))
    assert {batch.tokens.shape for batch in batches} == {(3, 32)}
    held = [(document, token) for document in shards.held_documents.tolist() for token in range(LENGTHS[document])]
    held = held[:tokens]
    places = [held[at : at + 32] for at in range(0, len(held), 32)]
    for number, batch in enumerate(batches):
        mine = places[number * 3 : number * 3 + 3]
        check(batch, mine, shards)
        for row in range(3):
            filled = len(mine[row]) if row < len(mine) else 0
            assert not batch.weights[row, filled:].any()
            assert not filled or not batch.segments[row, filled:].any()
    assert len(batches) == -(-len(places) // 3)
    marks = sum(token == LENGTHS[document] - 1 for document, token in held)
    assert sum(batch.counted for batch in batches) == len(held) - marks


def test_rows_are_views_and_fillers_count_nothing(shards: Shards) -> None:
    batch = global_batch(2, 1, Ledger.start(data__order=2, batch__sequence=16, batch__tokens=128), shards)
    part = batch.rows(slice(2, 5))
    assert len(part) == 3
    assert np.shares_memory(part.tokens, batch.tokens)
    extra = filler(batch, 2)
    assert (extra.counted, extra.tokens.shape, extra.sequence.tolist()) == (0, (2, 16), [-1, -1])
    assert {name: getattr(extra, name).dtype for name in FIELDS} == {
        name: getattr(batch, name).dtype for name in FIELDS
    }


def test_a_text_smaller_than_a_batch_is_read_several_times_in_one_step(make_shards: MakeShards) -> None:
    tiny = make_shards([3, 4, 2])
    batch = global_batch(1, 1, Ledger.start(data__order=2, batch__sequence=16, batch__tokens=64), tiny)
    assert (batch.segments > 0).all()
    assert batch.segments.max() >= 4


def written(make_shards: MakeShards, masked: bool) -> Shards:
    """Thirty documents, every third place of which is masked where they are `masked`."""
    shards = make_shards([7, 64, 30, 2, 33, 50, 1, 12, 90, 41] * 3, (3,))
    if masked:
        (path,) = shards.folder.glob("*.shard")
        old = shard_file.ShardFile(path)
        tokens = old.read("tokens", 0, old.tokens)
        mask = (np.arange(old.tokens) % 3 != 0).astype(np.uint8)
        contents = shard_file.Contents(
            old.boundaries.astype(np.uint64), old.documents.copy(), old.names, tokens.copy(), mask=mask
        )
        shard_file.write(path, contents)
    return Shards(shards.folder)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("packing", ["greedy", "best-fit"])
def test_a_machine_reads_its_own_sequences_and_no_token_of_the_others(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch, packing: str, masked: bool
) -> None:
    shards, part = written(make_shards, masked), Shards.part
    ledger = Ledger.start(data__order=2, batch__sequence=16, batch__tokens=160, batch__packing=packing)
    read: set[tuple[int, int]] = set()

    def seen(self: Shards, number: int, begin: int, end: int, section: str = "tokens") -> object:
        if section == "tokens":
            read.update((number, at) for at in range(begin, end))
        return part(self, number, begin, end, section)

    monkeypatch.setattr(Shards, "part", seen)
    for step in (1, 3, 9):
        expected = global_batch(step, 5, ledger, shards)
        rows = rows_at(step, 5, ledger, shards)
        for mine in ((0, 2), (1,), (3, 2, 3), (0, 1, 2, 3)):
            own = [row for one in sorted(set(mine)) for row in share(10, 4, one)]
            read.clear()
            found = batches.given(step, 5, ledger, shards, (mine, 4), weigh=False)
            spans = [span for row in own for span in rows[row]]
            needed = {(span.document, at) for span in spans for at in range(span.begin, span.end + 1)}
            assert read <= needed, "a token and the one after it, which is its label"
            assert (found.rows.tolist(), found.whole, found.bytes) == (own, 10, None)
            assert found.counted == expected.counted
            for one in set(mine):
                there = found.part(share(10, 4, one))
                for name in FIELDS:
                    assert np.array_equal(getattr(there, name), getattr(expected, name)[list(share(10, 4, one))])
        weighed = batches.given(step, 5, ledger, shards, ((1,), 4))
        assert weighed.bytes == counted_bytes(expected, shards.bytes_of)
        assert weighed.batch.tokens.tolist() == expected.tokens[list(share(10, 4, 1))].tolist()
        with pytest.raises(ValueError, match="sequences 0 to 2 are another machine's"):
            weighed.part(range(2))


def test_any_documents_can_be_measured_on(shards: Shards) -> None:
    documents = shards.by_hash(np.arange(shards.documents))
    assert sorted(documents.tolist()) == list(range(shards.documents))
    found = list(held_out_batches(shards, 32, 2, 10**6, documents))
    counted = sum(int(batch.weights.sum()) for batch in found)
    assert counted == int((shards.lengths - 1).sum()), "every token but the first of each"
