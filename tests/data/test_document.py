from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as some

from argosy.data.cache import RULES
from argosy.data.document import counts, digest, each, held_out, printable

HASHES = some.lists(some.integers(0, 2**64 - 1), min_size=2, max_size=50, unique=True).map(
    lambda numbers: np.array(numbers, np.uint64)
)


@given(HASHES, some.floats(0, 1, allow_subnormal=False))
def test_both_sides_always_have_a_document(hashes: np.ndarray, share: float) -> None:
    held = held_out(hashes, share)
    assert 1 <= held.sum() < len(hashes)


@given(HASHES, HASHES)
def test_a_document_stays_on_its_side_when_others_are_added(hashes: np.ndarray, others: np.ndarray) -> None:
    base = np.append(
        hashes, np.array([3, 2**63 + 5], np.uint64)
    )  # one below the half, one above: the rule, no exception
    alone, together = held_out(base, 0.5), held_out(np.concatenate([base, others]), 0.5)
    assert (alone == together[: len(base)]).all()


def test_about_the_asked_share_is_held_out() -> None:
    hashes = np.array([digest(f"document {number}".encode()) for number in range(20_000)], np.uint64)
    assert 0.018 < held_out(hashes, 0.02).mean() < 0.022


def test_copies_of_a_text_are_on_one_side() -> None:
    hashes = np.array([digest(text) for text in (b"a", b"b", b"a", b"b", b"c")], np.uint64)
    held = held_out(hashes, 0.0)
    assert held[0] == held[2]
    assert held[1] == held[3]


def test_a_text_of_many_copies_is_trained_on_however_small_its_hash() -> None:
    for many, few in ((3, 2**63), (2**63, 3)):
        hashes = np.array([many] * 114 + [few], np.uint64)
        assert held_out(hashes, 0.02).tolist() == [False] * 114 + [True]


def test_the_rule_is_the_one_that_names_prepared_text() -> None:
    """Where this fails, two machines would train on different documents of one name: raise a number in cache.RULES."""
    texts = "abcdefgh" + "c" * 3 + "aa" + "h"
    hashes = np.array([digest(text.encode()) for text in texts], np.uint64)
    held = ["".join(np.array(list(texts))[held_out(hashes, share)]) for share in (0.02, 0.15, 0.5, 1.0)]
    assert (RULES, held) == ("argosy 1, held out 2", ["d", "d", "adeghaah", "abdefghaah"])


def test_counts_are_told_commonest_first() -> None:
    assert counts(Counter({".pdf": 312, ".docx": 4, "": 1})) == "312 .pdf, 4 .docx, 1 without suffix"
    assert counts(Counter({f".{letter}": 1 for letter in "abcdef"})) == "1 .a, 1 .b, 1 .c, 1 .d and 2 others"


def test_names_are_printable_whatever_they_hold() -> None:
    assert printable("a\x1b[31m\nb\udcff.txt") == "a?[31m?b?.txt"


def test_numbers_come_one_after_the_other_whatever_their_count() -> None:
    for count in (0, 1, 65_536, 200_001):
        assert list(each(np.arange(count))) == list(range(count))
