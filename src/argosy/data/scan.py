"""Reads a source once: its documents, their hashes, who is held out, and the digest that names the result. No torch."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from argosy.data import sources
from argosy.data.chat import Template
from argosy.data.document import Bad, File, Piece, Source, Unreadable, digest, held_out, total_bytes
from argosy.data.shard_file import DOCUMENT
from argosy.data.sources import megatron, text
from argosy.errors import Refused

Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much
SHOWN = 3  # bad records that are named; the others are counted


@dataclass
class Faults:
    """Records that cannot be used, counted and the first of them named. `strict`: the first one is refused."""

    where: str
    strict: bool = False
    count: int = 0
    files: int = 0  # files of records that cannot be read at all
    shown: list[str] = field(default_factory=list)

    def __call__(self, place: str, why: str) -> None:
        """Note one; `why` is a sentence without its subject. Refused when strict."""
        self.count += 1
        if len(self.shown) < SHOWN:
            self.shown.append(f"{place} {why}")
        if self.strict:
            do = "Mend it, or leave --strict away: such records are then counted and passed over."
            raise Refused(f"{place} {why}.", where=self.where, do=do)

    def note(self, documents: int) -> str:
        """One sentence about all of them."""
        more = f"; and {self.count - len(self.shown):,} more" if self.count > len(self.shown) else ""
        of = f"{self.count:,} of {self.count + documents:,} records cannot be used and are passed over"
        return f"{of}: {'; '.join(self.shown)}{more}"


@dataclass
class Scan:
    """What a source holds. `documents` [n] of shard_file.DOCUMENT, their `file` an index of source.files."""

    source: Source
    documents: NDArray[Any]
    digest: str  # of all names and all text, in order
    piece: int  # bytes after which documents were cut
    sizes: NDArray[np.uint64]  # [n] UTF-8 bytes of each document
    faults: Faults = field(default_factory=lambda: Faults(""))
    ids: bool = False  # somebody has tokenized some of it
    chats: bool = False  # some of it is a chat

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of all documents; of ids an estimate."""
        return int(self.sizes.sum())

    @property
    def bad(self) -> int:
        """How many records, and files of records, cannot be used."""
        return self.faults.count + self.faults.files


def fingerprint(source: Source) -> str:
    """Changes whenever a file of `source` may have changed: paths, sizes, times and inodes, without reading a file."""
    seen = blake2b(digest_size=16)
    for file in source.files:
        facts: tuple[object, ...]
        if file.url:
            facts = (file.url, file.size, file.stamp)
        else:
            facts = _status(file.path)
            if file.kind == "megatron":  # its tokens lie beside it
                facts = (*facts, *_status(file.path.with_suffix(megatron.TOKENS)))
        kind = () if file.kind == "text" else (file.kind, file.field)
        seen.update(repr((os.fspath(file.path), file.name, facts, *kind)).encode("utf-8", "surrogateescape") + b"\n")
    return seen.hexdigest()


def _status(path: Path) -> tuple[object, ...]:
    try:
        status = os.stat(path)
    except OSError:
        return ("gone",)
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


class _Columns:
    """The documents of a scan as they come, 48 bytes each."""

    NAMES = ("file", "begin", "end", "hash", "which", "size")

    def __init__(self) -> None:
        self.columns = [array("Q") for _ in self.NAMES]

    def __len__(self) -> int:
        return len(self.columns[0])

    def add(self, index: int, piece: Piece, size: int) -> None:
        """Append a document of file `index` with `size` bytes of text."""
        values = (index, piece.begin, piece.end, digest(piece.text), piece.which, size)
        for column, value in zip(self.columns, values, strict=True):
            column.append(value)

    def cut(self, length: int) -> None:
        """Forget all but the first `length` documents."""
        for column in self.columns:
            del column[length:]

    def arrays(self) -> tuple[NDArray[Any], NDArray[np.uint64]]:
        """The documents as rows, and the bytes of each."""
        documents = np.zeros(len(self), DOCUMENT)
        for name, column in zip(self.NAMES[:-1], self.columns, strict=False):
            documents[name] = np.frombuffer(column, np.uint64) if len(column) else 0
            del column[:]  # never all of them twice
        return documents, np.array(self.columns[-1], np.uint64)


