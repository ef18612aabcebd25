"""One shard file: tokens of many documents behind an index, with a checksum for every MiB. NumPy only.

Layout, version 1, little-endian. A header of 512 bytes: magic, version, bytes per token, documents, tokens, block size, then
a table of sections (offset, length in bytes), then the CRC-32 of the checksum section and that of the header. Sections, each
at a multiple of 64 bytes:

    boundaries  u64 [documents + 1]   where each document begins, in tokens; every document ends with the end mark
    documents   DOCUMENT [documents]  where its text came from
    names       JSON list of the files' names
    mask        u8 [tokens] or absent   1 = the token is counted as a label
    kinds       u8 [tokens] or absent   role of a chat record
    pairs       i64 [documents] or absent  documents of one preference pair share an id
    tokens      u16 or u32 [tokens]
    checksums   u32 [blocks]          CRC-32 of each block of the bytes between header and checksums

The index is checked when the file is opened, a block of tokens when it is first touched.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from argosy.errors import Refused

MAGIC = b"ARGOSYSH"
VERSION = 1
HEADER = 512
BLOCK = 1024 * 1024
SECTIONS = ("boundaries", "documents", "names", "mask", "kinds", "pairs", "tokens", "checksums")
# `which` is 1 for the second document of a record; where it is none, `held` and it are what was one u4 at first.
DOCUMENT = np.dtype(
    [("file", "<u4"), ("held", "<u2"), ("which", "<u2"), ("begin", "<u8"), ("end", "<u8"), ("hash", "<u8")]
)
_FIXED = struct.Struct("<8sIIQQQ")  # magic, version, bytes per token, documents, tokens, block size
_TABLE = struct.Struct(f"<{2 * len(SECTIONS)}Q")


@dataclass(frozen=True)
class Contents:
    """What one shard holds; arrays as the module's docstring says."""

    boundaries: NDArray[np.uint64]
    documents: NDArray[Any]
    names: Sequence[str]
    tokens: NDArray[Any]  # u16 or u32
    mask: NDArray[np.uint8] | None = None
    kinds: NDArray[np.uint8] | None = None
    pairs: NDArray[np.int64] | None = None


def write(path: Path, contents: Contents, block: int = BLOCK) -> None:
    """Write `contents` to the file `path` under a temporary name, sync it, rename it. Raises OSError."""
    parts: dict[str, bytes] = {
        "boundaries": contents.boundaries.astype("<u8").tobytes(),
        "documents": contents.documents.astype(DOCUMENT).tobytes(),
        "names": json.dumps(list(contents.names)).encode(),
        "mask": b"" if contents.mask is None else contents.mask.astype("u1").tobytes(),
        "kinds": b"" if contents.kinds is None else contents.kinds.astype("u1").tobytes(),
        "pairs": b"" if contents.pairs is None else contents.pairs.astype("<i8").tobytes(),
        "tokens": contents.tokens.astype(contents.tokens.dtype.newbyteorder("<")).tobytes(),
    }
    body, table = bytearray(), []
    for name in SECTIONS[:-1]:
        body += bytes(-len(body) % 64)
        table += [HEADER + len(body), len(parts[name])]
        body += parts[name]
    body += bytes(-len(body) % 64)
    sums = np.array([zlib.crc32(body[at : at + block]) for at in range(0, len(body), block)], "<u4").tobytes()
    table += [HEADER + len(body), len(sums)]
    width = contents.tokens.dtype.itemsize
    head = _FIXED.pack(MAGIC, VERSION, width, len(contents.documents), len(contents.tokens), block) + _TABLE.pack(
        *table
    )
    head += struct.pack("<I", zlib.crc32(sums))
    head = head.ljust(HEADER - 4, b"\0")
    head += struct.pack("<I", zlib.crc32(head))
    temporary = path.with_name(path.name + ".writing")
    with temporary.open("wb") as file:
        file.write(head)
        file.write(body)
        file.write(sums)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


