"""The processes of a node, one by one: the warm server, what is forked from it or started beside it, how each ended.

Knows the operating system and the run folder's files; decides nothing. Out: `Child`, with a descriptor that becomes readable
when the process is gone, and `End`, how it went.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

from argosy.fleet import memory
from argosy.job.schema import Job
from argosy.policy.events import End, Trade
from argosy.run import child
from argosy.run.folder import Run
from argosy.run.guardian import alive
from argosy.run.signals import ASKING

# What the processes run, by name: the towers never import each other.
ENTRIES = {
    "worker": "argosy.train.worker:main",
    "reader": "argosy.data.reader:main",
    "snapshot": "argosy.checkpoint.snapshot:main",
}
WARM = ("argosy.run.bound", "argosy.train.warm")
STOPPED_FOR = 1.0  # seconds that a process may stand still (SIGSTOP) before it counts as broken
PATIENCE = 60.0  # seconds in which the kernel must have ended what got SIGKILL


class WarmServer:
    """The forkserver of the standard library with torch loaded: workers forked from it start in milliseconds.

    `start` returns at once; the server loads while the parent does other things. There is one in a process at a time.
    """

    def __init__(self, preload: Sequence[str] = WARM, compiles: bool = False):
        self.context = multiprocessing.get_context("forkserver")
        self.preload, self.compiles = list(preload), compiles

    def start(self) -> None:
        """Make sure that a server runs; a dead one is replaced. Call it in the main thread: the server ends with its caller."""
        self.context.set_forkserver_preload(self.preload)
        with _no_main(), _safe_path(), _undisturbed(), _told(self.compiles):
            multiprocessing.forkserver.ensure_running()

    @property
    def pid(self) -> int | None:
        """The process that forks; None where none was started."""
        server = getattr(multiprocessing.forkserver, "_forkserver", None)
        pid = getattr(server, "_forkserver_pid", None)
        return int(pid) if pid else None

    def fork(self, lock: int, arguments: tuple[object, ...]) -> BaseProcess:
        """A new process that runs `child.leave(*arguments)`; waits until the server has loaded.

        A server that dies or stands still meanwhile is replaced.
        """
        for attempt in (1, 2, 3):
            self.start()
            process = self.context.Process(target=child.born, args=(child.Held(lock), *arguments))
            try:
                with self._watched(), _no_main(), _safe_path():
                    process.start()
                return process
            except (EOFError, OSError):
                if attempt == 3:
                    raise
        raise AssertionError("unreachable")

    def stop(self) -> None:
        """End the server. Workers that it forked live on."""
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """While inside, a server that stands still is killed, so that nobody waits for it for ever."""
        done = threading.Event()

        def look() -> None:
            while not done.wait(STOPPED_FOR):
                if self.pid is not None and standing_still(self.pid):
                    self.stop()

        thread = threading.Thread(target=look, name="server watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def warm(job: Job) -> WarmServer:
    """A server that loads from now on; it compiles once where the workers of `job` may compile."""
    server = WarmServer(compiles=job.train.compile is not False)
    server.start()
    return server


@contextmanager
def _told(compiles: bool) -> Iterator[None]:
    """While inside, what is started learns from the environment whether to compile; the caller's own stays as it was."""
    before = os.environ.get("ARGOSY_WARM")
    if compiles:
        os.environ.setdefault("ARGOSY_WARM", "compile")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("ARGOSY_WARM", None)


