"""What a run's speed is compared with, and what that costs."""

from __future__ import annotations

from typing import Any

import pytest

from argosy.job import presets
from argosy.job.load import load
from argosy.plan import bytes as memory
from argosy.plan import flops

PLACES = [("cpu", 1), ("cpu", 64), ("cuda", 1)]


def in_force(*words: str, vocabulary: int = 2048) -> Any:
    """The laptop job with the numbers that speed depends on."""
    fixed = [f"model.vocabulary={vocabulary}", "train.precision=bfloat16", "train.compile=true"]
    made = load("laptop", [*fixed, *words]).job
    model = presets.filled(made.model)
    micro = min(8, made.batch.tokens // made.batch.sequence)
    return made.model_copy(update={"model": model, "batch": made.batch.model_copy(update={"micro": micro})})


def test_a_peak_is_only_what_the_catalogue_knows() -> None:
    from argosy.train.gauge import yardsticks

    job = in_force()
    cost = flops.flops_per_token(job.model, 256)
    assert yardsticks(job, "cpu", 2) == {"flops_per_token": cost}
    assert yardsticks(job, "NVIDIA H200", 4) == {"flops_per_token": cost, "peak_rate": 4 * 989.5e12}


def test_the_products_are_timed_in_the_run_s_own_type_and_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from argosy.device.device import Device
    from argosy.train import gauge

    seen: list[Any] = []

    def rate(parts: list[Any], device: Device) -> float:
        for make, times in parts:
            made = make()
            seen.append((made.held[0], times * made.flops))
        return 1.0

    monkeypatch.setattr(gauge, "rate", rate)
    assert gauge.gauge(in_force("batch.sequence=128"), Device("cpu"), 2, None).measure() == 1.0
    tensors, work = [held for held, _ in seen], [each for _, each in seen]
    # The head's 2,048 columns are cut to as many as the gate and its companion have together.
    assert [tuple(weight.shape) for _, weight, _ in tensors] == [(576, 192), (1024, 192), (192, 192), (192, 512)]
    assert work == pytest.approx([6 * 192 * n for n in (3 * 576, 3 * 1024 + 2048, 3 * 192, 3 * 512)])
    assert {x.dtype for x, _, _ in tensors} == {torch.bfloat16}
    assert {x.shape[0] for x, _, _ in tensors} <= {8 * 128}


def test_ranks_that_share_cores_share_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from argosy.device.device import Device
    from argosy.train import gauge

    asked: list[float] = []

    def samples(job: Any, device: str, share: float) -> list[Any]:
        asked.append(share)
        return []

    monkeypatch.setattr(gauge, "samples", samples)
    monkeypatch.setattr(gauge, "rate", lambda parts, device: 1.0)
    monkeypatch.setattr(gauge, "cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    for local in (1, 2, 8):
        gauge.gauge(in_force(), Device("cpu"), 8, None, local).measure()
    assert asked == [1, 1, 0.25]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("preset", sorted(presets.presets()))
def test_measuring_costs_little_work_and_no_memory_whatever_the_model(preset: str, place: tuple[str, int]) -> None:
    """Less work than two steps of the rank, for each product runs twice, and a bounded one; room that a step has freed."""
    from argosy.train import gauge

    job = in_force(f"model.preset={preset}", "batch.sequence=1024", "batch.tokens=16384", vocabulary=50_257)
    found = gauge.samples(job, *place)
    work = [6.0 * one.rows * one.inner * one.outer for one in found]
    tokens = int(job.batch.micro) * job.batch.sequence
    assert sum(work) <= tokens * flops.flops_per_token(job.model, job.batch.sequence)
    if place[0] == "cpu":
        assert sum(work) <= gauge.WORK * place[1]
    assert all(one.rows >= 256 for one in found), "too few to say anything of a step"
    products = 6.0 * (flops.matrix_parameters(job.model) + job.model.width * job.model.vocabulary)
    assert sum(one.times * each for one, each in zip(found, work, strict=True)) == pytest.approx(products)
    if place[0] == "cpu":  # ranks that share a core do less, but enough to say something
        shared = gauge.samples(job, "cpu", 0.25)
        less = sum(6.0 * one.rows * one.inner * one.outer for one in shared) <= gauge.WORK * 0.25
        assert all(one.rows == gauge.ROWS or (less and one.rows > gauge.ROWS) for one in shared)
    width = memory.WIDTH["bfloat16"]
    for one in found:
        sides = (one.rows * one.inner, one.outer * one.inner, one.rows * one.outer)
        held = width * (sum(sides) + max(sides))
        assert held <= memory.activations(job, int(job.batch.micro)) + memory.logits(job)
