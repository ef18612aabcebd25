"""`argosy doctor`: this machine in about ten lines: what works, what does not, and how to mend it.

Needs no torch itself: torch is asked by a child process, so that a broken one is a line of the answer and no crash.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from argosy.errors import DONE, NO, Refused

if TYPE_CHECKING:
    from argosy.cluster.here import Machine

HELP = "Start here"
State = Literal["ok", "note", "broken"]

_SLOTS = 256 << 20  # bytes in shared memory below which a larger model's checkpoints no longer fit
_FREE = 2 << 30  # bytes of disk below which a run gets tight


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. broken: training does not work without it; note: it works, less well."""

    name: str
    state: State
    found: str
    do: str = ""


def doctor() -> list[Check]:
    """Look at everything a run needs on this machine. Takes seconds: torch is asked by a child process."""
    from argosy.cluster.here import looked

    here, refused = looked()
    checks = [_python(), _machine(here)]
    if refused is not None:
        checks.append(Check("devices", "broken", f"{refused.what.rstrip('.')}: {refused.found}", refused.do))
    probed, told = _probed()
    checks += [told, *(_figures(probed, here) if probed else [])]
    checks += [_processes(), _memory(), _disk(), _cache(), _text(), _programs()]
    return checks


def _python() -> Check:
    from argosy.run.origin import versions

    known = versions()
    found = f"argosy {known.get('argosy', 'not installed')}, Python {known['python']} ({sys.executable})"
    return Check("argosy", "ok", found)


def _machine(here: Machine) -> Check:
    from argosy.quantities import bytes_text

    cores = f"{here.cores} core{'s' * (here.cores != 1)}"
    free = f"{bytes_text(here.memory_available)} of {bytes_text(here.memory_bytes)} free"
    found = f"{here.platform}, {here.processor}, {cores}, {free}"
    if here.memory_available < 1 << 30:
        return Check("machine", "note", found, "The laptop job takes about 1 GiB; close something first.")
    return Check("machine", "ok", found)


def _probed() -> tuple[dict[str, Any], Check]:
    from argosy.cluster.here import probe

    try:
        found = probe(fresh=True)
    except Refused as refused:
        do = "Install it: pip install torch==2.13.0 (a CPU build is smaller; its index is in constraints.txt)."
        return {}, Check("torch", "broken", f"does not work: {refused.found}", do)
    devices = found.get("devices") or []
    named = f"{len(devices)} GPU{'s' * (len(devices) != 1)}: {', '.join(devices)}" if devices else "no GPU"
    return found, Check("torch", "ok", f"{found.get('torch')}, {named}, {found.get('instructions', '?')} instructions")


def _figures(probed: dict[str, Any], here: Machine) -> Iterator[Check]:
    from argosy.plan.precision import FASTER

    rates = probed.get("gemm") or {}
    text = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
    half, single = rates.get("bfloat16", 0.0), rates.get("float32", 0.0)
    chosen = "bfloat16" if half > FASTER * single else "float32"
    yield Check(
        "numbers", "ok", f"matrix products in GFLOP/s: {text}; a job decides by its own layers, these suggest {chosen}"
    )
    if probed.get("compile"):
        yield Check("compiler", "ok", f"{probed.get('compiler')}: torch.compile works")
    elif here.devices:
        yield Check("compiler", "note", "no C++ compiler; GPU code does not need one")
    else:
        do = "Install g++ and Python's headers (Debian: apt install g++ python3-dev); training is slower without."
        yield Check("compiler", "note", "torch.compile has no C++ compiler or no Python.h", do)


def _processes() -> Check:
    """Workers are watched by pidfd; without it the parent looks more slowly, but training works."""
    if not hasattr(os, "fork"):
        return Check("processes", "broken", "this system cannot fork", "On Windows use WSL2.")
    if not hasattr(os, "pidfd_open"):
        return Check("processes", "note", "no pidfd here: the end of a worker is seen a little later")
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return Check("processes", "note", f"pidfd: {error.strerror}", "The end of a worker is seen a little later.")
    return Check("processes", "ok", "fork and pidfd: a killed worker is seen at once")


