"""The process is the worker: `--workers 0`, or a rank that torchrun, srun or mpirun started. No command of its own.

Rank 0 judges, prepares and keeps the run folder like any start; the others wait for a note of it. What dies is started again
by the launcher, not by us; SIGTERM, SIGINT and SIGUSR1 still save first. A thread of rank 0 passes requests and news on.
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
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from argosy.commands import runs
from argosy.errors import BUG, DONE, INTERRUPTED, SAVED, Refused
from argosy.fleet.clerk import Clerk, hurried, leaving, left
from argosy.fleet.driver import BEAT, Outcome
from argosy.layout.world import World, world
from argosy.run import guardian, origin, requests
from argosy.run.folder import Run, write_whole
from argosy.run.signals import heard

if TYPE_CHECKING:
    from argosy.commands.conduct import Start

LEFT = "left at once"
PATIENCE = 1800.0  # seconds that a rank waits for rank 0 to prepare the text


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
    made = replace(made, nodes=where.nodes, node=where.node, threads=start.machine.threads(where.local_world))
    made.write(run)
    note = _note(where, runs.root())
    note.parent.mkdir(parents=True, exist_ok=True)
    write_whole(note, json.dumps({"run": str(run.path.absolute()), "incarnation": made.number, "pid": os.getpid()}))
    try:
        return conduct.last_words(start, run, lead(start, run, made.number))
    finally:
        note.unlink(missing_ok=True)


def follow(where: World, root: Path) -> tuple[Outcome, Run]:
    """Train as another rank of a launcher's: wait for rank 0's note, then do as it says."""
    told = _wait(where, _note(where, root))
    run = Run(str(told["run"]))
    with _signals(lambda name: requests.forward(run.local, signal.Signals[name])):
        outcome = _work(run, where.rank, int(str(told["incarnation"])))
    if outcome.state == "stopped" and outcome.code == DONE:  # as rank 0 does: the launcher looks at every rank
        request = requests.told(run)
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
        because = left(step, clerk.step) if outcome.because == LEFT else clerk.request.reason
        if outcome.because == LEFT:
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
        return Outcome(INTERRUPTED, "stopped", run.newest_step(), LEFT)
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


def _wait(where: World, note: Path) -> dict[str, object]:
    last = time.monotonic() + PATIENCE
    while time.monotonic() < last:
        with suppress(FileNotFoundError, ValueError):
            told: dict[str, object] = json.loads(note.read_text(encoding="utf-8"))
            if where.nodes > 1 or guardian.alive(int(str(told["pid"]))):  # not what a killed launch has left
                return told
        time.sleep(0.05)
    raise Refused(
        f"rank 0 prepared no run within {PATIENCE / 60:.0f} min.", where=str(note), do="Its output tells why."
    )


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