class ShardFile:
    """A shard file, memory-mapped. Raises Refused with file and offset where it is not what was written."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < HEADER:
                    raise self._corrupt(size, "the file ends within its header")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise Refused(
                "this shard cannot be read.", where=str(path), found=error.strerror or "", do=REMEDY
            ) from error
        self._read_header(size)
        self._checked = np.zeros(len(self._sums), np.bool_)
        self.boundaries: NDArray[np.int64] = self._array("boundaries", "<u8").astype(np.int64)
        self.documents: NDArray[Any] = self._array("documents", DOCUMENT)
        begin, length = self._table["names"]
        self._check(begin, begin + length)
        self.names: list[str] = json.loads(self._map[begin : begin + length])
        self.pairs: NDArray[Any] | None = self._array("pairs", "<i8") if self._table["pairs"][1] else None
        expected = (len(self.documents) + 1, 0, self.tokens)
        if (len(self.boundaries), *self.boundaries[[0, -1]]) != expected or (np.diff(self.boundaries) < 1).any():
            raise self._corrupt(self._table["boundaries"][0], "the boundaries do not fit the tokens")

    def _read_header(self, size: int) -> None:
        head = self._map[:HEADER]
        magic, version, self.width, documents, self.tokens, self._block = _FIXED.unpack_from(head)
        if magic != MAGIC:
            raise self._corrupt(0, "this is no shard of Argosy")
        if version != VERSION:
            raise Refused(
                f"this shard has format version {version}, this Argosy reads {VERSION}.",
                where=str(self.path),
                do=REMEDY,
            )
        if struct.unpack_from("<I", head, HEADER - 4)[0] != zlib.crc32(head[: HEADER - 4]):
            raise self._corrupt(0, "the header's checksum is wrong")
        numbers = _TABLE.unpack_from(head, _FIXED.size)
        self._table = {name: (numbers[2 * at], numbers[2 * at + 1]) for at, name in enumerate(SECTIONS)}
        begin, length = self._table["checksums"]
        if begin + length != size:
            raise self._corrupt(size, f"the file has {size} bytes, its header says {begin + length}")
        width = {"boundaries": 8, "documents": DOCUMENT.itemsize, "pairs": 8, "tokens": self.width}
        entries = {"boundaries": documents + 1, "documents": documents, "pairs": documents, "tokens": self.tokens}
        entries |= {"mask": self.tokens, "kinds": self.tokens, "checksums": -(-(begin - HEADER) // max(1, self._block))}
        for name, (at, size) in self._table.items():
            absent = name in ("mask", "kinds", "pairs") and size == 0
            right = size == entries.get(name, size) * width.get(name, 4 if name == "checksums" else 1)
            if not (HEADER <= at <= at + size <= begin + length and (absent or right)) or self.width not in (2, 4):
                raise self._corrupt(_FIXED.size, f"the header's place of {name} is impossible")
        if struct.unpack_from("<I", head, _FIXED.size + _TABLE.size)[0] != zlib.crc32(self._map[begin:]):
            raise self._corrupt(begin, "the list of checksums is damaged")
        self._sums = np.frombuffer(self._map, "<u4", length // 4, begin)

    def read(self, section: str, begin: int, end: int) -> NDArray[Any]:
        """Entries `begin` to `end` of "tokens", "mask" or "kinds" as a view, their blocks checked; empty where absent."""
        at, length = self._table[section]
        kind = np.dtype({2: "<u2", 4: "<u4"}[self.width] if section == "tokens" else "u1")
        if not length:
            return np.empty(0, kind)
        self._check(at + begin * kind.itemsize, at + end * kind.itemsize)
        return np.frombuffer(self._map, kind, end - begin, at + begin * kind.itemsize)

    def has(self, section: str) -> bool:
        """Whether a section that may be absent is there."""
        return bool(self._table[section][1])

    def check(self) -> None:
        """Check every block now."""
        self._check(HEADER, self._table["checksums"][0])

    def _array(self, section: str, kind: Any) -> NDArray[Any]:
        begin, length = self._table[section]
        self._check(begin, begin + length)
        return np.frombuffer(self._map, kind, length // np.dtype(kind).itemsize, begin)

    def _check(self, begin: int, end: int) -> None:
        """Compare the blocks of the bytes [begin, end) with their checksums, those that were not compared yet."""
        for block in range((begin - HEADER) // self._block, (max(begin, end - 1) - HEADER) // self._block + 1):
            if not self._checked[block]:
                at = HEADER + block * self._block
                stop = min(at + self._block, self._table["checksums"][0])
                with memoryview(self._map) as view:
                    if zlib.crc32(view[at:stop]) != self._sums[block]:
                        raise self._corrupt(at, f"bytes {at} to {stop} do not match their checksum")
                self._checked[block] = True

    def _corrupt(self, offset: int, what: str) -> Refused:
        return Refused(f"this shard is damaged: {what}.", where=f"{self.path}, byte {offset}", do=REMEDY)


REMEDY = "Remove its folder and start again: the text is prepared anew."
