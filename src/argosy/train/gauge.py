"""What a run's speed is compared with: its model's own matrix products timed alone between steps, and the devices' peaks.

In: the job in force and this rank's device. Out: a callback that writes the scalars `flops_per_token`, `peak_rate` and
`gemm_rate`, from which `run/archive.py` makes `mfu` and `gemm_share` of every step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from argosy.cluster import catalogue
from argosy.cluster.here import cores
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

MOST = 1000  # steps between two questions to rank 0
APART = 100  # between two measurements pass at least so many times the seconds that the first of them took
TOKENS = 4096  # in the products that are timed, at most
# FLOP of all of them once, for each core of a rank, at most: a tenth of a second of one that does 100 GFLOP/s. It buys rows: on
# the CPU that this was written on a weight of 1,024 x 1,024 reaches with 160 rows 0.78 of its rate with 2,048 in float32 and
# 0.62 in bfloat16, with 800 rows 0.88 and all of it.
WORK = 1e10
ROWS = 256  # fewer say nothing of a step: so many also where ranks share a core
# Rows and columns of a weight, at most: a part is little work and little memory. It flatters models that are wider by far: in
# float32 a weight of 4,096 x 4,096 was 7% slower there than one of 1,024 x 1,024, in bfloat16 a third.
SIDE, SIDE_CPU = 4096, 1024


@dataclass(frozen=True)
class Sample:
    """A product of `rows` tokens with a weight [outer, inner], which makes up the share `times` of a token's work in a step."""

    rows: int
    inner: int
    outer: int
    times: float


class Gauge(Callback):
    """Times the model's own matrix products alone, between steps, so that its speed has something to be compared with.

    `measure()` gives a rank's FLOP/s; what all `world` ranks would reach at rank 0's is written. It is called after the first
    step and then every so many `seconds` of rank 0's clock, or APART times as long as it took, where that is more: but for
    the first time it costs a hundredth of the run at most. Processes of one machine slow each other down in a step, and must in
    what it is compared with: there all ranks measure at once. `told` makes rank 0's numbers known to all of them; None = rank 0
    measures alone, while the others wait for it with the next step. At the start `facts` are written: other scalars that speed
    is divided by.
    """

    def __init__(
        self,
        measure: Callable[[], float],
        world: int,
        facts: Mapping[str, float],
        seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        told: Callable[[Sequence[float]], Sequence[float]] | None = None,
    ):
        self.measure, self.world, self.facts, self.seconds, self.clock = measure, world, facts, seconds, clock
        self.told = told
        self._due: float | None = None
        self._wait = 0  # steps until rank 0 is asked again
        self._asked: tuple[float, int] | None = None  # when it was asked last, and how many steps it then said

    def start(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """Write what does not change."""
        if trainer.rank == 0:
            for name, value in self.facts.items():
                trainer.recorder.scalar(name, trainer.state.step, value)

    def step(self, trainer: Trainer, vote: Vote) -> None:
        """Measure where due."""
        if self.told is not None:
            due = self._agreed(trainer.rank, self.told)
        else:
            due = trainer.rank == 0 and (self._due is None or self.clock() >= self._due)
        if due:
            self._measured(trainer)

    def _agreed(self, rank: int, told: Callable[[Sequence[float]], Sequence[float]]) -> bool:
        """Whether rank 0 says that it is time. All ranks ask after the same steps, few of them: a message costs some."""
        self._wait -= 1
        if self._wait > 0:
            return False
        due, wait = told(self._decision() if rank == 0 else (0.0, 0.0))
        self._wait = int(wait)
        return due > 0

    def _decision(self) -> tuple[float, float]:
        """Rank 0's word: whether it is time (1 or 0), and after how many steps it wants to be asked again."""
        now = self.clock()
        if self._due is None or now >= self._due:
            self._asked = None  # measuring is no step: the pace is known anew after the next one
            return 1.0, 1.0
        wait = 1
        if self._asked is not None:
            pace = max(1e-6, (now - self._asked[0]) / self._asked[1])
            wait = max(1, min(MOST, int((self._due - now) / pace / 2)))  # half of what is left: steps may become slower
        self._asked = now, wait
        return 0.0, float(wait)

    def _measured(self, trainer: Trainer) -> None:
        """Measure; rank 0 writes what it found."""
        trainer.device.synchronize()  # what is still queued there belongs to the step
        began = self.clock()
        with trainer.recorder.during("gauge", trainer.state.step):
            found = self.measure()
        ended = self.clock()
        self._due = ended + max(self.seconds, APART * (ended - began))
        if trainer.rank == 0:
            trainer.recorder.scalar("gemm_rate", trainer.state.step, found * self.world)


def gauge(job: Job, device: Device, world: int, group: dist.ProcessGroup | None, local: int = 1) -> Gauge:
    """The callback for one of the `world` ranks of `group` that train `job` in force, each on a device like `device`.

    local: how many of them share this machine's cores.
    """
    kind = dtype(str(job.train.precision))

    def measure() -> float:
        """This rank's FLOP/s in the matrix products of the whole model."""
        found = samples(job, device.kind, min(torch.get_num_threads(), cores() / local))
        return rate(
            [(partial(Products, [(one.inner, one.outer)], one.rows, kind, device), one.times) for one in found], device
        )

    def told(numbers: Sequence[float]) -> Sequence[float]:
        """Rank 0's numbers, on all ranks."""
        said = torch.tensor(numbers, dtype=torch.float64)
        dist.broadcast(said, 0, group=group)
        found: list[float] = said.tolist()
        return found

    together = device.kind == "cpu" and group is not None  # a device of its own is disturbed by nobody
    return Gauge(measure, world, yardsticks(job, device.name, world), told=told if together else None)


def samples(job: Job, device: str, share: float) -> list[Sample]:
    """What is timed of the weights that a step of `job` multiplies with, on a device of that kind; `share`: cores of a rank.

    Those that are of one size, or are when cut, once: so few are left that each is multiplied with many rows, as in a step.
    One at a time, they hold less than the step before has just freed, and are less work than that step was.
    """
    side = SIDE_CPU if device == "cpu" else SIDE
    elements: dict[tuple[int, int], float] = {}  # that a token is multiplied with, by the sides that stand for them
    for weights, times in passes(job.model):
        for inner, outer in weights:
            cut = min(inner, side), min(outer, side)
            elements[cut] = elements.get(cut, 0.0) + times * inner * outer
    rows = min(int(job.batch.micro) * job.batch.sequence, TOKENS)
    if device == "cpu":
        rows = min(rows, max(ROWS, int(WORK * share / (6 * sum(inner * outer for inner, outer in elements)))))
    return [Sample(rows, inner, outer, count / (rows * inner * outer)) for (inner, outer), count in elements.items()]


def yardsticks(job: Job, name: str, world: int) -> dict[str, float]:
    """What a token costs in FLOP, and what `world` devices called `name` could do at most, where the catalogue knows them."""
    found = {"flops_per_token": flops_per_token(job.model, job.batch.sequence)}
    known = catalogue.match(name)
    peak = known.peaks.get(str(job.train.precision)) if known else None
    return {**found, "peak_rate": peak * world} if peak else found
