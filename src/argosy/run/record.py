"""What a rank did and when: fixed 64-byte entries in a memory-mapped file that survives SIGKILL. The writer and the readers.

A rank of an incarnation writes `record-rank-0000-inc-0001-000.bin` (segments of 2**20 entries) in the run's local folder.
Every entry is published by its sequence number, written last, and carries a checksum, so a reader beside a running or killed
writer sees whole entries only. Knows the folder's `local` path and nothing of what the entries mean to others.

Format, version 1, little-endian. Header: magic, version, entry size, rank, incarnation, pid, start (ns), the writer's own CPU
time so far (ns). Entry: see ENTRY. The tables PHASES, SCALARS and MARKS only ever grow at the end.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeAlias
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from argosy.errors import MACHINE, Refused

VERSION = 1
MAGIC = b"ARGOSYR\n"
SIZE = 64  # bytes of an entry, and of the header
FIRST = 4096  # entries a new file has room for
SEGMENT = 1 << 20  # entries of a full file, 64 MiB

STEP, PHASE, SCALAR, MARK = 1, 2, 3, 4
KINDS = {STEP: "step", PHASE: "phase", SCALAR: "scalar", MARK: "mark"}

PHASES = (
    "start",  # from the birth of the process to its first own work
    "groups",  # joining process groups
    "build",  # model and optimizer are made
    "load",  # a checkpoint is read
    "compile",  # the first passes, where the compiler works
    "data",  # waiting for a batch
    "forward_backward",
    "vote",
    "update",
    "evaluate",
    "sample",
    "save",  # a shard is copied for the writer, and waiting for it
    "collect",  # Python's garbage
    "wait",  # nothing to do but wait
)
SCALARS = (
    "loss",  # nats per counted token of the global batch
    "lr",
    "gradient_norm",
    "tokens",  # trained on since the start of the run, this step's among them
    "counted",  # labels that count in this step
    "bytes",  # UTF-8 bytes that the counted labels stand for
    "seconds",
    "held_out_loss",
    "held_out_bits_per_byte",
    "held_out_documents",
    "held_out_tokens",
    "waited",  # seconds that training waited for a save
    "memory_peak",  # bytes of this process
    "memory_device",  # bytes on the device
    "skipped",  # 1 where a step's update was skipped
    "record_seconds",  # CPU seconds this writer took
    "gemm_rate",  # FLOP/s of a matrix product measured beside the run
    "collected",  # objects that a garbage collection freed
)
MARKS = (
    "born",
    "joined",
    "built",
    "loaded",  # step = the checkpoint's; 0 for first weights
    "compiling",
    "compiled",
    "evaluated",  # all scalars of an evaluation stand before it
    "finished",  # all steps are done
    "stopped",  # the end was agreed before the last step
    "failed",
    "ended",  # the writer closed its file
)
_TABLES = {PHASE: PHASES, SCALAR: SCALARS, MARK: MARKS}
_NUMBERS = {kind: {name: index for index, name in enumerate(table)} for kind, table in _TABLES.items()}

ENTRY = np.dtype(
    [
        ("sequence", "<u8"),  # from 1; 0 = not yet published
        ("kind", "<u2"),
        ("name", "<u2"),  # index into the kind's table
        ("spare", "<u4"),
        ("step", "<i8"),
        ("entered", "<i8"),  # ns since the epoch
        ("left", "<i8"),
        ("value", "<f8"),
        ("extra", "<u8"),  # reserved, 0
        ("flags", "<u4"),  # reserved, 0
        ("check", "<u4"),  # CRC-32 of the 60 bytes before it
    ]
)
Entries: TypeAlias = NDArray[Any]

_BODY = struct.Struct("<QHHIqqqdQI")
_CHECK = struct.Struct("<I")
_SEQUENCE = struct.Struct("<Q")
_HEADER = struct.Struct("<8sIIIIIIqq")
_OWN = struct.Struct("<q")
_OWN_AT = _HEADER.size - _OWN.size
_FILE = re.compile(r"record-rank-(\d{4,})-inc-(\d{4,})-(\d{3,})\.bin")


class Local(Protocol):
    """Whatever has a folder for live files; a Run is one."""

    @property
    def local(self) -> Path:
        """Folder on this machine's own disk or memory."""


@dataclass(frozen=True, order=True)
class Name:
    """What a record file's name says; sorts by incarnation, rank, segment."""

    incarnation: int
    rank: int
    segment: int = 0

    @property
    def file(self) -> str:
        """The name of the file."""
        return f"record-rank-{self.rank:04d}-inc-{self.incarnation:04d}-{self.segment:03d}.bin"


