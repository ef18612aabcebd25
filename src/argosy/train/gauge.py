"""What a run's speed is compared with: its model's own matrix products timed alone beside it, and the devices' peaks.

In: the job in force and this rank's device. Out: a callback that writes the scalars `flops_per_token`, `peak_rate` and
`gemm_rate`, from which `run/archive.py` makes `mfu` and `gemm_share` of every step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

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

TOKENS = 4096  # in the products that are timed, at most


class Gauge(Callback):
    """Times the model's own matrix products alone, beside the training, so that its speed has something to be compared with.

    `measure()` gives this rank's FLOP/s; it is called after the first step and every so many `seconds` of this rank's clock.
    Ranks begin together and step together, so they measure together; nothing depends on it. Rank 0 writes what all `world`
    ranks would reach at its rate, and at the start `facts`: other scalars that speed is divided by.
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
        self._last: float | None = None

    def start(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """Write what does not change."""
        if trainer.rank == 0:
            for name, value in self.facts.items():
                trainer.recorder.scalar(name, trainer.state.step, value)

    def step(self, trainer: Trainer, vote: Vote) -> None:
        """Measure where due."""
        if self._last is not None and self.clock() - self._last < self.seconds:
            return
        with trainer.recorder.during("gauge", trainer.state.step):
            found = self.measure()
        self._last = self.clock()
        if trainer.rank == 0:
            trainer.recorder.scalar("gemm_rate", trainer.state.step, found * self.world)


def gauge(job: Job, device: Device, world: int) -> Gauge:
    """The callback for one of `world` ranks that train `job` in force, each on a device like `device`."""
    kind = dtype(str(job.train.precision))
    rows = min(int(job.batch.micro) * job.batch.sequence, TOKENS)

    def measure() -> float:
        return rate([(Products(pairs, rows, kind, device), times) for pairs, times in passes(job.model)], device)

    return Gauge(measure, world, yardsticks(job, device.name, world))


def yardsticks(job: Job, name: str, world: int) -> dict[str, float]:
    """What a token costs in FLOP, and what `world` devices called `name` could do at most, where the catalogue knows them."""
    found = {"flops_per_token": flops_per_token(job.model, job.batch.sequence)}
    known = catalogue.match(name)
    peak = known.peaks.get(str(job.train.precision)) if known else None
    return {**found, "peak_rate": peak * world} if peak else found
