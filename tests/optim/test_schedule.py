"""The rate: its corners, and that it is a function of tokens alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy.job.schema import OptimSection
from argosy.optim.schedule import rate


def section(schedule: str, warmup: int = 100, decay: float = 0.4, final: float = 0.1) -> OptimSection:
    return OptimSection(schedule=schedule, lr=1.0, warmup=warmup, decay=decay, final=final)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "schedule, points",
    [
        ("wsd", {0: 0, 50: 0.5, 100: 1, 600: 1, 800: 0.55, 1000: 0.1}),
        ("cosine", {0: 0, 50: 0.5, 100: 1, 550: 0.55, 1000: 0.1}),
        ("constant", {0: 0, 50: 0.5, 100: 1, 1000: 1}),
    ],
)
def test_corners(schedule: str, points: dict[int, float]) -> None:
    for tokens, wanted in points.items():
        assert rate(section(schedule), tokens, 1000) == pytest.approx(wanted, abs=1e-12), tokens


def test_no_warmup_and_no_decay() -> None:
    plain = section("wsd", warmup=0, decay=0.0)
    assert [rate(plain, tokens, 1000) for tokens in (0, 500, 1000)] == [1, 1, 1]


def test_a_run_shorter_than_its_warmup_only_rises() -> None:
    assert [rate(section("wsd"), tokens, 50) for tokens in (0, 25)] == [0, 0.5]


@given(
    st.sampled_from(["wsd", "cosine"]),
    st.integers(0, 900),
    st.floats(0, 1, allow_subnormal=False),
    st.floats(0, 1, allow_subnormal=False),
)
def test_rises_then_falls_within_bounds(schedule: str, warmup: int, decay: float, final: float) -> None:
    asked = section(schedule, warmup, decay, final)
    rates = [rate(asked, tokens, 1000) for tokens in range(0, 1001, 10)]
    assert all(0 <= r <= 1 + 1e-12 for r in rates)
    top = rates.index(max(rates))
    assert all(a <= b + 1e-12 for a, b in pairwise(rates[: top + 1]))
    assert all(a >= b - 1e-12 for a, b in pairwise(rates[top:]))
