from __future__ import annotations

from typing import Any

import pytest

from argosy.plan import seconds


def test_rates() -> None:
    assert seconds.rate({"gemm": {"float32": 100.0, "bfloat16": 30.0}}, "bfloat16") == 30
    assert seconds.rate({"gemm": {"float32": 100.0}}, "float64") == 50
    assert seconds.rate({}, "float32") == seconds.RATE_UNKNOWN


def test_a_step_takes_its_flops_over_the_rate(settled: Any) -> None:
    found = settled()
    work = found.plan.flops_per_token * 4096
    assert found.plan.step_seconds == work / (140e9 * seconds.EFFICIENCY)
    assert settled(probed={"gemm": {"float32": 280.0}}).plan.step_seconds == found.plan.step_seconds / 2
    assert found.plan.tokens_per_second == 4096 / found.plan.step_seconds


def test_what_is_no_matrix_product_takes_its_bandwidth(settled: Any) -> None:
    probed = {"gemm": {"float32": 140.0}, "bandwidth": 10e9, "compile": True}
    found = settled(probed=probed)
    products = found.plan.flops_per_token * 4096 / 140e9
    assert found.plan.step_seconds > 1.5 * products
    faster = settled(probed={**probed, "bandwidth": 20e9})
    assert (found.plan.step_seconds - products) / (faster.plan.step_seconds - products) == pytest.approx(2)
    eager = settled("train.compile=false", probed=probed)
    assert eager.plan.step_seconds > found.plan.step_seconds
