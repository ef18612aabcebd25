"""Batch n + 1 while step n runs: the node's reader process, the workers' side of it, and the same within one process. No torch.

The reader publishes whole global batches, a file each, in a folder of memory (`/dev/shm`), the *ring*. A worker writes there
which step it wants and maps that file; files that nobody can want any more are removed. A file appears by rename, so a reader
killed while writing leaves nothing that is half there, and a new one goes on from what it finds.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import select
import shutil
import stat
import struct
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from argosy.data.batch import Batch, global_batch
from argosy.data.shards import Shards
from argosy.errors import MACHINE, Refused
from argosy.points import point
from argosy.run import guardian
from argosy.run.folder import Run
from argosy.run.incarnation import Incarnation
from argosy.run.ledger import Ledger

AHEAD = 3  # batches made before they are asked for
PATIENCE = 60.0  # seconds without a batch after which a worker whose parent is gone gives up
MEMORY = Path("/dev/shm")
_HEAD = struct.Struct("<8s3q")  # magic, step, rows, sequence
_MAGIC = b"ARGOSYBT"
_FIELDS = (
    ("sequence", "<i8"),
    *((name, "<i4") for name in ("tokens", "labels", "segments", "positions", "kinds")),
    ("weights", "<f4"),
)


class Batches(Protocol):
    """Where a worker gets global batches from."""

    def get(self, step: int) -> Batch:
        """The whole global batch of `step`. Its arrays may not be kept beyond the next call."""
        ...

    def close(self) -> None:
        """Nothing more will be asked."""
        ...


class LocalBatches:
    """Global batches made by a thread of this process, up to AHEAD before they are asked for."""

    def __init__(self, seed: int, ledger: Ledger, shards: Shards, first_step: int):
        self._make: Callable[[int], Batch] = lambda step: global_batch(step, seed, ledger, shards)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._coming: dict[int, Future[Batch]] = {}
        self._ask(first_step)

    def get(self, step: int) -> Batch:
        """See Batches. Raises what making it raised."""
        self._ask(step)
        return self._coming[step].result()

    def close(self) -> None:
        """See Batches."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _ask(self, step: int) -> None:
        for old in [known for known in self._coming if not step <= known <= step + AHEAD]:
            self._coming.pop(old).cancel()
        for wanted in range(step, step + AHEAD + 1):
            if wanted not in self._coming:
                self._coming[wanted] = self._pool.submit(self._make, wanted)


class RingBatches:
    """Global batches from the node's reader. `places` are the folders where its ring may be, one of which will appear.

    `failed()` gives the error to raise when no reader will come again, else None; it is asked once a second.
    """

    def __init__(self, places: list[Path], failed: Callable[[], Exception | None]):
        self._places, self._failed = places, failed
        self._ring: Path | None = None
        self._wanted: NDArray[np.int64] | None = None
        self._bell = self._alive = -1

    def get(self, step: int) -> Batch:
        """See Batches. Waits for as long as the parent lives: it replaces a reader that died."""
        asked, pause, looked = False, 0.0005, time.monotonic()
        while True:
            asked = asked or self._want(step)
            if self._ring is not None and (batch := read_batch(self._ring / batch_name(step), step)) is not None:
                return batch
            time.sleep(pause)
            pause = min(2 * pause, 0.01)
            if time.monotonic() - looked >= 1:
                looked = time.monotonic()
                error = self._failed()
                if error is not None:
                    raise error
                asked = False  # a new reader may have made a new ring

    def close(self) -> None:
        """See Batches."""
        for descriptor in (self._bell, self._alive):
            if descriptor >= 0:
                os.close(descriptor)
        self._bell = self._alive = -1

    def _want(self, step: int) -> bool:
        """Tell the reader which step this process needs; False while there is no ring."""
        name = f"wanted-{os.getpid()}"
        if self._ring is None or not (self._ring / name).exists():
            self._ring = next((place for place in self._places if (place / "bell").exists() and own(place)), None)
            if self._ring is None:
                return False
            try:
                temporary = self._ring / f".{name}"
                temporary.write_bytes(struct.pack("<q", step))
                self.close()
                # Locked until this process ends: a number alone may be another process's by the time it is looked at.
                self._alive = os.open(temporary, os.O_RDWR)
                with suppress(OSError):  # a file system without locks: the number has to do
                    fcntl.flock(self._alive, fcntl.LOCK_SH)
                temporary.rename(self._ring / name)
                self._wanted = np.memmap(self._ring / name, "<i8", "r+", shape=(1,))
                # Opened for both directions, so that neither opening nor ringing fails while there is no reader.
                self._bell = os.open(self._ring / "bell", os.O_RDWR | os.O_NONBLOCK)
            except FileNotFoundError:  # removed at this moment
                self._ring = None
                return False
        assert self._wanted is not None
        self._wanted[0] = step
        with suppress(BlockingIOError):  # nobody has listened for long: the next reader looks before it waits
            os.write(self._bell, b"\0")
        return True