@dataclass
class Child:
    """One process of the run."""

    trade: Trade
    role: str  # names its log
    incarnation: int
    pid: int
    handle: BaseProcess | subprocess.Popen[bytes] | None  # None: the warm server
    rank: int | None = None
    descriptor: int = -1  # readable when it is gone
    still_since: float | None = None
    kills: dict[Path, int] = field(
        default_factory=dict
    )  # the kernel's counts of processes killed for memory, at first sight

    def __post_init__(self) -> None:
        self.descriptor = _watch(self.pid, self.handle)
        self.look_at_memory()

    @property
    def gone(self) -> bool:
        """Whether the process has ended."""
        import select

        return bool(select.select([self.descriptor], [], [], 0)[0])

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal; nothing happens where it is gone already."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def still(self, now: float) -> bool:
        """Whether it has been standing still (SIGSTOP) for long enough to be called broken."""
        if not standing_still(self.pid):
            self.still_since = None
            return False
        self.still_since = self.still_since if self.still_since is not None else now
        return now - self.still_since >= STOPPED_FOR

    def look_at_memory(self) -> bool:
        """Whether the kernel has killed something for memory where this process lives, since it was first looked at."""
        counts = {path: memory.kill_count(path) for path in self.kills} | memory.kills(self.pid)
        return any(count > self.kills.setdefault(path, count) for path, count in counts.items())

    def end(self, run: Run) -> End:
        """How it ended; call it when it is `gone`."""
        told = child.ended(run, self.role, self.incarnation)
        if told is not None and told["pid"] == self.pid:  # not what a process before it in this role told
            self._reap()
            return End(
                self.trade,
                self.pid,
                "left",
                rank=self.rank,
                code=int(told["code"]),
                kind=str(told["kind"]),
                sentence=str(told["sentence"]),
            )
        code = self._reap()
        number = -code if code < 0 else signal.SIGKILL  # 255: its server died with it and cannot tell
        if 0 <= code < 255:
            return End(self.trade, self.pid, "left", rank=self.rank, code=code)
        starved = number == signal.SIGKILL and self.look_at_memory()
        return End(self.trade, self.pid, "killed", rank=self.rank, signal=number, starved=starved)

    def close(self) -> None:
        """Forget it."""
        lent = isinstance(self.handle, BaseProcess) and self.descriptor == self.handle.sentinel
        if self.descriptor >= 0 and not lent:
            os.close(self.descriptor)
        self.descriptor = -1

    def _reap(self) -> int:
        if isinstance(self.handle, subprocess.Popen):
            return self.handle.wait()
        if self.handle is None:
            return -signal.SIGKILL
        self.handle.join(PATIENCE)
        return self.handle.exitcode if self.handle.exitcode is not None else 255


def start_worker(server: WarmServer, run: Run, incarnation: int, rank: int, lock: int, entry: str) -> Child:
    """Fork the worker `rank`."""
    role = child.rank_role(rank)
    arguments = (entry, role, str(run.path.absolute()), incarnation, os.getpid(), rank)
    process = server.fork(lock, arguments)
    return Child("worker", role, incarnation, int(process.pid or 0), process, rank)


def start_beside(trade: Trade, run: Run, incarnation: int, lock: int, entry: str) -> Child:
    """Start the reader or the snapshot process: a fresh interpreter without torch."""
    arguments = [entry, trade, str(run.path.absolute()), str(incarnation), str(os.getpid())]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "argosy.run.child", *arguments],
        stdin=subprocess.DEVNULL,
        pass_fds=(lock,),
        process_group=0,  # Ctrl-C reaches the whole group of a terminal; the parent alone answers
    )
    return Child(trade, trade, incarnation, process.pid, process)


def standing_still(pid: int) -> bool:
    """Whether the process was stopped by a signal; one that a debugger holds does not count."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def wait_gone(children: Sequence[Child], seconds: float = PATIENCE) -> list[Child]:
    """Wait until all are gone; those that are not after `seconds`."""
    last = time.monotonic() + seconds
    left = [one for one in children if not one.gone]
    while left and time.monotonic() < last:
        time.sleep(0.002)
        left = [one for one in left if not one.gone]
    return left


def _watch(pid: int, handle: object) -> int:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        # Gone already, or a system without pidfd: the forkserver's pipe, else a pipe that a thread closes
        if isinstance(handle, BaseProcess):
            return handle.sentinel
    reading, writing = os.pipe()

    def wait() -> None:
        if isinstance(handle, subprocess.Popen):
            handle.wait()
        else:
            while alive(pid):
                time.sleep(0.1)
        os.close(writing)

    threading.Thread(target=wait, name=f"watch {pid}", daemon=True).start()
    return reading


@contextmanager
def _no_main() -> Iterator[None]:
    """Hide the program's main module: the standard library would run a user's script again in every worker."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _safe_path() -> Iterator[None]:
    """Keep the folder one happens to be in out of a child's import path: a json.py there is the user's business."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold back signals while the server is started: it inherits that until it has left this process group (run/bound.py)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
