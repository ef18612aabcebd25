"""Sampling: reproducible, within its limits, whole characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest


def counting(tokens: Any, positions: Any, segments: Any) -> Any:
    """Logits of a model that always expects the next number, modulo 50."""
    import torch

    assert tokens.shape[1] % 32 == 0 or tokens.shape[1] == 40
    return 20.0 * torch.nn.functional.one_hot((tokens + 1) % 50, 60).double()


def test_the_likeliest_continuation() -> None:
    from argosy.evaluate.generate import Again, continuation

    ids = continuation(Again(counting, context=40), [47], tokens=5, temperature=0, context=40, stream=1)
    assert list(ids) == [48, 49, 0, 1, 2]


def test_it_ends_at_the_end_mark_and_never_chooses_an_unknown_id() -> None:
    import torch

    from argosy.evaluate.generate import Again, continuation

    read = Again(counting, context=40)
    assert list(continuation(read, [4], tokens=9, temperature=0, context=40, stream=1, ends=[3, 7])) == [5, 6]

    def beyond(tokens: Any, positions: Any, segments: Any) -> Any:
        scores = torch.zeros(*tokens.shape, 60)
        scores[..., 55] = 100.0
        return scores

    read = Again(beyond, context=40)
    ids = list(continuation(read, [4], tokens=50, temperature=1.0, context=40, stream=1, vocabulary=50))
    assert max(ids) < 50


def test_a_long_text_keeps_the_last_of_its_context() -> None:
    from argosy.evaluate.generate import Again, continuation, seen

    read = Again(counting, context=40)
    ids = continuation(read, list(range(45)), tokens=70, temperature=0, context=40, stream=1)
    assert list(ids) == [number % 50 for number in range(45, 115)]
    for length in (1, 39, 40, 41, 50, 51, 400):
        kept = seen(range(length), 40)
        assert list(kept) == list(range(length))[-len(kept) :]
        assert length <= 40 or (30 <= len(kept) <= 40 and (length - len(kept)) % 10 == 0)
    assert list(seen(range(9), 2)) == [7, 8]


def test_who_listens_ends_a_text_and_the_others_go_on() -> None:
    from argosy.evaluate.generate import Again, continuations

    done: set[int] = set()
    found: list[list[int | None]] = []
    read = Again(counting, context=40)
    for chosen in continuations(
        read, [[1], [11]], tokens=4, temperature=0, context=40, streams=[1, 2], ends=[14], done=done
    ):
        found.append(chosen)
        if len(found) == 2:
            done.add(0)
    assert found == [[2, 12], [3, 13]]
    assert done == {0, 1}


def test_prompts_side_by_side_are_continued_as_each_alone() -> None:
    import torch

    from argosy.evaluate.generate import Again, continuation, continuations

    def scores(tokens: Any, positions: Any, segments: Any) -> Any:
        return torch.nn.functional.one_hot((tokens * 7 + positions) % 50, 60).double() * 3

    options: dict[str, Any] = {"tokens": 40, "temperature": 1.0, "context": 64, "ends": [13]}
    prompts, streams = [[1], [2, 3, 4, 5], [6, 7]], [4, 5, 6]
    read = Again(scores, context=64)
    steps = list(continuations(read, prompts, streams=streams, **options))
    for row, (prompt, stream) in enumerate(zip(prompts, streams, strict=True)):
        beside = [chosen[row] for chosen in steps if chosen[row] is not None]
        assert beside == list(continuation(read, prompt, stream=stream, **options))


def test_the_same_key_draws_the_same_ids_in_their_shares() -> None:
    import torch

    from argosy.evaluate.generate import choose

    logits = torch.tensor([0.6, 0.3, 0.1]).log()
    drawn = [choose(logits, 1.0, 5, position) for position in range(3000)]
    assert drawn == [choose(logits, 1.0, 5, position) for position in range(3000)]
    assert drawn != [choose(logits, 1.0, 6, position) for position in range(3000)]
    for number, share in enumerate((0.6, 0.3, 0.1)):
        assert drawn.count(number) / 3000 == pytest.approx(share, abs=0.03)
    assert {choose(logits, 0, 5, position) for position in range(9)} == {0}


def test_top_p_draws_from_the_fewest_likeliest_in_their_shares() -> None:
    import torch

    from argosy.evaluate.generate import choose, nucleus

    shares = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
    for top_p, kept in (
        (1e-9, [1]),
        (0.39, [1]),
        (0.41, [1, 3]),
        (0.69, [1, 3]),
        (0.71, [1, 2, 3]),
        (0.95, [0, 1, 2, 3]),
    ):
        assert nucleus(shares, top_p).nonzero().flatten().tolist() == kept
        assert {choose(shares.log(), 1.0, 3, position, top_p) for position in range(400)} == set(kept)
    equal = nucleus(torch.full((4,), 0.25, dtype=torch.float64), 0.5)
    assert equal.nonzero().flatten().tolist() == [0, 1]
    drawn = [choose(shares.log(), 1.0, 3, position, 0.5) for position in range(3000)]
    assert drawn.count(1) / 3000 == pytest.approx(4 / 7, abs=0.03)
    plain = [choose(shares.log(), 1.0, 3, position) for position in range(50)]
    assert plain == [choose(shares.log(), 1.0, 3, position, 1.0) for position in range(50)]


class Letters:
    """A tokenizer whose ids are bytes."""

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")


def test_text_comes_in_whole_characters() -> None:
    from argosy.evaluate.generate import following, pieces

    ids = list("é→x".encode())
    found = list(pieces(Letters(), iter(ids), list(b"a")))
    assert found == ["é", "→", "x"]
    assert following(Letters(), list(b"a"), ids) == "é→x"
    half = list(pieces(Letters(), iter(ids[:1]), list(b"a")))
    assert half == ["\ufffd"]


def test_it_ends_before_a_stop_text_and_shows_nothing_of_it() -> None:
    from argosy.evaluate.generate import Written, pieces

    def shown(text: str, *stops: str) -> list[str]:
        return list(pieces(Letters(), iter(text.encode()), b"a", stops))

    assert "".join(shown("one. two", "\n")) == "one. two"
    assert shown("ab\n\ncd", "\n\n") == ["a", "b"]
    assert shown("ab\ncd", "\n\n") == ["a", "b", "\nc", "d"]  # held back until it was no stop text
    assert shown("ab\n", "\n\n") == ["a", "b", "\n"]  # and given out when nothing follows
    assert "".join(shown("xxENDyySTOP", "STOP", "END")) == "xx"
    assert "".join(shown("aab!", "aaab", "ab!")) == "a"
    assert "".join(shown("é→x", "→")) == "é"
    written = Written(Letters(), b"", ["b"])
    assert [written.add(letter) for letter in b"ab"] == ["a", ""]
    assert written.stopped and written.text == "a" and written.rest() == ""
    assert Written(Letters(), b"", [""]).stops == ()  # which would end every text at once