def batch_name(step: int) -> str:
    """The file of a batch in the ring."""
    return f"batch-{step:012d}"


def write_batch(path: Path, step: int, batch: Batch) -> None:
    """Publish `batch` as the file `path`, by rename."""
    rows, sequence = batch.tokens.shape
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as file:
        file.write(_HEAD.pack(_MAGIC, step, rows, sequence))
        for name, kind in _FIELDS:
            file.write(np.ascontiguousarray(getattr(batch, name), kind).data)
    temporary.rename(path)


def read_batch(path: Path, step: int) -> Batch | None:
    """The batch in the file `path`, as views of its pages; None while there is no such file."""
    try:
        with path.open("rb") as file:
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        return None
    magic, number, rows, sequence = _HEAD.unpack_from(pages)
    if magic != _MAGIC or number != step:
        raise RuntimeError(f"{path} does not hold the batch of step {step}")
    at, arrays = _HEAD.size, {}
    for name, kind in _FIELDS:
        shape = (rows,) if name == "sequence" else (rows, sequence)
        arrays[name] = np.frombuffer(pages, kind, int(np.prod(shape)), at).reshape(shape)
        at += arrays[name].nbytes
    return Batch(**arrays)


class _Worker:
    """A process that asks: the step it wants, and whether it still lives."""

    def __init__(self, path: Path):
        self.path, self.pid = path, int(path.name.rpartition("-")[2])
        self._wanted = np.memmap(path, "<i8", "r", shape=(1,))
        self._lock = os.open(path, os.O_RDWR)
        self.descriptor: int | None = None
        with suppress(OSError, AttributeError):  # AttributeError: not Linux
            self.descriptor = os.pidfd_open(self.pid)

    @property
    def wanted(self) -> int:
        """The step it asked for last."""
        return int(self._wanted[0])

    def gone(self) -> bool:
        """Whether it ended; a process that nobody has waited for yet is gone too."""
        if self.descriptor is not None and select.select([self.descriptor], [], [], 0)[0]:
            return True
        with suppress(OSError):  # held, or a file system without locks
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True  # whoever has that number now, it is not the one who asked
        return not guardian.alive(self.pid)

    def forget(self) -> None:
        """Remove its file."""
        self.path.unlink(missing_ok=True)
        os.close(self._lock)
        if self.descriptor is not None:
            os.close(self.descriptor)


class Reader:
    """The reader's side of a ring: makes what workers want next, and removes what none of them wants any more."""

    def __init__(self, ring: Path, make: Callable[[int], Batch]):
        self.ring, self.make = ring, make
        ring.parent.mkdir(parents=True, exist_ok=True)
        ring.mkdir(mode=0o700, exist_ok=True)  # what is read is nobody else's business
        if not own(ring):
            raise Refused("the folder for batches belongs to somebody else.", where=str(ring), code=MACHINE)
        for path in ring.glob(".batch-*"):
            path.unlink()  # of a reader that was killed while writing it
        bell = ring / "bell"
        if not bell.exists():
            os.mkfifo(bell)
        self._bell = os.open(bell, os.O_RDWR | os.O_NONBLOCK)
        self._workers: dict[str, _Worker] = {}

    def turn(self) -> bool:
        """Make the next batch that is missing; False when there is none."""
        self._drain()
        low = self._lowest()
        if low is None:
            return False
        # One that asks late for a step that was removed gets it again: batches are a pure function of their step.
        there = {int(path.name[6:]) for path in self.ring.glob("batch-*")}
        for old in there:
            if not low <= old <= low + AHEAD:
                (self.ring / batch_name(old)).unlink()
        missing = next((step for step in range(low, low + AHEAD + 1) if step not in there), None)
        if missing is None:
            return False
        point("reader.batch.before")
        try:
            write_batch(self.ring / batch_name(missing), missing, self.make(missing))
        except OSError as error:
            raise Refused(
                "the next batch cannot be written.", where=str(self.ring), found=str(error.strerror), code=MACHINE
            ) from error
        point("reader.batch.after")
        return True

    def wait(self, seconds: float) -> None:
        """Sleep until a worker rings, or so many seconds."""
        select.select([self._bell], [], [], seconds)

    def close(self) -> None:
        """Stop listening; the ring stays."""
        os.close(self._bell)

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._bell, 4096):
                pass

    def _lowest(self) -> int | None:
        """The earliest step that a living worker wants; None before one asked."""
        for path in self.ring.glob("wanted-*"):
            if path.name not in self._workers:
                self._workers[path.name] = _Worker(path)
        for name, worker in list(self._workers.items()):
            if worker.gone():
                self._workers.pop(name).forget()
        return min((worker.wanted for worker in self._workers.values()), default=None)


