"""MosaicML's MDS shards, read where they lie: text and chats, or token ids that somebody has made. No torch.

A shard is a file: u32 samples, u32 [samples + 1] where each begins, a JSON table of its columns, the samples. Of a sample, the
sizes of its columns that vary come first, as u32, then the columns' bytes. Pickled columns are never opened.
"""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from argosy.data.document import Bad, File, Piece, Source, Spot, Unreadable
from argosy.data.sources import records
from argosy.data.sources.streams import first_line, packed, unpacked

SUFFIXES = (".mds",)
INDEX = "index.json"
LARGEST = 1 << 30  # bytes of a packed shard, unpacked; writers of them begin a new one at 2^26 unless told otherwise
AT_ONCE = 1 << 20
_SHAPES = ("<u1", "<u2", "<u4", "<u8")
_TYPES = {8: "<u1", 9: "<i1", 16: "<u2", 17: "<i2", 32: "<u4", 33: "<i4", 64: "<u8", 65: "<i8"}
_NAMED = {"uint8": "<u1", "int8": "<i1", "uint16": "<u2", "int16": "<i2", "uint32": "<u4", "int32": "<i4"}
_NAMED |= {"uint64": "<u8", "int64": "<i8"}


def missing(folder: Path, present: set[str]) -> list[str]:
    """A sentence for each shard that the folder's own list names and that is not there as `present` says."""
    try:
        table = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        shards = table["shards"]
        names = [(str(one["raw_data"]["basename"]), str((one.get("zip_data") or {}).get("basename"))) for one in shards]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []  # a JSON file of something else
    return [f"{raw} is named by {INDEX} and not there" for raw, zipped in names if not {raw, zipped} & present]


def twice(source: Source) -> None:
    """Leave out the packed shard where the same one lies unpacked beside it."""
    plain = {file.path for file in source.files if file.path.suffix == ".mds"}
    source.files[:] = [file for file in source.files if file.kind != "mds" or file.path.with_suffix("") not in plain]


class _Shard:
    """One shard: its columns, and where each sample begins. Raises Unreadable where the header is impossible."""

    def __init__(self, file: File, stream: BinaryIO):
        self._stream, self.size = stream, stream.seek(0, os.SEEK_END)
        if self.size < 8:
            raise Unreadable("ends within its header")
        (self.samples,) = struct.unpack("<I", self._bytes(0, 4))
        head = 4 * (self.samples + 2)
        if head > self.size:
            raise Unreadable(f"says that it has {self.samples:,} samples, and is too short for them")
        self.places: NDArray[np.int64] = np.frombuffer(self._bytes(4, head), "<u4").astype(np.int64)
        if self.places[0] < head or (np.diff(self.places) < 0).any() or self.places[-1] != self.size:
            raise Unreadable(f"does not have the {int(self.places[-1]):,} bytes that its header says")
        try:
            table = json.loads(self._bytes(head, int(self.places[0])).decode("utf-8"))
            self.names = [str(name) for name in table["column_names"]]
            self.encodings = [str(name) for name in table["column_encodings"]]
            self.sizes = [None if size is None else int(size) for size in table["column_sizes"]]
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:  # a size may be Infinity
            raise Unreadable("does not say which columns it has") from error
        if not len(self.names) == len(self.encodings) == len(self.sizes) or any((size or 0) < 0 for size in self.sizes):
            raise Unreadable("does not say which columns it has")
        self.columns = records.wanted(self.names, file.field)
        if not self.columns:
            shown = ", ".join(
                f'"{name[:40]}" ({kind[:20]})' for name, kind in zip(self.names, self.encodings, strict=True)
            )
            raise Unreadable(f"has no column with text, a chat or ids; it has {shown}")

    def _bytes(self, begin: int, end: int) -> bytes:
        self._stream.seek(begin)
        found = self._stream.read(end - begin)
        if len(found) < end - begin:
            raise Unreadable("became shorter while it was read")
        return found

    def record(self, number: int) -> dict[str, Any]:
        """The columns of a sample that are looked at. Raises Bad, Unreadable."""
        content = self._bytes(int(self.places[number]), int(self.places[number + 1]))
        varying = sum(size is None for size in self.sizes)
        at, end = 4 * varying, len(content)
        if at > end:
            raise Bad("ends within the sizes of its columns")
        told = iter(struct.unpack_from(f"<{varying}I", content))
        found = {}
        for name, encoding, fixed in zip(self.names, self.encodings, self.sizes, strict=True):
            size = next(told) if fixed is None else fixed
            if at + size > end:
                raise Bad(f'ends within its column "{name}"')
            if name in self.columns:
                found[name] = _decoded(content[at : at + size], encoding, name)
            at += size
        return found


