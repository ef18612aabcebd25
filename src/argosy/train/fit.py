"""Any torch module with a loss and an iterable, trained by the same trainer as a language model: `argosy.fit`.

Same step, vote, state, checkpoints and record; a run folder that a killed program finds again and goes on from, bit for bit.
One process. Knows nothing of tokens.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
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
from argosy.errors import NO, Refused
from argosy.job.schema import CheckpointSection, Job, TrainSection
from argosy.job.setting import Setting
from argosy.layout.layout import Layout
from argosy.parallel import apply
from argosy.parallel.execute import Plain
from argosy.parallel.mesh import Mesh
from argosy.quantities import interval
from argosy.random import key
from argosy.run import folder
from argosy.run.archive import Archive
from argosy.run.folder import Run
from argosy.run.incarnation import Incarnation
from argosy.run.ledger import Ledger
from argosy.run.record import Recorder
from argosy.train.any_optimizer import AnyOptimizer
from argosy.train.callbacks import Callback, Garbage, Save
from argosy.train.feed import Part
from argosy.train.state import State
from argosy.train.trainer import FINISHED, Trainer
from argosy.train.vote import Agree, Vote

_TEXT = "# Begun by argosy.fit in a program of yours: settings.json holds what is in force.\n"

Loss = Callable[[Any, Any], Tensor]  # (module, batch) -> scalar


@dataclass(frozen=True)
class Fitted:
    """What `fit` gives back. The module itself holds the trained weights."""

    run: Run
    step: int
    finished: bool  # false after Ctrl-C: the same call goes on
    loss: float | None  # of the last step that this call computed


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
    Refused when the folder holds a run of another module, is in use, or the data end.
    """
    if steps < 1 or batches < 1:
        raise Refused(f"steps = {steps} and batches = {batches} must be at least 1.")
    module.train()
    chosen = optimizer or torch.optim.AdamW(module.parameters(), lr=lr)
    place = _folder(Path(run))
    with place.lock() as _, _stoppable() as stop:
        _open(place, _fingerprint(module, chosen), steps=steps, save_every=save_every, keep=keep, seed=seed)
        number = Incarnation.next(place)
        Incarnation(number, 1, "dp1", torch.get_num_threads(), parent=os.getpid()).write(place)
        recorder = Recorder(place, 0, number)
        archive = Archive(place)
        archive.begin(number)
        export = _Export(archive)
        taker = _Taker(place, number)
        try:
            return _trained(
                place, recorder, module, chosen, data, loss, taker, stop,
                steps=steps, rate=rate, clip=clip, batches=batches, save_every=save_every, seed=seed,
                callbacks=(*callbacks, export),
            )  # fmt: skip
        finally:
            taker.close()
            recorder.finish()
            archive.poll()
            archive.rotate()
            archive.close()


def _trained(
    place: Run,
    recorder: Recorder,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Iterable[Any] | Callable[[int], Any],
    loss: Loss,
    taker: _Taker,
    stop: threading.Event,
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
    facts: dict[str, Any] = {}
    taker.settle()
    found, reasons = search(place.checkpoints)
    if found is None:
        refuse_lost(place, reasons)
    else:
        types = {name: dtype for dtype, name in TYPES.items()}
        update.make_room({spec.name: (spec.shape, types[spec.dtype]) for spec in found.manifest.specs})
        facts = load(place, found, state.tensors())
        state.restore(facts)
        found.close()
    recorder.mark("loaded", state.step)
    taker.state = state
    last = _Last()
    trainer = Trainer(
        state,
        _Source(data, batches, seed, state.step),
        Plain(applied.whole, loss, applied.data),
        Agree(),
        steps=steps,
        callbacks=(last, Save(taker, interval(save_every)), Garbage(50), *callbacks),
        asked=lambda: frozenset({"stop"} if stop.is_set() else ()),
        after_first=applied.check_gradients,
    )
    place.update_info(state="running")
    end = trainer.run(facts)
    recorder.mark("finished" if end == FINISHED else "stopped", state.step)
    place.update_info(state=end, step=state.step)
    return Fitted(place, state.step, end == FINISHED, last.loss)


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


class _Export(Callback):
    """Brings the record into metrics.jsonl once a second: no parent of ours does it."""

    def __init__(self, archive: Archive):
        self.archive, self.last = archive, time.monotonic()

    def step(self, trainer: Trainer, vote: Vote) -> None:
        if time.monotonic() - self.last >= 1:
            self.archive.poll()
            self.last = time.monotonic()


class _Last(Callback):
    """Remembers the last loss."""

    loss: float | None = None

    def step(self, trainer: Trainer, vote: Vote) -> None:
        self.loss = vote.loss / trainer.state.counted


def _folder(path: Path) -> Run:
    """The run folder, with nothing in it where there was none: whoever holds its lock writes there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused("a run cannot be made there.", where=str(path), found=error.strerror or str(error)) from None
    return Run(path)


def _open(run: Run, fingerprint: str, *, steps: int, save_every: int | str, keep: int, seed: int) -> None:
    """Write what this call asks for into the locked folder. Refused where it holds a run of something else."""
    path = run.path
    job = Job(
        name="".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in path.name) or "run",
        train=TrainSection(steps=steps, seed=seed),
        checkpoint=CheckpointSection(every=save_every, keep=keep),
    )
    written = dict.fromkeys(("train.steps", "train.seed", "checkpoint.every", "checkpoint.keep"), "argosy.fit")
    if not run.exists:
        folder.create(path, asked=job, text=_TEXT, origin={}, fit=fingerprint)
        Ledger.start(train__seed=seed).write(path / "ledger.jsonl")
    elif run.info().get("fit") != fingerprint:
        raise Refused(
            "this folder holds a run of another module or optimizer.",
            where=str(path),
            do="Give another folder, or the module and optimizer that began it.",
        )
    values = {"train.steps": steps, "train.seed": seed, "checkpoint.every": save_every, "checkpoint.keep": keep}
    settings = [Setting(name, value, value, "argosy.fit") for name, value in values.items()]
    folder.settle(run, job, written, settings, path, _TEXT)
    run.update_info(steps=steps)


def _fingerprint(module: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """What must be the same for a run to go on: names, shapes and types of all weights, and the optimizer's class."""
    rows = [f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in module.state_dict().items()]
    return blake2b("\n".join([type(optimizer).__name__, *rows]).encode(), digest_size=8).hexdigest()


@contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set while inside; a second Ctrl-C leaves at once."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
