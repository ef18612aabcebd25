"""New, go on, or refuse: what `argosy train` does about the folder it finds. A table, judged purely; nothing is written here.

In: what was asked (`Asked`) and what lies there (`look` -> `Found`). Out: `Verdict`, with the sentence that the screen prints.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from argosy.errors import Refused
from argosy.job.leaves import fields
from argosy.job.schema import Job
from argosy.run.folder import Run

Action = Literal["create", "continue", "finished", "fork", "refuse"]
Kind = Literal["missing", "empty", "foreign", "file", "broken", "unfinished", "finished"]

_FIELDS = fields()
_LENGTH = ("train.tokens", "train.steps", "train.time")
# What a run may change on the way when it is said aloud (--change): everything that leaves shapes, data and draws as they are.
_FIXED = ("model.", "data.", "optim.name", "train.seed", "train.master", "batch.packing", "batch.ramp")
_MIXED = ("data.source", "data.mix", "data.field", "data.license")  # what is read may change: an entry of the ledger
# What a fork may not change: the last checkpoint would not fit.
_SHAPES = ("model.", "data.tokenizer", "optim.name", "train.master")
_READ = ("batch.packing", "batch.ramp")  # nor these: they say how a run reads from its first step on


@dataclass(frozen=True)
class Asked:
    """What a start of `argosy train` asks for."""

    job: Job
    folder: Path  # runs/<name>, or what --run says
    explicit: bool = False  # --run was given
    fork: bool = False
    change: bool = False
    workers: int = 1
    at: int | None = None  # the step to fork from; None = the newest checkpoint


@dataclass(frozen=True)
class Found:
    """What lies in a folder."""

    path: Path
    kind: Kind
    job: Job | None = None  # as it was asked when the run was last started
    step: int = 0  # newest checkpoint
    steps: int = 0  # length of the run in steps; 0 when it never came so far
    state: str = "new"  # new, running (= interrupted), stopped, failed, finished
    workers: int = 0
    moved: str = ""  # where it was before
    copied: str = ""  # the run that it is a copy of
    sentence: str = ""  # what is broken


@dataclass(frozen=True)
class Verdict:
    """What is done, where, and the sentence about it."""

    action: Action
    path: Path
    because: str
    step: int = 0  # a run goes on, or forks, after this step
    changes: tuple[tuple[str, object, object], ...] = ()  # (key, old, new), for the ledger
    source: Path | None = None  # the run that a fork starts from
    notes: tuple[str, ...] = ()
    renew: bool = False  # a copy: it gets an id of its own
    finished: bool = False  # a finished run goes on: there must be something left to train
    exact: bool = False  # the step was asked for, and no other will do

    @property
    def refused(self) -> Refused:
        """The error of a verdict that refuses."""
        return Refused(self.because, where=str(self.path))


def look(path: Path) -> Found:
    """What lies at `path`. Reads only."""
    if not path.exists() and not path.is_symlink():
        return Found(path, "missing")
    if not path.is_dir():
        return Found(path, "file")
    run = Run(path)
    if not run.exists:
        # `lock` alone is the trace of another start that was about to make the run
        left = {entry.name for entry in os.scandir(path)} - {"lock"}
        return Found(path, "foreign" if left else "empty", sentence=", ".join(sorted(left)[:3]))
    try:
        info = run.info()
        settled = (path / "settings.json").is_file()
        job = run.asked() if settled else None
        identity, state = str(info["id"]), str(info["state"])
        steps, workers = int(info.get("steps") or 0), int(info.get("workers") or 0)
    except Refused as refused:  # the place is named by whoever tells it
        inside = refused.where if refused.where != str(path) else ""
        told = Refused(refused.what, where=inside, found=refused.found, do=refused.do)
        return Found(path, "broken", sentence=told.text)
    except KeyError as error:
        return Found(path, "broken", sentence=f"its files lack {error}.")
    except (TypeError, ValueError) as error:
        return Found(path, "broken", sentence=f"its files hold what does not belong there: {error}.")
    place = Path(str(info.get("place", path)))
    elsewhere = place.resolve() != path.resolve()
    twin = elsewhere and Run(place).exists and _id(place) == identity
    return Found(
        path,
        "finished" if state == "finished" else "unfinished",
        job=job,
        step=run.newest_step(),
        steps=steps,
        state=state,
        workers=workers,
        moved=str(place) if elsewhere and not twin else "",
        copied=str(place) if twin else "",
    )


def differences(old: Job, new: Job) -> list[tuple[str, object, object]]:
    """The keys that the run rule compares and that differ, as (key, old, new), in the order of the tree."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    return [
        (key, before.get(key), after.get(key))
        for key in {**before, **after}
        if _compared(key) and before.get(key) != after.get(key)
    ]


