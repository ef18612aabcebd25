"""What a start takes over from an earlier run: prepared text, tokenizer, checkpoint. No command of its own, no torch.

A run that goes on reads the very text it began with: other text, or a tokenizer trained anew, would give its steps other
tokens and its ids other meanings, and nobody would see it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from argosy.checkpoint import store
from argosy.checkpoint.slots import Slots
from argosy.checkpoint.snapshot import Writer
from argosy.cluster.here import cores
from argosy.data.mix import digests
from argosy.data.prepare import Prepared, cache_folder, changed, locate, names, prepare, with_earlier
from argosy.data.tokenizer import BYTES, FILE
from argosy.errors import INPUT, Refused
from argosy.job import leaves, parts, paths
from argosy.job.load import Loaded
from argosy.job.schema import DataSection, Job, Trained
from argosy.run.folder import Run
from argosy.run.rule import Verdict

if TYPE_CHECKING:
    from argosy.exchange.source import Source

APART = ("model.preset", "model.init", "model.class")  # keys of a model that are no part of its shape


@dataclass(frozen=True)
class First:
    """What a run begins with where that is not random: a run, or a folder of another program's weights; and its shape."""

    run: Path | None = None
    source: Source | None = None
    shape: Mapping[str, Any] = field(default_factory=dict)  # dotted keys below "model"
    begun: Path | None = None  # the run that goes on, which has had its first weights

    @property
    def tokenizer(self) -> Path | None:
        """The file of its tokenizer; None where it has none, or that of bytes."""
        folder = self.begun or self.run or (self.source.folder if self.source is not None else None)
        file = None if folder is None else folder.absolute() / FILE
        if file is None or not file.is_file():
            return None
        bytes_alone = file.stat().st_size == len(BYTES) and file.read_text(encoding="utf-8") == BYTES
        return None if bytes_alone else file

    def tokenizer_for(self, loaded: Loaded) -> Path | None:
        """The same, where the job would have one trained or names none; None where the job has its own."""
        own = "data.tokenizer" in loaded.written and not isinstance(loaded.job.data.tokenizer, Trained)
        return None if own else self.tokenizer


def first(loaded: Loaded, verdict: Verdict | None = None, *, weights: bool = True) -> First:
    """What the job begins with. Refused where it is named and not there, or cannot be a model of ours.

    A run that goes on keeps the shape that it has. weights: also fetch those that lie on the hub, not their shape alone.
    """
    if loaded.job.model.init == "random":
        return First()
    begun = Run(verdict.source or verdict.path) if verdict is not None and verdict.action != "create" else None
    if begun is not None and (begun.path / "settings.json").is_file():
        return First(shape=_shape(begun), begun=begun.path)
    from argosy.exchange import source as sources

    init = paths.expand(loaded.job.model.init)
    if sources.is_source(init, loaded.base):
        from argosy.exchange.config import described

        try:
            found = sources.find(init, loaded.base, weights=weights)
            return First(source=found, shape={f"model.{key}": value for key, value in described(found)[1].items()})
        except Refused as refused:
            raise _located(refused, loaded) from None
    path = loaded.base / init
    if not Run(path).exists or not any(Run(path).checkpoints.glob("step-*/manifest.json")):
        raise Refused(
            "there is no run with a checkpoint there, and no folder of weights.",
            where=f"model.init = {init} ({loaded.written.get('model.init', 'job')})",
            do='Name the folder of a run that has saved, a folder with a config.json, hf://org/name, or "random".',
        )
    _refuse_class(Run(path), loaded)
    return First(run=path, shape=_shape(Run(path)))


def _refuse_class(run: Run, loaded: Loaded) -> None:
    """Refused where the model of `run` is a class of its own and the job names none: the run's is data and never imported."""
    own = getattr(run.job().model, "class")
    if own is not None and getattr(loaded.job.model, "class") is None:
        raise Refused(
            "the model of this run is a class of its own, which your job must name for itself.",
            where=f"model.init = {loaded.job.model.init}",
            found=f"model.class = {own}",
            do="Name the file in your job if you know and trust it: --model.class FILE.py:NAME.",
        )


