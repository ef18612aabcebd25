"""E2: real gloo ranks against the reference and one process; loss and every gradient, in float64 within 1e-10."""

from __future__ import annotations

import pytest

from argosy.prove.options import Case, covering, plain
from argosy.prove.parity import compare, wrong
from argosy.prove.pool import Pool

SHORT = [
    {"layout": "replicate3", "rows": 8, "micro": 1, "norm": "layer", "biases": True, "positions": "learned"},
    {"layout": "dp2 zero1", "rows": 7, "micro": 2, "kv_heads": 2, "qk_norm": "head", "tied": False},
    {"layout": "dp3 zero2", "rows": 8, "parallel": True, "activation": "gelu", "dropout": 0.2},
    {"layout": "replicate2 dp2 zero3", "rows": 8, "micro": 3, "window": 5, "qk_norm": "full"},
]


@pytest.mark.parametrize("more", SHORT, ids=lambda case: case["layout"])
def test_loss_and_every_gradient_equal_the_reference(pool: Pool, more: Case) -> None:
    assert wrong(compare(pool, {**plain(), **more})) is None


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_every_pair_of_options_equals_the_reference(pool: Pool) -> None:
    for case in covering():
        problem = wrong(compare(pool, case))
        assert problem is None, f"{problem}\n{case}"


@pytest.mark.long
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_narrower_types_stay_within_their_stated_tolerance(pool: Pool, precision: str) -> None:
    for more in SHORT:
        problem = wrong(compare(pool, {**plain(), **more}, precision), precision)
        assert problem is None, f"{problem}\n{more}"


def test_a_difference_is_told() -> None:
    good = {"loss": 1e-16, "gradient": 2e-14, "norm": 0.0, "alone": 0.0, "worst": "norm.weight"}
    assert wrong(good) is None
    assert wrong({**good, "gradient": 1e-6}) == "gradient differs by 1.0e-06, allowed 1e-10 (worst: norm.weight)"
    assert "nan" in str(wrong({**good, "loss": float("nan")}))
