"""How long a step takes, from measured matrix-multiply rates. Knows the model's FLOPs and the probe's figures, no machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from argosy.job import presets
from argosy.job.schema import Job
from argosy.plan import flops

EFFICIENCY = 0.55  # share of the matrix-multiply rate that a small compiled model reaches (benchmarks/cpu_training)
RATE_UNKNOWN = 20.0  # GFLOP/s of a worker when nothing was measured: a slow core, so that lengths err on the short side


def shapes(job: Job) -> list[tuple[int, int, int]]:
    """The matrix products that most of a step's time goes into, as (M, K, N): what the probe should measure."""
    model = presets.filled(job.model)
    block, width = model.block, model.width or 0
    rows = min(job.batch.tokens, 4096)
    heads, kv_heads = block.heads or 1, block.kv_heads or block.heads or 1
    size, hidden = flops.head_size(model, block), flops.hidden(model, block)
    return [(rows, width, (heads + 2 * kv_heads) * size), (rows, width, hidden), (rows, hidden, width)]


def rate(probed: Mapping[str, Any], precision: str) -> float:
    """GFLOP/s of this machine's devices together, in `precision`; float64 is half of float32 where it was not measured."""
    measured = probed.get("gemm", {})
    if precision in measured:
        return float(measured[precision])
    found = float(measured.get("float32", RATE_UNKNOWN))
    return found / 2 if precision == "float64" else found


def step_seconds(job: Job, probed: Mapping[str, Any], workers: int, devices: int) -> float:
    """Seconds of one step: the FLOPs of the global batch over what `workers` reach together."""
    work = flops.flops_per_token(job.model, job.batch.sequence) * job.batch.tokens
    together = rate(probed, str(job.train.precision)) * (max(1, workers) if devices else 1)
    return work / (together * 1e9 * EFFICIENCY)
