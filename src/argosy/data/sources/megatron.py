"""Megatron-LM's pair of .bin and .idx, read where it lies: the tokens stay in the .bin. No torch.

The index holds, after the magic, u64 version 1, u8 the tokens' type, u64 sequences, u64 documents + 1; then i32 [sequences]
lengths, i64 [sequences] first bytes in the .bin, i64 [documents + 1] first sequences.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from argosy.data.document import Unreadable, printable
from argosy.data.sources.streams import first_line

MAGIC = b"MMIDIDX\x00\x00"
INDEX, TOKENS = ".idx", ".bin"
_HEAD = struct.Struct("<9sQBQQ")
TYPES = {1: "<u1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # those that can hold ids


@dataclass(frozen=True)
class Index:
    """Where the documents of a .bin begin, and how many tokens each has."""

    kind: str  # the tokens' type, as NumPy calls it
    first: NDArray[np.int64]  # [documents] token of the .bin
    lengths: NDArray[np.int64]  # [documents]


def is_index(path: Path) -> bool:
    """Whether the file begins as an index does, and has its .bin beside it."""
    try:
        if not path.is_file() or not path.with_suffix(TOKENS).is_file():  # a pipe would wait for ever
            return False
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_index(path: Path) -> Index:
    """The index in the file `path`, checked against the size of its .bin; empty documents are left out. Raises Unreadable."""
    try:
        content = path.read_bytes()
        room = path.with_suffix(TOKENS).stat().st_size
    except FileNotFoundError as error:
        raise Unreadable(f"needs {printable(Path(error.filename).name)} beside it, which is not there") from None
    except OSError as error:
        raise Unreadable(f"cannot be read: {first_line(error)}") from error
    if len(content) < _HEAD.size or not content.startswith(MAGIC):
        raise Unreadable("is no index of Megatron")
    _, version, code, sequences, documents = _HEAD.unpack_from(content)
    if version != 1 or code not in TYPES:
        raise Unreadable(f"is an index of version {version} with tokens of type {code}, which is not known")
    need = _HEAD.size + 12 * sequences + 8 * documents
    if len(content) < need or documents < 1:
        raise Unreadable(
            f"says {sequences:,} sequences in {documents - 1:,} documents and has {len(content):,} bytes, not {need:,}"
        )
    width = np.dtype(TYPES[code]).itemsize
    at = _HEAD.size
    lengths = np.frombuffer(content, "<i4", sequences, at).astype(np.int64)
    places = np.frombuffer(content, "<i8", sequences, at + 4 * sequences)
    borders = np.frombuffer(content, "<i8", documents, at + 12 * sequences)
    _refuse_impossible(lengths, places, borders, width, room)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    sizes = ends[borders[1:]] - ends[borders[:-1]]
    kept = np.flatnonzero(sizes > 0)
    if not len(kept):
        raise Unreadable("has no document with tokens")
    first = places[borders[kept]] // width
    return Index(TYPES[code], first, sizes[kept])


def _refuse_impossible(
    lengths: NDArray[np.int64], places: NDArray[np.int64], borders: NDArray[np.int64], width: int, room: int
) -> None:
    """Unreadable where the index points out of its .bin, backwards, or into the middle of a token."""
    count = len(lengths)
    if (lengths < 0).any() or (places < 0).any() or (places % width).any():
        raise Unreadable("has a sequence at an impossible place, or of a negative length")
    if borders[0] != 0 or borders[-1] != count or (np.diff(borders) < 0).any():
        raise Unreadable("has documents that do not fit its sequences")
    if count and (places > room - lengths * width).any():
        raise Unreadable(f"points behind the end of its .bin, which has {room:,} bytes")
    joined = places[1:] == places[:-1] + lengths[:-1] * width
    inner = np.ones(max(0, count - 1), np.bool_)
    inner[np.asarray(borders[1:-1])[(borders[1:-1] > 0) & (borders[1:-1] < count)] - 1] = False
    if not joined[inner].all():
        raise Unreadable("has documents whose sequences do not follow each other in the .bin")