def places(run: Run, node: int) -> list[Path]:
    """The folders in which the ring may be: memory first, the run's local folder where there is none.

    The name tells what the batches depend on, so that one of other batches is never taken for it.
    """
    what = f"{run.job().train.seed} {run.ledger().digest} {run.prepared().name}"
    name = _name(run, node) + blake2b(what.encode(), digest_size=6).hexdigest()
    return [MEMORY / name, run.local / name]


def remove(run: Run, node: int = 0, but: Path | None = None) -> None:
    """Remove the rings of `run` on this node, whatever they hold, except `but`."""
    for folder in (MEMORY, run.local):
        for ring in folder.glob(f"{_name(run, node)}*"):
            if ring != but:
                shutil.rmtree(ring, ignore_errors=True)


def _name(run: Run, node: int) -> str:
    place = blake2b(str(run.local.resolve()).encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()
    return f"argosy-ring-{os.getuid()}-{place}-{node}-"


def own(ring: Path) -> bool:
    """Whether `ring` is a folder of this user's: anybody may make one of that name where all share the memory."""
    try:
        status = ring.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and (ring.parent != MEMORY or status.st_uid == os.getuid())


def batches(run: Run, incarnation: int) -> Batches:
    """A worker's side of the node's reader."""
    start = Incarnation.read(run, incarnation)
    last_sign = time.monotonic()
    begun = (run.local / f"incarnation-{incarnation}.json").stat().st_mtime_ns

    def failed() -> Exception | None:
        """Why no batch will come any more; None while one may."""
        nonlocal last_sign
        told = _failure(run, begun)
        if told is not None:
            if told["kind"] == "refused":
                return Refused(str(told["sentence"]), code=int(told["code"]))
            return RuntimeError(f"the reader process failed: {told['sentence']}; see {run.log / 'reader.txt'}")
        if start.parent is None or guardian.alive(start.parent):
            last_sign = time.monotonic()
        if time.monotonic() - last_sign < PATIENCE:
            return None
        return Refused(
            f"no batch came for {PATIENCE:.0f} s: the reader process is gone, and so is process {start.parent}"
            " that would start another.",
            where=str(run.path),
            do="Start the run again: it goes on from its last checkpoint.",
            code=MACHINE,
        )

    return RingBatches(places(run, start.node), failed)


def _failure(run: Run, since: int) -> dict[str, Any] | None:
    """What a reader told that failed after the time `since` (ns); readers may be older than the workers they serve."""
    for path in run.local.glob("ended-reader-*.json"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime_ns >= since and (told := json.loads(path.read_text(encoding="utf-8")))["code"]:
                return dict(told)
    return None


def main(run: str, incarnation: int) -> int:
    """The reader process of a node: makes batches until its parent ends it, for workers of any incarnation."""
    place = Run(run)
    node = Incarnation.read(place, incarnation).node
    while True:
        _serve(place, node)


def _serve(run: Run, node: int) -> None:
    """Make batches in a ring until the ledger says something new."""
    read = _stamp(run)
    ledger, seed, shards = run.ledger(), run.job().train.seed, Shards(run.prepared())
    ring = _choose(places(run, node), ledger)
    remove(run, node, but=ring)
    guardian.farewell[:] = [lambda: shutil.rmtree(ring, ignore_errors=True)]
    reader = Reader(ring, lambda step: global_batch(step, seed, ledger, shards))
    while True:
        if not reader.turn():
            reader.wait(1.0)
            if _stamp(run) != read:
                break
    reader.close()


def _stamp(run: Run) -> tuple[int, int]:
    """Changes when the ledger does."""
    status = (run.path / "ledger.jsonl").stat()
    return status.st_mtime_ns, status.st_size


def _choose(folders: list[Path], ledger: Ledger) -> Path:
    """The ring that an earlier reader began, else memory where it has room."""
    for folder in folders:
        if own(folder):
            return folder
    most = max(int(str(entry.new)) for entry in ledger.entries if entry.key == "batch.tokens")
    need = 32 * most * (AHEAD + 3)
    memory, disk = folders
    if not memory.parent.is_dir() or os.path.lexists(memory):  # no memory, or somebody else's folder of that name
        return disk
    return memory if shutil.disk_usage(memory.parent).free > 2 * need else disk
