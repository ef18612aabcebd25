"""The rate: its corners, and that it is a function of tokens alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy.job.schema import OptimSection
from argosy.optim.schedule import Branch, rate, scheduled


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


def test_a_branch_from_the_stable_part_decays_on_its_own() -> None:
    """The trunk would have begun to decay at 600 of 1,000; a branch that leaves it at 700 of its own 900 begins there."""
    asked, leaves = section("wsd", final=0.0), Branch(700.0)
    assert rate(asked, 699, 900, leaves) == 1
    assert [rate(asked, tokens, 900, leaves) for tokens in (700, 750, 800, 900)] == pytest.approx([1, 0.75, 0.5, 0])
    long = [
        rate(asked, tokens, 2000, leaves) for tokens in (1199, 1600, 2000)
    ]  # 40% of 2,000 come later than the branch
    assert long == pytest.approx([1, 0.5, 0])


def test_a_branch_from_a_decay_goes_down_the_same_line() -> None:
    asked = section("wsd")
    height = scheduled(asked, 800, 1000, Branch(0.0))
    for tokens in (800, 850, 999, 1000):
        assert rate(asked, tokens, 1000, Branch(800.0, height)) == pytest.approx(rate(asked, tokens, 1000), abs=1e-12)
    middle = rate(asked, 1000, 1200, Branch(800.0, height))  # longer: flatter, no leap
    assert middle == pytest.approx((height + 0.1) / 2)


def test_a_branch_in_the_warmup_warms_up() -> None:
    asked = section("wsd")
    assert [rate(asked, tokens, 1000, Branch(50.0)) for tokens in (60, 100, 600)] == [0.6, 1, 1]


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "constant"])
def test_the_way_back_up_after_a_branch(schedule: str) -> None:
    plain, again = section(schedule), section(schedule).model_copy(update={"rewarm": 80})
    for tokens, share in ((300, 0.0), (320, 0.25), (360, 0.75), (380, 1.0), (900, 1.0)):
        assert rate(again, tokens, 1000, Branch(300.0)) == pytest.approx(
            share * rate(plain, tokens, 1000, Branch(300.0))
        )
    assert rate(again, 320, 1000) == rate(plain, 320, 1000)  # only after a branch
