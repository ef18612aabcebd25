"""Files of one JSON record a line, plain, gzip or zstd. No torch.

In goes a file, out come its documents in order, one line after the other in constant memory; a line that cannot be used is told
and passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any, BinaryIO

from argosy.data.document import Bad, File, Piece, Spot, Unreadable
from argosy.data.sources import records
from argosy.data.sources.streams import first_line, packed, raw, unpacked

SUFFIXES = (".jsonl", ".ndjson", ".jsonlines")
LONGEST = 64 * 1024 * 1024  # bytes of a line: more would not be one record
AT_ONCE = 1024 * 1024


def documents(file: File, size: int, spot: Spot) -> Iterator[Piece]:
    """The documents of `file`; `spot` hears of lines that cannot be used. Raises Unreadable. `size` is for other kinds."""
    try:
        with closing(unpacked(file)) as stream:
            for number, begin, line in _lines(stream):
                try:
                    yield from parsed(line, file.field, begin)
                except Bad as error:
                    spot(f"{file.name}:{number}", str(error))
    except OSError as error:  # pyarrow raises it for broken packing too
        raise Unreadable(f"cannot be read: {first_line(error)}") from error


def read(file: File, rows: list[tuple[int, int, int]], size: int) -> Iterator[Piece]:
    """The documents at (begin, end, which) `rows`, ascending. Raises Unreadable where they are not there any more."""
    try:
        if packed(file.path):
            wanted, begins = set(rows), {row[0] for row in rows}
            with closing(unpacked(file)) as stream:
                for _, begin, line in _lines(stream):
                    if begin in begins:  # the others are not parsed once more
                        some = parsed(line, file.field, begin)
                        yield from (piece for piece in some if (piece.begin, piece.end, piece.which) in wanted)
            return
        with closing(raw(file)) as stream:
            found: list[Piece] = []
            place = (-1, -1)
            for begin, end, which in rows:
                if (begin, end) != place:
                    stream.seek(begin)
                    found, place = list(parsed(stream.read(end - begin), file.field, begin)), (begin, end)
                if which >= len(found):
                    raise Unreadable("has changed")
                yield found[which]
    except Bad as error:
        raise Unreadable("has changed") from error
    except OSError as error:
        raise Unreadable(f"cannot be read: {first_line(error)}") from error


def parsed(line: bytes, field: str, begin: int) -> Iterator[Piece]:
    """The documents of one line that begins at byte `begin`. Raises Bad."""
    try:
        record: Any = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Bad(f"is not UTF-8: byte {error.start + 1} of the line is 0x{line[error.start]:02x}") from None
    except json.JSONDecodeError as error:
        raise Bad(f"is not JSON: {error.msg} at character {error.pos + 1}") from None
    except (ValueError, RecursionError) as error:  # a number of 10^5 digits, a nest of 10^5 brackets
        raise Bad(f"is not JSON that can be read: {first_line(error)}") from None
    yield from records.pieces(record, field, begin, begin + len(line))


def _lines(stream: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """(number from 1, first byte, bytes) of each line that is not blank, its end left out. Raises Unreadable."""
    buffer, at, number = b"", 0, 0
    first = True
    while True:
        block = stream.read(AT_ONCE)
        if first:
            first = False
            skipped = _sniff(block)
            block, at = block[skipped:], skipped
        buffer += block
        *whole, rest = buffer.split(b"\n") if block else (*buffer.split(b"\n"), b"")
        for line in whole:
            number += 1
            kept = line.rstrip(b"\r")
            if kept.strip():
                yield number, at, kept
            at += len(line) + 1
        buffer = rest
        if len(buffer) > LONGEST:
            raise Unreadable(f"has a line {number + 1} of more than {LONGEST // 2**20} MiB")
        if not block:
            return


def _sniff(head: bytes) -> int:
    """Bytes of a byte-order mark at the beginning of a file. Raises Unreadable where it is something else than JSON."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Unreadable("is UTF-16; save it as UTF-8")
    skipped = 3 if head.startswith(b"\xef\xbb\xbf") else 0
    if b"\0" in head[:8192]:
        raise Unreadable("is binary, not JSON records")
    if head[skipped : skipped + 64].lstrip()[:1] == b"[" and b"]" not in head.split(b"\n", 1)[0]:
        raise Unreadable("is one JSON list, not one record a line; jq -c '.[]' FILE writes it so")
    return skipped
