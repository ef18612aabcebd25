"""Text files and folders of text files, plain or compressed: which are read, and how they are cut. No torch.

In goes a path, out come files (`find`) and a file's documents as bytes (`documents`), in constant memory for any size.
"""

from __future__ import annotations

import codecs
import glob
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from argosy.data.document import File, Piece, Source, Unreadable, counts, printable
from argosy.data.sources import jsonl, mds, megatron, parquet
from argosy.data.sources.streams import PACKED, first_line, packed, raw, unpacked
from argosy.errors import Refused
from argosy.job import paths

KIB, MIB = 1024, 1024 * 1024
PROSE = ".txt .text .md .markdown .rst .adoc .org .tex .bib .srt .vtt .html .htm .xml .po"
CODE = (
    ".py .pyi .pyx .c .h .cc .cpp .cxx .hpp .hh .cu .cuh .rs .go .java .kt .scala .swift .m .mm .cs .fs .js .mjs .ts .tsx .jsx"
    " .vue .svelte .rb .php .pl .pm .lua .r .jl .hs .ml .mli .ex .exs .erl .clj .lisp .el .scm .rkt .nim .zig .d .f90 .f .sh"
    " .bash .zsh .fish .ps1 .sql .css .scss .less .vim .cmake .mk .proto .graphql .tf .nix .dockerfile .v .sv .vhd .asm .s"
    " .toml .yaml .yml .ini .cfg .conf"
)
SUFFIXES = frozenset(f"{PROSE} {CODE}".split())
KINDS = dict.fromkeys(jsonl.SUFFIXES, "jsonl") | dict.fromkeys(parquet.SUFFIXES, "parquet")
KINDS |= dict.fromkeys(mds.SUFFIXES, "mds") | dict.fromkeys(SUFFIXES, "text")
READS = (
    "Argosy reads .txt .md .rst .tex .html .py and other source code, and .jsonl, plain or .gz/.zst; .parquet; "
    "MDS and Megatron's .bin/.idx."
)
PASSED_OVER = ("__pycache__", "node_modules")  # besides hidden folders and Python environments
RUN = ("run.json", "job.toml")  # a folder with both is a run of Argosy

FEW = 64  # a source of fewer files is cut into documents about so many
LARGEST = MIB  # a longer document is cut anyway, so that memory stays bounded
SMALLEST = 256  # bytes, as LARGEST


def suffix(name: str) -> str:
    """The suffix that says what a file holds, in small letters, the one of its packing taken off."""
    path = Path(name.lower())
    return Path(path.stem).suffix if path.suffix in PACKED else path.suffix


def kind_of(name: str) -> str | None:
    """How a file of this name is read; None where it is not."""
    return KINDS.get(suffix(name))


def find(source: str, base: Path) -> Source:
    """The text files at the path `source`: itself, those below it, or those of a pattern. Refused when there are none."""
    where = f'data.source = "{printable(source)}"'
    path = base / paths.expand(source)
    try:
        if path.is_dir():
            return _folder(path, source, where)
        index = path.with_name(path.name.removesuffix(megatron.TOKENS).removesuffix(megatron.INDEX) + megatron.INDEX)
        if index.is_file() and (index == path or megatron.is_index(index)):
            return Source(source, where, [_file(index, index.name, "megatron")])
        if path.is_file():
            return Source(source, where, [_file(path, path.name, kind_of(path.name) or "text")])
        exists = os.path.lexists(path)
        if not exists and glob.has_magic(str(path)):
            return _pattern(path, source, where)
    except OSError as error:
        raise Refused("this cannot be read.", where=where, found=error.strerror or str(error)) from error
    if exists:
        raise Refused(
            "this is neither a file nor a folder.", where=where, do=f"Name a text file or a folder of them. {READS}"
        )
    raise Refused(
        "there is no such file or folder.",
        where=where,
        found=f"nothing at {path}",
        do='Or "python" for the built-in text.',
    )


