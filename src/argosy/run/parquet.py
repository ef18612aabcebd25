"""The record of ended incarnations as Parquet, a file per node and incarnation, and the way to both forms. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from argosy.errors import Refused
from argosy.run import record
from argosy.run.record import Entries

# What is read of a rotated record; `rotate` writes the incarnation, too.
COLUMNS = ["rank", "segment", "sequence", "kind", "name", "step", "entered", "left", "value"]
EXTRA = "extra"  # a column that files of before it was needed do not have


class Folder(Protocol):
    """A run folder; a Run is one."""

    @property
    def path(self) -> Path:
        """The folder itself."""

    @property
    def local(self) -> Path:
        """Its live files, on this machine's own disk or memory."""


def rotated(run: Path) -> list[tuple[int, Path]]:
    """(incarnation, file) of every rotated record of the run folder `run`, this node's, ascending."""
    found = []
    for path in sorted((run / "record").glob("node-*-inc-*.parquet")):
        found.append((int(path.stem.rpartition("-")[2]), path))
    return sorted(found)


def rotate(folder: Path, incarnation: int, paths: Sequence[Path], node: int = 0) -> Path:
    """Write the record files `paths` of one incarnation as one Parquet file into `folder`, a row group for each file."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    folder.mkdir(exist_ok=True)
    path = folder / f"node-{node:04d}-inc-{incarnation:04d}.parquet"
    temporary = path.with_suffix(".tmp")
    facts = {"argosy.record": str(record.VERSION), "incarnation": str(incarnation), "node": str(node)}
    schema = arrow.schema(
        [
            ("rank", arrow.int32()),
            ("incarnation", arrow.int32()),
            ("segment", arrow.int32()),
            ("sequence", arrow.int64()),
            ("kind", arrow.string()),
            ("name", arrow.string()),
            ("step", arrow.int64()),
            ("entered", arrow.timestamp("ns", tz="UTC")),
            ("left", arrow.timestamp("ns", tz="UTC")),
            ("value", arrow.float64()),
            (EXTRA, arrow.int64()),
        ],
        metadata=facts,
    )
    with parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
        if path.exists():  # rotated before; what is there twice, because that was interrupted, is written once
            earlier = _with_extra(parquet.read_table(path)).cast(schema)
            again = {(name.rank, name.segment) for name in map(record.parse, paths)}
            held = zip(earlier["rank"].to_pylist(), earlier["segment"].to_pylist(), strict=True)
            writer.write_table(earlier.filter(arrow.array([place not in again for place in held])))
        for source in paths:
            writer.write_table(_table(source, schema))
    os.replace(temporary, path)
    return path


def _table(source: Path, schema: Any) -> Any:
    import pyarrow as arrow

    head, found = record.header(source), record.read(source)
    columns = {
        "rank": np.full(len(found), head.rank, np.int32),
        "incarnation": np.full(len(found), head.incarnation, np.int32),
        "segment": np.full(len(found), record.parse(source).segment, np.int32),
        "sequence": found["sequence"].astype(np.int64),
        "kind": [record.KINDS.get(kind, "?") for kind in found["kind"].tolist()],
        "name": [
            record.name(kind, index) for kind, index in zip(found["kind"].tolist(), found["name"].tolist(), strict=True)
        ],
        "step": np.ascontiguousarray(found["step"]),
        "entered": np.ascontiguousarray(found["entered"]).view("datetime64[ns]"),
        "left": np.ascontiguousarray(found["left"]).view("datetime64[ns]"),
        "value": np.ascontiguousarray(found["value"]),
        EXTRA: found["extra"].astype(np.int64),
    }
    return arrow.table([arrow.array(columns[field.name]).cast(field.type) for field in schema], schema=schema)


def entries(run: Folder, incarnation: int, rank: int = 0) -> Entries:
    """All entries of `rank` in `incarnation`, rotated or not, in the order they were written."""
    parts, held = [], set()
    for number, path in rotated(run.path):
        if number == incarnation:
            found, segments = _from_parquet(path, rank)
            parts.append(found)
            held |= segments
    for name, path in record.files(run.local, rank=rank, incarnation=incarnation):
        if name.segment not in held:
            parts.append(record.read(path))
    return np.concatenate(parts) if parts else np.zeros(0, record.ENTRY)


def _from_parquet(path: Path, rank: int) -> tuple[Entries, set[int]]:
    """The entries of `rank` and the segments they come from. Refused where the file is none that `rotate` wrote."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        columns = [*COLUMNS, *([EXTRA] if EXTRA in parquet.read_schema(path).names else [])]
        return _entries_of(_with_extra(parquet.read_table(path, columns=columns, filters=[("rank", "=", rank)])))
    except (arrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(
            "this record cannot be read.",
            where=str(path),
            found=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            do="Move it away: only figures about the past of this run are lost.",
        ) from None


def _with_extra(table: Any) -> Any:
    """`table` with a column EXTRA, of zeros where the file has none."""
    if EXTRA in table.column_names:
        return table
    import pyarrow as arrow

    return table.append_column(EXTRA, arrow.array(np.zeros(table.num_rows, np.int64)))


def _entries_of(table: Any) -> tuple[Entries, set[int]]:
    found = np.zeros(table.num_rows, record.ENTRY)
    kinds = {name: number for number, name in record.KINDS.items()}
    kind = [kinds.get(name, 0) for name in table["kind"].to_pylist()]
    found["kind"] = kind
    known = [
        record.number(number, name)
        if number in (record.PHASE, record.SCALAR, record.MARK) and not name.startswith("?")
        else 0
        for number, name in zip(kind, table["name"].to_pylist(), strict=True)
    ]
    found["name"] = known
    for column in ("sequence", "step", "value", EXTRA):
        found[column] = table[column].to_numpy()
    for column in ("entered", "left"):
        found[column] = table[column].to_numpy().view(np.int64)
    return found, set(table["segment"].to_pylist())


def incarnations(run: Folder) -> list[int]:
    """The incarnations that left a record, ascending."""
    live = {name.incarnation for name, _ in record.files(run.local)}
    return sorted({*live, *(number for number, _ in rotated(run.path))})
