"""The loop: a step, its entries in the record, the callbacks; until all steps are done or a stop was agreed.

Small methods that callbacks and tests call too. Knows a State, a feed, an executor and the vote; not jobs, files or models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from argosy.device.device import Device
from argosy.device.memory import device_peak, peak
from argosy.parallel.execute import Executor
from argosy.points import point
from argosy.run.record import Recorder
from argosy.train.callbacks import Callback
from argosy.train.feed import Part
from argosy.train.state import State
from argosy.train.step import step
from argosy.train.vote import GENERATIONS, Agree, Asks, Vote

FINISHED, STOPPED = "finished", "stopped"


class Source(Protocol):
    """Gives this rank's part of a step."""

    def __call__(self, step: int) -> Part:
        """This rank's part of `step`."""
        ...


class Trainer:
    """One rank's training, from the state it is given to `steps`.

    `asked()` tells which of "save" and "stop" somebody asked of this rank; it is called once a step. `held()` tells which of
    the last eight snapshots this rank holds. `rank` 0 alone writes scalars of the global batch.
    """

    def __init__(
        self,
        state: State,
        feed: Source,
        execute: Executor,
        agree: Agree,
        *,
        steps: int,
        rank: int = 0,
        callbacks: Sequence[Callback] = (),
        asked: Callable[[], frozenset[str]] = frozenset,
        held: Callable[[], tuple[float, ...]] = lambda: (0.0,) * GENERATIONS,
        after_first: Callable[[], None] = lambda: None,
        device: Device | None = None,
    ):
        self.state, self.feed, self.execute, self.agree = state, feed, execute, agree
        self.steps, self.rank, self.callbacks = steps, rank, tuple(callbacks)
        self.asked, self.held, self.after_first = asked, held, after_first
        self.device = device or Device("cpu")
        self.wants_save = False  # a callback of this rank wants a checkpoint: said in the next vote
        self.stopping = False  # a stop was agreed: this step is the last
        agree.asks = self.asks

    @property
    def recorder(self) -> Recorder:
        """This rank's record."""
        return self.state.recorder

    @property
    def last(self) -> bool:
        """Whether no step follows the one just done."""
        return self.stopping or self.state.step >= self.steps

    def run(self, facts: dict[str, Any] | None = None) -> str:
        """Train to the end, or to an agreed stop: FINISHED or STOPPED. `facts` are those of the checkpoint gone on from."""
        for callback in self.callbacks:
            callback.start(self, facts or {})
        first = True
        while not self.last:
            vote = self.beat()
            if first:
                self.after_first()
                first = False
            for callback in self.callbacks:
                callback.step(self, vote)
        for callback in self.callbacks:
            callback.end(self)
        return FINISHED if self.state.step >= self.steps else STOPPED

    def beat(self) -> Vote:
        """The next step and its entries."""
        entered = time.time_ns()
        number = self.state.step + 1
        with self.recorder.during("data", number):
            part = self.feed(number)
        self.state.begin(part.counted, part.tokens)
        vote = step(self.state, part.micro, self.execute, self.agree)
        self.stopping = vote.stop > 0
        self.record(part, vote, entered, time.time_ns())
        point("record.step.after")
        return vote

    def asks(self) -> Asks:
        """What this rank brings to the vote."""
        asked = self.asked()
        wants, self.wants_save = self.wants_save or "save" in asked, False
        return Asks("stop" in asked, wants, self.held())

    def record(self, part: Part, vote: Vote, entered: int, left: int) -> None:
        """Write the step; rank 0 also writes the numbers of the whole global batch, before it."""
        number, recorder = self.state.step, self.recorder
        if self.rank == 0:
            recorder.scalar("loss", number, vote.loss / self.state.counted)
            recorder.scalar("lr", number, self.state.lr)
            recorder.scalar("gradient_norm", number, vote.norm)
            recorder.scalar("tokens", number, self.state.tokens)
            recorder.scalar("counted", number, part.counted)
            if part.bytes is not None:
                recorder.scalar("bytes", number, part.bytes)
            recorder.scalar("seconds", number, (left - entered) / 1e9)
            if not vote.finite:
                recorder.scalar("skipped", number, 1)
        recorder.step(number, entered, left)

    def record_memory(self) -> None:
        """Write the most memory this process ever held, and its tensors on a device of their own, in bytes."""
        self.recorder.scalar("memory_peak", self.state.step, peak())
        if self.device.kind == "cuda":
            self.recorder.scalar("memory_device", self.state.step, device_peak(self.device))
