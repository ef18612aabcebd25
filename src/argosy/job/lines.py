"""Which line of a TOML file each key stands on. Reads text, knows nothing of jobs.

`tomllib` gives values without places, so a second, much simpler pass over the same text finds them. It runs after tomllib
has accepted the text, and may therefore trust that it is TOML.
"""

from __future__ import annotations

import tomllib
from typing import Any


def lines(text: str) -> dict[tuple[str, ...], int]:
    """Path of each key and table header -> the line, counted from 1, on which it begins."""
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    rows = text.replace("\r\n", "\n").split("\n")  # TOML's line ends, no others: U+2028 may stand in a comment
    index = 0
    while index < len(rows):
        row, number = rows[index].strip(), index + 1
        index += 1
        if not row or row.startswith("#"):
            continue
        if row.startswith("["):
            table = _path(row)
            found.setdefault(table, number)
            continue
        key, value = _split(row)
        while not _whole(value) and index < len(rows):
            value += "\n" + rows[index]
            index += 1
        for length in range(1, len(key) + 1):
            found.setdefault(table + key[:length], number)
    return found


def line(found: dict[tuple[str, ...], int], path: tuple[str, ...]) -> int | None:
    """The line of `path`, or of the nearest key or table around it."""
    return next((found[path[:length]] for length in range(len(path), 0, -1) if path[:length] in found), None)


def _path(text: str) -> tuple[str, ...]:
    """The names along the only path that the TOML in `text` opens."""
    place: Any = tomllib.loads(text)
    names = []
    while isinstance(place, dict | list) and place:
        if isinstance(place, list):
            place = place[0]
            continue
        name = next(iter(place))
        names.append(name)
        place = place[name]
    return tuple(names)


def _split(row: str) -> tuple[tuple[str, ...], str]:
    """A row "a.b = value" as its path and the text of its value. An "=" inside a quoted key does not split."""
    at = -1
    while True:
        at = row.index("=", at + 1)
        try:
            return _path(row[:at] + "= 0"), row[at + 1 :]
        except tomllib.TOMLDecodeError:
            continue


def _whole(value: str) -> bool:
    """Whether `value` is complete, or goes on in the next row (arrays, texts of several lines)."""
    try:
        tomllib.loads("x = " + value)
    except tomllib.TOMLDecodeError:
        return False
    return True