def documents(file: File, size: int, spot: Spot) -> Iterator[Piece]:
    """The documents of `file`; `spot` hears of samples that cannot be used. Raises Unreadable. `size` is for other kinds."""
    with _opened(file) as shard:
        for number in range(shard.samples):
            try:
                yield from records.pieces(shard.record(number), file.field, number, number + 1)
            except Bad as error:
                spot(f"{file.name}, sample {number + 1}", str(error))


def read(file: File, rows: list[tuple[int, int, int]], size: int) -> Iterator[Piece]:
    """The documents at (begin, end, which) `rows`, ascending. Raises Unreadable where they are not there any more."""
    wanted = set(rows)
    with _opened(file) as shard:
        for number in sorted({row[0] for row in rows}):
            if number >= shard.samples:
                raise Unreadable("has changed")
            try:
                found = list(records.pieces(shard.record(number), file.field, number, number + 1))
            except Bad as error:
                raise Unreadable("has changed") from error
            yield from (piece for piece in found if (piece.begin, piece.end, piece.which) in wanted)


@contextmanager
def _opened(file: File) -> Iterator[_Shard]:
    """The shard in `file`: a plain one is read a sample at a time, a packed one is unpacked whole. Raises Unreadable."""
    try:
        with closing(unpacked(file)) as stream:
            yield _Shard(file, _whole(stream) if packed(file.path) else stream)
    except (OSError, MemoryError) as error:
        raise Unreadable(f"cannot be read: {first_line(error)}") from error


def _whole(stream: BinaryIO) -> io.BytesIO:
    """All that `stream` gives, in memory. Raises Unreadable where that is no shard's size."""
    content = io.BytesIO()
    while block := stream.read(AT_ONCE):
        if content.tell() + len(block) > LARGEST:
            raise Unreadable(f"has more than {LARGEST // 2**20:,} MiB unpacked; plain it can be read in parts")
        content.write(block)
    return content


def _decoded(data: bytes, encoding: str, name: str) -> Any:
    """A column's value. Raises Bad for what is no text, no JSON and no ids."""
    kind, _, told = encoding.partition(":")
    try:
        if kind == "str":
            return data.decode("utf-8")
        if kind == "json":
            return json.loads(data.decode("utf-8"))
        if kind == "bytes" and name in records.IDS:
            return np.frombuffer(data, "<i8")
        if kind == "ndarray":
            return _array(data, told)
    except (ValueError, KeyError, IndexError, RecursionError) as error:
        raise Bad(f'has a column "{name}" that is damaged: {first_line(error)}') from None
    if kind == "pkl":
        raise Bad(f'has a pickled column "{name}", which is never opened: it could run any program')
    raise Bad(f'has a column "{name}" of {kind[:20]}, which is no text')


def _array(data: bytes, told: str) -> NDArray[Any]:
    """An array whose type and shape are told by its column, or by its own first bytes."""
    kind, _, shape = told.partition(":")
    at = 0
    if kind:
        name = _NAMED[kind]
    else:
        name, at = _TYPES[data[0]], 1
    if not shape:
        axes, width = data[at] >> 2, 1 << (data[at] & 3)
        np.frombuffer(data, _SHAPES[data[at] & 3], axes, at + 1)
        at += 1 + axes * width
    return np.frombuffer(data[at:], name).reshape(-1)