def _file(path: Path, name: str, kind: str) -> File:
    return File(path, printable(name), path.stat().st_size, kind)


def _pattern(path: Path, source: str, where: str) -> Source:
    """The files of a pattern such as notes/**/*.jsonl.zst. Raises OSError. Refused where there are none."""
    found = Source(source, where, [])
    parts = str(path).split("/")
    first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    root = "/".join(parts[:first]) or "/"
    names = set(glob.glob("/".join(parts[first:]), root_dir=root, recursive=True))
    for name in sorted(names):
        whole = Path(root, name)
        if whole.is_file() and whole.stat().st_size and not _belongs(name, names):
            index = name.endswith(megatron.INDEX) and megatron.is_index(whole)
            found.files.append(_file(whole, name, "megatron" if index else kind_of(name) or "text"))
    if not found.files:
        raise Refused("no file has a name like that.", where=where, found=f"nothing at {printable(str(path))}")
    return found


def _folder(root: Path, source: str, where: str) -> Source:
    found = Source(source, where, [])
    top = root.stat()
    seen = {(top.st_dev, top.st_ino)}  # a link may lead to what was read already, or to a folder above
    pending = [(root, "")]
    while pending:
        folder, prefix = pending.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            if folder is root:
                raise Refused("this cannot be read.", where=where, found=error.strerror or str(error)) from error
            found.unread.append(f"{printable(prefix)} cannot be read: {error.strerror}")
            continue
        deeper = []
        beside = {entry.name for entry in entries}
        if mds.INDEX in beside and any(kind_of(name) == "mds" for name in beside):
            found.unread += [printable(prefix + told) for told in mds.missing(folder, beside)]
        for entry in entries:
            name = prefix + entry.name
            try:
                status = entry.stat()
                if (status.st_dev, status.st_ino) in seen or entry.name.startswith("."):
                    continue
                seen.add((status.st_dev, status.st_ino))
                if entry.is_dir():
                    if all(os.path.isfile(os.path.join(entry.path, file)) for file in RUN):
                        found.runs += 1  # its logs and pages grow with every start: the model would learn them
                    elif entry.name not in PASSED_OVER and not os.path.exists(os.path.join(entry.path, "pyvenv.cfg")):
                        deeper.append((Path(entry.path), name + "/"))
                else:
                    _take(found, File(Path(entry.path), printable(name), status.st_size), entry.name, beside)
            except OSError as error:
                found.unread.append(f"{printable(name)} cannot be read: {error.strerror}")
        pending.extend(reversed(deeper))
    found.files.sort(key=lambda file: file.name)
    return found


def _take(found: Source, file: File, name: str, beside: set[str]) -> None:
    """Add the file called `name`, one of those `beside` each other in a folder, or count it as passed over. Raises OSError."""
    kind = kind_of(name)
    if kind is None and not suffix(name) and file.size and file.path.is_file() and _reads(file):
        kind = "text"  # README, LICENSE, copyright
    if name.endswith(megatron.INDEX) and megatron.is_index(file.path):
        found.files.append(replace(file, kind="megatron"))
    elif kind is None or not file.path.is_file():
        if not _belongs(name, beside):
            found.passed_over[suffix(name)] += 1
    elif file.size == 0:
        found.passed_over["empty"] += 1
    else:
        found.files.append(replace(file, kind=kind))


def _reads(file: File) -> bool:
    """Whether `file` begins with UTF-8 text. Raises OSError."""
    try:
        with closing(unpacked(file)) as stream:
            head = stream.read(8 * KIB)
        codecs.getincrementaldecoder("utf-8")().decode(head)  # a character may be cut at its end
    except (Unreadable, UnicodeDecodeError):
        return False
    except OSError as error:
        if error.errno is not None:
            raise
        return False  # broken packing
    return b"\0" not in head


