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
import sys
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
from argosy.run import gone, guardian, origin, requests
from argosy.run.folder import Run, write_whole
from argosy.run.incarnation import Incarnation
from argosy.run.signals import heard, hurried

if TYPE_CHECKING:
    from argosy.commands.conduct import Start, Wanted

PATIENCE = 1800.0  # seconds that a rank waits for a sign of rank 0
SILENCE = 300.0  # seconds without a new sign after which a rank 0 on another node has left; network disks tell late
SELDOM = 10.0  # seconds between two renewals of rank 0's note at most
OLD = 86_400.0  # seconds after which nobody looks at a note any more
TELLING = 60.0  # seconds between two sentences about the waiting


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


def first(note: Note, start: Start, run: Run) -> Outcome:
    """Train as rank 0 of a launcher's ranks, the others of which wait for what `note` tells."""
    from argosy.commands import conduct

    where = note.where
    conduct.header(start)
    start.screen.note(f"started by {where.launcher}: it restarts what dies; a signal saves and leaves with {SAVED}")
    made = conduct.incarnation(start, run, None, f"{where.host}:{where.port}")
    made = replace(made, nodes=where.nodes, node=where.node)
    made.write(run)
    if where.nodes > 1:
        # Before anybody can ask for anything: a request is left there only where the folder stands.
        requests.shared(run).mkdir(parents=True, exist_ok=True)
    note.tell(run, made)
    outcome = lead(start, run, made.number)
    note.failed = outcome.code not in (DONE, SAVED)
    return conduct.last_words(start, run, outcome)


def root(run: Path | None) -> Path:
    """Where the ranks of a launch meet, `run` being the folder that was asked for: beside it, else among the runs."""
    return run.absolute().parent if run is not None else runs.root()


def done(where: World, wanted: Wanted) -> tuple[Outcome, Run] | None:
    """The end of a run that was finished before; None where there is something to do.

    Every rank of a launch sees that for itself: rank 0 leaves at once, and tells nobody. Only a run that is named can be
    finished: without a name a new one is made then, and no rank needs to look through the folder of all runs.
    """
    from argosy.commands import conduct

    if wanted.run is None:
        return None
    with suppress(Refused, OSError):  # of what is wrong rank 0 speaks; or nothing is: it is making the run just now
        verdict = conduct.judged(wanted, wanted.loaded(), where.world)[1]
        if verdict.action == "finished":
            return Outcome(DONE, "finished", verdict.step, verdict.because), Run(verdict.path)
    return None


def other(where: World, wanted: Wanted) -> tuple[Outcome, Run]:
    """Be a rank of a launch that is not its first: see that the run is finished, or train."""
    ended = done(where, wanted)
    if ended is None:
        try:
            return follow(where, root(wanted.run))
        except Refused:
            ended = done(where, wanted)  # another start may have finished it while rank 0 waited for that one
            if ended is None:
                raise
    return ended


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
        """Take requests to the clerk and let it look around, until the work is done."""
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
    identity = run.info().get("id")
    try:
        with _signals(asked.append):
            outcome = _work(run, 0, number)
    finally:
        done.set()
        thread.join()
        moved = gone.gone(run, identity)
        if not broken and not moved:
            clerk.tick()
    if moved:  # nothing can be written, and nothing is to be made, by the old name
        refused = gone.refused(run.path)
        start.screen.fault(refused.text)
        return Outcome(refused.code, "failed", 0, refused.text)
    if broken:
        raise broken[0]
    step = run.newest_step()
    if outcome.state != "failed":
        state = clerk.outcome or ("stopped" if clerk.request.stop else "finished")
        because = clerk.because(state)
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
        with suppress(FileNotFoundError):  # the folder was moved away: that is the reason, and `lead` tells it
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


