"""What every process of a run does first and last, whatever its trade: guardian, signals, log, exit code.

`enter("argosy.train.worker:main", ...)` is what the parent's children run; the entry is named, not imported, because the
towers meet in names and files only. Also a program: `python -m argosy.run.child ENTRY ROLE RUN INCARNATION PARENT [RANK]`.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import traceback
from contextlib import suppress
from importlib import import_module
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import FrameType
from typing import Any

from argosy.errors import BUG, MACHINE, Refused
from argosy.run import guardian, requests
from argosy.run.folder import Run, write_whole
from argosy.run.signals import ASKING

# What gloo, NCCL and the store say when a peer is gone.
_LOST = (
    "closed by peer",
    "reset by peer",
    "Broken pipe",
    "onnection refused",
    "connectFullMesh",
    "ailed to connect",
    "remote process exited",
    "NCCL communicator was aborted",
)


def enter(entry: str, role: str, run: str, incarnation: int, parent: int, rank: int | None = None) -> int:
    """Run the entry "module:function" as a child of `parent` with (run, [rank,] incarnation); gives its exit code.

    What it prints, and the traceback of what it raises, goes to `log/`; its exit code and, where it failed, one sentence
    go to the run's local folder, for the parent.
    """
    place = Run(run)
    _log(place.log / f"{role}.txt")
    # After the log: where standard input came closed, the guardian's descriptor would be 0, and the log would replace it.
    guardian.watch(parent)
    _signals(place.local)
    code, kind, sentence = 0, "", ""
    try:
        module, function = entry.split(":")
        main = getattr(import_module(module), function)
        code = int((main(run, incarnation) if rank is None else main(run, rank, incarnation)) or 0)
    except Refused as refused:
        code, kind, sentence = refused.code, "refused", refused.text
        print(f"error: {refused.text}", file=sys.stderr)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else BUG if left.code else 0
    except BaseException as error:  # the last one to see it: told in the log and to the parent, then the process ends
        code, kind = (MACHINE, "peer") if _lost_peer(error) else (BUG, "bug")
        sentence = f"{type(error).__name__}: {error}".splitlines()[0]
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    report = {"code": code, "kind": kind, "sentence": sentence, "pid": os.getpid()}
    write_whole(ended_path(place, role, incarnation), json.dumps(report) + "\n")
    return code


class Held:
    """An open descriptor that a forked worker gets too: the lock of the run folder, so that an orphan keeps it busy."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def __reduce__(self) -> tuple[object, ...]:
        return _hold, (DupFd(self.descriptor),)


def _hold(copy: Any) -> Held:
    return Held(copy.detach())


def born(held: Held, *arguments: Any) -> None:
    """What a worker forked from the warm server runs; `held` stays open for as long as it lives."""
    leave(*arguments)


def leave(*arguments: Any) -> None:
    """`enter`, then end the process without the interpreter's farewell: threads of torch would make it slow or hang."""
    os._exit(enter(*arguments))


def ended_path(run: Run, role: str, incarnation: int) -> Path:
    """Where a child tells how it ended."""
    return run.local / f"ended-{role}-{incarnation}.json"


def ended(run: Run, role: str, incarnation: int) -> dict[str, Any] | None:
    """What a child told about its end: code, kind, sentence, pid. None when it was killed.

    A worker names the kind of its failure in a file of its own, `failed-ROLE-INCARNATION.json`.
    """
    try:
        told = dict(json.loads(ended_path(run, role, incarnation).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    with suppress(FileNotFoundError):
        told |= json.loads((run.local / f"failed-{role}-{incarnation}.json").read_text(encoding="utf-8"))
    return told


def rank_role(rank: int) -> str:
    """The name of a worker among the children: "rank-0007", as its log is called."""
    return f"rank-{rank:04d}"


def _lost_peer(error: BaseException) -> bool:
    """Whether the error only says that another rank is gone; that rank tells why, or the kernel does."""
    text = str(error)
    return isinstance(error, RuntimeError | OSError) and any(sign in text for sign in _LOST)


def _log(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for ours, standard in ((nothing, 0), (descriptor, 1), (descriptor, 2)):
        os.dup2(ours, standard)
    os.close(descriptor)
    os.close(nothing)
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


def _signals(local: Path) -> None:
    # Ctrl-C reaches the whole process group of a terminal; the parent alone decides what it means.
    if os.getpid() != os.getpgid(0):
        os.setpgid(0, 0)

    def forward(number: int, frame: FrameType | None) -> None:
        """Leave the signal where whoever runs the training finds it."""
        requests.forward(local, number)

    for number in ASKING:
        signal.signal(number, forward)
    faulthandler.enable(all_threads=True)
    faulthandler.register(signal.SIGUSR2, all_threads=True)


if __name__ == "__main__":
    _entry, _role, _run, *_numbers = sys.argv[1:]
    leave(_entry, _role, _run, *map(int, _numbers))