@dataclass(frozen=True)
class Header:
    """The first 64 bytes of a record file; times in ns."""

    rank: int
    incarnation: int
    pid: int
    start: int
    own: int  # CPU time the writer took so far


class Recorder:
    """Writes one rank's record. One thread or several; a few microseconds an entry, counted in the header."""

    def __init__(self, run: Local, rank: int, incarnation: int):
        self.folder, self.name = run.local, Name(incarnation, rank)
        self.own = 0
        self._lock = threading.Lock()
        self._map: mmap.mmap | None = None
        self._descriptor = -1
        self.folder.mkdir(parents=True, exist_ok=True)
        while (self.folder / self.name.file).exists():  # never over an older record
            self.name = Name(incarnation, rank, self.name.segment + 1)
        self._open()

    def step(self, step: int, entered: int, left: int) -> None:
        """`step` was computed between `entered` and `left` (ns); publishes the step's scalars written before it."""
        self._write(STEP, 0, step, entered, left, 0.0)

    def phase(self, name: str, step: int, entered: int, left: int) -> None:
        """A part of a step, or of the time around steps, by its name in PHASES."""
        self._write(PHASE, _NUMBERS[PHASE][name], step, entered, left, 0.0)

    def scalar(self, name: str, step: int, value: float) -> None:
        """A number of `step`, by its name in SCALARS."""
        now = time.time_ns()
        self._write(SCALAR, _NUMBERS[SCALAR][name], step, now, now, float(value))

    def mark(self, name: str, step: int = 0, value: float = 0.0) -> None:
        """Something happened, by its name in MARKS."""
        now = time.time_ns()
        self._write(MARK, _NUMBERS[MARK][name], step, now, now, float(value))

    def during(self, name: str, step: int) -> During:
        """Context manager: the block is the phase `name` of `step`; recorded when it is left, also by an exception."""
        return During(self, name, step)

    def finish(self) -> None:
        """Write how much CPU time the record took and close; nothing may be written after it. Twice is harmless."""
        if self._map is None:
            return
        self.scalar("record_seconds", 0, self.own / 1e9)
        self.mark("ended")
        self._close()

    def _write(self, kind: int, name: int, step: int, entered: int, left: int, value: float) -> None:
        began = time.thread_time_ns()
        with self._lock:
            if self._count == self._room:
                self._grow()
            mapped = self._map
            if mapped is None:
                raise ValueError("the record was finished")
            self._count += 1
            at = SIZE * self._count  # the header takes the first place
            body = _BODY.pack(self._count, kind, name, 0, step, entered, left, value, 0, 0)
            mapped[at + 8 : at + SIZE] = body[8:] + _CHECK.pack(crc32(body))
            mapped[at : at + 8] = body[:8]  # published
            self.own += time.thread_time_ns() - began
            _OWN.pack_into(mapped, _OWN_AT, self.own)

    def _grow(self) -> None:
        if self._map is None:
            return
        if self._room < SEGMENT:
            self._make_room(min(self._room * 2, SEGMENT))
            return
        self._close()
        self.name = Name(self.name.incarnation, self.name.rank, self.name.segment + 1)
        self._open()

    def _open(self) -> None:
        self._descriptor = os.open(
            self.folder / self.name.file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644
        )
        self._count = 0
        self._make_room(FIRST)
        header = _HEADER.pack(
            MAGIC, VERSION, SIZE, self.name.rank, self.name.incarnation, os.getpid(), 0, time.time_ns(), self.own
        )
        if self._map is not None:
            self._map[8 : _HEADER.size] = header[8:]
            self._map[:8] = header[:8]

    def _make_room(self, entries: int) -> None:
        """Room for `entries`. Blocks are reserved: writing into a hole of a full disk would end the process by SIGBUS."""
        size = SIZE * (entries + 1)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._descriptor, 0, size)
            else:
                os.ftruncate(self._descriptor, size)
        except OSError as problem:
            raise Refused(
                f"the record of rank {self.name.rank} cannot grow to {size:,} bytes.",
                where=str(self.folder),
                found=problem.strerror or str(problem),
                do="Make room there, or set ARGOSY_LOCAL to another folder.",
                code=MACHINE,
            ) from None
        before, self._map, self._room = self._map, mmap.mmap(self._descriptor, size), entries
        if before is not None:
            before.close()

    def _close(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None
            os.close(self._descriptor)


class During:
    """See Recorder.during. After the block, `entered` and `left` hold its times (ns)."""

    __slots__ = ("_name", "_recorder", "_step", "entered", "left")

    def __init__(self, recorder: Recorder, name: str, step: int):
        self._recorder, self._name, self._step = recorder, name, step
        self.entered = self.left = 0

    def __enter__(self) -> During:
        self.entered = time.time_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.left = time.time_ns()
        self._recorder.phase(self._name, self._step, self.entered, self.left)


def name(kind: int, index: int) -> str:
    """The name of a phase, scalar or mark ("" for a step); "?n" for one that a newer version wrote."""
    table = _TABLES.get(kind, ())
    return table[index] if index < len(table) else "" if kind == STEP else f"?{index}"


def number(kind: int, name: str) -> int:
    """The index that stands for `name` in entries of `kind`."""
    return _NUMBERS[kind][name]


def parse(path: Path) -> Name:
    """What the name of the record file `path` says; ValueError for a name that is none."""
    match = _FILE.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path.name} is no record file")
    return Name(int(match[2]), int(match[1]), int(match[3]))


