"""The processes of a node, one by one: the warm server, what is forked from it or started beside it, how each ended.

Knows the operating system and the run folder's files; decides nothing. Out: `Child`, with a descriptor that becomes readable
when the process is gone, and `End`, how it went.
"""

from __future__ import annotations

import errno
import multiprocessing
import multiprocessing.forkserver
import os
import select
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from argosy.errors import FULL, MACHINE, Refused
from argosy.fleet import memory
from argosy.fleet.hold import Hold
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
ANSWER = 10.0  # seconds in which the warm server must tell how a process that it forked has ended
GLANCE = 0.05  # seconds between two looks at a server that owes such an answer
TRIES = 3  # servers that are started for one worker
NO_ROOM = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)  # what a system says that gives no process or file
RECENT = 10.0  # seconds after which a kill for memory explains no other kill: it was somebody else's


class WarmServer:
    """The forkserver of the standard library with torch loaded: workers forked from it start in milliseconds.

    `start` returns at once; the server loads while the parent does other things. There is one in a process at a time.
    """

    def __init__(self, preload: Sequence[str] = WARM, compiles: bool = False):
        self.context = multiprocessing.get_context("forkserver")
        self.preload, self.compiles = list(preload), compiles
        self.stood: int | None = None  # pid of the last server that stood still and was ended for it
        self._held: Hold | None = None

    def start(self) -> None:
        """Make sure that a server runs; a dead one is replaced. Call it in the main thread: the server ends with its caller.

        Refused (code 4) where the system gives no process or no file for it.
        """
        self.context.set_forkserver_preload(self.preload)
        try:
            with _no_main(), _safe_path(), _undisturbed(), _told(self.compiles):
                multiprocessing.forkserver.ensure_running()
        except OSError as error:
            if error.errno in FULL:
                raise
            raise _none(error) from error

    @property
    def pid(self) -> int | None:
        """The process that forks; None where none was started."""
        server = getattr(multiprocessing.forkserver, "_forkserver", None)
        pid = getattr(server, "_forkserver_pid", None)
        return int(pid) if pid else None

    def fork(self, lock: int, arguments: tuple[object, ...]) -> BaseProcess:
        """A new process that runs `child.leave(*arguments)`; waits until the server has loaded.

        A server that dies or stands still meanwhile is replaced, twice. Refused (code 4) where that one ends, too, and where
        the system gives no process or no file. OSError where a disk is full.
        """
        for attempt in range(1, TRIES + 1):
            self.start()
            process = self.context.Process(target=child.born, args=(child.Held(lock), *arguments))
            try:
                with self._watched(), _no_main(), _safe_path():
                    process.start()
                return process
            except (EOFError, OSError) as error:
                if getattr(error, "errno", None) in FULL:
                    raise
                if attempt == TRIES:
                    raise _none(error, tries=TRIES) from error
        raise AssertionError("unreachable")

    def stop(self) -> None:
        """End the server. Workers that it forked live on."""
        held = self._hold()
        if held is not None:
            held.send(signal.SIGKILL)

    def still(self) -> bool:
        """Whether the server is stopped by a signal."""
        held = self._hold()
        return held is not None and held.still()

    def end_if_still(self) -> None:
        """End a server that is stopped by a signal: who waits for it would wait for ever."""
        held = self._hold()
        if held is not None and held.still():
            self.stood = held.pid
            held.send(signal.SIGKILL)

    def _hold(self) -> Hold | None:
        """The server that runs, or ran last; it is our own child, so its number is its own until a new one is started."""
        pid = self.pid
        if pid is None:
            return None
        if self._held is None or self._held.pid != pid or self._held.gone:
            self._held = Hold(pid)
        return self._held

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """While inside, a server that stands still is killed, so that nobody waits for it for ever."""
        done = threading.Event()

        def look() -> None:
            """End the server where it stands still for too long."""
            while not done.wait(STOPPED_FOR):
                self.end_if_still()

        thread = threading.Thread(target=look, name="server watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _none(error: EOFError | OSError, what: str = "no worker can be started.", tries: int = 1) -> Refused:
    """`what`, and why: `tries` servers ended, as only a broken connection tells; else what the system says."""
    if isinstance(error, EOFError | ConnectionError):
        return Refused(
            "no worker can be started: the process that is to fork them ends first.",
            found=(f"that {tries} times in a row; " if tries > 1 else "") + f"{type(error).__name__}: {error}",
            do="Too little memory ends it so, and a torch that does not load: see argosy doctor.",
            code=MACHINE,
        )
    found = error.strerror or str(error)
    if error.errno not in NO_ROOM:
        return Refused(what, where=str(error.filename or ""), found=found, code=MACHINE)
    do = "`ulimit -a` shows the limits of this shell; --workers N starts fewer."
    return Refused(what, found=found, do=do, code=MACHINE)


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
    server: WarmServer | None = None  # which forked it: that one is told by the kernel how it ends, and tells us
    descriptor: int = -1  # readable when it is gone
    still_since: float | None = None
    kills: dict[Path, int] = field(
        default_factory=dict
    )  # the kernel's counts of processes killed for memory, last seen
    risen: tuple[float, Path] | None = None  # when one of them was last seen to rise, and which

    def __post_init__(self) -> None:
        self._held = Hold(self.pid)
        self.descriptor = _watch(self._held, self.handle)
        self.look_at_memory(time.monotonic())

    @property
    def gone(self) -> bool:
        """Whether the process has ended."""
        if self.descriptor < 0:
            return True
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        return bool(poll.poll(0))

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal; nothing happens where it is gone already."""
        if not self.gone:
            self._held.send(number)

    def still(self, now: float) -> bool:
        """Whether it has been standing still (SIGSTOP) for long enough to be called broken."""
        if not self._held.still():
            self.still_since = None
            return False
        self.still_since = self.still_since if self.still_since is not None else now
        return now - self.still_since >= STOPPED_FOR

    def look_at_memory(self, now: float) -> str:
        """Whose memory ran out where this process lives, by the kernel's count, a moment before `now`; "" = nobody's.

        To be asked every second or so: what rose long ago was somebody else's end.
        """
        counts = {path: memory.kill_count(path) for path in self.kills} | memory.kills(self.pid)
        for path, count in counts.items():
            if count > self.kills.get(path, count):
                self.risen = (now, path)
            self.kills[path] = max(count, self.kills.get(path, count))
        if self.risen is None or now - self.risen[0] > RECENT:
            return ""
        return memory.whose(self.risen[1])

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
        starved = self.look_at_memory(time.monotonic()) if number == signal.SIGKILL else ""
        return End(self.trade, self.pid, "killed", rank=self.rank, signal=number, starved=starved)

    def close(self) -> None:
        """Forget it."""
        lent = isinstance(self.handle, BaseProcess) and self.descriptor == self.handle.sentinel
        if self.descriptor >= 0 and not lent and self.descriptor != self._held.descriptor:
            os.close(self.descriptor)
        self._held.close()
        self.descriptor = -1

    def _reap(self) -> int:
        if isinstance(self.handle, subprocess.Popen):
            return self.handle.wait()
        if self.handle is None:
            return -signal.SIGKILL
        return _told_by(self.server, self.handle)


def _told_by(server: WarmServer | None, process: BaseProcess) -> int:
    """The exit code of a forked process that has ended, as its server tells it; 255 where that one cannot.

    A server that stands still is ended: the caller leads the run, and nothing else is seen or done while it waits here.
    """
    last = time.monotonic() + ANSWER
    still_since: float | None = None
    while process.exitcode is None and (now := time.monotonic()) < last:
        if server is not None and server.still():
            still_since = now if still_since is None else still_since
            if now - still_since >= STOPPED_FOR:
                server.end_if_still()
        else:
            still_since = None
        process.join(GLANCE)
    return 255 if process.exitcode is None else process.exitcode


def start_worker(server: WarmServer, run: Run, incarnation: int, rank: int, lock: int, entry: str) -> Child:
    """Fork the worker `rank`."""
    role = child.rank_role(rank)
    arguments = (entry, role, str(run.path.absolute()), incarnation, os.getpid(), rank)
    process = server.fork(lock, arguments)
    return Child("worker", role, incarnation, int(process.pid or 0), process, rank, server)


def start_beside(trade: Trade, run: Run, incarnation: int, lock: int, entry: str) -> Child:
    """Start the reader or the snapshot process: a fresh interpreter without torch. Refused (code 4) where there is no room."""
    arguments = [entry, trade, str(run.path.absolute()), str(incarnation), str(os.getpid())]
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "argosy.run.child", *arguments],
            stdin=subprocess.DEVNULL,
            pass_fds=(lock,),
            process_group=0,  # Ctrl-C reaches the whole group of a terminal; the parent alone answers
        )
    except OSError as error:
        raise _none(error, f"the {trade} process cannot be started.") from error
    return Child(trade, trade, incarnation, process.pid, process)


def wait_gone(children: Sequence[Child], seconds: float = PATIENCE) -> list[Child]:
    """Wait until all are gone; those that are not after `seconds`."""
    last = time.monotonic() + seconds
    left = [one for one in children if not one.gone]
    while left and time.monotonic() < last:
        time.sleep(0.002)
        left = [one for one in left if not one.gone]
    return left


def _watch(held: Hold, handle: object) -> int:
    """What becomes readable when the process ends: its pidfd, else the forkserver's pipe, else one that a thread closes."""
    if held.descriptor >= 0:
        return held.descriptor
    if isinstance(handle, BaseProcess):
        return handle.sentinel
    reading, writing = os.pipe()

    def wait() -> None:
        """Wait for the end of the process, and say so by closing the pipe."""
        if isinstance(handle, subprocess.Popen):
            handle.wait()
        else:
            while alive(held.pid):
                time.sleep(0.1)
        os.close(writing)

    threading.Thread(target=wait, name=f"watch {held.pid}", daemon=True).start()
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
