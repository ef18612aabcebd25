"""The ring: a folder of memory (`/dev/shm`) through which one process hands batches to all workers of its machine. No torch.

Every batch is a file. A worker writes there what it wants and maps that file; files that nobody can want any more are removed.
A file appears by rename, so a reader killed while writing leaves nothing that is half there, and a new one goes on from what it
finds. Batches of training are numbered by their step, those of a measurement by its number and theirs.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from argosy.data.batch import Batch, Given
from argosy.errors import MACHINE, Refused
from argosy.points import point
from argosy.run import guardian

AHEAD = 3  # batches made before they are asked for
SLOW = 5.0  # seconds of waiting for one batch after which it is told
MEMORY = Path("/dev/shm")
NOTHING = -1  # in a worker's wish: no batch of a measurement is wanted
_HEAD = struct.Struct(
    "<8s7q"
)  # magic, number, rows, sequence, first sequence of all, rows of all, counted, bytes or -1
_MAGIC = b"ARGOSYB2"
_WISH = struct.Struct("<3q")  # step, batch of a measurement or NOTHING, rows of that
_SETS = 1 << 32  # a batch of a measurement is wished for as its measurement's number times this, and its own
_FIELDS = (
    ("sequence", "<i8"),
    *((name, "<i4") for name in ("tokens", "labels", "segments", "positions", "kinds")),
    ("weights", "<f4"),
)

Heard = Callable[[float, bool], None]  # seconds that one batch has been waited for, and whether it is there now


class Batches(Protocol):
    """Where a worker gets its batches from. `heard` is told of a batch that did not come for SLOW seconds, and when it did."""

    heard: Heard

    def get(self, step: int) -> Given:
        """What this machine reads of `step`. Its arrays may not be kept beyond the next call."""
        ...

    def held_out(self, number: int, rows: int) -> Iterator[Batch]:
        """The batches of `rows` sequences of measurement `number` (from 0), the same on every machine."""
        ...

    def close(self) -> None:
        """Nothing more will be asked."""
        ...


def unheard(seconds: float, there: bool) -> None:
    """Nobody listens."""


class RingBatches:
    """Batches from the machine's reader. `places` are the folders where its ring may be, one of which will appear.

    `failed()` gives the error to raise when no reader will come again, else None; it is asked once a second.
    """

    def __init__(self, places: list[Path], failed: Callable[[], Exception | None], heard: Heard = unheard):
        self.places, self.failed, self.heard = places, failed, heard
        self._ring: Path | None = None
        self._wish: NDArray[np.int64] | None = None
        self._step = 0
        self._bell = self._alive = -1

    def get(self, step: int) -> Given:
        """See Batches. Waits for as long as the parent lives: it replaces a reader that died."""
        self._step = step
        return self._await(batch_name(step), step, (step, NOTHING, 0))

    def held_out(self, number: int, rows: int) -> Iterator[Batch]:
        """See Batches. What was asked of training before stays there."""
        try:
            for index in count():
                wanted = number * _SETS + index
                batch = self._await(held_name(rows, wanted), wanted, (self._step, wanted, rows)).batch
                if not len(batch):
                    return
                yield batch
        finally:
            self._ask((self._step, NOTHING, 0))

    def close(self) -> None:
        """See Batches."""
        for descriptor in (self._bell, self._alive):
            if descriptor >= 0:
                os.close(descriptor)
        self._bell = self._alive = -1
        self._ring = self._wish = None

    def _await(self, name: str, number: int, wish: tuple[int, int, int]) -> Given:
        asked, told, pause = False, False, 0.0005
        begun = looked = time.monotonic()
        while True:
            asked = asked or self._ask(wish)
            found = read_batch(self._ring / name, number) if self._ring is not None else None
            now = time.monotonic()
            if found is not None:
                if told:
                    self.heard(now - begun, True)
                return found
            if not told and now - begun >= SLOW:
                told = True
                self.heard(now - begun, False)
            time.sleep(pause)
            pause = min(2 * pause, 0.01)
            if now - looked >= 1:
                looked = now
                error = self.failed()
                if error is not None:
                    raise error
                asked = False  # a new reader may have made a new ring

    def _ask(self, wish: tuple[int, int, int]) -> bool:
        """Tell the reader what this process needs; False while there is no ring."""
        name = f"wanted-{os.getpid()}"
        if self._ring is None or not (self._ring / name).exists():
            self.close()
            self._ring = next((place for place in self.places if (place / "bell").exists() and own(place)), None)
            if self._ring is None:
                return False
            try:
                temporary = self._ring / f".{name}"
                temporary.write_bytes(_WISH.pack(*wish))
                # Locked until this process ends: a number alone may be another process's by the time it is looked at.
                self._alive = os.open(temporary, os.O_RDWR)
                with suppress(OSError):  # a file system without locks: the number has to do
                    fcntl.flock(self._alive, fcntl.LOCK_SH)
                temporary.rename(self._ring / name)
                self._wish = np.memmap(self._ring / name, "<i8", "r+", shape=(3,))
                # Opened for both directions, so that neither opening nor ringing fails while there is no reader.
                self._bell = os.open(self._ring / "bell", os.O_RDWR | os.O_NONBLOCK)
            except FileNotFoundError:  # removed at this moment
                self.close()
                return False
        assert self._wish is not None
        self._wish[0] = wish[0]
        if wish[1] != NOTHING:
            self._wish[2] = wish[2]
        self._wish[1] = wish[1]  # last: how many rows it shall have stands there already
        with suppress(BlockingIOError):  # nobody has listened for long: the next reader looks before it waits
            os.write(self._bell, b"\0")
        return True


def batch_name(step: int) -> str:
    """The file of a training batch in the ring."""
    return f"batch-{step:012d}"


def held_name(rows: int, number: int) -> str:
    """The file of a batch of `rows` sequences that something is measured on."""
    return f"held-{rows}-{number:016d}"


def write_batch(path: Path, number: int, given: Given) -> None:
    """Publish `given` as the file `path`, by rename."""
    batch = given.batch
    rows, sequence = batch.tokens.shape
    first = int(batch.sequence[0] - given.rows[0]) if rows else 0
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as file:
        size = -1 if given.bytes is None else given.bytes
        file.write(_HEAD.pack(_MAGIC, number, rows, sequence, first, given.whole, given.counted, size))
        for name, kind in _FIELDS:
            file.write(np.ascontiguousarray(getattr(batch, name), kind).data)
    temporary.rename(path)


def read_batch(path: Path, number: int) -> Given | None:
    """What is in the file `path`, as views of its pages; None while there is no such file."""
    try:
        with path.open("rb") as file:
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        return None
    magic, found, rows, sequence, first, whole, counted, size = _HEAD.unpack_from(pages)
    if magic != _MAGIC or found != number:
        raise RuntimeError(f"{path} does not hold the batch {number}")
    at, arrays = _HEAD.size, {}
    for name, kind in _FIELDS:
        shape = (rows,) if name == "sequence" else (rows, sequence)
        arrays[name] = np.frombuffer(pages, kind, int(np.prod(shape)), at).reshape(shape)
        at += arrays[name].nbytes
    batch = Batch(**arrays)
    return Given(batch, batch.sequence - first, whole, counted, None if size < 0 else size)


class _Worker:
    """A process that asks: what it wants, and whether it still lives."""

    def __init__(self, path: Path):
        self.path, self.pid = path, int(path.name.rpartition("-")[2])
        self._wish = np.memmap(path, "<i8", "r", shape=(3,))
        self._lock = os.open(path, os.O_RDWR)
        self.descriptor: int | None = None
        with suppress(OSError, AttributeError):  # AttributeError: not Linux
            self.descriptor = os.pidfd_open(self.pid)

    @property
    def step(self) -> int:
        """The step it asked for last."""
        return int(self._wish[0])

    @property
    def held(self) -> tuple[int, int]:
        """The batch of a measurement that it asks for, and of how many sequences; NOTHING where it does not."""
        return int(self._wish[1]), int(self._wish[2])

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
    """The reader's side of a ring: makes what workers want next, and removes what none of them wants any more.

    `make(step)` gives a step's batch; `held(number, index, rows)` one of a measurement, None behind its last.
    """

    def __init__(
        self, ring: Path, make: Callable[[int], Given], held: Callable[[int, int, int], Batch | None] | None = None
    ):
        self.ring, self.make, self.held = ring, make, held or (lambda number, index, rows: None)
        ring.parent.mkdir(parents=True, exist_ok=True)
        ring.mkdir(mode=0o700, exist_ok=True)  # what is read is nobody else's business
        if not own(ring):
            raise Refused("the folder for batches belongs to somebody else.", where=str(ring), code=MACHINE)
        for path in (*ring.glob(".batch-*"), *ring.glob(".held-*")):
            path.unlink()  # of a reader that was killed while writing it
        bell = ring / "bell"
        if not bell.exists():
            os.mkfifo(bell)
        self._bell = os.open(bell, os.O_RDWR | os.O_NONBLOCK)
        self._workers: dict[str, _Worker] = {}

    def turn(self) -> bool:
        """Make the next batch that is missing; False when there is none."""
        with suppress(BlockingIOError):
            while os.read(self._bell, 4096):
                pass
        workers = self._living()
        wanted, rows = min((found for worker in workers if (found := worker.held)[0] >= 0), default=(None, 0))
        held = self._missing(f"held-{rows}-", wanted)
        if held is not None:  # first: everybody waits for it
            number, index = divmod(held, _SETS)
            self._publish(held_name(rows, held), held, lambda: _measured(self.held(number, index, rows)))
            return True
        low = min((worker.step for worker in workers if worker.step > 0), default=None)
        step = None if low is None else self._missing("batch-", low)
        if step is None:
            return False
        point("reader.batch.before")
        self._publish(batch_name(step), step, lambda: self.make(step))
        point("reader.batch.after")
        return True

    def wait(self, seconds: float) -> None:
        """Sleep until a worker rings, or so many seconds."""
        select.select([self._bell], [], [], seconds)

    def close(self) -> None:
        """Stop listening; the ring stays."""
        os.close(self._bell)

    def _missing(self, kind: str, low: int | None) -> int | None:
        """The first batch of a kind that is to be made, the earliest wanted being `low`; removes what nobody wants.

        One that somebody asks late for is made again: batches are a pure function of their number.
        """
        wanted = range(low, low + AHEAD + 1) if low is not None else range(0)
        there = set()
        for path in self.ring.glob(f"{kind.partition('-')[0]}-*"):
            number = int(path.name.rpartition("-")[2])
            if path.name.startswith(kind) and number in wanted:
                there.add(number)
            else:
                path.unlink()
        return next((number for number in wanted if number not in there), None)

    def _publish(self, name: str, number: int, make: Callable[[], Given]) -> None:
        given = make()  # what goes wrong here is told as it is
        try:
            write_batch(self.ring / name, number, given)
        except OSError as error:
            raise Refused(
                "the next batch cannot be written.", where=str(self.ring), found=str(error.strerror), code=MACHINE
            ) from error

    def _living(self) -> list[_Worker]:
        for path in self.ring.glob("wanted-*"):
            if path.name not in self._workers:
                self._workers[path.name] = _Worker(path)
        for name, worker in list(self._workers.items()):
            if worker.gone():
                self._workers.pop(name).forget()
        return list(self._workers.values())


def _measured(batch: Batch | None) -> Given:
    """A batch of a measurement, which all machines read whole; an empty one is its end."""
    if batch is None:
        none = {name: np.zeros((0,) if name == "sequence" else (0, 1), kind) for name, kind in _FIELDS}
        return Given(Batch(**none), np.zeros(0, np.int64), 0, 0)
    return Given(batch, np.arange(len(batch)), len(batch), batch.counted)


def own(ring: Path) -> bool:
    """Whether `ring` is a folder of this user's: anybody may make one of that name where all share the memory."""
    try:
        status = ring.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and (ring.parent != MEMORY or status.st_uid == os.getuid())
