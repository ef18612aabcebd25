"""What dead runs left in memory: the slot folders that nobody locks. No torch.

A killed run may have announced a checkpoint that nobody has written yet; its next start brings that to the disk. So such a
folder stays, without its idle slots, until the run goes on or is removed. All that stays takes at most half of the memory's
file system; beyond that the oldest goes first, and that run goes on from the checkpoint before.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from pathlib import Path

from argosy.checkpoint import store
from argosy.checkpoint.manifest import Damaged
from argosy.checkpoint.plan import ranks_of
from argosy.checkpoint.slots import OWNER, PREFIX, Slots, plans_in, ready_in, slots_in


def sweep(slots: Slots, room: int | None = None) -> list[Path]:
    """Remove the folders of dead runs of this user, as far as nothing in them is waited for. Returns them.

    room: bytes that may stay; None = half of the file system that holds `slots`.
    """
    if slots.folder == slots.local:
        return []
    gone: list[Path] = []
    left: list[tuple[float, Path]] = []
    with contextlib.ExitStack() as locks:
        for folder in sorted(slots.shm.glob(f"{PREFIX}{os.getuid()}-*")):
            if folder == slots.folder or folder.is_symlink() or not _locked(folder, locks):
                continue
            waiting = _waited_for(folder)
            if waiting:
                for path in slots_in(folder):
                    if path not in waiting:
                        path.unlink(missing_ok=True)
                left.append((max(path.stat().st_mtime for path in waiting), folder))
            else:
                gone.append(folder)
        held = 0
        room = _half(slots.shm) if room is None else room
        for _, folder in sorted(left, reverse=True):
            held += sum(path.stat().st_size for path in folder.iterdir())
            if held > room:
                gone.append(folder)
        for folder in gone:
            shutil.rmtree(folder, ignore_errors=True)
    return gone


def _locked(folder: Path, locks: contextlib.ExitStack) -> bool:
    """Take the lock of a folder alone, until `locks` ends; False where a process uses it."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        return False
    locks.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _waited_for(folder: Path) -> list[Path]:
    """The slots of whole generations that the run's next start would write; none where there is no such run any more."""
    found: list[Path] = []
    try:
        owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        run = Path(owner["run"])
        if str(json.loads((run / "run.json").read_text(encoding="utf-8"))["id"]) != owner["id"]:
            return []
        plans = plans_in(folder)
        for (incarnation, step), generation in ready_in(folder).items():
            plan = plans.get(incarnation)
            whole = plan is not None and set(ranks_of(plan.nodes, plan.node)) <= set(generation)
            if whole and not _committed(run / "checkpoints" / store.folder_name(step), incarnation):
                found += [Path(ready.path) for ready in generation.values()]
        return found if all(path.exists() for path in found) else []
    except (OSError, ValueError, KeyError, TypeError):  # no owner, no run, or not written by us
        return []


def _committed(folder: Path, incarnation: int) -> bool:
    try:
        found = store.opened(folder)
    except Damaged:
        return False
    found.close()
    return found.manifest.incarnation == incarnation


def _half(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_blocks * found.f_frsize // 2
