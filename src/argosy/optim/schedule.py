"""The learning rate as a pure function of tokens, so that no count of steps, ranks or restarts enters it."""

from __future__ import annotations

from math import cos, pi

from argosy.job.schema import OptimSection


def rate(section: OptimSection, tokens_done: float, tokens_total: float) -> float:
    """The learning rate as a share of its peak, in [0, 1].

    tokens_done: tokens read when half of the step is done, (step - 1/2) x tokens a step, so that neither the first nor the
    last step is spent at a rate of zero. Warm-up is linear over `section.warmup` tokens. After it "constant" stays, "cosine"
    falls by half a cosine to `section.final` at the end, "wsd" (warm-up, stay, decay; Hu et al., "MiniCPM", 2024, section
    4) stays and falls linearly to it over the last `section.decay` of the run.
    """
    warmup = min(float(section.warmup or 0), tokens_total)
    if tokens_done < warmup:
        return tokens_done / warmup
    if section.schedule == "constant":
        return 1.0
    if section.schedule == "cosine":
        begin, length = warmup, tokens_total - warmup
    else:
        length = min((section.decay or 0.0) * tokens_total, tokens_total - warmup)
        begin = tokens_total - length
    fallen = min(max((tokens_done - begin) / length, 0.0), 1.0) if length > 0 else 0.0
    height = (1 + cos(pi * fallen)) / 2 if section.schedule == "cosine" else 1 - fallen
    return section.final + (1 - section.final) * height
