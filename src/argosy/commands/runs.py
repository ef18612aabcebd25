"""`argosy runs`: list the runs, remove one. `find` is how every other command finds a run by its name."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from argosy.errors import Refused

if TYPE_CHECKING:
    from argosy.run.folder import Run

HELP = "Runs"
_REMOVED = re.compile(r"\.removed-[0-9]{8}-[0-9]{6}-[0-9a-f]{8}")  # a run whose removal has begun


@dataclass(frozen=True)
class Row:
    """What the list says about one run."""

    path: Path
    state: str  # running, finished, stopped, failed, interrupted, new, unreadable
    step: int = 0
    steps: int = 0
    bits_per_byte: float | None = None  # of the last evaluation
    created: str = ""


def root() -> Path:
    """Where runs live: $ARGOSY_RUNS, else ./runs."""
    return Path(os.environ.get("ARGOSY_RUNS") or "runs")


def find(name: str | Path | None) -> Run:
    """The run that `name` means: a folder, the name of one under the runs folder, None = the newest. Refused where none is.

    What holds a slash is a path and nothing else: "./notes" never means a run of that name elsewhere.
    """
    from argosy.run.folder import Run

    if name is None:
        run = Run(root() / "latest")
        if not run.exists:
            raise Refused("there is no run yet.", where=str(root()), do="Make one: argosy train")
        return Run(run.path.resolve())
    for path in (Path(name),) if os.sep in str(name) else (Path(name), root() / name):
        if Run(path).exists:
            return Run(path)
    known = ", ".join(row.path.name for row in table()[:5])
    raise Refused(f"{name} is no run.", found=known or f"no runs in {root()}", do="`argosy runs` lists them.")


def table() -> list[Row]:
    """All runs under the runs folder, the newest first."""
    from argosy.run.folder import Run

    folder = root()
    entries = list(folder.iterdir()) if folder.is_dir() else []
    paths = [path for path in entries if not path.is_symlink() and not _REMOVED.fullmatch(path.name)]
    rows = [row(Run(path)) for path in paths if Run(path).exists]
    return sorted(rows, key=lambda one: (one.created, one.path.name), reverse=True)


def row(run: Run) -> Row:
    """What the list says about `run`; one that cannot be read is listed as such."""
    try:
        info = run.info()
        steps = int(info.get("steps") or 0)
    except (Refused, ValueError, TypeError):
        return Row(run.path, "unreadable")
    busy = run.busy() is not None
    state = str(info.get("state", "?"))
    if state == "running" or busy:
        state = "running" if busy else "interrupted"
    return Row(run.path, state, run.newest_step(), steps, _last(run), str(info.get("created", "")))


def remove(name: str) -> Path:
    """Remove a run and all it holds. Refused while it is running, for a folder that is no run, and for one that holds more.

    It gets another name first: nobody ever finds, or starts in, a folder of which a part is gone.
    """
    from argosy.checkpoint.slots import Slots
    from argosy.run.folder import MADE, new_id

    run = find(name)
    path = run.path.resolve()
    if run.path.is_symlink():
        raise Refused("this is a link to a run.", where=str(run.path), found=str(path), do=f"Name the run: {path}")
    gone = path.with_name(f".removed-{new_id()}")
    pid = run.busy()
    if pid is not None:
        raise Refused(f"it is running (process {pid}).", where=str(path), do=f"Stop it first: argosy stop {run.path}")
    with run.lock(0):  # who starts it meanwhile waits, and finds nothing
        more = sorted(entry.name for entry in path.iterdir() if not MADE.fullmatch(entry.name))
        if more:
            raise Refused(
                "this folder holds what no run makes.",
                where=str(path),
                found=", ".join(more[:5]) + (f" and {len(more) - 5} more" if len(more) > 5 else ""),
                do="Move that away first, or remove the run by hand.",
            )
        local = run.local.resolve()
        slots = Slots(path, local)
        try:
            path.rename(gone)
        except OSError as error:
            slots.close()
            raise Refused(
                "this run cannot be removed.",
                where=str(path),
                found=error.strerror or str(error),
                do=f"Nothing is lost. Its name must be changed in {path.parent}: see to whom that belongs.",
            ) from None
        slots.clear()  # not before: they may hold the newest checkpoint, and a run that keeps its name keeps that
    latest = root() / "latest"
    if latest.is_symlink() and not latest.exists():
        latest.unlink()
    _wiped(gone)
    if not local.is_relative_to(path):
        shutil.rmtree(local, ignore_errors=True)
    for left in path.parent.iterdir():
        if _REMOVED.fullmatch(left.name):  # of a removal that was killed
            shutil.rmtree(left, ignore_errors=True)
    return path


def _wiped(gone: Path) -> None:
    """Remove the folder `gone`, which no run has as its name any more. Refused where a part of it has to stay."""
    try:
        while gone.exists():  # another removal may be at it
            with suppress(FileNotFoundError):
                shutil.rmtree(gone)
    except OSError as error:
        raise Refused(
            "not all of this run could be removed, and `argosy runs` lists it no more.",
            where=str(gone),
            found=f"{error.strerror or error} ({error.filename or gone})",
            do="Remove that folder by hand.",
        ) from None


def text(rows: list[Row]) -> str:
    """The list, one line a run."""
    if not rows:
        return f"no runs in {root()}; make one: argosy train"
    lines = [f"{'run':<28} {'state':<12} {'step':>17}  {'bits/byte':>9}  created"]
    for one in rows:
        steps = f"{one.step:,}/{one.steps:,}" if one.steps else f"{one.step:,}"
        bits = f"{one.bits_per_byte:.3f}" if one.bits_per_byte is not None else "–"
        lines.append(
            f"{one.path.name:<28} {one.state:<12} {steps:>17}  {bits:>9}  {one.created[:16].replace('T', ' ')}"
        )
    return "\n".join(lines)


def _last(run: Run) -> float | None:
    """The last held-out bits per byte: of the model as it is."""
    from argosy.run.lines import rows

    values = [row.get("bits_per_byte") for row in rows(run.path / "evaluations.jsonl")]
    found = [float(value) for value in values if isinstance(value, int | float)]
    return found[-1] if found else None


def register(app: typer.Typer) -> None:
    """Spell the command for the shell."""
    runs = typer.Typer(invoke_without_command=True)
    app.add_typer(runs, name="runs", rich_help_panel=HELP)

    @runs.callback()
    def listed(context: typer.Context) -> None:
        """List runs; also: rm."""
        if context.invoked_subcommand is None:
            print(text(table()))

    @runs.command("rm")
    def rm(names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Folders or names of runs.")]) -> None:
        """Remove runs and all they hold; running ones are refused."""
        for name in names:
            find(name)  # a name that is none is refused before anything is gone
        for name in names:
            print(f"removed {remove(name)}")