def judge(asked: Asked, found: Found, free: Path) -> Verdict:
    """What to do. `free`: the next folder of this name that is not there yet, runs/<name>-2. Pure."""
    if asked.fork and asked.change:
        return _refuse(
            found, "--fork and --change together say two things. Choose one: a new run, or this one changed."
        )
    if found.kind in ("file", "foreign", "broken"):
        return _unfit(found)
    if found.kind in ("missing", "empty"):
        if asked.fork or asked.change:
            option = "--fork" if asked.fork else "--change"
            return _refuse(found, f"{option} needs a run to start from, and there is none here.")
        return Verdict("create", found.path, "new" if found.kind == "missing" else "new, in the empty folder")
    if asked.fork:
        return _fork(asked, found, free)
    if found.kind == "finished":
        return _finished(asked, found, free)
    return _unfinished(asked, found)


def _unfit(found: Found) -> Verdict:
    if found.kind == "file":
        return _refuse(found, "this is a file, a run needs a folder. Give another: --run DIR.")
    if found.kind == "foreign":
        what = f"this folder holds something that is no run ({found.sentence}). Give a new or empty one: --run DIR."
        return _refuse(found, what)
    return _refuse(
        found, f"the run here cannot be read: {found.sentence} Restore that file, or give another: --run DIR."
    )


def _finished(asked: Asked, found: Found, free: Path) -> Verdict:
    changed = differences(found.job, asked.job) if found.job else []
    if not asked.explicit:
        return Verdict("create", free, f"new; {found.path} is finished")
    if changed and not asked.change:
        return _refuse(found, f"a finished run of another job ({_list(changed)}). Give another folder: --run DIR.")
    if changed or (found.job and _length(found.job) != _length(asked.job)):
        what = "its length" if not found.job or _length(found.job) != _length(asked.job) else "its job"
        because = f"was finished, goes on after step {found.step:,}: {what} was changed"
        return replace(_go_on(asked, found, changed, because), finished=True)
    return Verdict("finished", found.path, f"finished at step {found.step:,}: nothing to do", step=found.step)


def _unfinished(asked: Asked, found: Found) -> Verdict:
    changed = differences(found.job, asked.job) if found.job else []
    if changed and not asked.change:
        what = f"an unfinished run of another job ({_list(changed)}). Choose: --run {free_name(found.path)} (new), "
        what += f"--fork (new run from its step {found.step:,}), " if found.step else ""
        what += "--change (go on with it changed), " if not any(_fixed(row, asked.job) for row in changed) else ""
        return _refuse(found, what + f"or take back {_back(changed)}.")
    if found.step:
        because = f"goes on after step {found.step:,}" + (f" of {found.steps:,}" if found.steps else "")
    else:
        because = "starts again: it has no checkpoint yet"
    if found.state == "failed":
        because += "; it had failed"
    return _go_on(asked, found, changed, because)


def _go_on(asked: Asked, found: Found, changed: list[tuple[str, object, object]], because: str) -> Verdict:
    fixed = [row for row in changed if _fixed(row, asked.job)]
    if fixed:
        what = f"--change cannot change {_list(fixed)} in the middle of a run. Start a new one: --run DIR."
        return _refuse(found, what)
    notes = []
    if asked.change and not changed:
        notes.append("--change: nothing that the run compares has changed")
    if changed:
        notes.append(f"changed from step {found.step + 1:,} on: {_list(changed)}")
    if found.job and _length(found.job) != _length(asked.job):
        notes.append(f"another length: {_length(found.job)} → {_length(asked.job)}")
    if found.workers and found.workers != asked.workers:
        notes.append(f"with {asked.workers} workers, before with {found.workers}; the same batches all the same")
    if found.moved:
        notes.append(f"moved here from {found.moved}")
    if found.copied:
        notes.append(f"a copy of {found.copied}; from here on a run of its own")
    return Verdict(
        "continue",
        found.path,
        because,
        step=found.step,
        changes=tuple(changed),
        notes=tuple(notes),
        renew=bool(found.copied),
    )


