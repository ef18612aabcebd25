"""Whether the kernel killed for memory, and whose: which file counts that, for the control group that a process lives in.

Version 1 and 2, nested, in and out of containers. In: texts of /proc, and what lies under the mount points. Decides nothing.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from argosy.quantities import bytes_text

WHOLE = Path("/proc/vmstat")  # counts for the machine; where no control group counts
UNLIMITED = 1 << 60  # bytes from which on version 1 means no limit


def kills(pid: int) -> dict[Path, int]:
    """The kernel's count of processes killed for memory, by file: of the control group of `pid`, else of the machine.

    Nothing where the process is gone, or the system has no such counts.
    """
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8")
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    file = counter(groups, mounts)
    if file is None:
        file = WHOLE if WHOLE.is_file() else None
    return {} if file is None else {file: kill_count(file)}


def counter(groups: str, mounts: str, top: Path = Path("/")) -> Path | None:
    """The file in which the kernel counts kills in the group of a process; None where it counts none there.

    groups: /proc/PID/cgroup. mounts: /proc/self/mountinfo. top: where the mount points lie (tests). A group of version 2
    without the memory controller is counted in the nearest one above that has it.
    """
    places: dict[str, str] = {}  # "memory" (version 1) or "" (version 2) -> the group's path
    for line in groups.splitlines():
        _, controllers, place = line.split(":", 2)
        for controller in controllers.split(","):
            places.setdefault(controller, place)
    for controller, name in (("memory", "memory.oom_control"), ("", "memory.events")):
        for root, point in _mounted(mounts, controller) if controller in places else ():
            mount = top / point.lstrip("/")
            group = mount / _below(places[controller], root)
            for folder in (group, *group.parents):
                if (folder / name).is_file():
                    return folder / name
                if folder == mount:
                    break
    return None


def kill_count(file: Path) -> int:
    """The number behind "oom_kill" in one of the kernel's files; 0 where it cannot be read."""
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def whose(file: Path) -> str:
    """Whose memory ran out where the count in `file` rose, in words: of a group with a limit, else of the whole machine.

    The limit is looked for beside `file` and above it, as far as there are groups.
    """
    for folder in file.parents:
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _limit(folder / name)
            if limit is not None:
                return f"the memory of its control group (at most {bytes_text(limit)}, {folder / name})"
        if not any((folder / name).exists() for name in ("cgroup.procs", "memory.events", "memory.oom_control")):
            break
    return "the machine's memory"


def _limit(file: Path) -> int | None:
    """The limit in one of the kernel's files, in bytes; None where there is none."""
    try:
        word = file.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(word) if word.isdecimal() and int(word) < UNLIMITED else None


def _mounted(mounts: str, controller: str) -> list[tuple[str, str]]:
    """(which group is mounted, where) of the hierarchy with `controller`; "" = version 2."""
    found = []
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(), (after.split() + [""] * 3)[:3]
        if kind == ("cgroup" if controller else "cgroup2") and (not controller or controller in options.split(",")):
            found.append((fields[3], fields[4]))
    return found


def _below(place: str, root: str) -> PurePosixPath:
    """The group at `place`, seen from the mounted group `root`; that one itself where `place` does not lie below it."""
    path, seen = PurePosixPath(place), PurePosixPath(root)
    if ".." in path.parts or not path.is_relative_to(seen):
        return PurePosixPath(".")
    return path.relative_to(seen)
