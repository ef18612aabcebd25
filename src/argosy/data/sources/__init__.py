"""Where text comes from: one file for each kind of source. No torch.

`find` lists the files behind `data.source`; `documents` and `read` turn a file into documents, by the kind that `find` gave it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from argosy.data import corpus
from argosy.data.document import File, Piece, Source, Spot, printable
from argosy.data.sources import hub, jsonl, mds, megatron, parquet, streams, text
from argosy.errors import Refused
from argosy.job import paths

RECORDS = {"jsonl": jsonl, "parquet": parquet, "mds": mds}
TOKENS = ("mds", "megatron")  # where a folder holds these, what else lies there is not meant


def find(source: str, base: Path, field: str = "") -> Source:
    """The files behind the job's `data.source`; relative paths are seen from `base`. Refused when nothing is readable."""
    if source == "python":
        found = corpus.python()
    elif streams.scheme(source):
        found = _elsewhere(source)
    else:
        found = text.find(source, base)
        mds.twice(found)
    if any(file.kind in TOKENS for file in found.files):
        for file in found.files:
            if file.kind not in TOKENS:
                found.passed_over[text.suffix(file.name)] += 1
        found.files[:] = [file for file in found.files if file.kind in TOKENS]
        if len({file.kind for file in found.files}) > 1:
            do = "Name each by itself, as two sources of data.mix."
            raise Refused("MDS and Megatron's files cannot be one source.", where=found.where, do=do)
    if not found.files:
        raise text.nothing(found)
    if field:
        found.files[:] = [replace(file, field=field) if file.kind in RECORDS else file for file in found.files]
    return found


def _elsewhere(source: str) -> Source:
    """The files at an address."""
    address = paths.expand(source)
    name = streams.shown(address)
    found = Source(name, f'data.source = "{name}"', [])
    if streams.scheme(address) == "hf":
        listed = hub.listing(address)
        place = listed.place
        found.license, found.version = listed.license, f"revision {place.revision[:12]}"
        entries = [
            (f"hf://datasets/{place.name}@{place.revision}/{path}", path, size, place.revision)
            for path, size in listed.files
        ]
        if listed.left_out:
            found.notes.append(f"{name}: {listed.left_out:,} files of test and validation are not read; name them to")
    else:
        entries = streams.listed(address)
    for url, inner, size, stamp in entries:
        kind = text.kind_of(inner)
        if size == 0:
            found.passed_over["empty"] += 1
        elif kind is None and len(entries) > 1:
            found.passed_over[text.suffix(inner)] += 1
        elif not any(part.startswith(".") for part in inner.split("/")):
            found.files.append(File(Path(inner), printable(inner), size, kind or "text", url, stamp))
    found.files.sort(key=lambda file: file.name)
    return found


def documents(file: File, size: int, spot: Spot) -> Iterator[Piece]:
    """The documents of `file`, text cut as `text.piece_size` says. `spot` hears of bad records. Raises Unreadable."""
    kind = RECORDS.get(file.kind)
    return text.documents(file, size) if kind is None else kind.documents(file, size, spot)


def read(file: File, rows: list[tuple[int, int, int]], size: int) -> Iterator[Piece]:
    """The documents at (begin, end, which) `rows` of `file`, ascending. Raises Unreadable."""
    kind = RECORDS.get(file.kind)
    return text.again(file, rows, size) if kind is None else kind.read(file, rows, size)


__all__ = ["RECORDS", "TOKENS", "documents", "find", "megatron", "read"]
