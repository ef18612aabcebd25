"""The process is the worker: `--workers 0`, or a rank that torchrun, srun or mpirun started. No command of its own.

Rank 0 judges, prepares and keeps the run folder like any start; the others wait for a note of it, which holds all that they
must know: each node may keep what is short-lived on a disk of its own ($ARGOSY_LOCAL). What dies is started again by the
launcher, not by us; SIGTERM, SIGINT and SIGUSR1 still save first. A thread of rank 0 passes requests and news on.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from argosy.commands import runs
from argosy.errors import BUG, DONE, INPUT, INTERRUPTED, SAVED, Refused
from argosy.fleet.clerk import Clerk, leaving, left
from argosy.fleet.driver import BEAT, Outcome
from argosy.layout.world import World, world
from argosy.run import guardian, origin, requests
from argosy.run.folder import Run, write_whole
from argosy.run.incarnation import Incarnation
from argosy.run.signals import heard, hurried

if TYPE_CHECKING:
    from argosy.commands.conduct import Start

PATIENCE = 1800.0  # seconds that a rank waits for rank 0 to prepare the text
SELDOM = 10.0  # seconds between two renewals of rank 0's note, once everybody should have seen it


def place() -> World | None:
    """Which rank a launcher made of this process; None where none did."""
    return world(os.environ)


def alone(start: Start, run: Run) -> Outcome:
    """Train inside the calling process."""
    from argosy.commands import conduct

    conduct.header(start)
    made = conduct.incarnation(start, run, os.getpid())
    made.write(run)
    return conduct.last_words(start, run, lead(start, run, made.number))


def first(where: World, start: Start, run: Run) -> Outcome:
    """Train as rank 0 of a launcher's ranks."""
    from argosy.commands import conduct

    conduct.header(start)
    start.screen.note(f"started by {where.launcher}: it restarts what dies; a signal saves and leaves with {SAVED}")
    made = conduct.incarnation(start, run, None, f"{where.host}:{where.port}")
    made = replace(made, nodes=where.nodes, node=where.node)
    made.write(run)
    with _posted(_note(where, root(start.wanted.run)), run, made):
        return conduct.last_words(start, run, lead(start, run, made.number))


def root(run: Path | None) -> Path:
    """Where the ranks of a launch meet, `run` being the folder that was asked for: beside it, else among the runs."""
    return run.absolute().parent if run is not None else runs.root()


def follow(where: World, root: Path) -> tuple[Outcome, Run]:
    """Train as another rank of a launcher's: wait for rank 0's note, then do as it says."""
    told = _wait(where, _note(where, root))
    run, made = Run(str(told["run"])), Incarnation(**told["start"])
    folder = _own_folder(where, run, made)
    with _signals(lambda name: requests.forward(folder, signal.Signals[name])):
        outcome = _work(run, where.rank, made.number)
    if outcome.state == "stopped" and outcome.code == DONE:  # as rank 0 does: the launcher looks at every rank
        request = requests.told(run, folder)
        code = DONE if request.reason == "argosy stop" else leaving(request.reason, True)
        outcome = replace(outcome, code=code, because=request.reason)
    return outcome, run


def lead(start: Start, run: Run, number: int) -> Outcome:
    """Be rank 0: work, while a thread passes requests in and news out."""
    clerk = Clerk(run, start.screen, start.wanted.requeue or start.workers > 0)
    clerk.begin(number)
    clerk.journal.started(number, max(1, start.workers), run.newest_step())
    run.update_info(state="running", incarnation=number, pid=os.getpid(), place=str(run.path.resolve()))
    asked: list[str] = []
    done = threading.Event()
    broken: list[Exception] = []

    def pump() -> None:
        try:
            while not done.wait(BEAT):
                while asked:
                    clerk.stop(asked.pop(0))
                clerk.tick()
        except Exception as error:  # nobody would hear a signal or write a figure any more: save, stop, and tell
            broken.append(error)
            while not done.wait(BEAT):
                with suppress(OSError):
                    requests.tell(run, replace(clerk.request, stop=True, number=clerk.request.number + 1))
                    break

    thread = threading.Thread(target=pump, name="clerk", daemon=True)
    thread.start()
    try:
        with _signals(asked.append):
            outcome = _work(run, 0, number)
    finally:
        done.set()
        thread.join()
        if not broken:
            clerk.tick()
    if broken:
        raise broken[0]
    step = run.newest_step()
    if outcome.state != "failed":
        state = clerk.outcome or ("stopped" if clerk.request.stop else "finished")
        because = clerk.request.reason
        if outcome.code == INTERRUPTED:
            because = left(step, clerk.step)
            start.screen.fault(because)
        outcome = Outcome(clerk.code if state == "stopped" else 0, state, step, because)
        clerk.answer(step)
    else:
        start.screen.fault(
            outcome.because, f"{run.path / 'crash.txt'} tells what is known." if outcome.code == BUG else ""
        )
    clerk.close()
    clerk.journal.note("ended", code=outcome.code, state=outcome.state, step=step, because=outcome.because)
    run.update_info(state=outcome.state, step=step)
    return outcome


