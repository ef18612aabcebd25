"""Checkpoints on disk: which there are, whether they are whole, commit, keep, prune. No torch.

A folder is a checkpoint exactly if its `manifest.json` can be read; that file comes last and goes first. A reader holds a
shared lock on the manifest while it reads, and nothing that is locked is pruned.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from argosy.checkpoint.manifest import (
    ASIDE,
    MANIFEST,
    UNREADABLE,
    Damaged,
    DataFile,
    Manifest,
    Sidecar,
    Unfinished,
    checksum,
    keep_why,
    read,
    text,
)
from argosy.checkpoint.plan import NodeFile, node_file
from argosy.errors import MACHINE, Refused
from argosy.points import point
from argosy.run.folder import Run

_STEP = re.compile(r"step-(\d{6,})")


@dataclass
class Checkpoint:
    """A committed checkpoint: its folder and manifest. `skipped`: why newer ones were passed over, a sentence each."""

    folder: Path
    manifest: Manifest
    skipped: tuple[str, ...] = ()
    _lock: int = field(default=-1, repr=False)

    @property
    def step(self) -> int:
        """The step whose end it holds."""
        return self.manifest.step

    @property
    def facts(self) -> dict[str, object]:
        """What the trainer keeps beside the tensors."""
        return self.manifest.facts

    def close(self) -> None:
        """Let it be pruned again."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __del__(self) -> None:
        self.close()


def folder_name(step: int) -> str:
    """ "step-000320"."""
    return f"step-{step:06d}"


def folders(checkpoints: Path) -> list[Path]:
    """The folders of all steps, finished or not, ascending by step."""
    try:
        found = [(match, entry) for entry in checkpoints.iterdir() if (match := _STEP.fullmatch(entry.name))]
    except OSError:
        return []
    return [entry for _, entry in sorted(found, key=lambda pair: int(pair[0][1]))]


