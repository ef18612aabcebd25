"""What a start takes over from an earlier run: prepared text, tokenizer, checkpoint. No command of its own, no torch.

A run that goes on reads the very text it began with: other text, or a tokenizer trained anew, would give its steps other
tokens and its ids other meanings, and nobody would see it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from argosy.checkpoint import store
from argosy.checkpoint.slots import Slots
from argosy.checkpoint.snapshot import Writer
from argosy.cluster.here import cores
from argosy.data.prepare import Prepared, cache_folder, changed, locate, prepare
from argosy.data.tokenizer import FILE
from argosy.errors import INPUT, Refused
from argosy.job import paths
from argosy.job.load import Loaded
from argosy.job.schema import DataSection, Trained
from argosy.run.folder import Run
from argosy.run.rule import Verdict


def text(loaded: Loaded, verdict: Verdict, progress: Callable[[str, int, int], None]) -> tuple[Prepared, bool]:
    """The prepared text to train on, and whether it was there already.

    A run that has a checkpoint, and a fork of the same text, get the text of that run. A fork that names other text, and a
    run that begins with another's weights, get the tokenizer that goes with the weights. Refused (see `prepare`), and where
    the text of the run is gone and what is there now is other text.
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
        found = prepare(section, base=base, cache=cache, progress=preparing, workers=cores())
        return found, not told

    parent = Run(verdict.source or verdict.path)
    if not verdict.step or not (parent.path / "settings.json").is_file():
        other = first_weights(loaded)
        return made(section if other is None else _with_tokenizer(section, other))
    if any(key.startswith("data.") for key, *_ in verdict.changes):
        return made(_with_tokenizer(section, parent.path))
    folder = parent.prepared()
    if parent.info().get("data", {}).get("tokenizer") == FILE:
        section = _with_tokenizer(section, parent.path)
    try:
        found = Prepared.open(locate(folder, cache))
    except Refused:  # gone: made again, as it was made then
        found, cached = made(section)
    else:
        if changed(section, base, found.folder):
            note = f"data.source = {section.source} is not as it was: the run keeps to the text that it began with"
            found = replace(found, notes=(*found.notes, note))
        return found, True
    if found.digest != folder.name:
        raise Refused(
            "the text is not the one that this run was trained on, and what was prepared of that one is gone.",
            where=str(parent.path),
            found=f"prepared text {found.digest}, where {folder.name} is needed",
            do="Restore the text as it was, or begin a new run: --run DIR.",
        )
    return found, cached


def first_weights(loaded: Loaded) -> Path | None:
    """The run with whose weights the job begins; None = random ones. Refused where it has no checkpoint."""
    init = loaded.job.model.init
    path = loaded.base / paths.expand(init)
    if init != "random" and not Run(path).newest_step():
        raise Refused(
            "there is no run with a checkpoint there.",
            where=f"model.init = {init} ({loaded.written.get('model.init', 'job')})",
            do='Name the folder of a run that has saved, or "random".',
        )
    return None if init == "random" else path


def whole(verdict: Verdict) -> Verdict:
    """The verdict of a fork, from the newest checkpoint of which every byte is good. Refused where there is none."""
    assert verdict.source is not None
    found, reasons = store.search(Run(verdict.source).checkpoints)
    if found is None:
        store.refuse_lost(Run(verdict.source), reasons)
        raise Refused("--fork needs a checkpoint, and this run has none yet.", where=str(verdict.source))
    found.close()
    return replace(
        verdict,
        step=found.step,
        because=f"new, from step {found.step:,} of {verdict.source}",
        notes=(*verdict.notes, *(f"{reason}; step {found.step:,} is used instead" for reason in reasons)),
    )


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


def checkpoint(source: Run, run: Run, step: int) -> None:
    """Give the folder of a fork its parent's checkpoint of `step` and its ledger."""
    name = store.folder_name(step)
    try:
        shutil.copytree(source.checkpoints / name, run.checkpoints / name)
    except OSError:
        shutil.rmtree(run.checkpoints, ignore_errors=True)  # a full disk gets its room back
        raise
    shutil.copyfile(source.path / "ledger.jsonl", run.path / "ledger.jsonl")


def _with_tokenizer(section: DataSection, parent: Path) -> DataSection:
    """`section` with the tokenizer of the run in `parent`, where it would have one trained."""
    file = parent.absolute() / FILE
    if not isinstance(section.tokenizer, Trained) or not file.is_file():
        return section
    return section.model_copy(update={"tokenizer": str(file)})
