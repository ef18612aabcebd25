"""The learning rate as a pure function of tokens, so that no count of steps, ranks or restarts enters it."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi

from argosy.job.schema import OptimSection


@dataclass(frozen=True)
class Branch:
    """Where a run left its parent: tokens read until then, and the rate that the parent's schedule had reached."""

    tokens: float
    height: float = 1.0  # as a share of the peak; 1 during the parent's warm-up, which goes on


def rate(section: OptimSection, tokens_done: float, tokens_total: float, branch: Branch | None = None) -> float:
    """The learning rate as a share of its peak, in [0, 1]: what the schedule says, and after a `branch` the way back to it.

    tokens_done: tokens read when half of the step is done, (step - 1/2) x tokens a step, so that neither the first nor the
    last step is spent at a rate of zero. Tokens count from the first one of the first ancestor. Over `section.rewarm` tokens
    behind a branch the rate rises linearly from 0 to what the schedule says.
    """
    found = scheduled(section, tokens_done, tokens_total, branch or Branch(0.0))
    if branch is None or not section.rewarm:
        return found
    return found * min(1.0, (tokens_done - branch.tokens) / section.rewarm)


def scheduled(section: OptimSection, tokens_done: float, tokens_total: float, branch: Branch) -> float:
    """The schedule alone. Warm-up is linear over `section.warmup` tokens. After it "constant" stays, "cosine" falls by half a
    cosine to `section.final` at the end, "wsd" (warm-up, stay, decay; Hu et al., "MiniCPM", 2024, section 4) stays and falls
    linearly to it over the last `section.decay` of the run; in a branch not before it begins, and from the height it begins
    at: so a branch from the stable part decays on its own, and one from a decay goes down the same line.
    """
    warmup = min(float(section.warmup or 0), tokens_total)
    if tokens_done < warmup:
        return tokens_done / warmup
    if section.schedule == "constant":
        return 1.0
    if section.schedule == "cosine":
        begin, length = warmup, tokens_total - warmup
    else:
        length = min((section.decay or 0.0) * tokens_total, tokens_total - max(warmup, branch.tokens))
        begin = tokens_total - length
    fallen = min(max((tokens_done - begin) / length, 0.0), 1.0) if length > 0 else 0.0
    if section.schedule == "cosine":
        return section.final + (1 - section.final) * (1 + cos(pi * fallen)) / 2
    return section.final + (branch.height - section.final) * (1 - fallen)
