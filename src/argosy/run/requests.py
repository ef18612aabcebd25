"""How anyone asks a running job to save or to stop: files in the run folder, and the one that the workers look at.

`argosy save|stop RUN` makes the file `save` or `stop` in the run folder; whoever leads the run turns it into `local/request`,
whose change rank 0 sees within a step and puts into its vote. The file in the run folder goes when the request is done.
Where $ARGOSY_LOCAL moves the local folder to each node's own disk, other nodes use `local/` in the run folder, which all see.
"""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
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


def shared(run: Run) -> Path:
    """The folder in which ranks of other nodes pass on and are told what concerns the run; it may not be there yet."""
    return run.path / "local"


def tell(run: Run, request: Request) -> None:
    """Put `request` where rank 0 looks once a step, and where other nodes look, if any do."""
    for folder in _folders(run):
        if folder == run.local or folder.is_dir():
            write_whole(folder / "request", json.dumps(asdict(request)) + "\n")


def told(run: Run, folder: Path | None = None) -> Request:
    """What the workers shall vote for now; nothing where nobody asked. folder: `shared` on another node than rank 0's."""
    try:
        return Request(**json.loads(((folder or run.local) / "request").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Request()


def clear(run: Run) -> None:
    """Forget wishes of an earlier start."""
    for folder in _folders(run):
        for name in ("request", "forwarded"):
            (folder / name).unlink(missing_ok=True)
    for wish in WISHES:
        (run.path / wish).unlink(missing_ok=True)


def forward(folder: Path, number: int) -> None:
    """Pass a signal that reached a worker on to the parent; safe inside a signal handler. `folder`: the run's local one.

    On another node than rank 0's: `shared`.
    """
    beside = folder / f".forwarded.{os.uname().nodename}.{os.getpid()}"  # nodes number their processes alike
    beside.write_text(signal.Signals(number).name, encoding="ascii")
    os.replace(beside, folder / "forwarded")


def forwarded(run: Run) -> str | None:
    """The name of a signal that some worker received and passed on, once; None where there is none."""
    for folder in _folders(run):
        path = folder / "forwarded"
        with suppress(FileNotFoundError, NotADirectoryError):
            name = path.read_text(encoding="ascii")
            path.unlink()
            return name
    return None


def _folders(run: Run) -> list[Path]:
    """The local folder, and the one that other nodes see where that is another."""
    return list(dict.fromkeys((run.local, shared(run))))
