"""How long a step takes, from measured rates. Knows the model's size and the probe's figures, no machine.

On a CPU a small model's time is the time of its matrix products and, as much or more, of everything else: norms, softmax,
activations, the loss. The second part is counted in elements kept for the backward pass, each as if a number of bytes were
moved; that number is fitted to the laptop job's step in both types, compiled and not, beside the probe of the same minute.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from argosy.job import presets
from argosy.job.schema import Job, layers
from argosy.plan import flops
from argosy.plan.bytes import kept

MOVED = {True: 110.0, False: 250.0}  # bytes an element of activations costs, with and without the compiler
EFFICIENCY = 0.4  # share of the matrix-multiply rate that a model reaches where only that rate is known
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
    """Seconds of one step: its matrix products at the measured rate, and everything else at the measured bandwidth."""
    work = flops.flops_per_token(job.model, job.batch.sequence) * job.batch.tokens
    together = rate(probed, str(job.train.precision)) * (max(1, workers) if devices else 1) * 1e9
    bandwidth = float(probed.get("bandwidth", 0))
    if devices or not bandwidth:
        return work / (together * EFFICIENCY)
    blocks = layers(job.model)
    elements = sum(kept(job.model, block) for block in blocks) * (1 + 1 / len(blocks)) * job.batch.tokens
    return work / together + elements * MOVED[job.train.compile is not False] / bandwidth
