"""How anyone asks a running job to save or to stop: files in the run folder, and the one that the workers look at.

`argosy save|stop RUN` makes the file `save` or `stop` in the run folder; whoever leads the run turns it into `local/request`,
whose change rank 0 sees within a step and puts into its vote. The file in the run folder goes when the request is done.
"""

from __future__ import annotations

import json
import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from argosy.run.folder import Run, write_whole

Wish = Literal["save", "stop"]
WISHES: tuple[Wish, ...] = ("save", "stop")


@dataclass(frozen=True)
class Request:
    """What the workers shall vote for. `reason`: "SIGTERM", "argosy stop"; `number` rises with every new wish."""

    stop: bool = False
    save: bool = False
    reason: str = ""
    number: int = 0


def ask(run: Run, wish: Wish) -> Path:
    """Ask for `wish`; gives the file that goes when it is done."""
    path = run.path / wish
    path.touch()
    return path


def asked(run: Run) -> set[Wish]:
    """What somebody asks for now."""
    return {wish for wish in WISHES if (run.path / wish).exists()}


def answered(run: Run, wish: Wish, step: int) -> None:
    """Tell who asked that `wish` is done, at `step`."""
    write_whole(run.local / f"answered-{wish}.json", json.dumps({"step": step}) + "\n")
    (run.path / wish).unlink(missing_ok=True)


def answer(run: Run, wish: Wish) -> int | None:
    """The step at which `wish` was last done; None when it never was."""
    try:
        return int(json.loads((run.local / f"answered-{wish}.json").read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError):
        return None


def tell(run: Run, request: Request) -> None:
    """Put `request` where rank 0 looks once a step."""
    write_whole(run.local / "request", json.dumps(asdict(request)) + "\n")


def told(run: Run) -> Request:
    """What the workers shall vote for now; nothing where nobody asked."""
    try:
        return Request(**json.loads((run.local / "request").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Request()


def clear(run: Run) -> None:
    """Forget wishes of an earlier start."""
    for name in ("request", "forwarded"):
        (run.local / name).unlink(missing_ok=True)
    for wish in WISHES:
        (run.path / wish).unlink(missing_ok=True)


def forward(folder: Path, number: int) -> None:
    """Pass a signal that reached a worker on to the parent; safe inside a signal handler. `folder`: the run's local one."""
    beside = folder / f".forwarded.{os.getpid()}"
    beside.write_text(signal.Signals(number).name, encoding="ascii")
    os.replace(beside, folder / "forwarded")


def forwarded(run: Run) -> str | None:
    """The name of a signal that some worker received and passed on, once; None where there is none."""
    path = run.local / "forwarded"
    try:
        name = path.read_text(encoding="ascii")
        path.unlink()
    except FileNotFoundError:
        return None
    return name
