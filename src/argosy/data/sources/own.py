"""A data source of one's own, "mine.py:documents": what the function gives is kept as JSONL in the cache. No torch.

It is called once for each content of its file. What it gives, one after the other: texts, or records as `records.py` knows them
(tables with "text", "messages", ...). A preparation that is killed leaves nothing behind.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from argosy.data.document import File, Source
from argosy.errors import FULL, MACHINE, Refused
from argosy.job import parts

FOLDER = "own"  # of a cache


def find(text: str, cache: Path, field: str = "") -> Source:
    """The documents of the function that `text` names, made now unless they are in `cache`. Refused where it gives none."""
    where = f'data.source = "{text}"'
    parts.check("data.source", text)
    place, _, name = text.rpartition(":")
    shown = f"{Path(place).name if place.endswith('.py') else place}:{name}"
    key = blake2b(f"{text}\n{parts.digest(text)}".encode(), digest_size=12).hexdigest()
    path = cache / FOLDER / f"{key}.jsonl"
    # A module's text is not known here: it is asked every time.
    if not path.is_file() or not place.endswith(".py"):
        _make(path, parts.load("data.source", text), where)
    found = Source(shown, where, [File(path, f"{shown}.jsonl", path.stat().st_size, "jsonl", field=field)])
    if not found.files[0].size:
        path.unlink(missing_ok=True)
        raise Refused("this source gave no document.", where=where)
    return found


def _make(path: Path, function: Any, where: str) -> None:
    """Write all that `function` gives into `path`, a line each, whole or not at all."""
    half = path.with_suffix(f".{os.getpid()}.writing")
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with half.open("w", encoding="utf-8") as file:
            for record in _given(function, where):
                count += 1
                file.write(_line(record, count, where))
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    except OSError as error:
        full = error.errno in FULL
        raise Refused(
            "what this source gives cannot be kept.",
            where=str(error.filename or path),
            found=error.strerror or str(error),
            do="Name a folder with room that can be written: --data.cache FOLDER.",
            code=MACHINE if full else 2,
        ) from None
    finally:
        half.unlink(missing_ok=True)


def _given(function: Any, where: str) -> Iterable[Any]:
    """What `function` gives, one after the other; what goes wrong in it is told as what it is."""
    if not callable(function):
        raise Refused(
            "this is no function.",
            where=where,
            found=f"a {type(function).__name__}",
            do="Write a function without arguments that yields texts or records.",
        )
    try:
        found = function()
        if isinstance(found, str | Mapping) or not isinstance(found, Iterable):
            raise Refused(
                "this function gives no documents.",
                where=where,
                found=f"a {type(found).__name__}",
                do="Let it yield texts or records, one after the other.",
            )
        yield from found
    except (Refused, GeneratorExit):
        raise
    except Exception as error:  # somebody's code, which may fail in any way
        told = (str(error).strip().splitlines() or [""])[0][:200]
        raise Refused(f"this source failed: {type(error).__name__}: {told}", where=where) from error


def _line(record: Any, number: int, where: str) -> str:
    if not isinstance(record, str | Mapping):
        raise Refused(
            f"document {number:,} of this source is neither a text nor a record.",
            where=where,
            found=f"a {type(record).__name__}",
            do="Yield texts, or tables with a field for the text or the messages.",
        )
    table = {"text": record} if isinstance(record, str) else dict(record)
    try:
        line = json.dumps(table, ensure_ascii=False)
        line.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise Refused(f"document {number:,} of this source cannot be kept as JSON: {error}.", where=where) from None
    return line + "\n"
