"""What happens around steps: four hooks, and the callbacks of every run: evaluate, sample, save, collect garbage.

All ranks call the same hooks at the same step; what a hook does on one rank alone must not need the others. Hooks run after
the step stands in the record, in the order of the list: evaluation and samples before the save, so that a checkpoint at a step
means that they are done.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from argosy.points import point
from argosy.quantities import Interval
from argosy.train.vote import Vote

if TYPE_CHECKING:
    from argosy.train.trainer import Trainer


class Callback:
    """Four hooks that do nothing. A callback overrides those it needs."""

    def start(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """Before the first step; `facts` are those of the checkpoint gone on from, empty for a new run."""

    def step(self, trainer: Trainer, vote: Vote) -> None:
        """After each step, with the last vote heard: on a GPU the one of the step before, until `trainer.settle()`."""

    def save(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """A checkpoint is taken: add to `facts` what this callback needs to go on."""

    def end(self, trainer: Trainer) -> None:
        """After the last step of this process, finished or stopped."""


def due(every: Interval, step: int, steps: int) -> bool:
    """Whether an interval in steps, or in shares of the run, falls on `step`. An interval by clock never does."""
    interval = every.due(steps)
    return interval is not None and step % interval == 0


class Taker(Protocol):
    """Takes checkpoints; `checkpoint/save.py` is one."""

    def begin(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> float:
        """Copy this rank's shards; the seconds that training waited."""
        ...

    def flush(self) -> float:
        """Wait until the last one is committed; the seconds that took."""
        ...


class Save(Callback):
    """Takes a checkpoint when the interval says so, when the vote says so, and after the last step.

    An interval by clock is decided by rank 0's clock alone and said in its vote, so all ranks save at the same step.
    """

    def __init__(self, taker: Taker, every: Interval, clock: Callable[[], float] = time.monotonic):
        self.taker, self.every, self.clock = taker, every, clock
        self._last = clock()
        self._saved: int | None = None

    def start(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """The checkpoint gone on from needs no second one."""
        self._last = self.clock()
        if facts:
            self._saved = trainer.state.step

    def step(self, trainer: Trainer, vote: Vote) -> None:
        """Save here, or ask in the next vote for a save."""
        now = trainer.state.step
        if trainer.saving or trainer.last or due(self.every, now, trainer.steps):
            self.take(trainer)
        elif trainer.rank == 0 and self.every.seconds is not None and self.clock() - self._last >= self.every.seconds:
            trainer.wants_save = True

    def take(self, trainer: Trainer) -> None:
        """Take a checkpoint of the state as it is."""
        trainer.settle()
        trainer.saving = False
        state = trainer.state
        with trainer.recorder.during("save", state.step):
            facts = state.facts()
            for callback in trainer.callbacks:
                callback.save(trainer, facts)
            waited = self.taker.begin(state.step, state.tensors(), facts)
        if trainer.rank == 0:
            trainer.recorder.scalar("waited", state.step, waited)
        self._last, self._saved = self.clock(), state.step
        trainer.record_memory()

    def end(self, trainer: Trainer) -> None:
        """Wait until the last checkpoint is on disk."""
        if self._saved != trainer.state.step:
            self.take(trainer)
        with trainer.recorder.during("save", trainer.state.step):
            self.taker.flush()


class Evaluate(Callback):
    """Measures on held-out documents at an interval and after the last step of the run; never changes the training state.

    `measure()` returns (nats per token, bits per byte or None, documents, tokens), the same on every rank.
    """

    def __init__(self, measure: Callable[[], tuple[float, float | None, int, int]], every: Interval):
        self.measure, self.every = measure, every

    def step(self, trainer: Trainer, vote: Vote) -> None:
        """Evaluate where due."""
        now = trainer.state.step
        at_end = now >= trainer.steps and self.every != Interval()
        if not at_end and not due(self.every, now, trainer.steps):
            return
        trainer.settle()
        point("evaluate.begin")
        with trainer.recorder.during("evaluate", now):
            loss, bits, documents, tokens = self.measure()
        point("evaluate.end")
        if trainer.rank == 0:
            recorder = trainer.recorder
            recorder.scalar("held_out_loss", now, loss)
            if bits is not None:
                recorder.scalar("held_out_bits_per_byte", now, bits)
            recorder.scalar("held_out_documents", now, documents)
            recorder.scalar("held_out_tokens", now, tokens)
            recorder.mark("evaluated", now)


class Sample(Callback):
    """Lets the model continue the prompts at an interval and after the last step of the run. `write(step)` does it."""

    def __init__(self, write: Callable[[int], None], every: Interval):
        self.write, self.every = write, every

    def step(self, trainer: Trainer, vote: Vote) -> None:
        """Sample where due."""
        now = trainer.state.step
        at_end = now >= trainer.steps and self.every != Interval()
        if at_end or due(self.every, now, trainer.steps):
            trainer.settle()
            with trainer.recorder.during("sample", now):
                self.write(now)


class Garbage(Callback):
    """Python's garbage is collected every so many steps, on all ranks together, and at no other time.

    Automatic collection falls at different moments on different ranks, and all wait for each in turn.
    """

    def __init__(self, every: int):
        self.every = every
        self._was_on = self._frozen = False

    def start(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """No collection by chance from here on."""
        self._was_on = gc.isenabled()
        gc.disable()

    def step(self, trainer: Trainer, vote: Vote) -> None:
        """Set aside what stands after the first step, so that it is never looked through again; collect where due."""
        if not self._frozen:
            gc.freeze()  # without collecting before: going through all that torch has made would take longer than the step
            self._frozen = True
        elif trainer.state.step % self.every == 0:
            with trainer.recorder.during("collect", trainer.state.step):
                freed = gc.collect()
            trainer.recorder.scalar("collected", trainer.state.step, freed)

    def end(self, trainer: Trainer) -> None:
        """Leave Python as it was found: the process may be somebody's notebook."""
        gc.unfreeze()
        if self._was_on:
            gc.enable()
