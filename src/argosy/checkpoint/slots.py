"""The files in memory between a rank and its node's snapshot process: slots with bytes, announcements that they are whole.

A run has a folder on each node, `/dev/shm/argosy-slots-UID-HASH[-NODE]` (inside the run where a machine has no /dev/shm);
the node is in its name because two may share that memory, or that disk:

    plan-0002.json                   inputs of the plan for the ranks of incarnation 2
    rank-0001-inc-0002-0.slot        the pieces that rank 1 writes, one after the other
    ready-0002-000320-0001.json      rank 1's slot holds step 320; removed by the snapshot process once that is on disk

A slot is taken exactly as long as an announcement names it. Announcements appear by rename, so a rank killed while copying
has announced nothing. The files outlive every process; `multiprocessing.shared_memory` would not (its tracker removes
segments when a process is killed). Every process that uses the folder holds a shared lock in it: a folder that nobody
locks belongs to a dead run (`sweep.py`). `owner.json` says whose it is. Knows no torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import psutil

from argosy.checkpoint.manifest import row, spec_from
from argosy.checkpoint.plan import Piece, TensorSpec
from argosy.layout.layout import Layout

SHM = Path("/dev/shm")
PREFIX = "argosy-slots-"
FINISH = "finish-snapshot"
WRITER = "writer"
OWNER = "owner.json"
SETTLED = 1_000_000_000  # nanoseconds after which a folder's time is surely not the present tick
ALIGN = 64  # bytes; a piece in a slot begins at a multiple of it

_READY = re.compile(r"ready-(\d+)-(\d+)-(\d+)\.json")
_PLAN = re.compile(r"plan-(\d+)\.json")
_SLOT = re.compile(r"rank-(\d+)-inc-(\d+)-(\d+)\.slot")


@dataclass(frozen=True)
class SavePlan:
    """What the ranks of one incarnation save: the inputs of the plan, and who they are."""

    incarnation: int
    layout: Layout
    nodes: tuple[int, ...]
    node: int
    specs: tuple[TensorSpec, ...]
    argosy: str
    torch: str


@dataclass(frozen=True)
class Ready:
    """One rank's announcement: the slot file at `path` holds its pieces of `step`."""

    incarnation: int
    step: int
    rank: int
    path: str
    waited: float  # seconds that training stood still for this copy
    facts: dict[str, Any]