def files(local: Path, *, rank: int | None = None, incarnation: int | None = None) -> list[tuple[Name, Path]]:
    """The record files in the folder `local`, by incarnation, rank, segment; only those asked for."""
    found = []
    for path in local.iterdir() if local.is_dir() else ():
        if _FILE.fullmatch(path.name) is None:
            continue
        name = parse(path)
        if rank in (None, name.rank) and incarnation in (None, name.incarnation) and not unborn(path):
            found.append((name, path))
    return sorted(found)


def unborn(path: Path) -> bool:
    """Whether the writer of this file was killed, or has not come, before it wrote the header: there is nothing in it."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)).strip(b"\0") == b""


def header(path: Path) -> Header:
    """The header of a record file. Refused where it is none, or of a version this program does not know."""
    with path.open("rb") as file:
        text = file.read(SIZE)
    if len(text) < _HEADER.size or text[:8] != MAGIC:
        raise Refused("this is no record of argosy.", where=str(path))
    _, version, size, rank, incarnation, pid, _, start, own = _HEADER.unpack_from(text)
    if version != VERSION or size != SIZE:
        raise Refused(
            f"a record of version {version} with {size} bytes an entry.",
            where=str(path),
            do=f"This argosy reads version {VERSION}; a newer one wrote it: upgrade.",
        )
    return Header(rank, incarnation, pid, start, own)


def read(path: Path) -> Entries:
    """All published entries of the file at `path`, as a structured array of dtype ENTRY."""
    header(path)
    with path.open("rb") as file:
        return _published(file.fileno(), 0)


def _published(descriptor: int, after: int) -> Entries:
    """The entries behind the first `after` that are whole and in order."""
    size = os.fstat(descriptor).st_size
    at = SIZE * (after + 1)
    blocks = []
    while at + SIZE <= size:
        text = os.pread(descriptor, min(size - at, SIZE << 14), at)
        text = text[: len(text) - len(text) % SIZE]
        good = _good(text, after)
        blocks.append(np.frombuffer(text[: good * SIZE], ENTRY))
        after, at = after + good, at + good * SIZE
        if good * SIZE < len(text) or not text:
            break
    return np.concatenate(blocks) if blocks else np.zeros(0, ENTRY)


def _good(text: bytes, after: int) -> int:
    """How many entries at the start of `text` are published; the first of them has the sequence number after + 1."""
    view = memoryview(text)
    for index in range(len(text) // SIZE):
        at = index * SIZE
        (sequence,) = _SEQUENCE.unpack_from(text, at)
        if sequence != after + index + 1 or crc32(view[at : at + 60]) != _CHECK.unpack_from(text, at + 60)[0]:
            return index
    return len(text) // SIZE


class Follower:
    """Reads what one rank of one incarnation writes, as it appears; the files may not exist yet."""

    def __init__(self, local: Path, rank: int, incarnation: int):
        self.local, self.name = local, Name(incarnation, rank)
        self._descriptor = -1
        self._read = 0

    def poll(self) -> Entries:
        """The entries published since the last call."""
        parts = []
        while True:
            following = Name(self.name.incarnation, self.name.rank, self.name.segment + 1)
            more = (self.local / following.file).exists()  # asked before reading, so that nothing between is missed
            parts.append(self._drain())
            if not more:
                return np.concatenate(parts)
            self.close()
            self.name, self._read = following, 0

    def close(self) -> None:
        """Close the file that is open; the next poll opens it again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _drain(self) -> Entries:
        if self._descriptor < 0:
            path = self.local / self.name.file
            try:
                header(path)
            except (FileNotFoundError, Refused):  # not there, or its header is being written
                return np.zeros(0, ENTRY)
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        found = _published(self._descriptor, self._read)
        self._read += len(found)
        return found


def follow(run: Local, rank: int, incarnation: int) -> Follower:
    """A reader of what `rank` of `incarnation` writes."""
    return Follower(run.local, rank, incarnation)
