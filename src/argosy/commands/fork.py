"""A new run that leaves another at a checkpoint: `--fork`, `--fork RUN`, `--fork RUN@STEP`. No command of its own, no torch.

The branch takes weights, optimizer, place in the data and schedule of its parent, and from there on goes its own way: a trunk
that stays at its peak rate can have many branches that each decay from a step of it. What the parent's ledger says of later
steps is not the branch's.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from argosy.checkpoint import store
from argosy.checkpoint.manifest import MANIFEST, Damaged
from argosy.commands import runs
from argosy.errors import MACHINE, Refused
from argosy.job import parts
from argosy.job.load import load, spelt
from argosy.job.schema import Job
from argosy.run import rule
from argosy.run.folder import Run
from argosy.run.ledger import Entry, Ledger
from argosy.run.rule import Verdict

_STEP = re.compile(r"(.+)@(\d{1,12})")


def parted(words: Sequence[str]) -> tuple[list[str], str | None]:
    """The words of a command line with `--fork` but the one that names the parent, and that one; None where none does."""
    names, _ = spelt(words)
    parent = next((name for name in names if _is_parent(name)), names[1] if len(names) > 1 else None)
    if parent is None:
        return list(words), None
    rest = list(words)
    rest.reverse()  # of two equal words the last: the other may be a value
    rest.remove(parent)
    return rest[::-1], parent


def _is_parent(word: str) -> bool:
    """Whether `word` means a run, with or without a step, and no job."""
    if _STEP.fullmatch(word) and not Path(word).exists():
        return True
    return any(Run(path).exists for path in (Path(word), runs.root() / word)) and not Path(word).is_file()


def parent(text: str) -> tuple[Path, int | None]:
    """The folder of the run that `text` names, and the step. Refused where there is no such run."""
    match = _STEP.fullmatch(text)
    if match is None or Run(Path(text)).exists:
        return runs.find(text).path, None
    return runs.find(match[1]).path, int(match[2])


def job_of(job: str | None, fork: bool | str) -> str | None:
    """The job that is meant: where none is named, that of the parent. Refused where that one names code.

    A run folder is data of whoever made it; a job file that somebody names is trusted.
    """
    if job is not None or not isinstance(fork, str):
        return job
    file = str(parent(fork)[0] / "job.toml")
    own = [f"{key} = {name}" for key, name in parts.named(load(file).job)]
    if own:
        raise Refused(
            "the job of this run names code, and a run folder by itself runs no code.",
            where=file,
            found=", ".join(own),
            do=f"If you know that code and trust it, name the job: argosy train {file} --fork {fork}.",
        )
    return file


def again(run: Path | None, text: str) -> bool:
    """Whether `run` is what an earlier start of the same command made: a run that left the one that `text` names, there."""
    if run is None or rule.look(run).kind not in ("unfinished", "finished"):
        return False
    source, step = parent(text)
    parents = Run(run).info().get("parents")
    last = parents[-1] if isinstance(parents, list) and parents else None
    if not isinstance(last, dict) or step not in (None, last.get("step")):
        return False
    return bool(last.get("id") == Run(source).info()["id"])


def place(name: str, run: Path | None) -> Path:
    """Where a run called `name` that leaves a named parent will lie; `run`: what --run says. Refused where something is."""
    if run is None:
        first = runs.root() / name
        return first if rule.look(first).kind in ("missing", "empty") else rule.free_name(first)
    if rule.look(run).kind not in ("missing", "empty"):
        raise Refused(
            "there is something already, and a fork is a new run.",
            where=str(run),
            do="Name another folder with --run; to go on with what lies there, leave out --fork.",
        )
    return run


def whole(verdict: Verdict) -> Verdict:
    """The verdict of a fork, from a checkpoint of which every byte is good: the one asked for, else the newest.

    Refused where there is none.
    """
    assert verdict.source is not None
    source = Run(verdict.source)
    if verdict.exact:
        return _exact(verdict, source)
    found, reasons = store.search(source.checkpoints)
    if found is None:
        store.refuse_lost(source, reasons)
        raise Refused("--fork needs a checkpoint, and this run has none yet.", where=str(verdict.source))
    found.close()
    return replace(
        verdict,
        step=found.step,
        because=f"new, from step {found.step:,} of {verdict.source}",
        notes=(*verdict.notes, *(f"{reason}; step {found.step:,} is used instead" for reason in reasons)),
    )


def _exact(verdict: Verdict, source: Run) -> Verdict:
    try:
        found = store.at(source, verdict.step)
    except Damaged as reason:
        good, _ = store.listed(source.checkpoints)
        steps = ", ".join(f"{one.step:,}" for one in reversed(good)) or "none"
        for one in good:
            one.close()
        raise Refused(
            f"there is no checkpoint of step {verdict.step:,} to fork from.",
            where=str(source.path),
            found=f"{reason}; checkpoints of steps {steps}",
            do="Fork from one of those. checkpoint.keep says how many a run keeps, `argosy save RUN` makes one now.",
        ) from None
    problem = next(store.problems(found), None)
    found.close()
    if problem is not None:
        raise Refused("the checkpoint to fork from is damaged.", where=str(found.folder), found=problem, code=MACHINE)
    return verdict


def ledger(source: Run, step: int) -> Ledger:
    """The ledger that the checkpoint of `step` was made with: what the parent changed later is left out."""
    found = store.at(source, step)
    found.close()
    told = found.facts.get("ledger")
    entries = source.ledger().entries
    length = told.get("length") if isinstance(told, dict) else None
    return Ledger(entries[:length] if isinstance(length, int) else entries)


def leaving(verdict: Verdict) -> Entry:
    """The ledger's entry about where and at which rate the branch leaves its parent."""
    from argosy.train.rates import leaving as entry

    assert verdict.source is not None
    source = Run(verdict.source)
    job = source.job()
    steps = job.train.steps or verdict.step
    return entry(job.optim, ledger(source, verdict.step), steps, verdict.step, str(source.path))


def decays(run: Run, job: Job) -> int | None:
    """The step from which the rate of `run`, which trains `job` in force, falls; None where the schedule names none."""
    from argosy.train.rates import decays_from

    if job.optim.schedule != "wsd" or not job.optim.decay or job.train.steps is None:
        return None
    return decays_from(job.optim, run.ledger(), job.train.steps)


def checkpoint(source: Run, run: Run, step: int) -> None:
    """Give the folder of a fork its parent's checkpoint of `step` and the ledger of then. Refused where it is gone by now."""
    name = store.folder_name(step)
    try:
        shutil.copytree(source.checkpoints / name, run.checkpoints / name)
        ledger(source, step).write(run.path / "ledger.jsonl")
    except (OSError, shutil.Error, Damaged) as error:
        shutil.rmtree(run.checkpoints, ignore_errors=True)  # a full disk gets its room back
        if (source.checkpoints / name / MANIFEST).is_file():
            raise
        raise Refused(
            f"the checkpoint of step {step:,} was pruned while it was copied: its run goes on.",
            where=str(source.path),
            found=str(error),
            do="Give the same command again, from a later step; a larger checkpoint.keep there keeps more of them.",
        ) from None