def _belongs(name: str, beside: set[str]) -> bool:
    """Whether a file that is not read itself is a part of one that is: the list of MDS shards, the tokens of an index."""
    if name == mds.INDEX:
        return any(kind_of(other) == "mds" for other in beside)
    return name.endswith(megatron.TOKENS) and name.removesuffix(megatron.TOKENS) + megatron.INDEX in beside


def nothing(source: Source) -> Refused:
    """The error of a source in which no text was found, with what lay there instead."""
    there = counts(source.passed_over) or ("nothing" if not source.unread else "")
    if source.unread:
        there += (", " if there else "") + f"{len(source.unread)} unreadable; the first: {source.unread[0]}"
    return Refused("0 text files there.", where=source.where, found=there, do=READS)


def piece_size(files: list[File]) -> int:
    """Bytes after which a document is cut at the next blank line: 1 MiB for a source of 64 files or more.

    Fewer files are cut into about 64 documents, by a power of two, so that a book in one file has documents to hold out.
    """
    if len(files) >= FEW:
        return LARGEST
    size = sum(file.size * (4 if file.path.suffix.lower() in PACKED else 1) for file in files)
    wanted = max(1, size // FEW)
    return min(LARGEST, max(SMALLEST, 1 << (wanted.bit_length() - 1)))


def documents(file: File, size: int) -> Iterator[Piece]:
    """The documents of `file`, each checked to be UTF-8 text, cut as `piece_size` says. Raises Unreadable."""
    try:
        with closing(unpacked(file)) as stream:
            yield from _cut(stream, size)
    except OSError as error:  # pyarrow raises it for broken packing too
        raise Unreadable(f"cannot be read: {first_line(error)}") from error


def again(file: File, rows: list[tuple[int, int, int]], size: int) -> Iterator[Piece]:
    """The documents at (begin, end, 0) `rows` of `file`, ascending. Raises Unreadable."""
    if packed(file.path):
        wanted = {row[0] for row in rows}
        for piece in documents(file, size):
            if piece.begin in wanted:
                yield piece
                wanted.remove(piece.begin)
                if not wanted:
                    return
        return
    try:
        with closing(raw(file)) as stream:
            for begin, end, _ in rows:
                stream.seek(begin)
                yield Piece(begin, end, stream.read(end - begin))
    except OSError as error:
        raise Unreadable(f"cannot be read: {first_line(error)}") from error


def _cut(stream: BinaryIO, size: int) -> Iterator[Piece]:
    buffer = bytearray()
    begin, ended, first = 0, False, True
    while True:
        while not ended and len(buffer) < 2 * size + 4:
            block = stream.read(max(size, 64 * KIB))
            ended = not block
            buffer += block
        if first:
            first = False
            _sniff(bytes(buffer[: 8 * KIB]))
            if buffer.startswith(b"\xef\xbb\xbf"):
                del buffer[:3]
                begin = 3
        if not buffer:
            return
        length = len(buffer) if ended and len(buffer) <= size + size // 2 else _place(buffer, size)
        text = bytes(buffer[:length])
        try:
            text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Unreadable(f"is not UTF-8: byte {begin + error.start} is 0x{text[error.start]:02x}") from error
        if b"\0" in text:
            raise Unreadable("is binary, not text")
        yield Piece(begin, begin + length, text)
        begin += length
        del buffer[:length]


def _place(buffer: bytearray, size: int) -> int:
    """Where to cut: after a blank line, else a line, else a character, at `size` to twice `size` bytes."""
    for mark in (b"\n\n", b"\n"):
        found = buffer.find(mark, size, 2 * size)
        if found >= 0:
            return found + len(mark)
    place = min(2 * size, len(buffer))
    for back in range(4):  # a character has four bytes at most
        if place == len(buffer) or buffer[place - back] & 0xC0 != 0x80:
            return place - back
    return place  # no UTF-8: the caller says so


def _sniff(head: bytes) -> None:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Unreadable("is UTF-16; save it as UTF-8")
    if b"\0" in head:
        raise Unreadable("is binary, not text")
