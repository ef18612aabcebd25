"""What a rank did and when: fixed 64-byte entries in a memory-mapped file that survives SIGKILL. The format and its readers.

A rank of an incarnation writes `record-rank-0000-inc-0001-000.bin` (segments of 2**20 entries) in the run's local folder;
the writer is recorder.py. Every entry is published by its sequence number, written last, and carries a checksum, so a reader
beside a running or killed writer sees whole entries only. Nothing here knows what the entries mean to others.

Format, version 1, little-endian. Header: magic, version, entry size, rank, incarnation, pid, start (ns), the writer's own CPU
time so far (ns). Entry: see ENTRY. The tables PHASES, SCALARS and MARKS only ever grow at the end.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from argosy.errors import Refused

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
    "gauge",  # matrix products are timed alone
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
    "gemm_rate",  # FLOP/s of all ranks in the model's own matrix products alone: rank 0's, times their number
    "collected",  # objects that a garbage collection freed
    "flops_per_token",  # forward and backward, attention counted causally
    "peak_rate",  # dense peak of all ranks' devices in FLOP/s, by the catalogue; only where it is known
    "layer_gradient_norm",  # of a layer, whose number is the entry's extra; of all that is no block, number = layers
    "layer_update_ratio",  # length of the update over that of the weights, likewise
    "layer_activation_rms",  # root mean square of what a block hands on, over the global batch's text
    "layer_attention_logit",  # largest score of the query rows that are looked at
    "held_out_best",  # 1 where an evaluation is better than all before it, else 0
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
    "starving",  # no batch came for long: value = seconds so far
    "fed",  # it came: value = seconds waited for it
    "enough",  # evaluations say that no more is learned: value = how many in a row, extra = the step of the best one
)
_TABLES = {PHASE: PHASES, SCALAR: SCALARS, MARK: MARKS}
NUMBERS = {kind: {name: index for index, name in enumerate(table)} for kind, table in _TABLES.items()}

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
        ("extra", "<u8"),  # which one of several: the number of a held-out set, of a layer; 0 where there is one
        ("flags", "<u4"),  # reserved, 0
        ("check", "<u4"),  # CRC-32 of the 60 bytes before it
    ]
)
Entries: TypeAlias = NDArray[Any]

# The format's parts, for the writer and the readers.
BODY = struct.Struct("<QHHIqqqdQI")
CHECK = struct.Struct("<I")
SEQUENCE = struct.Struct("<Q")
HEADER = struct.Struct("<8sIIIIIIqq")
OWN = struct.Struct("<q")
OWN_AT = HEADER.size - OWN.size
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


def name(kind: int, index: int) -> str:
    """The name of a phase, scalar or mark ("" for a step); "?n" for one that a newer version wrote."""
    table = _TABLES.get(kind, ())
    return table[index] if index < len(table) else "" if kind == STEP else f"?{index}"


def number(kind: int, name: str) -> int:
    """The index that stands for `name` in entries of `kind`."""
    return NUMBERS[kind][name]


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
    if len(text) < HEADER.size or text[:8] != MAGIC:
        raise Refused("this is no record of argosy.", where=str(path))
    _, version, size, rank, incarnation, pid, _, start, own = HEADER.unpack_from(text)
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
        (sequence,) = SEQUENCE.unpack_from(text, at)
        if sequence != after + index + 1 or crc32(view[at : at + 60]) != CHECK.unpack_from(text, at + 60)[0]:
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
