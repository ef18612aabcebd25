"""What a run's speed is compared with."""

from __future__ import annotations

from typing import Any

import pytest

from argosy.job.load import load
from argosy.plan.flops import flops_per_token

GIVEN = ["model.vocabulary=2048", "train.precision=bfloat16"]


@pytest.fixture
def job() -> Any:
    """The laptop job with the numbers that speed depends on."""
    from argosy.job import presets

    made = load("laptop", GIVEN).job
    return made.model_copy(
        update={"model": presets.filled(made.model), "batch": made.batch.model_copy(update={"micro": 1})}
    )


def test_a_peak_is_only_what_the_catalogue_knows(job: Any) -> None:
    from argosy.train.gauge import yardsticks

    cost = flops_per_token(job.model, 256)
    assert yardsticks(job, "cpu", 2) == {"flops_per_token": cost}
    assert yardsticks(job, "NVIDIA H200", 4) == {"flops_per_token": cost, "peak_rate": 4 * 989.5e12}


def test_the_products_are_timed_in_the_run_s_own_type_and_shapes(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from argosy.device.device import Device
    from argosy.train import gauge

    seen: list[Any] = []

    def rate(parts: list[Any], device: Device) -> float:
        seen.extend((products.held, times) for products, times in parts)
        return 1.0

    monkeypatch.setattr(gauge, "rate", rate)
    assert gauge.gauge(job, Device("cpu"), 2).measure() == 1.0
    (block, layers), (head, once) = seen
    assert (layers, once) == (4, 1)
    assert [tuple(weight.shape) for _, weight, _ in [*block, *head]] == [
        (576, 192), (1024, 192), (192, 192), (192, 512), (2048, 192),
    ]  # fmt: skip
    assert {(x.shape[0], x.dtype) for x, _, _ in block} == {(256, torch.bfloat16)}
