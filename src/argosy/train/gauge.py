"""What a run's speed is compared with: its model's own matrix products timed alone between steps, and the devices' peaks.

In: the job in force and this rank's device. Out: a callback that writes the scalars `flops_per_token`, `peak_rate` and
`gemm_rate`, from which `run/archive.py` makes `mfu` and `gemm_share` of every step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from argosy.cluster import catalogue
from argosy.device.device import Device
from argosy.device.precision import dtype
from argosy.device.products import Products, rate
from argosy.job.schema import Job
from argosy.plan.flops import flops_per_token
from argosy.plan.trial import passes
from argosy.train.callbacks import Callback
from argosy.train.vote import Vote

if TYPE_CHECKING:
    from argosy.train.trainer import Trainer

APART = 100  # between two measurements pass at least so many times the seconds that the first of them took
TOKENS = 4096  # in the products that are timed, at most
WORK = 5e9  # FLOP of all of them once, for each thread of a CPU, at most: a tenth of a second of a core
# Rows and columns of a weight, at most: a part of a wider one is as fast, and is little work and little memory.
SIDE, SIDE_CPU = 4096, 1024


@dataclass(frozen=True)
class Sample:
    """A product of `rows` tokens with a weight [outer, inner]. `times`: how often it makes up one token's share of a step."""

    rows: int
    inner: int
    outer: int
    times: float


class Gauge(Callback):
    """Times the model's own matrix products alone, between steps, so that its speed has something to be compared with.

    `measure()` gives rank 0's FLOP/s, while the others wait for it with the next step; what all `world` ranks would reach at
    this rate is written. It is called after the first step and then every so many `seconds` of rank 0's clock, or APART times
    as long as it took, where that is more: it costs a hundredth of the time at most. At the start `facts` are written: other
    scalars that speed is divided by.
    """

    def __init__(
        self,
        measure: Callable[[], float],
        world: int,
        facts: Mapping[str, float],
        seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.measure, self.world, self.facts, self.seconds, self.clock = measure, world, facts, seconds, clock
        self._due: float | None = None

    def start(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """Write what does not change."""
        if trainer.rank == 0:
            for name, value in self.facts.items():
                trainer.recorder.scalar(name, trainer.state.step, value)

    def step(self, trainer: Trainer, vote: Vote) -> None:
        """Measure where due."""
        if trainer.rank != 0 or (self._due is not None and self.clock() < self._due):
            return
        trainer.device.synchronize()  # what is still queued there belongs to the step
        began = self.clock()
        with trainer.recorder.during("gauge", trainer.state.step):
            found = self.measure()
        ended = self.clock()
        self._due = ended + max(self.seconds, APART * (ended - began))
        trainer.recorder.scalar("gemm_rate", trainer.state.step, found * self.world)


def gauge(job: Job, device: Device, world: int) -> Gauge:
    """The callback for one of `world` ranks that train `job` in force, each on a device like `device`."""
    kind = dtype(str(job.train.precision))

    def measure() -> float:
        found = samples(job, device.kind, torch.get_num_threads())
        return rate(
            [(partial(Products, [(one.inner, one.outer)], one.rows, kind, device), one.times) for one in found], device
        )

    return Gauge(measure, world, yardsticks(job, device.name, world))


def samples(job: Job, device: str, threads: int) -> list[Sample]:
    """What is timed of each weight that a step of `job` multiplies with, on a device of that kind with so many threads.

    One at a time, they hold less than the step before has just freed, and are less work than that step was.
    """
    side = SIDE_CPU if device == "cpu" else SIDE
    found = [(inner, outer, times) for weights, times in passes(job.model) for inner, outer in weights]
    cut = [(min(inner, side), min(outer, side)) for inner, outer, _ in found]
    rows = min(int(job.batch.micro) * job.batch.sequence, TOKENS)
    if device == "cpu":
        rows = max(1, min(rows, int(WORK * threads / (6 * sum(inner * outer for inner, outer in cut)))))
    return [
        Sample(rows, *sides, times=times * inner * outer / (rows * sides[0] * sides[1]))
        for (inner, outer, times), sides in zip(found, cut, strict=True)
    ]


def yardsticks(job: Job, name: str, world: int) -> dict[str, float]:
    """What a token costs in FLOP, and what `world` devices called `name` could do at most, where the catalogue knows them."""
    found = {"flops_per_token": flops_per_token(job.model, job.batch.sequence)}
    known = catalogue.match(name)
    peak = known.peaks.get(str(job.train.precision)) if known else None
    return {**found, "peak_rate": peak * world} if peak else found
