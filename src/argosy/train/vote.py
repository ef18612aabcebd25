"""What all ranks agree on, once a step: twelve numbers in one all-reduce, after the last backward pass and before the update.

The result is the only way in which ranks agree on anything: loss and gradient norm, stop, save, skip this step. Layout of the
message, version 1: loss, norm2, stop, save, held 0-7. On one rank the vote is that rank's own and nothing is sent.

On a CPU the host reads the sums at once. On a GPU that would make it wait for all that it has queued, in every step: there
clipping and skipping are computed from the sums where they lie, and the host reads them a step later (`Agree.late`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

VERSION = 1
GENERATIONS = 8
WIDTH = 4 + GENERATIONS


@dataclass(frozen=True)
class Vote:
    """What all ranks agree on: sums over ranks, float64."""

    loss: float = 0.0  # nats over counted labels; not finite anywhere = not finite here
    norm2: float = 0.0  # squared gradient norm: each rank adds its share / copies
    stop: float = 0.0  # ranks asked to stop
    save: float = 0.0  # ranks asked to save
    held: tuple[float, ...] = (0.0,) * GENERATIONS  # ranks that hold each of the last eight snapshots

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are numbers on every rank."""
        return math.isfinite(self.loss) and math.isfinite(self.norm2)

    @property
    def norm(self) -> float:
        """The norm of the whole gradient."""
        return math.sqrt(self.norm2) if self.norm2 >= 0 else math.nan


@dataclass(frozen=True)
class Asks:
    """What one rank brings to a vote besides its numbers."""

    stop: bool = False
    save: bool = False
    held: tuple[float, ...] = (0.0,) * GENERATIONS


class Tally:
    """The sums [WIDTH, float64] of one step where they lie; a copy is on its way to the host."""

    def __init__(self, sums: Tensor):
        self.sums = sums
        self._copy, self._there = sums, None
        self._vote: Vote | None = None
        if sums.device.type == "cuda":
            self._copy = torch.empty(WIDTH, dtype=torch.float64, pin_memory=True)
            self._copy.copy_(sums, non_blocking=True)
            self._there = torch.cuda.Event()
            self._there.record()

    @property
    def good(self) -> Tensor:
        """Whether loss and gradient are numbers on every rank [scalar, bool], without asking the device; see Vote.finite."""
        return torch.isfinite(self.sums[:2]).all()

    def scale(self, clip: float) -> Tensor:
        """What gradients are multiplied with so that their norm is at most `clip` [scalar, float64], on the device."""
        norm = self.sums[1].sqrt()
        return torch.where(norm > clip, clip / norm, torch.ones_like(norm))

    def vote(self) -> Vote:
        """The same as numbers of the host; waits until the device has got that far."""
        if self._vote is None:
            if self._there is not None:
                self._there.synchronize()
            total = self._copy.tolist()
            self._vote = Vote(total[0], total[1], total[2], total[3], tuple(total[4:]))
        return self._vote


class Agree:
    """Takes the vote. `asks` is called once per step, at the vote; `copies` = ranks that compute the same micro-batches.

    `late`: the host acts on a vote at the end of the next step, not before the update; None = where `device` is a GPU.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        asks: Callable[[], Asks] = Asks,
        device: torch.device | str = "cpu",
        copies: int = 1,
        late: bool | None = None,
    ):
        self.group, self.asks, self.device, self.copies = group, asks, torch.device(device), copies
        self.late = self.device.type == "cuda" if late is None else late

    def __call__(self, loss: Tensor, norm2: Tensor) -> Vote:
        """What all ranks agree on, at once; see `tally`."""
        return self.tally(loss, norm2).vote()

    def tally(self, loss: Tensor, norm2: Tensor) -> Tally:
        """Add this rank's loss [scalar, nats] and share of the squared norm [scalar] to those of the others."""
        asks = self.asks()
        rest = [float(asks.stop), float(asks.save), *asks.held]
        if len(rest) != WIDTH - 2:
            raise ValueError(f"a vote holds {GENERATIONS} generations, not {len(asks.held)}")
        mine = torch.empty(WIDTH, dtype=torch.float64, device=self.device)
        mine[0] = loss / self.copies
        mine[1] = norm2
        asked = torch.tensor(rest, dtype=torch.float64, pin_memory=self.device.type == "cuda")
        mine[2:].copy_(asked, non_blocking=True)
        if self.group is not None:
            dist.all_reduce(mine, group=self.group)
        return Tally(mine)
