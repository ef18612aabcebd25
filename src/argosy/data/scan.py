"""Reads a source once: its documents, their hashes, who is held out, and the digest that names the result. No torch."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from argosy.data.document import File, Source, digest, held_out, total_bytes
from argosy.data.shard_file import DOCUMENT
from argosy.data.sources import text
from argosy.errors import Refused

Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much


@dataclass
class Scan:
    """What a source holds. `documents` [n] of shard_file.DOCUMENT, their `file` an index of source.files."""

    source: Source
    documents: NDArray[Any]
    digest: str  # of all names and all text, in order
    piece: int  # bytes after which documents were cut

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of all documents."""
        return int((self.documents["end"] - self.documents["begin"]).sum())


def fingerprint(source: Source) -> str:
    """Changes whenever a file of `source` may have changed: paths, sizes, times and inodes, without reading a file."""
    seen = blake2b(digest_size=16)
    for file in source.files:
        try:
            status = os.stat(file.path)
            facts: tuple[object, ...] = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        except OSError:
            facts = ("gone",)
        seen.update(repr((os.fspath(file.path), file.name, facts)).encode("utf-8", "surrogateescape") + b"\n")
    return seen.hexdigest()


def scan(source: Source, share: float, progress: Progress) -> Scan:
    """Read all of `source`. A file that is no text is passed over in a folder, and Refused where it is the whole source."""
    size = text.piece_size(source.files)
    columns = [array("Q") for _ in range(4)]
    whole = blake2b(f"pieces of {size}\n".encode(), digest_size=16)
    total, done = total_bytes(source.files), 0
    for index, file in enumerate(source.files):
        before, undo = len(columns[0]), whole.copy()
        try:
            whole.update(file.name.encode() + b"\n")
            for piece in text.documents(file, size):
                whole.update(f"{len(piece.text)}\n".encode() + piece.text)
                for column, value in zip(columns, (index, piece.begin, piece.end, digest(piece.text)), strict=True):
                    column.append(value)
                progress("reading", done + min(piece.end, file.size), total)
        except text.Unreadable as error:
            source.unread.append(f"{file.name} {error}")
            whole = undo
            for column in columns:
                del column[before:]
        done += file.size
    progress("reading", total, total)
    documents = np.zeros(len(columns[0]), DOCUMENT)
    for name, column in zip(("file", "begin", "end", "hash"), columns, strict=True):
        documents[name] = np.frombuffer(column, np.uint64) if len(column) else 0
    _refuse_too_little(source, documents)
    documents["held"] = held_out(documents["hash"], share)
    return Scan(source, documents, whole.hexdigest(), size)


def _refuse_too_little(source: Source, documents: NDArray[Any]) -> None:
    if len(documents) == 0:
        if len(source.files) == 1 and len(source.unread) == 1 and not source.passed_over:
            name = source.files[0].name
            raise Refused(f"this file{source.unread[0].removeprefix(name)}.", where=source.where, do=text.READS)
        if len(source.files) == 1 and not source.unread and not source.passed_over:
            raise Refused("this file is empty.", where=source.where, do=text.READS)
        raise text.nothing(source)
    texts, copies = np.unique(documents["hash"], return_counts=True)
    if len(texts) > 1 and copies.min() <= len(documents) / 2:
        return
    size = f"{int((documents['end'] - documents['begin']).sum()):,} bytes"
    raise Refused(
        "too little text: one document to train on and another to hold out are needed, that are different.",
        where=source.where,
        found=size if len(documents) == 1 else f"{size} in {len(documents)} pieces, {len(texts)} of them different",
        do=f"More than {2 * text.SMALLEST} bytes that do not repeat are enough; or --data.source python, the built-in text.",
    )


def texts(found: Scan, chosen: NDArray[np.bool_]) -> Iterator[str]:
    """The chosen documents [n bools] as text, in order. Refused when a file changed since it was scanned."""
    numbers = np.flatnonzero(chosen)
    for index in np.unique(found.documents["file"][numbers]).tolist():
        wanted = numbers[found.documents["file"][numbers] == index]
        yield from read_documents(found.source.files[index], found.documents[wanted], found.piece)


def read_documents(file: File, rows: NDArray[Any], piece: int) -> Iterator[str]:
    """The documents `rows` (of shard_file.DOCUMENT) of one file, in order. Refused when they are not what was scanned."""
    try:
        wanted = {int(row["begin"]): row for row in rows}
        if text.packed(file.path):
            found = ((found.begin, found.text) for found in text.documents(file, piece) if found.begin in wanted)
        else:
            found = ((begin, text.read(file, begin, int(row["end"]))) for begin, row in list(wanted.items()))
        for begin, content in found:
            if digest(content) != int(wanted.pop(begin)["hash"]):
                raise text.Unreadable("has changed")
            yield content.decode("utf-8")
            if not wanted:
                return
        raise text.Unreadable("has changed")
    except (text.Unreadable, UnicodeDecodeError) as error:
        raise Refused(
            f"this file was read once and then could not be read the same again: it {error}.",
            where=str(file.path),
            do="Start again when nothing writes to it any more.",
        ) from error
