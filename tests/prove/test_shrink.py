"""A failing case is reduced to what makes it fail, in few tries, and stays legal all the way."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy.prove.cover import Cover
from argosy.prove.options import Case, legal, plain
from argosy.prove.shrink import differs, smallest

COVER = Cover()


def drawn(seed: int, **values: Any) -> Case:
    """A random legal case with `values`."""
    random = Random(seed)
    case = COVER.complete(
        values, lambda name, chosen: random.sample(list(COVER.options[name]), len(COVER.options[name]))
    )
    assert case is not None
    return case


@pytest.mark.parametrize(
    ("needed", "left"),
    [
        ({"tp": 2, "norm": "layer"}, {"tp": 2, "norm": "layer"}),
        ({"window": "all"}, {"window": "all"}),
        ({"zero": 3}, {"shard": 2, "zero": 3}),
        (  # whose micro-batches are as many as its ranks at least
            {"schedule": "interleaved"},
            {"pp": 2, "schedule": "interleaved", "virtual": 2, "micros": 2, "layers": 4},
        ),
        ({"pp": 2, "tied": True}, {"pp": 2, "schedule": "1f1b", "layers": 2, "tied": True}),
        ({"uneven": True, "dropout": 0.2}, {"uneven": True, "dropout": 0.2, "micro": 2}),
    ],
    ids=str,
)
def test_what_makes_it_fail_is_left_and_what_that_needs(needed: dict[str, Any], left: dict[str, Any]) -> None:
    for seed in range(3):
        tried: list[Case] = []

        def fails(case: Case, tried: list[Case] = tried) -> bool:
            tried.append(case)
            return all(case[name] == value for name, value in needed.items())

        small = smallest(drawn(seed, **needed), fails)
        assert len(differs(small)) <= len(left) + (needed.get("uneven") is True)
        assert all(small[name] == value for name, value in needed.items())
        assert all(legal(case) for case in tried)
        assert len(tried) <= 100
        assert len({str(case) for case in tried}) == len(tried)


@given(st.integers(0, 1000))
def test_what_always_fails_becomes_plain(seed: int) -> None:
    assert smallest(drawn(seed), lambda case: True) == plain()


@given(st.integers(0, 1000))
def test_what_fails_only_as_it_is_stays_as_it_is(seed: int) -> None:
    case = drawn(seed)
    assert smallest(case, lambda tried: False) == case
