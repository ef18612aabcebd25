"""Tokens that stay in somebody else's file, behind an index of ours: what a shard file is, for Megatron's .bin. NumPy only.

The index is a line of JSON (where the tokens lie, how many bytes and documents, the CRC-32 of the rest), then DOCUMENT
[documents], i64 [documents] first tokens in the .bin, i64 [documents + 1] boundaries, u32 [blocks] CRC-32 of each MiB of the
.bin. A block is checked when it is first touched, so that a file that was written anew is told and never trained on.
"""

from __future__ import annotations

import json
import mmap
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from argosy.data.document import digest
from argosy.data.shard_file import DOCUMENT, REMEDY
from argosy.data.sources.megatron import TYPES, Index
from argosy.errors import Refused

SUFFIX = ".borrowed"
MAGIC = "argosy borrowed"
VERSION = 1
BLOCK = 1024 * 1024
NUMBERS = ("documents", "blocks", "bytes")  # of the line of JSON


@dataclass(frozen=True)
class Looked:
    """What reading a .bin once gave: hashes [documents], CRC-32 of each block, the largest and the smallest id."""

    hashes: NDArray[np.uint64]
    sums: NDArray[np.uint32]
    largest: int
    smallest: int


def look(path: Path, index: Index, progress: Callable[[int], None]) -> Looked:
    """Read the tokens at `path` once; `progress` hears of bytes. Raises OSError."""
    raw = np.memmap(path, np.uint8, "r")
    tokens = raw[: len(raw) // np.dtype(index.kind).itemsize * np.dtype(index.kind).itemsize].view(index.kind)
    sums = np.array([zlib.crc32(raw.data[at : at + BLOCK]) for at in range(0, len(raw), BLOCK)], np.uint32)
    hashes = np.zeros(len(index.first), np.uint64)
    largest = smallest = 0
    for number, (first, length) in enumerate(zip(index.first.tolist(), index.lengths.tolist(), strict=True)):
        text = np.asarray(tokens[first : first + length])
        largest, smallest = max(largest, int(text.max())), min(smallest, int(text.min()))
        hashes[number] = digest(text.astype("<u4").tobytes())
        if number % 4096 == 0:
            progress(first * tokens.itemsize)
    return Looked(hashes, sums, largest, smallest)


def write(path: Path, tokens: Path, name: str, index: Index, rows: NDArray[Any], looked: Looked) -> None:
    """Write the index of the tokens in the file `tokens` to `path`. Raises OSError."""
    boundaries = np.concatenate([[0], np.cumsum(index.lengths)]).astype("<i8")
    body = rows.astype(DOCUMENT).tobytes() + index.first.astype("<i8").tobytes() + boundaries.tobytes()
    body += looked.sums.astype("<u4").tobytes()
    head = {
        "magic": MAGIC,
        "version": VERSION,
        "tokens": str(tokens.resolve()),
        "bytes": tokens.stat().st_size,
        "type": index.kind,
        "documents": len(rows),
        "blocks": len(looked.sums),
        "name": name,
        "crc": zlib.crc32(body),
    }
    temporary = path.with_name(path.name + ".writing")
    with temporary.open("wb") as file:
        file.write(json.dumps(head).encode() + b"\n" + body)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


class BorrowedFile:
    """Tokens of others, with what a ShardFile has. Raises Refused where index or tokens are not what they were."""

    pairs: NDArray[Any] | None = None

    def __init__(self, path: Path):
        self.path = path
        try:
            head, _, body = path.read_bytes().partition(b"\n")
        except OSError as error:
            raise Refused("this cannot be read.", where=str(path), found=error.strerror or "", do=REMEDY) from error
        told = self._head(head, body)
        count, blocks = told["documents"], told["blocks"]
        places = np.cumsum([0, count * DOCUMENT.itemsize, 8 * count, 8 * (count + 1), 4 * blocks]).tolist()
        if places[-1] != len(body):
            raise self._damaged()
        self.documents: NDArray[Any] = np.frombuffer(body, DOCUMENT, count)
        self._first = np.frombuffer(body, "<i8", count, places[1])
        self.boundaries: NDArray[np.int64] = np.frombuffer(body, "<i8", count + 1, places[2]).astype(np.int64)
        self._sums = np.frombuffer(body, "<u4", blocks, places[3])
        self.names = [told["name"]]
        self.tokens = int(self.boundaries[-1])
        self._type = np.dtype(told["type"])
        self._checked = np.zeros(blocks, np.bool_)
        self._map = self._opened(Path(told["tokens"]), told["bytes"])

    def _head(self, head: bytes, body: bytes) -> dict[str, Any]:
        try:
            told: dict[str, Any] = json.loads(head)
            known = (told["magic"], told["version"]) == (MAGIC, VERSION) and told["type"] in TYPES.values()
            known = known and all(type(told[name]) is int and told[name] > 0 for name in NUMBERS)
            known = known and all(isinstance(told[name], str) for name in ("tokens", "name"))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._damaged() from error
        if not known or told.get("crc") != zlib.crc32(body):
            raise self._damaged()
        return told

    def _damaged(self) -> Refused:
        return Refused("this index of tokens is damaged.", where=str(self.path), do=REMEDY)

    def _opened(self, path: Path, size: int) -> mmap.mmap:
        try:
            with path.open("rb") as file:
                found = os.fstat(file.fileno()).st_size
                if found != size:
                    raise self._changed(path, f"{found:,} bytes, where {size:,} were")
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise self._changed(path, error.strerror or str(error)) from None

    def _changed(self, path: Path, found: str) -> Refused:
        return Refused(
            "the tokens of this text are read where they lie, and are not as they were.",
            where=str(path),
            found=found,
            do="Put the file back as it was, or prepare it anew: remove " + str(self.path.parent),
        )

    def read(self, section: str, begin: int, end: int) -> NDArray[Any]:
        """Tokens `begin` to `end`, all of one document, as a view, their blocks checked; nothing for other sections."""
        if section != "tokens" or end <= begin:
            return np.empty(0, self._type if section == "tokens" else np.uint8)
        document = int(np.searchsorted(self.boundaries, begin, side="right")) - 1
        at = (int(self._first[document]) + begin - int(self.boundaries[document])) * self._type.itemsize
        self._check(at, at + (end - begin) * self._type.itemsize)
        return np.frombuffer(self._map, self._type, end - begin, at)

    def has(self, section: str) -> bool:
        """Whether a section that may be absent is there: none is."""
        return False

    def check(self) -> None:
        """Check every block now."""
        self._check(0, len(self._map))

    def _check(self, begin: int, end: int) -> None:
        for block in range(begin // BLOCK, (max(begin, end - 1)) // BLOCK + 1):
            if not self._checked[block]:
                with memoryview(self._map) as view:
                    same = zlib.crc32(view[block * BLOCK : (block + 1) * BLOCK]) == self._sums[block]
                if not same:
                    told = json.loads(self.path.read_bytes().partition(b"\n")[0])
                    raise self._changed(Path(told["tokens"]), f"bytes from {block * BLOCK:,} on are others")
                self._checked[block] = True