def resized(begun: First, job: Job) -> list[str]:
    """What is to be told where `job` (in force) has more rows than its first weights. Refused where it has fewer."""
    notes = []
    for key, what in (("model.vocabulary", "the vocabulary"), ("model.context", "the table of positions")):
        before, now = begun.shape.get(key), getattr(job.model, key.removeprefix("model."))
        if begun.begun is not None or not isinstance(before, int) or now is None or before == now:
            continue
        if now < before:
            raise Refused(
                f"{key} = {now:,} is less than the {before:,} rows of the first weights.",
                where=f"model.init = {job.model.init}",
                do=f"Use {key}={before}: rows that no text uses cost little; or begin with model.init=random.",
            )
        notes.append(
            f"{what} grows from {before:,} to {now:,} rows: {now - before:,} are initialised anew, as model.init has none"
        )
    return notes


def recoded(verdict: Verdict, job: Job) -> list[str]:
    """What is to be told where code that `job` names is not what it was when the run was last started."""
    before = Run(verdict.source or verdict.path)
    if not before.exists or verdict.action == "create":
        return []
    earlier = before.info().get("parts")
    known = {str(row.get("name")): row.get("digest") for row in earlier if isinstance(row, dict)} if earlier else {}
    changed = [row["name"] for row in parts.facts(job) if row["name"] in known and known[row["name"]] != row["digest"]]
    return [f"{name} has changed since the run was last started: the new code goes on" for name in changed]


def shaped(loaded: Loaded) -> Loaded:
    """`loaded` with what the weights that it begins with bring, shape and tokenizer; they themselves are not fetched."""
    begun = first(loaded, weights=False)
    file = begun.tokenizer_for(loaded)
    data = loaded.job.data if file is None else loaded.job.data.model_copy(update={"tokenizer": str(file)})
    return replace(loaded, shape=begun.shape, job=loaded.job.model_copy(update={"data": data}))


def _located(refused: Refused, loaded: Loaded) -> Refused:
    where = f"model.init ({loaded.written.get('model.init', 'job')}): {refused.where}"
    return Refused(refused.what, where=where, found=refused.found, do=refused.do, code=refused.code)


def _shape(run: Run) -> dict[str, Any]:
    """The model of `run`, in force, as dotted keys: without what says where it comes from."""
    found = leaves.leaves_of(run.job().model, "model.")
    return {key: value for key, value in found.items() if value is not None and key not in APART}


def keep(begun: First, verdict: Verdict, run: Run) -> dict[str, Any]:
    """Put beside a new `run` what came along with its first weights; gives what its run.json says about them."""
    if verdict.action == "continue":
        return {}
    parent = begun.run or verdict.source
    if begun.source is not None:
        begun.source.keep(run.path)
        from argosy.exchange.config import described

        return {"init": {**begun.source.facts, "family": described(begun.source)[0].family}}
    if parent is None:
        return {}
    from argosy.exchange.source import KEPT

    if (parent / KEPT).is_dir():
        shutil.copytree(parent / KEPT, run.path / KEPT, dirs_exist_ok=True)
    came = Run(parent).info().get("init") or {}
    return {"init": {**came, "run": str(parent)} if begun.run is not None else came}


