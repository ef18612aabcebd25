"""The loop: a step, its entries in the record, the callbacks; until all steps are done or a stop was agreed.

Small methods that callbacks and tests call too. Knows a State, a feed, an executor and the vote; not jobs, files or models.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from argosy.device.device import Device
from argosy.device.memory import device_peak, peak
from argosy.parallel.execute import Executor
from argosy.points import point
from argosy.run.recorder import Recorder
from argosy.train.callbacks import Callback
from argosy.train.feed import Part
from argosy.train.state import State
from argosy.train.step import step
from argosy.train.vote import GENERATIONS, Agree, Asks, Tally, Vote

FINISHED, STOPPED = "finished", "stopped"


class Source(Protocol):
    """Gives this rank's part of a step."""

    def __call__(self, step: int) -> Part:
        """This rank's part of `step`."""
        ...


@dataclass(frozen=True)
class Beat:
    """A step that is computed, or queued on the device, and what of it the record shall hold."""

    step: int
    tally: Tally
    lr: float
    tokens: int  # trained on up to here
    counted: int  # labels of its global batch that count
    bytes: int | None  # that they stand for
    entered: int  # nanoseconds, like `left`
    left: int


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
        self.saving = False  # a save was agreed and not yet taken
        self.stopping = False  # a stop was agreed: this step is the last
        self.enough = False  # all ranks find that the run is finished, though steps are left
        self.vote = Vote()  # the last one that the host has heard
        self._queued: deque[Beat] = deque()  # steps whose vote it has not heard
        agree.asks = self.asks

    @property
    def recorder(self) -> Recorder:
        """This rank's record."""
        return self.state.recorder

    @property
    def last(self) -> bool:
        """Whether no step follows the one just done."""
        return self.stopping or self.complete

    @property
    def complete(self) -> bool:
        """Whether the run is finished with the step just done: it was the last one, or all find that it is enough."""
        return self.enough or self.state.step >= self.steps

    def run(self, facts: dict[str, Any] | None = None) -> str:
        """Train to the end, or to an agreed stop: FINISHED or STOPPED. `facts` are those of the checkpoint gone on from."""
        for callback in self.callbacks:
            callback.start(self, facts or {})
        first = True
        while not self.last:
            self.beat()
            if first:
                self.after_first()
                first = False
            for callback in self.callbacks:
                callback.step(self, self.vote)
        for callback in self.callbacks:
            callback.end(self)
        return FINISHED if self.complete else STOPPED

    def beat(self) -> Vote:
        """The next step and its entries; gives the vote that the host heard last.

        On a GPU that is the one of the step before: this one is still being computed. After the last step nothing is left.
        """
        entered = time.time_ns()
        number = self.state.step + 1
        with self.recorder.during("data", number):
            part = self.feed(number)
        state = self.state
        state.begin(part.counted, part.tokens)
        tally = step(state, part.micro, self.execute, self.agree)
        self._queued.append(
            Beat(number, tally, state.lr, state.tokens, part.counted, part.bytes, entered, time.time_ns())
        )
        while len(self._queued) > self.agree.late:
            self.hear(self._queued.popleft())
        if self.last:
            self.settle()
        point("record.step.after")
        return self.vote

    def hear(self, beat: Beat) -> None:
        """What a step's vote decides, and its entries."""
        self.vote = beat.tally.vote()
        if self.agree.late:
            self.state.learn(self.vote, beat.step, max(1, beat.counted))
        self.saving = self.saving or self.vote.save > 0
        self.stopping = self.stopping or self.vote.stop > 0
        self.record(beat, self.vote)

    def settle(self) -> None:
        """Hear every vote up to the step just done; whoever saves or measures the state does this first, on all ranks."""
        while self._queued:
            self.hear(self._queued.popleft())

    def asks(self) -> Asks:
        """What this rank brings to the vote."""
        asked = self.asked()
        wants, self.wants_save = self.wants_save or "save" in asked, False
        return Asks("stop" in asked, wants, self.held())

    def record(self, beat: Beat, vote: Vote) -> None:
        """Write the step; rank 0 also writes the numbers of the whole global batch, before it."""
        number, recorder = beat.step, self.recorder
        if self.rank == 0:
            recorder.scalar("loss", number, vote.loss / max(1, beat.counted))
            recorder.scalar("lr", number, beat.lr)
            recorder.scalar("gradient_norm", number, vote.norm)
            recorder.scalar("tokens", number, beat.tokens)
            recorder.scalar("counted", number, beat.counted)
            if beat.bytes is not None:
                recorder.scalar("bytes", number, beat.bytes)
            recorder.scalar("seconds", number, (beat.left - beat.entered) / 1e9)
            if not vote.finite:
                recorder.scalar("skipped", number, 1)
        recorder.step(number, beat.entered, beat.left)

    def record_memory(self) -> None:
        """Write the most memory this process ever held, and its tensors on a device of their own, in bytes."""
        self.recorder.scalar("memory_peak", self.state.step, peak())
        if self.device.kind == "cuda":
            self.recorder.scalar("memory_device", self.state.step, device_peak(self.device))
