"""Which type a job's matrix products are in when nobody says: by the steps that were timed, or by rates. Pure.

In: the job with everything but its type settled, and what was measured here. Out: the type, where it comes from, and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from argosy.job.schema import Job
from argosy.plan import seconds

FASTER = 1.3  # how much faster bfloat16 must be before its lost digits are worth it


def chosen(job: Job, probed: Mapping[str, Any], world: int, accelerated: bool) -> tuple[str, str, str]:
    """The type of the matrix products, its origin and the measured reason."""
    place = "device" if accelerated else "CPU"
    found = _speeds(job, probed, world)
    if found is None:
        failed = probed.get("failed")
        return "float32", "default", "nothing was measured here" + (f": {failed}" if failed else "")
    half, single, figures = found
    if half > FASTER * single:
        told = f"bfloat16 is {half / single:.1f}x faster than float32 on this {place}: {figures}"
        return "bfloat16", "measured", told
    if half >= single:
        return "float32", "measured", f"bfloat16 is only {half / single:.1f}x faster on this {place}: {figures}"
    return "float32", "measured", f"bfloat16 is {single / half:.1f}x slower on this {place}: {figures}"


def slower(job: Job, probed: Mapping[str, Any], world: int) -> str:
    """ "4.4x slower here: 32 against 140 GFLOP/s, measured", or nothing where bfloat16 is not slower."""
    found = _speeds(job, probed, world)
    if found is None or found[0] >= found[1]:
        return ""
    return f"{found[1] / found[0]:.1f}x slower here: {found[2]}"


def _speeds(job: Job, probed: Mapping[str, Any], world: int) -> tuple[float, float, str] | None:
    """How fast bfloat16 and float32 are, and the measured figures in words; None where nothing was measured."""
    if {"bfloat16", "float32"} <= set(probed.get("pieces", {})):
        half, single = (seconds.from_pieces(_in(job, kind), probed, world) for kind in ("bfloat16", "float32"))
        busy = "" if probed.get("steady", True) else " on a busy machine"
        told = f"about {half:.2g} against {single:.2g} s a step, timed with this model's own layers{busy}"
        return 1 / half, 1 / single, told
    rates = probed.get("gemm", {})
    half, single = rates.get("bfloat16"), rates.get("float32")
    if not half or not single:
        return None
    return half, single, f"{half:.0f} against {single:.0f} GFLOP/s, measured"


def _in(job: Job, kind: str) -> Job:
    return job.model_copy(update={"train": job.train.model_copy(update={"precision": kind})})
