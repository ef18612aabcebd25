"""What happens around steps: four hooks, and the callbacks of every run: evaluate, sample, save, collect garbage.

All ranks call the same hooks at the same step; what a hook does on one rank alone must not need the others. Hooks run after
the step stands in the record, in the order of the list: evaluation and samples before the save, so that a checkpoint at a step
means that they are done.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from argosy.evaluate.held_out import Held
from argosy.points import point
from argosy.quantities import Interval
from argosy.run.recorder import Recorder
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


def measured(every: Interval, step: int, steps: int) -> bool:
    """Whether what is also done at the end of the run is done after `step` for the interval's sake.

    What falls right before the end is left to the end: a quarter of 413 steps, rounded, falls on step 412. A share's last
    part is the one that ends the run, up to half as long again as the others; steps that somebody counted are kept, but for
    those within a tenth of the interval before the end.
    """
    interval = every.due(steps)
    if interval is None or step % interval:
        return False
    return (2 if every.share is not None else 10) * (steps - step) >= interval


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


@dataclass
class Best:
    """The best evaluation so far by the set that decides, how many after it were not better, and whether it was saved."""

    step: int
    loss: float
    worse: int = 0
    kept: bool = False


class Evaluate(Callback):
    """Measures held-out sets at an interval and after the last step of the run; never changes the training state.

    `measure()` gives what was found on each of the `sets`, the same on every rank, since ranks add it up: so all take the same
    checkpoint as the best one (`keep`), and end with the same step (`patience`), without asking each other. `text` says what
    the set `by` is made of: a loss on another text is no measure for it. `since`: the step after which the run left another
    one (0 = none), whose evaluations are not its own.
    """

    def __init__(
        self,
        measure: Callable[[], Sequence[Held]],
        every: Interval,
        *,
        sets: Sequence[str] = ("",),
        by: str = "",
        keep: bool = False,
        patience: int | None = None,
        text: str = "",
        since: int = 0,
    ):
        self.measure, self.every, self.sets, self.by, self.keep = measure, every, tuple(sets), by, keep
        self.patience, self.text, self.since = patience, text, since
        self.best: Best | None = None

    def start(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """Go on with the best evaluation that the checkpoint tells of, where this run made it and the same text decided."""
        told = facts.get("best")
        same = isinstance(told, dict) and (told.get("set"), told.get("text")) == (self.by, self.text)
        if isinstance(told, dict) and same and int(told["step"]) > self.since:
            self.best = Best(int(told["step"]), float(told["loss"]), int(told["worse"]), bool(told["kept"]))
        if self.enough:  # the facts are the same on all ranks
            trainer.enough = True
            self._tell(trainer)

    def step(self, trainer: Trainer, vote: Vote) -> None:
        """Evaluate where due."""
        now = trainer.state.step
        at_end = trainer.complete and self.every != Interval()
        if not at_end and not measured(self.every, now, trainer.steps):
            return
        trainer.settle()
        point("evaluate.begin")
        with trainer.recorder.during("evaluate", now):
            found = self.measure()
        point("evaluate.end")
        better = self._judged(now, found[self.sets.index(self.by)].loss)
        if trainer.rank == 0:
            for number, held in enumerate(found):
                record(trainer.recorder, now, held, number)
            trainer.recorder.scalar("held_out_best", now, better)
            trainer.recorder.mark("evaluated", now)
        if better and self.keep:
            trainer.saving = True
        if self.enough and not trainer.complete:
            trainer.enough = True
            self._tell(trainer)

    def save(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """Add the best evaluation."""
        if self.best is not None:
            facts["best"] = {"set": self.by, "text": self.text, **asdict(self.best)}

    @property
    def enough(self) -> bool:
        """Whether so many evaluations in a row were not better that the run shall end."""
        return self.patience is not None and self.best is not None and self.best.worse >= self.patience

    def _judged(self, now: int, loss: float) -> bool:
        """Whether `loss` is better than all before it. What is not finite is never better."""
        if math.isfinite(loss) and (self.best is None or loss < self.best.loss):
            self.best = Best(now, loss, kept=self.keep)
            return True
        if self.best is not None:
            self.best.worse += 1
        return False

    def _tell(self, trainer: Trainer) -> None:
        if trainer.rank == 0 and self.best is not None:
            trainer.recorder.mark("enough", trainer.state.step, self.best.worse, self.best.step)


def record(recorder: Recorder, step: int, held: Held, number: int = 0) -> None:
    """Write what was found on the held-out set `number`; 0 is the run's own."""
    recorder.scalar("held_out_loss", step, held.loss, number)
    if held.bits_per_byte is not None:
        recorder.scalar("held_out_bits_per_byte", step, held.bits_per_byte, number)
    recorder.scalar("held_out_documents", step, held.documents, number)
    recorder.scalar("held_out_tokens", step, held.counted, number)


class Sample(Callback):
    """Lets the model continue the prompts at an interval and after the last step of the run. `write(step)` does it."""

    def __init__(self, write: Callable[[int], None], every: Interval):
        self.write, self.every = write, every

    def step(self, trainer: Trainer, vote: Vote) -> None:
        """Sample where due."""
        now = trainer.state.step
        at_end = trainer.complete and self.every != Interval()
        if at_end or measured(self.every, now, trainer.steps):
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
