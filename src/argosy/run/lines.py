"""JSONL files of a run folder: whole lines only, one line per step where the file is an export of the record. Torch-free."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_EXACT = frozenset({"loss", "bits_per_byte", "lr", "gradient_norm"})  # written so that they read back bit for bit
_FORMS = {"seconds": ".6f", "time": ".6f", "gemm_share": ".4g", "mfu": ".4g"}
_REAL = _EXACT | _FORMS.keys()


class Rows:
    """A JSONL file with one line per step, ascending; a torn last line is left out and removed when the file is written."""

    def __init__(self, path: Path):
        self.path = path
        self._steps: list[int] = []
        self._starts: list[int] = []  # byte at which each line begins
        self._incarnations: list[int] = []
        self._end = 0
        self.last: dict[str, Any] = {}
        if path.exists():
            self._load()

    @property
    def steps(self) -> Sequence[int]:
        """The steps that have a line, ascending."""
        return self._steps

    def incarnation(self, step: int) -> int:
        """The incarnation whose line stands for `step`; -1 where there is none."""
        at = int(np.searchsorted(self._steps, step)) if self._steps and step <= self._steps[-1] else len(self._steps)
        return self._incarnations[at] if at < len(self._steps) and self._steps[at] == step else -1

    def put(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append `rows` (ascending); lines of the same or a later step are dropped first."""
        text: list[bytes] = []
        for row in rows:
            step = int(row["step"])
            if self._steps and step <= self._steps[-1]:
                self._flush(text)
                self.cut(step - 1)
            line = line_text(row)
            self._steps.append(step)
            self._starts.append(self._end)
            self._incarnations.append(int(row.get("incarnation", 0)))
            self._end += len(line)
            self.last = dict(row)
            text.append(line)
        self._flush(text)

    def cut(self, step: int) -> None:
        """Drop every line behind `step`."""
        if not self._steps or self._steps[-1] <= step:
            return
        keep = int(np.searchsorted(self._steps, step, side="right"))
        self._end = self._starts[keep]
        del self._steps[keep:], self._starts[keep:], self._incarnations[keep:]
        os.truncate(self.path, self._end)
        self.last = self._line_at(keep - 1) if keep else {}

    def _flush(self, text: list[bytes]) -> None:
        if text:
            with self.path.open("ab") as file:
                file.write(b"".join(text))
            text.clear()

    def _line_at(self, index: int) -> dict[str, Any]:
        with self.path.open("rb") as file:
            file.seek(self._starts[index])
            found: dict[str, Any] = json.loads(file.readline())
        return found

    def _load(self) -> None:
        with self.path.open("rb") as file:
            for line in file:
                row = whole(line)
                if row is None or (self._steps and row["step"] <= self._steps[-1]):
                    break  # torn, or not written by us: what follows is made anew
                self._steps.append(int(row["step"]))
                self._starts.append(self._end)
                self._incarnations.append(int(row.get("incarnation", 0)))
                self._end += len(line)
                self.last = row
        if self._end != self.path.stat().st_size:
            os.truncate(self.path, self._end)


def line_text(row: Mapping[str, Any]) -> bytes:
    """One line of JSON: loss, bits per byte, rate and norm as %.17g, the rest short; what is not finite becomes null."""
    return ("{" + ", ".join(f"{json.dumps(key)}: {_value(key, value)}" for key, value in row.items()) + "}\n").encode()


def _value(key: str, value: object) -> str:
    if isinstance(value, float):
        if not math.isfinite(value):
            return "null"
        if key in _EXACT:
            return f"{value:.17g}"
        return f"{value:{_FORMS.get(key, '.1f')}}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(name)}: {_value(name, inner)}" for name, inner in value.items()) + "}"
    return json.dumps(value)


def whole(line: bytes, key: str = "step") -> dict[str, Any] | None:
    """The row of a complete line that has `key`; None for a torn or foreign one."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and key in row and (key != "step" or isinstance(row["step"], int)) else None


def table(found: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as a pyarrow.Table with every key that any of them has, null where a row lacks it."""
    import pyarrow as pa  # here, not above: a worker that has no use for it starts sooner

    names = dict.fromkeys(name for row in found for name in row)
    # Such a column holds real numbers, also where all of a run's happen to be whole, and are written so.
    return pa.table(
        {name: pa.array([row.get(name) for row in found], pa.float64() if name in _REAL else None) for name in names}
    )


def rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file, in order; a torn last one is left out. Empty where there is no file."""
    if not path.exists():
        return []
    found = []
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                found.append(row)
    return found