class Note:
    """What rank 0 tells the other ranks of its launch, in a file beside the runs: that it prepares a run, then which it is.

    It stands there while inside. The others also learn from it that rank 0 lives: on its own node by the pid, on other nodes
    because it is written again and again; one that a killed launch has left stands still. `srun` lets the others go on when
    rank 0 has left with an error: there, where the name is that of one launch only, the note stays and says so, also to a
    rank that comes when the run has `failed` already.
    """

    def __init__(self, where: World, run: Path | None):
        self.where, self.path, self.failed = where, _note(where, root(run)), False
        self._told: dict[str, Any] = {"pid": os.getpid()}
        self._beat = 0
        self._lock, self._done = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._renew, name="note", daemon=True)

    def __enter__(self) -> Note:
        """Begin. Refused where nothing can be written there."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write()
        except OSError as error:
            raise Refused(
                "the ranks of this launch cannot meet there.",
                where=str(self.path.parent),
                found=error.strerror or str(error),
                do="Name a folder that every node can write: --run DIR.",
            ) from None
        for other in self.path.parent.glob(".launch-Slurm-*.json"):
            with suppress(OSError):  # a courtesy; another user's in a folder of all stays
                if time.time() - other.stat().st_mtime > OLD:
                    other.unlink()
        if self.where.nodes > 1:  # on one node the others look at the pid, also where a sweep has taken the note
            self._thread.start()
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        """Take the note away, or let it say that nothing comes any more."""
        self._done.set()
        if self.where.nodes > 1:
            self._thread.join()
        with suppress(OSError):  # how the run ended is said already, and a disk changes nothing of it
            if (kind is not None or self.failed) and self.where.launcher == "Slurm":
                self._told["left"] = True
                self._write()
            else:
                self.path.unlink(missing_ok=True)

    def tell(self, run: Run, made: Incarnation) -> None:
        """Say which run it is, and which start of it."""
        self._told = {**self._told, "run": str(run.path.absolute()), "start": asdict(made)}
        self._write()

    def _write(self) -> None:
        with self._lock:
            write_whole(self.path, json.dumps({**self._told, "beat": self._beat}))
            self._beat += 1

    def _renew(self) -> None:
        while not self._done.wait(min(SELDOM, self._beat / 2)):
            with suppress(OSError):
                self._write()


def _wait(
    where: World,
    note: Path,
    patience: float = PATIENCE,
    silence: float = SILENCE,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """What rank 0's note says of its run, however long that takes to prepare.

    Refused where no sign of a living rank 0 comes within `patience` seconds, and where it leaves before it tells: on another
    node that is so after `silence` seconds without a new sign. The first rank of a node says now and then what it waits for.
    """
    near = where.nodes == 1 or where.node == 0
    began = told_at = clock()
    last = began + patience
    before: dict[str, Any] | None = None
    prepares: int | None = None  # pid of the rank 0 that was seen to prepare
    prepared = False  # and it left after that
    while (now := clock()) < last:
        told: dict[str, Any] | None = None
        with suppress(OSError, ValueError):
            told = json.loads(note.read_text(encoding="utf-8"))
        if told is not None and told.get("left"):
            prepares, prepared = int(told["pid"]), "run" in told
            break
        # Not what a killed launch has left.
        if told is not None and (guardian.alive(int(told["pid"])) if near else before not in (None, told)):
            if "run" in told:
                return told
            prepares, last = int(told["pid"]), now + (patience if near else silence)
        elif near and prepares is not None:
            if not guardian.alive(prepares):
                break
            last = now + patience
        before = told or before
        if where.local_rank == 0 and now - told_at >= TELLING:
            told_at = now
            does = "which prepares the run" if prepares is not None else "of which nothing is seen yet"
            print(f"waiting for rank 0, {does} ({(now - began) / 60:.0f} min so far)", file=sys.stderr, flush=True)
        time.sleep(0.05)
    if prepares is not None:
        when = "before this rank came" if prepared else "before it had prepared a run"
        raise Refused(f"rank 0 left {when}.", where=str(note.parent), do="Its output tells why.")
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
        """Turn a signal into a request; a hurried one leaves at once."""
        name = signal.Signals(number).name
        if hurried(seen, name):
            signal.signal(number, signal.SIG_IGN)
            raise KeyboardInterrupt
        ask(name)

    before = {}
    with suppress(ValueError):  # not the main thread, as in some notebooks: then only files can ask
        before = {number: signal.signal(number, note) for number in heard()}
        with suppress(AttributeError, RuntimeError, OSError):  # a notebook's stderr may be no file
            faulthandler.register(signal.SIGUSR2, all_threads=True)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
