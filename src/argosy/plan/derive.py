"""Hyper-parameters that a job leaves out, from the model's size and the run's length, each with its reason. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from argosy.job.schema import Job, ModelSection
from argosy.plan import flops
from argosy.quantities import count_text

BASE_WIDTH = 192  # of the laptop job, for which the rates were found: benchmarks/recipe
STEP = 0.2  # root mean square of AdamW's steps at rate 1, usually: Liu et al., "Muon is scalable", 2025, section 2.2
MUON = 0.8  # Muon's rate over AdamW's when its updates are scaled to AdamW's size: the best by benchmarks/recipe


@dataclass(frozen=True)
class Derived:
    """A value and the sentence that says where it comes from."""

    value: object
    why: str


def lr(job: Job, tokens: int) -> Derived:
    """Peak learning rate: 0.3118 C^-0.125 with C the FLOPs of the whole run (DeepSeek LLM, 2024, equation 1)."""
    wider = growth(job.model)
    compute = flops.flops_per_token(job.model, job.batch.sequence) * tokens / wider**2
    factor, times = 1.0, ""
    if job.optim.name == "muon":
        factor, times = MUON, f", x {MUON} for Muon"
    elif job.optim.name == "lamb":  # a share of the weights: of sqrt(2 / (5 D)), the size of the first ones
        factor = STEP / sqrt(2 / (5 * (job.model.width or 1) / wider))
        times = f", x {factor:.2g} for LAMB: AdamW's steps of {STEP} x the rate as a share of the first weights"
    scaled = "" if wider == 1 else f" at width {job.model.base_width}"
    why = f"0.3118 C^-0.125 for C = {compute:.2g} FLOP in {count_text(tokens)} tokens{scaled}{times}"
    return Derived(float(f"{0.3118 * compute**-0.125 * factor:.2g}"), why)


def growth(model: ModelSection) -> float:
    """How many times as wide the model is as the one that its learning rate is for; 1 where rates do not go by the width."""
    if model.scaling != "mup" or not model.width:
        return 1.0
    return model.width / (model.base_width or BASE_WIDTH)


def warmup(job: Job, tokens: int) -> Derived:
    """Tokens of warm-up: a tenth of a short run, a hundredth of a long one but at least 2,000 steps."""
    step = job.batch.tokens
    steps = max(1, tokens // step)
    chosen = min(steps // 10, max(steps // 100, 2000))
    return Derived(chosen * step, f"{chosen} of {steps} steps")


def decay() -> Derived:
    """Share of the run over which "wsd" falls."""
    return Derived(0.4, "the last 40% of the run")


def momentum() -> Derived:
    """Muon's momentum."""
    return Derived(0.95, "Muon's usual value")


def newton_schulz() -> Derived:
    """Muon's iterations."""
    return Derived(5, "Muon's usual number; brings singular values near 1")


def tokens(job_parameters: int) -> int:
    """Length of a run that says none: twenty tokens a parameter is best for a given compute (Hoffmann et al., 2022)."""
    return 20 * job_parameters
