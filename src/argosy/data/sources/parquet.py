"""Parquet files: every row is a record. No torch.

In goes a file, out come its documents in order, a few hundred rows at a time, of the columns that are looked at alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import accumulate
from typing import Any

from argosy.data.document import Bad, File, Piece, Spot, Unreadable
from argosy.data.sources import records
from argosy.data.sources.streams import first_line, raw

SUFFIXES = (".parquet", ".pq")
ROWS = 256  # read at once
MOST_METADATA = 256 * 1024 * 1024  # bytes that a file's table of contents may ask for


@contextmanager
def _opened(file: File) -> Iterator[Any]:
    """The file as pyarrow sees it. Whatever is wrong with it becomes Unreadable."""
    import pyarrow
    from pyarrow import parquet

    try:
        with closing(raw(file)) as stream:
            limits = {"thrift_string_size_limit": MOST_METADATA, "thrift_container_size_limit": MOST_METADATA}
            yield parquet.ParquetFile(stream, pre_buffer=False, **limits)
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        raise Unreadable(f"is no Parquet file that can be read: {first_line(error)}") from error


def documents(file: File, size: int, spot: Spot) -> Iterator[Piece]:
    """The documents of `file`; `spot` hears of rows that cannot be used. Raises Unreadable. `size` is for other kinds."""
    with _opened(file) as table:
        columns = _columns(table, file.field)
        for number, record in _rows(table, columns, list(range(table.num_row_groups)), 0):
            try:
                yield from records.pieces(record, file.field, number, number + 1)
            except Bad as error:
                spot(f"{file.name}, row {number + 1}", str(error))


def read(file: File, rows: list[tuple[int, int, int]], size: int) -> Iterator[Piece]:
    """The documents at (begin, end, which) `rows`, ascending. Raises Unreadable where they are not there any more."""
    wanted, last = set(rows), max(row[0] for row in rows)
    with _opened(file) as table:
        sizes = [table.metadata.row_group(number).num_rows for number in range(table.num_row_groups)]
        firsts = [0, *accumulate(sizes)]
        numbers = {row[0] for row in rows}
        groups = {bisect_right(firsts, number) - 1 for number in numbers if number < firsts[-1]}
        for group in sorted(groups):
            for number, record in _rows(table, _columns(table, file.field), [group], firsts[group]):
                if number > last:
                    return
                if number not in numbers:
                    continue
                try:
                    found = list(records.pieces(record, file.field, number, number + 1))
                except Bad as error:
                    raise Unreadable("has changed") from error
                yield from (piece for piece in found if (piece.begin, piece.end, piece.which) in wanted)


def _columns(table: Any, field: str) -> list[str]:
    """The columns that are looked at. Raises Unreadable where none of them can hold text."""
    names = [str(name) for name in table.schema_arrow.names]
    found = records.wanted(names, field)
    if not found or (field and field not in found):
        missing = f'no column "{field}"' if field else "no column with text or a chat"
        shown = ", ".join(f'"{name[:40]}"' for name in names[:8]) + (" and more" if len(names) > 8 else "")
        raise Unreadable(f"has {missing}; it has {shown or 'none'}")
    return found


def _rows(table: Any, columns: list[str], groups: list[int], first: int) -> Iterator[tuple[int, dict[str, Any]]]:
    number = first
    for batch in table.iter_batches(batch_size=ROWS, row_groups=groups, columns=columns, use_threads=False):
        for record in batch.to_pylist():
            yield number, record
            number += 1
