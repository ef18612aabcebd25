"""Writes one rank's record: entries appended to a memory-mapped file, each published by its sequence number, written last.

The format is record.py's. Knows the folder's `local` path and nothing of what the entries mean to others.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from types import TracebackType
from zlib import crc32

from argosy.errors import MACHINE, Refused
from argosy.run import record
from argosy.run.record import Local, Name


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
        self._write(record.STEP, 0, step, entered, left, 0.0)

    def phase(self, name: str, step: int, entered: int, left: int) -> None:
        """A part of a step, or of the time around steps, by its name in PHASES."""
        self._write(record.PHASE, record.NUMBERS[record.PHASE][name], step, entered, left, 0.0)

    def scalar(self, name: str, step: int, value: float, extra: int = 0) -> None:
        """A number of `step`, by its name in SCALARS; `extra` tells which one of several."""
        now = time.time_ns()
        self._write(record.SCALAR, record.NUMBERS[record.SCALAR][name], step, now, now, float(value), extra)

    def mark(self, name: str, step: int = 0, value: float = 0.0, extra: int = 0) -> None:
        """Something happened, by its name in MARKS."""
        now = time.time_ns()
        self._write(record.MARK, record.NUMBERS[record.MARK][name], step, now, now, float(value), extra)

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

    def _write(self, kind: int, name: int, step: int, entered: int, left: int, value: float, extra: int = 0) -> None:
        began = time.thread_time_ns()
        with self._lock:
            if self._count == self._room:
                self._grow()
            mapped = self._map
            if mapped is None:
                raise ValueError("the record was finished")
            self._count += 1
            at = record.SIZE * self._count  # the header takes the first place
            body = record.BODY.pack(self._count, kind, name, 0, step, entered, left, value, extra, 0)
            mapped[at + 8 : at + record.SIZE] = body[8:] + record.CHECK.pack(crc32(body))
            mapped[at : at + 8] = body[:8]  # published
            self.own += time.thread_time_ns() - began
            record.OWN.pack_into(mapped, record.OWN_AT, self.own)

    def _grow(self) -> None:
        if self._map is None:
            return
        if self._room < record.SEGMENT:
            self._make_room(min(self._room * 2, record.SEGMENT))
            return
        self._close()
        self.name = Name(self.name.incarnation, self.name.rank, self.name.segment + 1)
        self._open()

    def _open(self) -> None:
        self._descriptor = os.open(
            self.folder / self.name.file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644
        )
        self._count = 0
        self._make_room(record.FIRST)
        header = record.HEADER.pack(
            record.MAGIC,
            record.VERSION,
            record.SIZE,
            self.name.rank,
            self.name.incarnation,
            os.getpid(),
            0,
            time.time_ns(),
            self.own,
        )
        if self._map is not None:
            self._map[8 : record.HEADER.size] = header[8:]
            self._map[:8] = header[:8]

    def _make_room(self, entries: int) -> None:
        """Room for `entries`. Blocks are reserved: writing into a hole of a full disk would end the process by SIGBUS."""
        size = record.SIZE * (entries + 1)
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