def opened(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, locked against pruning until it is closed. Damaged where there is none."""
    try:
        lock = os.open(folder / MANIFEST, os.O_RDONLY)
    except OSError:
        lock = -1  # reading it says why
    else:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_SH)
    try:
        found = Checkpoint(folder, read(folder), _lock=lock)
    except BaseException:
        if lock >= 0:
            os.close(lock)
        raise
    if folder_name(found.step) != folder.name:
        raise Damaged(f"{folder / MANIFEST} belongs to step {found.step}, not to this folder")
    for file in found.manifest.files:  # before anybody plans by what a manifest claims
        try:
            size = (folder / file.name).stat().st_size
        except FileNotFoundError:
            raise Damaged(f"{folder / file.name} is missing") from None
        except OSError as error:
            raise Damaged(f"{folder / file.name} {UNREADABLE}: {error.strerror}") from None
        if size != file.bytes:
            raise Damaged(f"{folder / file.name} has {size} bytes where {file.bytes} were written")
    return found


def listed(checkpoints: Path) -> tuple[list[Checkpoint], list[str]]:
    """All checkpoints that look whole, newest first, and a sentence for each folder that holds none. No data are read."""
    good, bad = _told_apart(checkpoints)
    return good, [str(reason) for _, reason in bad]


def _told_apart(checkpoints: Path) -> tuple[list[Checkpoint], list[tuple[Path, Damaged]]]:
    """The checkpoints that look whole, newest first, and every other folder with what is wrong with it."""
    good, bad = [], []
    for folder in folders(checkpoints):
        try:
            good.append(opened(folder))
        except Damaged as reason:
            bad.append((folder, reason))
    return sorted(good, key=lambda found: found.manifest.order, reverse=True), bad


def newest(run: Run) -> Checkpoint | None:
    """The newest checkpoint of `run` that is whole, every byte verified; None where there is none.

    One rank asks and tells the others the step (they take `at`): two might see different ones while one is committed.
    What was passed over, and why, is in its `skipped`; `search` gives that even where nothing good is left.
    """
    return search(run.checkpoints)[0]


def search(checkpoints: Path, *, aside: bool = False) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and the reasons why newer folders are not used.

    aside: those that were committed and are damaged are set aside, so that none of them is kept, or named as the newest, in
    the place of a good one; for whoever goes on with the run. Where nothing good is left, all stay as they are.
    """
    good, bad = _told_apart(checkpoints)
    chosen: Checkpoint | None = None
    reasons, damaged = [str(reason) for _, reason in bad], _broken(bad)
    for found in good:
        problem = None if chosen is not None else next(problems(found), None)
        if chosen is None and problem is None:
            chosen = found
        else:
            found.close()
            reasons += [] if problem is None else [problem]
            damaged += [] if problem is None or UNREADABLE in problem else [(found.folder, problem)]
    if chosen is not None:
        chosen.skipped = tuple(reasons)
        for folder, reason in damaged if aside else []:
            set_aside(folder, reason)
    return chosen, reasons


def _broken(bad: Sequence[tuple[Path, Damaged]]) -> list[tuple[Path, str]]:
    """Those of `bad` that hold a committed checkpoint and will never be whole again by themselves, with the reason."""
    told = [(folder, str(reason)) for folder, reason in bad if not isinstance(reason, Unfinished)]
    return [(folder, reason) for folder, reason in told if UNREADABLE not in reason]


def sort_out(checkpoints: Path) -> list[str]:
    """Set aside what shows at a glance that it is damaged (a file short or missing), where something else looks whole.

    Gives the reasons. It reads no data: what is damaged within shows when the newest is searched for.
    """
    good, bad = _told_apart(checkpoints)
    for found in good:
        found.close()
    broken = _broken(bad) if good else []
    for folder, reason in broken:
        set_aside(folder, reason)
    return [reason for _, reason in broken]


def set_aside(folder: Path, reason: str) -> Path:
    """Take a damaged checkpoint out of the list without losing it: its manifest gets another name, the reason a file."""
    aside = folder / ASIDE
    with contextlib.suppress(OSError):  # a disk that is full: that it is damaged is told all the same
        keep_why(folder, reason)
    with contextlib.suppress(FileNotFoundError):  # another rank may have been first
        os.replace(folder / MANIFEST, aside)
    return aside


def refuse_lost(run: Run, reasons: Sequence[str], code: int = MACHINE) -> None:
    """Refused where `run` had checkpoints and none is good; to be called where `search` found none, for `reasons`.

    Beginning anew would throw away all that was trained and look as if all were well. Folders that nobody has committed yet,
    of a start that was killed while it saved for the first time, are no loss.
    """
    committed = [entry for entry in folders(run.checkpoints) if any(entry.glob(f"{MANIFEST}*"))]
    if committed:
        raise Refused(
            f"none of the {len(committed)} checkpoints of this run is whole."
            if len(committed) > 1
            else "the only checkpoint of this run is damaged.",
            where=str(run.checkpoints),
            found="; ".join(reasons),
            do="Put a good copy there, or begin a new run: --run NEW.",
            code=code,
        )


def at(run: Run, step: int) -> Checkpoint:
    """The checkpoint of `step`. Damaged where it cannot be read."""
    return opened(run.checkpoints / folder_name(step))


def plan_of(found: Checkpoint, node: int) -> NodeFile:
    """The byte layout of the data file of `node`."""
    return node_file(found.manifest.specs, found.manifest.grid.layout, found.manifest.grid.nodes, node)


def sidecar_of(found: Checkpoint, node: int, plan: NodeFile) -> Sidecar:
    """The checksums of the data file of `node`, proven to be those that were committed. Damaged otherwise."""
    file = found.manifest.files[node]
    sidecar = Sidecar.read(found.folder / file.sidecar)
    if sidecar.digest != file.digest or len(sidecar.pieces) != len(plan.pieces) or file.bytes != plan.bytes:
        raise Damaged(f"{found.folder / file.sidecar} is not the one that was committed with the manifest")
    return sidecar


def problems(found: Checkpoint) -> Iterator[str]:
    """What is wrong with the files of a checkpoint, a sentence each; reads and checks every byte. Nothing = whole."""
    for node, file in enumerate(found.manifest.files):
        try:
            plan = plan_of(found, node)
            sidecar = sidecar_of(found, node, plan)
        except (Damaged, MemoryError) as reason:
            yield str(reason) or f"{found.folder}: a plan larger than memory"
            continue
        yield from data_problems(found.folder / file.name, plan, sidecar)


def data_problems(path: Path, plan: NodeFile, sidecar: Sidecar) -> Iterator[str]:
    """Where the data file at `path` differs from its plan and its checksums."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != plan.bytes:
                yield f"{path} has {size} bytes where {plan.bytes} were written"
                return
            if hasattr(os, "posix_fadvise"):  # read what is on the disk, not what is still in memory
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            header = file.read(len(plan.header))
            if header != plan.header or checksum(header) != sidecar.header:
                yield f"{path}: the header is not the one that was written"
            for piece, expected in zip(plan.pieces, sidecar.pieces, strict=True):
                if checksum(file.read(piece.bytes)) != expected:
                    yield f"{path}: tensor {piece.tensor} is damaged at bytes {piece.offset} to {piece.offset + piece.bytes}"
    except FileNotFoundError:
        yield f"{path} is missing"
    except OSError as error:
        yield f"{path} {UNREADABLE}: {error.strerror}"


def write_synced(path: Path, data: bytes) -> None:
    """Write a small file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in `folder`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit(folder: Path, manifest: Manifest) -> None:
    """Make what lies in `folder` a checkpoint: the manifest under a temporary name, synced, renamed, the folder synced."""
    temporary = folder / f".{MANIFEST}.new"
    point("checkpoint.manifest.before")
    write_synced(temporary, text(manifest))
    point("checkpoint.manifest.after")
    sync_folder(folder)
    point("checkpoint.rename.before")
    os.replace(temporary, folder / MANIFEST)
    sync_folder(folder)
    sync_folder(folder.parent)
    point("checkpoint.rename.after")
    kept = {MANIFEST, *(name for file in manifest.files for name in (file.name, file.sidecar))}
    for entry in folder.iterdir():  # what an earlier incarnation wrote for the same step
        if entry.name not in kept:
            entry.unlink(missing_ok=True)


def prune(checkpoints: Path, keep: int, verified: Manifest) -> list[Path]:
    """Remove all but the `keep` newest checkpoints, and unfinished ones before `verified`, which must be whole.

    The one that `verified` tells to be the best and kept stays as well. What a reader has locked stays until the next time.
    Returns what was removed.
    """
    good, _ = listed(checkpoints)
    kept = {found.folder for found in good[:keep]} | {checkpoints / folder_name(verified.step)}
    best = best_step(verified)
    kept |= set() if best is None else {checkpoints / folder_name(best)}
    complete = {found.folder for found in good}
    for found in good:
        found.close()
    removed = []
    for folder in folders(checkpoints):
        unfinished = folder not in complete
        if folder in kept or (unfinished and int(folder.name.removeprefix("step-")) > verified.step):
            continue
        if not unfinished:
            point("checkpoint.prune.before")
        if remove(folder):
            removed.append(folder)
            if not unfinished:
                point("checkpoint.prune.after")
    return removed


def best_step(newest: Manifest) -> int | None:
    """The step of the checkpoint that was kept as the best, by what the `newest` one tells; None where none was."""
    told = newest.facts.get("best")
    step = told.get("step") if isinstance(told, dict) and told.get("kept") is True else None
    return step if isinstance(step, int) else None


def remove(folder: Path) -> bool:
    """Remove a checkpoint, its manifest first; False where a reader has it locked."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(folder / MANIFEST, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (folder / MANIFEST).unlink()
        except BlockingIOError:
            return False
        except OSError:
            (folder / MANIFEST).unlink(missing_ok=True)  # a file system without locks
        finally:
            os.close(descriptor)
    shutil.rmtree(folder, ignore_errors=True)
    return True


def file_of(name: str, sidecar: Sidecar) -> DataFile:
    """The manifest's line for a data file."""
    return DataFile(name=name, bytes=sidecar.size, digest=sidecar.digest)