def _fork(asked: Asked, found: Found, free: Path) -> Verdict:
    if not found.step:
        return _refuse(found, "--fork needs a checkpoint, and this run has none yet.")
    changed = differences(found.job, asked.job) if found.job else []
    unfit = [row for row in changed if row[0].startswith(_SHAPES) or _reshapes(row, asked.job)]
    if unfit:
        what = f"--fork cannot change {_list(unfit)}: the checkpoint would not fit. Start a new run: --run DIR."
        return _refuse(found, what)
    read = [row for row in changed if row[0] in (*_READ, "train.seed")]
    if read:
        what = f"--fork cannot change {_list(read)}: the branch reads on from where its parent stands."
        return _refuse(found, f"{what} Start a new run: --run DIR.")
    step = found.step if asked.at is None else asked.at
    return Verdict(
        "fork",
        free,
        f"new, from step {step:,} of {found.path}",
        step=step,
        changes=tuple(changed),
        source=found.path,
        notes=(f"changed from step {step + 1:,} on: {_list(changed)}",) if changed else (),
        exact=asked.at is not None,
    )


def free_name(path: Path) -> Path:
    """The next of path-2, path-3, ...: behind all runs of this name, so that it is the newest of them."""
    number = 1 + max(_numbered(path), default=1)
    while (candidate := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return candidate


def stem(place: Path, name: str) -> Path:
    """The folder whose -2, -3, ... are looked for: runs/laptop also where the newest is runs/laptop-2."""
    root, _, number = place.name.rpartition("-")
    return place.with_name(name) if root == name and number.isdecimal() else place


def newest_of(path: Path) -> Path:
    """The newest of path, path-2, path-3, ... of one name: the one that the same command goes on with."""
    later = _numbered(path)
    return path.with_name(f"{path.name}-{max(later)}") if later else path


def _numbered(path: Path) -> list[int]:
    """The numbers of path-2, path-3, ... that are runs of this name; some may have been removed in between."""
    found = []
    for entry in path.parent.glob(f"{glob.escape(path.name)}-*"):
        end = entry.name.removeprefix(f"{path.name}-")
        number = int(end) if re.fullmatch("[1-9][0-9]{0,8}", end) else 0
        if number > 1 and look(entry).kind in ("finished", "unfinished") and Run(entry).info().get("name") == path.name:
            found.append(number)
    return found


def _refuse(found: Found, what: str) -> Verdict:
    return Verdict("refuse", found.path, what, step=found.step)


def _compared(key: str) -> bool:
    extra = _FIELDS[key].json_schema_extra if key in _FIELDS else None
    return not (isinstance(extra, dict) and extra.get("change") == "free")


def _fixed(row: tuple[str, object, object], job: Job) -> bool:
    return (row[0].startswith(_FIXED) and not row[0].startswith(_MIXED)) or _reshapes(row, job)


def _reshapes(row: tuple[str, object, object], job: Job) -> bool:
    """Whether the weights' type or shape follows the key that changes: a checkpoint of the old one would not fit."""
    key, *values = row
    if key == "train.precision":
        return job.train.master == "auto" and "float64" in values
    return key == "batch.sequence" and job.model.positions == "learned" and job.model.context is None


def _length(job: Job) -> str:
    patient = "" if job.evaluate.patience is None else f" with evaluate.patience = {job.evaluate.patience}"
    for key in _LENGTH:
        value = getattr(job.train, key.removeprefix("train."))
        if value is not None:
            return f"{key} = {value:,}{patient}"
    return f"the default length{patient}"


def _list(changed: list[tuple[str, object, object]]) -> str:
    shown = [f"{key} {_text(old)} → {_text(new)}" for key, old, new in changed[:4]]
    return ", ".join(shown) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")


def _back(changed: list[tuple[str, object, object]]) -> str:
    if len(changed) > 1:
        return "the changes"
    key, old, _ = changed[0]
    return key if old is None else f"{key} (it was {_text(old)})"


def _text(value: object) -> str:
    if isinstance(value, list) and value and all(isinstance(one, dict) and "source" in one for one in value):
        return " + ".join(f"{one.get('weight', 1):g} x {one['source']}" for one in value)  # a mix
    return "unset" if value is None else str(value)


def _leaves(job: Job) -> Iterator[tuple[str, Any]]:
    """The leaves of the tree; a list or a tokenizer to be trained is one."""

    def walk(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
        """The leaves under `node`, whose keys begin with `prefix`."""
        if isinstance(node, dict) and prefix not in ("data.tokenizer", "batch.ramp"):
            for key, value in node.items():
                yield from walk(f"{prefix}.{key}" if prefix else key, value)
        else:
            yield prefix, node

    yield from walk("", job.model_dump(mode="json"))


def _id(path: Path) -> object:
    try:
        return Run(path).info().get("id")
    except Refused:
        return None