def _memory() -> Check:
    from argosy.quantities import bytes_text

    place = Path("/dev/shm")
    if not place.is_dir():
        return Check("shared memory", "note", "no /dev/shm: batches and checkpoints pass through the run folder")
    free = shutil.disk_usage(place).free
    problem = _unwritable(place)
    if problem:
        return Check(
            "shared memory", "note", f"/dev/shm: {problem}", "Batches and checkpoints pass through the run folder."
        )
    if free < _SLOTS:
        do = "In a container: docker run --shm-size=2g. Small runs work all the same."
        return Check("shared memory", "note", f"/dev/shm: {bytes_text(free)} free", do)
    return Check("shared memory", "ok", f"/dev/shm: {bytes_text(free)} free")


def _disk() -> Check:
    from argosy.cluster.here import disk_free
    from argosy.commands.runs import root
    from argosy.quantities import bytes_text

    place = root()
    free = disk_free(place)
    above = place.absolute()
    while not above.exists():
        above = above.parent
    problem = _unwritable(above)
    if problem:
        return Check("runs", "broken", f"{place}: {problem}", "Set ARGOSY_RUNS to a folder where you may write.")
    state: State = "note" if free < _FREE else "ok"
    return Check("runs", state, f"{place}: {bytes_text(free)} free", "Make room there." if state == "note" else "")


def _cache() -> Check:
    from argosy.cluster.here import cache_folder

    place = cache_folder()
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        problem = _unwritable(place)
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        return Check("cache", "broken", f"{place}: {problem}", "Set ARGOSY_CACHE to a folder where you may write.")
    return Check("cache", "ok", f"{place}: prepared text and measurements are kept there")


def _text() -> Check:
    from argosy.data.corpus import python

    try:
        source = python()
    except Refused as refused:
        return Check("built-in text", "note", refused.what, refused.do)
    return Check("built-in text", "ok", f"{len(source.files)} files of Python's standard library")


def _programs() -> Check:
    wanted = {"git": "the commit of a run is kept", "make": "python3 bootstrap.py does the same"}
    missing = [name for name in wanted if shutil.which(name) is None]
    if missing:
        return Check(
            "programs", "note", f"not found: {', '.join(missing)}", "; ".join(f"{n}: {wanted[n]}" for n in missing)
        )
    return Check("programs", "ok", ", ".join(wanted))


def _unwritable(place: Path) -> str:
    """Why nothing can be written in `place`; "" where it can."""
    try:
        with tempfile.TemporaryFile(dir=place):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def text(checks: list[Check]) -> str:
    """One line a check, a remedy below those that have one, and the verdict."""
    signs = {"ok": "ok  ", "note": "note", "broken": "NO  "}
    lines = []
    for check in checks:
        lines.append(f"{signs[check.state]}  {check.name:<14} {check.found}")
        if check.do:
            lines.append(f"{'':<22}{check.do}")
    broken = [check.name for check in checks if check.state == "broken"]
    verdict = f"Training does not work yet: {', '.join(broken)}." if broken else "Training works here: argosy train"
    return "\n".join([*lines, "", verdict])


def points() -> str:
    """The named places where a test may kill or stop a process, with what has happened there."""
    from argosy.points import POINTS

    return "\n".join(f"{name:<28} {said}" for name, said in POINTS.items())


def register(app: typer.Typer) -> None:
    """Spell the command for the shell."""

    @app.command("doctor", rich_help_panel=HELP)
    def command(
        json_: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
        points_: Annotated[
            bool, typer.Option("--points", help="List the places where tests may kill a process.")
        ] = False,
    ) -> None:
        """What works on this machine, what does not, and how to mend it. Exit code 3 where something is broken."""
        if points_:
            print(points())
            return
        checks = doctor()
        print(json.dumps([asdict(check) for check in checks], indent=1) if json_ else text(checks))
        raise typer.Exit(NO if any(check.state == "broken" for check in checks) else DONE)