def _work(run: Run, rank: int, number: int) -> Outcome:
    from argosy.train import worker

    try:
        end = worker.live(str(run.path.absolute()), rank, number)
    except KeyboardInterrupt:
        return Outcome(INTERRUPTED, "stopped", run.newest_step(), "left at once")
    except Refused as refused:
        return Outcome(refused.code, "failed", run.newest_step(), refused.text)
    except Exception as error:
        text = traceback.format_exc()
        (run.path / "crash.txt").write_text(origin.mask(text), encoding="utf-8")
        return Outcome(BUG, "failed", run.newest_step(), f"{type(error).__name__}: {error}".splitlines()[0])
    return Outcome(DONE, end, run.newest_step())


def _note(where: World, root: Path) -> Path:
    """Where rank 0 tells the others of this launch which run it made; the name differs from launch to launch."""
    words = [where.launcher, where.host, str(where.port), str(where.world)]
    names = (
        "TORCHELASTIC_RUN_ID",
        "TORCHELASTIC_RESTART_COUNT",
        "SLURM_JOB_ID",
        "SLURM_STEP_ID",
        "SLURM_RESTART_COUNT",
    )
    words += [os.environ.get(name, "") for name in names]
    return root / (
        ".launch-" + "-".join("".join(c if c.isalnum() else "_" for c in word) for word in words if word) + ".json"
    )


@contextmanager
def _posted(note: Path, run: Run, made: Incarnation) -> Iterator[None]:
    """Let the other ranks know while inside what they are to work at.

    For those of other nodes the note is written again and again: they cannot see whether its writer lives, and one that a
    killed launch has left stands still.
    """
    told = {"run": str(run.path.absolute()), "start": asdict(made), "pid": os.getpid()}
    done = threading.Event()

    def renew() -> None:
        beat = 1
        while not done.wait(min(SELDOM, beat / 2)):
            with suppress(OSError):
                write_whole(note, json.dumps({**told, "beat": beat}))
            beat += 1

    note.parent.mkdir(parents=True, exist_ok=True)
    write_whole(note, json.dumps({**told, "beat": 0}))
    thread = threading.Thread(target=renew, name="note", daemon=True)
    if made.nodes > 1:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if made.nodes > 1:
            thread.join()
        note.unlink(missing_ok=True)


def _wait(where: World, note: Path, patience: float = PATIENCE) -> dict[str, Any]:
    """What rank 0's note says. Refused where there is none from a living rank 0 within `patience` seconds."""
    near = where.nodes == 1 or where.node == 0
    last = time.monotonic() + patience
    before: dict[str, Any] | None = None
    while time.monotonic() < last:
        with suppress(OSError, ValueError):
            told: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
            if guardian.alive(int(told["pid"])) if near else before not in (None, told):
                return told  # not what a killed launch has left
            before = told
        time.sleep(0.05)
    raise Refused(
        f"rank 0 prepared no run within {patience / 60:.0f} min.", where=str(note), do="Its output tells why."
    )


def _own_folder(where: World, run: Run, made: Incarnation) -> Path:
    """Describe the start in this node's local folder, which may be another than rank 0's; gives where signals are passed on.

    Refused (code 2) where nothing can be kept there.
    """
    folder = run.local if where.nodes == 1 or where.node == 0 else requests.shared(run)
    try:
        for needed in (run.local, folder):
            needed.mkdir(parents=True, exist_ok=True)
        if _described(run, made.number) != made:
            made.write(run)
    except OSError as error:
        raise Refused(
            f"node {where.node} cannot keep there what lives only while a run goes.",
            where=str(error.filename or run.local),
            found=error.strerror or str(error),
            do="ARGOSY_LOCAL must name a folder that can be written on every node; unset, it is local/ in the run folder.",
            code=INPUT,
        ) from None
    return folder


def _described(run: Run, number: int) -> Incarnation | None:
    try:
        return Incarnation.read(run, number)
    except Refused:
        return None


@contextmanager
def _signals(ask: Callable[[str], object]) -> Iterator[None]:
    """Turn signals into requests while inside; a second Ctrl-C leaves at once."""
    seen: dict[str, float] = {}

    def note(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if hurried(seen, name):
            signal.signal(number, signal.SIG_IGN)
            raise KeyboardInterrupt
        ask(name)

    before = {}
    with suppress(ValueError):  # not the main thread, as in some notebooks: then only files can ask
        before = {number: signal.signal(number, note) for number in heard()}
        faulthandler.register(signal.SIGUSR2, all_threads=True)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
