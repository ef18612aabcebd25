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
    from argosy.evaluate.generate import continuation

    ids = continuation(counting, [47], tokens=5, temperature=0, context=40, stream=1)
    assert list(ids) == [48, 49, 0, 1, 2]


def test_it_ends_at_the_end_mark_and_never_chooses_an_unknown_id() -> None:
    import torch

    from argosy.evaluate.generate import continuation

    assert list(continuation(counting, [4], tokens=9, temperature=0, context=40, stream=1, end=7)) == [5, 6]

    def beyond(tokens: Any, positions: Any, segments: Any) -> Any:
        scores = torch.zeros(*tokens.shape, 60)
        scores[..., 55] = 100.0
        return scores

    ids = list(continuation(beyond, [4], tokens=50, temperature=1.0, context=40, stream=1, vocabulary=50))
    assert max(ids) < 50


def test_a_long_text_keeps_the_last_of_its_context() -> None:
    from argosy.evaluate.generate import continuation

    ids = continuation(counting, list(range(45)), tokens=70, temperature=0, context=40, stream=1)
    assert list(ids) == [number % 50 for number in range(45, 115)]


def test_prompts_side_by_side_are_continued_as_each_alone() -> None:
    import torch

    from argosy.evaluate.generate import continuation, continuations

    def scores(tokens: Any, positions: Any, segments: Any) -> Any:
        return torch.nn.functional.one_hot((tokens * 7 + positions) % 50, 60).double() * 3

    options: dict[str, Any] = {"tokens": 40, "temperature": 1.0, "context": 64, "end": 13}
    prompts, streams = [[1], [2, 3, 4, 5], [6, 7]], [4, 5, 6]
    steps = list(continuations(scores, prompts, streams=streams, **options))
    for row, (prompt, stream) in enumerate(zip(prompts, streams, strict=True)):
        beside = [chosen[row] for chosen in steps if chosen[row] is not None]
        assert beside == list(continuation(scores, prompt, stream=stream, **options))


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
