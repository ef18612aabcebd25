"""Any torch module with a loss and an iterable, trained by the same trainer as a language model: `argosy.fit`.

Same step, vote, state, checkpoints and record; a run folder that a killed program finds again and goes on from, bit for bit.
One process, which also answers `argosy save` and `argosy stop`. Knows nothing of tokens.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from argosy.checkpoint.load import load
from argosy.checkpoint.save import TYPES, Saver, specs_of
from argosy.checkpoint.slots import Slots
from argosy.checkpoint.store import refuse_lost, search
from argosy.errors import DONE, NO, Refused
from argosy.layout.layout import Layout
from argosy.layout.world import world
from argosy.parallel import apply
from argosy.parallel.execute import Plain
from argosy.parallel.mesh import Mesh
from argosy.quantities import interval
from argosy.random import key
from argosy.run import requests
from argosy.run.archive import Archive
from argosy.run.folder import Run
from argosy.run.incarnation import Incarnation
from argosy.run.lines import rows
from argosy.run.recorder import Recorder
from argosy.run.signals import heard, hurried
from argosy.train import fit_folder
from argosy.train.any_optimizer import AnyOptimizer
from argosy.train.callbacks import Callback, Garbage, Save
from argosy.train.feed import Part
from argosy.train.state import State
from argosy.train.trainer import FINISHED, Trainer
from argosy.train.vote import Agree, Vote

Loss = Callable[[Any, Any], Tensor]  # (module, batch) -> scalar


@dataclass(frozen=True)
class Fitted:
    """What `fit` gives back. The module itself holds the trained weights."""

    run: Run
    step: int
    finished: bool  # false after Ctrl-C, SIGTERM or `argosy stop`: the same call goes on
    loss: float | None  # of the last step, also where an earlier call computed it


def fit(
    module: nn.Module,
    data: Iterable[Any] | Callable[[int], Any],
    *,
    loss: Loss,
    steps: int,
    run: str | Path,
    optimizer: torch.optim.Optimizer | None = None,
    lr: float = 1e-3,
    rate: Callable[[int], float] = lambda step: 1.0,
    clip: float | None = 1.0,
    batches: int = 1,
    save_every: int | str = "60 s",
    keep: int = 2,
    seed: int = 1,
    callbacks: Sequence[Callback] = (),
) -> Fitted:
    """Train `module` for `steps` steps in the run folder `run`; called again after a kill or Ctrl-C it goes on bit for bit.

    data: an iterable of batches, begun again when it ends, or a function from the number of a batch (from 0) to the batch.
    What it draws from torch's generator is the same each time; other generators are yours to seed. loss(module, batch) is
    the mean loss of one batch, a scalar. A step averages `batches` of them. optimizer: one over the module's parameters;
    left out, AdamW with learning rate `lr`. rate(step) multiplies the learning rate, steps counted from 1. clip: largest
    gradient norm, None for any. save_every: steps (200), time ("60 s"), a share ("25%") or "never" (only at the end).
    Ctrl-C, SIGTERM, a closed terminal and `argosy stop RUN` end it after the step under way, with a checkpoint;
    `argosy save RUN` only saves.
    Another lr or clip is in force from the next step on, and the ledger says so. Where it goes on, one line on stderr tells
    from which step. It is one process: Refused as one of several ranks of a launcher, and when the folder holds something
    else, a run of another module, seed or `batches` or one that is beyond `steps`, is in use, or the data end.
    """
    _alone()
    if steps < 1 or batches < 1:
        raise Refused(f"steps = {steps} and batches = {batches} must be at least 1.")
    module.train()
    chosen = optimizer or torch.optim.AdamW(module.parameters(), lr=lr)
    place = fit_folder.made(Path(run))
    begun = {"train.seed": seed, "fit.batches": batches}
    with place.lock() as _, _stoppable() as stop:
        if place.exists:
            requests.clear(place)  # of an earlier call; from here on whoever asks is heard
        fit_folder.opened(
            place, fit_folder.fingerprint(module, chosen), begun, steps=steps, save_every=save_every, keep=keep
        )
        number = _begun(place)
        recorder = Recorder(place, 0, number)
        export = _Export(Archive(place), number)
        taker = _Taker(place, number)
        try:
            return _trained(
                place, recorder, module, chosen, data, loss, taker, _Asked(place, number, stop),
                steps=steps, rate=rate, clip=clip, batches=batches, save_every=save_every, seed=seed,
                callbacks=(*callbacks, export),
            )  # fmt: skip
        finally:
            taker.close()
            recorder.finish()
            export.close()


def _begun(place: Run) -> int:
    """Number this start of the run, and say so where everybody looks."""
    number = Incarnation.next(place)
    place.update_info(incarnation=number)
    place.journal({"what": "begun", "command": "argosy.fit", "because": f"process {os.getpid()}"})
    Incarnation(number, 1, "dp1", torch.get_num_threads(), parent=os.getpid()).write(place)
    return number


def _alone() -> None:
    """Refuse to be one of several ranks."""
    launched = world(os.environ)
    if launched is not None and launched.world > 1:
        raise Refused(
            "argosy.fit trains a module in one process; many processes train the decoder (argosy train).",
            found=f"rank {launched.rank} of {launched.world}, started by {launched.launcher}",
            do="Start the program once, without the launcher.",
        )


def _trained(
    place: Run,
    recorder: Recorder,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Iterable[Any] | Callable[[int], Any],
    loss: Loss,
    taker: _Taker,
    asked: _Asked,
    *,
    steps: int,
    rate: Callable[[int], float],
    clip: float | None,
    batches: int,
    save_every: int | str,
    seed: int,
    callbacks: Sequence[Callback],
) -> Fitted:
    applied = apply.shard(module, (), Mesh(Layout(), 0))
    apply.materialise(applied, torch.device("cpu"))
    update = AnyOptimizer(optimizer, applied.named())
    state = State(module, update, applied.data, recorder, rate=rate, clip=clip)
    taker.settle()
    facts = _restored(place, state, update, steps)
    fit_folder.rated(
        place, state.step, {"optim.lr": update.peaks if len(set(update.peaks)) > 1 else update.lr, "optim.clip": clip}
    )
    recorder.mark("loaded", state.step)
    taker.state = state
    last = _Last()
    trainer = Trainer(
        state,
        _Source(data, batches, seed, state.step),
        Plain(applied.whole, loss, applied.data),
        Agree(),
        steps=steps,
        callbacks=(last, Save(taker, interval(save_every)), asked, Garbage(50), *callbacks),
        asked=asked,
        after_first=applied.check_gradients,
    )
    place.update_info(state="running")
    place.journal({"what": "started", "incarnation": taker.incarnation, "world": 1, "step": state.step})
    end = trainer.run(facts)
    recorder.mark("finished" if end == FINISHED else "stopped", state.step)
    place.update_info(state=end, step=state.step)
    place.journal({"what": "ended", "code": DONE, "state": end, "step": state.step, "because": asked.reason})
    told = [row.get("loss") for row in rows(place.path / "metrics.jsonl")] if last.loss is None else [last.loss]
    return Fitted(place, state.step, end == FINISHED, told[-1] if told else None)


def _restored(place: Run, state: State, update: AnyOptimizer, steps: int) -> dict[str, Any]:
    """Load the newest checkpoint of `place` into `state` and say so; the facts kept with it, none where it has none."""
    found, reasons = search(place.checkpoints, aside=True)
    if found is None:
        refuse_lost(place, reasons)
        return {}
    for reason in reasons:
        sentence = f"{reason}; step {found.step} is used instead"
        print(sentence, file=sys.stderr)
        place.journal({"what": "damaged", "sentence": sentence})
    types = {name: dtype for dtype, name in TYPES.items()}
    update.make_room({spec.name: (spec.shape, types[spec.dtype]) for spec in found.manifest.specs})
    facts = load(place, found, state.tensors())
    state.restore(facts)
    found.close()
    if state.step > steps:
        raise Refused(
            f"this run has taken {state.step:,} steps, and this call asks for {steps:,}.",
            where=str(place.path),
            do=f"Give steps = {state.step} or more, or another folder.",
        )
    going = f"going on from step {state.step:,} of {steps:,}" if state.step < steps else f"all {steps:,} steps are done"
    print(f"{place.path}: {going}", file=sys.stderr)
    return facts


class _Source:
    """The batches of each step; skips those of the steps that are done already."""

    def __init__(self, data: Iterable[Any] | Callable[[int], Any], per_step: int, seed: int, done: int):
        self.per_step, self.seed, self.done = per_step, seed, done
        self.at = data if not isinstance(data, Iterable) else None
        self.items = _again(data, seed) if isinstance(data, Iterable) else iter(())
        self.step = 0

    def __call__(self, step: int) -> Part:
        while self.step < step:
            self.step += 1
            # Each step draws from a generator of its own, in the data as in the module: so a step does not depend on what
            # this process did before it, and a run that goes on draws what it would have drawn.
            torch.manual_seed(key(self.seed, "data", self.step))
            micro = self.taken(self.step) if self.at is None or self.step == step else []
        torch.manual_seed(key(self.seed, "step", step))
        return Part(micro, self.per_step, self.per_step)

    def taken(self, step: int) -> list[Any]:
        """The batches of `step`, which follow those taken before."""
        if self.at is not None:
            return [self.at((step - 1) * self.per_step + index) for index in range(self.per_step)]
        return [next(self.items) for _ in range(self.per_step)]


def _again(data: Iterable[Any], seed: int) -> Iterator[Any]:
    """The items of `data`, over and over, each round in the order its own generator gives."""
    for round_ in count():
        torch.manual_seed(key(seed, "round", round_))
        items = iter(data)
        empty = True
        for item in items:
            empty = False
            yield item
        if empty or items is data:
            raise Refused(
                f"the data ended in round {round_ + 1} before the last step.",
                do="Give an iterable that can be begun again (a list, a DataLoader, an object with __iter__), or fewer steps.",
                code=NO,
            )


class _Taker:
    """The run's Saver, made with the first checkpoint: many optimizers have no states before their first step."""

    def __init__(self, run: Run, incarnation: int):
        self.run, self.incarnation = run, incarnation
        self.state: State | None = None
        self.saver: Saver | None = None

    def settle(self) -> None:
        """Bring to the disk what a killed call left in the slots, before the newest checkpoint is chosen; see Saver."""
        slots = Slots(self.run.path, self.run.local)
        left = slots.ready()
        slots.close()
        if left:
            Saver(self.run, 0, 1, self.incarnation, Layout(), (), child=True).close()

    def begin(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> float:
        """See Saver."""
        if self.saver is None:
            self.saver = Saver(self.run, 0, 1, self.incarnation, Layout(), specs_of(tensors), child=True)
        return self.saver.begin(step, tensors, facts)

    def flush(self) -> float:
        """See Saver."""
        return self.saver.flush() if self.saver is not None else 0.0

    def close(self) -> None:
        """See Saver."""
        if self.saver is not None:
            self.saver.close()


class _Asked(Callback):
    """What people ask of this run: signals through `signal`, and the files of `argosy save` and `argosy stop`."""

    def __init__(self, run: Run, incarnation: int, signal: _Signal):
        self.run, self.incarnation, self.signal = run, incarnation, signal
        self.reason = ""  # why it stops
        self._saving = False  # a wish to save is under way
        self._saved: int | None = None  # the step whose checkpoint is the answer, once it is taken

    def __call__(self) -> frozenset[str]:
        """Which of "save" and "stop" goes into the next vote."""
        wishes: set[str] = set(requests.asked(self.run))
        if self.signal.name or "stop" in wishes:
            self._told("stop", self.signal.name or "argosy stop")
            return frozenset({"stop"})
        if "save" in wishes and not self._saving:
            self._told("save", "")
            return frozenset({"save"})
        return frozenset()

    def save(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        """The first checkpoint after the wish is the answer, once it is on the disk."""
        if self._saving and self._saved is None:
            self._saved = trainer.state.step

    def step(self, trainer: Trainer, vote: Vote) -> None:
        """Answer a wish to save as soon as its checkpoint is committed."""
        if self._saved is None:
            return
        told = [row for row in rows(self.run.local / "saved.jsonl") if row.get("incarnation") == self.incarnation]
        if any(row["ok"] and row["step"] >= self._saved for row in told):
            requests.answered(self.run, "save", self._saved)
            self._saving, self._saved = False, None

    def end(self, trainer: Trainer) -> None:
        """Everything is saved: answer all that was asked."""
        for wish in requests.asked(self.run):
            requests.answered(self.run, wish, trainer.state.step)

    def _told(self, wish: str, reason: str) -> None:
        if not self.reason:
            self.run.journal({"what": "asked", "stop": wish == "stop", "save": wish == "save", "reason": reason})
        self.reason = self.reason or reason
        self._saving = self._saving or wish == "save"


class _Export(Callback):
    """Brings the record into metrics.jsonl once a second: no parent of ours does it."""

    def __init__(self, archive: Archive, incarnation: int):
        self.archive, self.last = archive, time.monotonic()
        archive.begin(incarnation)

    def step(self, trainer: Trainer, vote: Vote) -> None:
        """Bring over what there is, where it is time."""
        if time.monotonic() - self.last >= 1:
            self.archive.poll()
            self.last = time.monotonic()

    def close(self) -> None:
        """Bring over the rest, once the record is finished."""
        self.archive.poll()
        self.archive.rotate()
        self.archive.close()


class _Last(Callback):
    """Remembers the last loss."""

    loss: float | None = None

    def step(self, trainer: Trainer, vote: Vote) -> None:
        """Keep that of this step."""
        self.loss = vote.loss / trainer.state.counted


@dataclass
class _Signal:
    """The signal that asked to stop; no name while none did."""

    name: str = ""


@contextmanager
def _stoppable() -> Iterator[_Signal]:
    """Notes Ctrl-C, SIGTERM and SIGHUP while inside; a second Ctrl-C leaves at once, whatever came before it."""
    stop = _Signal()
    seen: dict[str, float] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        """Remember the signal; a hurried one leaves at once."""
        name = signal.Signals(number).name
        if hurried(seen, name):
            signal.signal(number, signal.SIG_IGN)  # a third one must not disturb the leaving
            raise KeyboardInterrupt
        stop.name = stop.name or name

    main = threading.current_thread() is threading.main_thread()
    numbers = [number for number in heard() if number != signal.SIGUSR1]  # that one is the program's own
    before = {number: signal.signal(number, ask) for number in numbers} if main else {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