class Slots:
    """The slot folder of a node of the run at `run_path`; `local` takes the bytes where /dev/shm has no room for them."""

    def __init__(self, run_path: Path, local: Path, node: int = 0, *, shm: Path = SHM):
        of_node = f"-{node}" if node else ""
        self.shm, self.local = shm, local / f"slots{of_node}"
        name = blake2b(os.fsencode(run_path.resolve()), digest_size=8).hexdigest() + of_node
        usable = shm.is_dir() and os.access(shm, os.W_OK)
        self.folder = shm / f"{PREFIX}{os.getuid()}-{name}" if usable else self.local
        self._lock, self._writer, self._seen = enter(self.folder), -1, 0
        self._own(run_path)

    def _own(self, run_path: Path) -> None:
        """Say whose folder this is. What a removed run in the same place has left is not this run's, and goes."""
        mine = json.dumps({"run": str(run_path.resolve()), "id": _id(run_path)}).encode()
        descriptor = os.open(self.folder / OWNER, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # all ranks come at once
            before = os.read(descriptor, 1 << 16)
            if before != mine:
                if before:
                    self._forget()
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, mine, 0)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Give up the shared lock; the files stay."""
        for descriptor in (self._lock, self._writer):
            if descriptor >= 0:
                os.close(descriptor)
        self._lock = self._writer = -1

    # Ranks ---------------------------------------------------------------------------------------------------------

    def write_plan(self, plan: SavePlan) -> None:
        """Say what the ranks of an incarnation save; the node's first rank does this before its first announcement."""
        values = asdict(plan) | {"specs": [row(spec) for spec in plan.specs], "boot": _boot()}
        _write(self.folder / f"plan-{plan.incarnation:04d}.json", values)

    def slot(self, rank: int, incarnation: int, index: int, size: int) -> tuple[Path, mmap.mmap]:
        """A new slot file of `size` bytes, reserved, and its memory. In `local` where /dev/shm has no room."""
        name = f"rank-{rank:04d}-inc-{incarnation:04d}-{index}.slot"
        try:
            return self.folder / name, _reserved(self.folder / name, size)
        except OSError:
            (self.folder / name).unlink(missing_ok=True)
            if self.folder == self.local:
                raise
        self.local.mkdir(parents=True, exist_ok=True)
        return self.local / name, _reserved(self.local / name, size)

    def announce(self, ready: Ready) -> Path:
        """Say that a slot is whole; from here on it is the snapshot process's until the returned path vanishes."""
        path = self.folder / f"ready-{ready.incarnation:04d}-{ready.step:06d}-{ready.rank:04d}.json"
        _write(path, asdict(ready))
        return path

    def failure(self, incarnation: int) -> str | None:
        """The sentence with which the snapshot process gave up on `incarnation`, None while it did not."""
        values = _read(self.folder / "failed.json")
        return str(values["sentence"]) if values is not None and values["incarnation"] >= incarnation else None

    def finish(self, wish: bool = True) -> None:
        """Tell the snapshot process to write what is whole, clear the slots and end; False takes it back."""
        if wish:
            (self.folder / FINISH).touch()
        else:
            for folder in (self.folder, self.local.parent):  # the parent of an earlier start may have left its word
                (folder / FINISH).unlink(missing_ok=True)

    # Snapshot process ----------------------------------------------------------------------------------------------

    def write_alone(self) -> None:
        """Become the one that writes for this run on this node; waits until a dying predecessor is gone."""
        self._writer = os.open(self.folder / WRITER, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._writer, fcntl.LOCK_EX)
        os.ftruncate(self._writer, 0)
        os.pwrite(self._writer, f"{os.getpid()}\n".encode(), 0)

    def stirred(self) -> bool:
        """Whether anything may have appeared since this was last asked: one look at the folder's time, no listing."""
        try:
            when = os.stat(self.folder).st_mtime_ns
        except FileNotFoundError:
            return False
        # A file may still appear within the tick of the clock in which the folder was listed: look again a while.
        fresh = when != self._seen or time.time_ns() - when < SETTLED
        self._seen = when
        return fresh

    def writer(self) -> int | None:
        """The pid of the snapshot process, None where none has started yet."""
        try:
            return int((self.folder / WRITER).read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return None

    def give_up(self, incarnation: int, sentence: str) -> None:
        """Tell the ranks why nothing can be saved any more, and give the memory back."""
        _write(self.folder / "failed.json", {"incarnation": incarnation, "sentence": sentence})
        self._forget(plans=False)

    def _forget(self, plans: bool = True) -> None:
        for folder in dict.fromkeys((self.folder, self.local)):
            for pattern in (_READY, _SLOT, *((_PLAN,) if plans else ())):
                for _, path in _files(pattern, folder):
                    path.unlink(missing_ok=True)
        if plans:
            (self.folder / "failed.json").unlink(missing_ok=True)

    def plans(self) -> dict[int, SavePlan]:
        """All plans by incarnation; none from before the machine's last start."""
        return plans_in(self.folder)

    def later(self, incarnation: int) -> bool:
        """Whether ranks of a later incarnation are there."""
        return any(int(match[1]) > incarnation for match, _ in _files(_PLAN, self.folder))

    def ready(self) -> dict[tuple[int, int], dict[int, Ready]]:
        """All announcements: (incarnation, step) -> rank -> announcement."""
        return ready_in(self.folder)

    def release(self, ready: Ready) -> None:
        """Give a slot back to its rank."""
        path = self.folder / f"ready-{ready.incarnation:04d}-{ready.step:06d}-{ready.rank:04d}.json"
        path.unlink(missing_ok=True)

    def drop(self, before: int) -> None:
        """Remove plans and slots of incarnations before `before`; their announcements must be gone."""
        for pattern, group in ((_PLAN, 1), (_SLOT, 2)):
            for folder in dict.fromkeys((self.folder, self.local)):
                for match, path in _files(pattern, folder):
                    if int(match[group]) < before:
                        path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove everything: the run has ended and nothing waits to be written."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.local, ignore_errors=True)
        self.close()


def plans_in(folder: Path) -> dict[int, SavePlan]:
    """The plans in a slot folder, by incarnation; those from before the machine's last start are removed."""
    found = {}
    for match, path in _files(_PLAN, folder):
        values = _read(path)
        if values is None or values.pop("boot") != _boot():
            path.unlink(missing_ok=True)
            continue
        grid: dict[str, Any] = values["layout"]
        if "order" in grid:
            grid["order"] = tuple(grid["order"])
        values |= {"layout": Layout(**grid), "nodes": tuple(values["nodes"])}
        values["specs"] = tuple(spec_from(row) for row in values["specs"])
        found[int(match[1])] = SavePlan(**values)
    return found


def ready_in(folder: Path) -> dict[tuple[int, int], dict[int, Ready]]:
    """The announcements in a slot folder: (incarnation, step) -> rank -> announcement."""
    found: dict[tuple[int, int], dict[int, Ready]] = {}
    for match, path in _files(_READY, folder):
        values = _read(path)
        if values is not None:
            found.setdefault((int(match[1]), int(match[2])), {})[int(match[3])] = Ready(**values)
    return found


def slots_in(folder: Path) -> list[Path]:
    """The files in a slot folder that hold, or are to hold, pieces."""
    return [path for _, path in _files(_SLOT, folder)]


def _files(pattern: re.Pattern[str], folder: Path) -> Iterator[tuple[re.Match[str], Path]]:
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return
    for name in names:
        match = pattern.fullmatch(name)
        if match:
            yield match, folder / name


def places(pieces: Sequence[Piece]) -> tuple[list[int], int]:
    """Where each of a rank's pieces begins in its slot, and the size of the slot."""
    begins, offset = [], 0
    for piece in pieces:
        begins.append(offset)
        offset += -(-piece.bytes // ALIGN) * ALIGN
    return begins, max(offset, ALIGN)


def enter(folder: Path) -> int:
    """Make `folder` if need be and take its shared lock; again where a sweep removed it in between."""
    while True:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to another user")
        try:
            descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            continue
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(folder / "lock"), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)


def _reserved(path: Path, size: int) -> mmap.mmap:
    """`path` with `size` bytes that really exist: a write into a full tmpfs would end the process by SIGBUS."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        else:
            os.ftruncate(descriptor, size)
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)


def _id(run_path: Path) -> str:
    """What tells a run from another in the same place; nothing where it has no run.json (tests), or one without.

    OSError where the file cannot be read just now: taken for another's, this run's own slots would be thrown away.
    """
    try:
        return str(json.loads((run_path / "run.json").read_text(encoding="utf-8"))["id"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return ""


def _boot() -> str:
    """What differs after a restart of the machine: files on a disk may then hold anything."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"{psutil.boot_time():.0f}"


def _write(path: Path, values: object) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(values), encoding="utf-8")
    temporary.rename(path)


def _read(path: Path) -> dict[str, Any] | None:
    """The JSON of a file that another process may just have removed."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return values