def scan(
    source: Source, share: float, progress: Progress, *, template: Template | None = None,
    marks: tuple[str, ...] = (), strict: bool = False,
) -> Scan:  # fmt: skip
    """Read all of `source`. A file that is no text is passed over in a folder, and Refused where it is the whole source.

    A record that cannot be used is passed over, counted and told; strict: Refused. `template` and `marks` are the tokenizer's:
    a chat that cannot be written by them is such a record.
    """
    size = text.piece_size([file for file in source.files if file.kind == "text"] or source.files)
    made, faults = _Columns(), Faults(source.where, strict)
    whole = blake2b(f"pieces of {size}\n".encode(), digest_size=16)
    total, done = total_bytes(source.files), 0
    ids = chats = False
    template = template or Template()
    for index, file in enumerate(source.files):
        before, undo, told = len(made), whole.copy(), faults.count
        try:
            whole.update(file.name.encode() + b"\n" + (b"" if file.kind == "text" else file.kind.encode() + b"\n"))
            for piece in sources.documents(file, size, faults):
                length = piece.size
                if piece.chat is not None:
                    try:
                        length = sum(len(part.text.encode()) for part in template.segments(piece.chat, marks))
                    except Bad as error:
                        faults(f"{file.name}, the record at {piece.begin:,},", str(error))
                        continue
                whole.update(f"{len(piece.text)}\n".encode() + piece.text)
                made.add(index, piece, length)
                ids, chats = ids or piece.ids is not None, chats or piece.chat is not None
                progress("reading", done + min(piece.end, file.size) if file.kind == "text" else done, total)
        except Unreadable as error:
            if strict and file.kind != "text":
                raise Refused(f"{file.name} {error}.", where=source.where) from None
            faults.files += file.kind != "text"
            source.unread.append(f"{file.name} {error}")
            whole, faults.count = undo, told
            del faults.shown[told:]
            made.cut(before)
        done += file.size
    progress("reading", total, total)
    documents, sizes = made.arrays()
    _refuse_too_little(source, documents, sizes, faults)
    documents["held"] = held_out(documents["hash"], share)
    return Scan(source, documents, whole.hexdigest(), size, sizes, faults, ids, chats)


def _refuse_too_little(source: Source, documents: NDArray[Any], sizes: NDArray[np.uint64], faults: Faults) -> None:
    if len(documents) == 0:
        if faults.count:
            raise Refused(
                f"none of the {faults.count:,} records there can be used; the first: {faults.shown[0]}.",
                where=source.where,
                do='Name the field with the text: --data.field NAME. Chats are lists of {"role", "content"} in "messages".',
            )
        if len(source.files) == 1 and len(source.unread) == 1 and not source.passed_over:
            name = source.files[0].name
            raise Refused(f"this file{source.unread[0].removeprefix(name)}.", where=source.where, do=text.READS)
        if len(source.files) == 1 and not source.unread and not source.passed_over:
            raise Refused("this file is empty.", where=source.where, do=text.READS)
        raise text.nothing(source)
    texts, copies = np.unique(documents["hash"], return_counts=True)
    if len(texts) > 1 and copies.min() <= len(documents) / 2:
        return
    size = f"{int(sizes.sum()):,} bytes"
    raise Refused(
        "too little text: one document to train on and another to hold out are needed, that are different.",
        where=source.where,
        found=size if len(documents) == 1 else f"{size} in {len(documents)} pieces, {len(texts)} of them different",
        do=f"More than {2 * text.SMALLEST} bytes that do not repeat are enough; or --data.source python, the built-in text.",
    )


def texts(found: Scan, chosen: NDArray[np.bool_]) -> Iterator[str]:
    """The chosen documents [n bools] as text, in order; of a chat what was said. Refused when a file changed since the scan."""
    for piece in read_all(found.source.files, found.documents[chosen], found.piece):
        if piece.chat is not None:
            yield "\n".join(str(message["content"]) for message in piece.chat.messages)
        elif piece.ids is None:
            yield piece.text.decode("utf-8")


def read_all(files: Sequence[File], rows: NDArray[Any], piece: int) -> Iterator[Piece]:
    """The documents `rows` (of shard_file.DOCUMENT) of `files`, in order. Refused when they are not what was scanned."""
    borders = [0, *(np.flatnonzero(np.diff(rows["file"])) + 1).tolist(), len(rows)]
    for begin, end in pairwise(borders):
        if end > begin:
            yield from read_documents(files[int(rows["file"][begin])], rows[begin:end], piece)


def read_documents(file: File, rows: NDArray[Any], piece: int) -> Iterator[Piece]:
    """The same of one file."""
    wanted = list(zip(rows["begin"].tolist(), rows["end"].tolist(), rows["which"].tolist(), strict=True))
    number = 0
    try:
        for found in sources.read(file, wanted, piece):
            same = (found.begin, found.which) == (wanted[number][0], wanted[number][2])
            if not same or digest(found.text) != int(rows["hash"][number]):
                raise Unreadable("has changed")
            number += 1
            yield found
            if number == len(rows):
                return
        raise Unreadable("has changed")
    except (Unreadable, UnicodeDecodeError) as error:
        raise Refused(
            f"this file was read once and then could not be read the same again: it {error}.",
            where=file.url or str(file.path),
            do="Start again when nothing writes to it any more.",
        ) from error
