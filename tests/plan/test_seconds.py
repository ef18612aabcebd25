from __future__ import annotations

from typing import Any

import pytest

from argosy.layout.layout import Layout
from argosy.plan import flops, moved, seconds


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


def test_a_pipeline_waits_and_tensor_parallelism_sends_activations(settled: Any) -> None:
    job = settled("batch.micro=1", "layout.shape=pp2", "model.layers=4").job
    pipeline, sharing = Layout(pp=2), Layout(tp=2)
    assert seconds.waiting(job, pipeline, 16) == pytest.approx(1 / 17)
    assert seconds.waiting(settled("layout.shape=pp2", "model.layers=4").job, pipeline, 16) == pytest.approx(1 / 9)
    assert seconds.waiting(job, sharing, 16) == 0
    assert seconds.exchanged(job, pipeline, 16) == 0  # no replicas, no tensor ranks
    assert seconds.exchanged(job, sharing, 16) == moved.passes(job) / 2 * 16 * 256 * 192 * 4
    replicas = 4 * flops.parameters(job.model) * 2 / 2
    assert seconds.exchanged(job, Layout(dp_replicate=2), 8) == replicas


def test_a_step_that_was_seen_is_that_of_one_layout(settled: Any) -> None:
    names = {
        seconds.seen(settled("model.layers=4", *words).job)
        for words in (
            ["layout.shape=pp2"], ["layout.shape=pp2", "layout.schedule=gpipe"], ["memory.recompute=block"], [],
            ["layout.shape=dp2", "layout.zero=3"], ["layout.shape=dp2", "layout.zero=1"],
        )
    }  # fmt: skip
    assert len(names) == 6