def text(
    loaded: Loaded, verdict: Verdict, progress: Callable[[str, int, int], None], begun: First
) -> tuple[Prepared, bool]:
    """The prepared text to train on, and whether it was there already.

    A run that has a checkpoint, and a fork of the same text, get the text of that run. A fork that names other text, and a
    run that begins with other weights (`begun`), get the tokenizer that goes with the weights, unless the job names one.
    Refused (see `prepare`), and where the text of the run is gone and what is there now is other text.
    """
    base, section = loaded.base, loaded.job.data
    cache = cache_folder(section, base)
    told: list[str] = []

    def preparing(what: str, done: int, total: int) -> None:
        """Pass progress on, and remember that something had to be done."""
        told.append(what)
        progress(what, done, total)

    def made(section: DataSection) -> tuple[Prepared, bool]:
        """The prepared text, and whether it was there before."""
        found = prepare(section, base=base, cache=cache, progress=preparing, workers=cores(), strict=loaded.strict)
        return found, not told

    parent = Run(verdict.source or verdict.path)
    if not verdict.step or not (parent.path / "settings.json").is_file():
        file = begun.tokenizer_for(loaded)
        return made(section if file is None else section.model_copy(update={"tokenizer": str(file)}))
    folder = parent.prepared()
    earlier = digests(parent.ledger(), folder.name)  # what its steps so far have read must stay known
    if any(key.startswith("data.") for key, *_ in verdict.changes):
        found, cached = made(_with_tokenizer(section, parent.path, begun.tokenizer_for(loaded)))
        return with_earlier(found, earlier, preparing), cached
    if parent.info().get("data", {}).get("tokenizer") == FILE:
        section = _with_tokenizer(section, parent.path, begun.tokenizer_for(loaded))
    try:
        found = Prepared.open(locate(folder, cache))
    except Refused:  # gone: made again, as it was made then
        found, cached = made(section)
        found = with_earlier(found, earlier, preparing)
    else:
        if changed(section, base, found.folder):
            note = f"data.source = {section.source} is not as it was: the run keeps to the text that it began with"
            found = replace(found, notes=(*found.notes, note))
        return found, True
    if not set(digests(parent.ledger(), folder.name, now=True)) <= set(names(found)):
        raise Refused(
            "the text is not the one that this run was trained on, and what was prepared of that one is gone.",
            where=str(parent.path),
            found=f"prepared text {found.digest}, where {folder.name} is needed",
            do="Restore the text as it was, or begin a new run: --run DIR.",
        )
    return found, cached


def refuse_lost(run: Run) -> None:
    """Refused (code 2), before anything is started, where `run` had checkpoints and files of all of them are missing."""
    good, reasons = store.listed(run.checkpoints)
    for found in good:
        found.close()
    slots = Slots(run.path, run.local)
    left = slots.ready()  # in memory, of a start that was killed: it may hold what the disk has lost
    slots.close()
    if not good and not left:
        store.refuse_lost(run, reasons, code=INPUT)


def refuse_ended(verdict: Verdict, job: Job) -> None:
    """Refused where a finished run is asked to go on, and `job`, in force, leaves no step to it."""
    steps = job.train.steps
    if verdict.finished and steps is not None and steps <= verdict.step:
        raise Refused(
            f"the run is finished at step {verdict.step:,}, and the job as it is asked for ends at {steps:,}: "
            "there is nothing left to train.",
            where=str(verdict.path),
            do=f"Give it more, as --train.steps {2 * verdict.step}, or another folder: --run DIR.",
        )


def sorted_out(run: Run, note: Callable[[str], None], *, whole: bool) -> None:
    """Let the newest checkpoint of `run`, whose lock is held, be the one that its next start goes on from.

    What is damaged is set aside: what shows it at a glance, and where `whole` also what shows it only when every byte is
    read. Then, too, what a killed start left in the slots of this node is brought to the disk before.
    """
    if whole:
        _written_out(run)
        found, reasons = store.search(run.checkpoints, aside=True)
        if found is None:
            return
        found.close()
    else:
        reasons = store.sort_out(run.checkpoints)
    # Which one is used instead is known where all was looked at, and where the slots of this node are on the disk.
    told = f"step {run.newest_step():,} is used instead" if whole else "it is set aside"
    for reason in reasons:
        note(f"{reason}; {told}")
        run.journal({"what": "damaged", "sentence": f"{reason}; {told}"})


def _written_out(run: Run) -> None:
    """Bring to the disk what a killed start left in the slots of this node.

    A run over several nodes keeps its slots: the others' parts come only when their processes start; `Worker.load` looks.
    """
    slots = Slots(run.path, run.local)
    try:
        if slots.ready() and all(len(plan.nodes) == 1 for plan in slots.plans().values()):
            slots.write_alone()
            keep, told = run.job().checkpoint.keep, lambda line: run.journal({"what": "saved", **line})
            writer = Writer(slots, run.checkpoints, keep=keep, bandwidth=None, note=told)
            while writer.turn():
                pass
    finally:
        slots.close()


def _with_tokenizer(section: DataSection, parent: Path, came: Path | None) -> DataSection:
    """`section` with the tokenizer that `came` with the first weights, or that of `parent` where it would have one trained."""
    trained = parent.absolute() / FILE
    if came is None and isinstance(section.tokenizer, Trained) and trained.is_file():
        came = trained
    return section if came is None else section.model_copy(update={"tokenizer": str(came)})
