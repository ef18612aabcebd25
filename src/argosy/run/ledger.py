"""What was changed at which step: `ledger.jsonl`, append-only. With the seed it decides what every step reads.

The first entries (from_step 0, reason "start") hold the values a run began with; a later entry changes one key from one
step on. A step's batch is a pure function of (seed, ledger, step), so no entry may lie before a step already taken.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

from argosy.errors import Refused

VERSION = 1


@dataclass(frozen=True)
class Entry:
    """One change: from `from_step` on (steps are counted from 1; 0 = the start) `key` has the value `new`."""

    from_step: int
    key: str  # "batch.sequence", "batch.tokens", "data.mix", "train.seed"
    old: object
    new: object
    reason: str
    version: int = VERSION


@dataclass(frozen=True)
class Ledger:
    """All entries of a run, in the order they were written."""

    entries: tuple[Entry, ...]

    @staticmethod
    def start(**values: object) -> Ledger:
        """The ledger a run begins with; keys are written with "__" for the dot: batch__sequence=256."""
        return Ledger(tuple(Entry(0, key.replace("__", "."), None, new, "start") for key, new in values.items()))

    def at(self, step: int, key: str) -> object:
        """The value of `key` in force at `step`."""
        values = [entry.new for entry in self.entries if entry.key == key and entry.from_step <= step]
        if not values:
            raise KeyError(key)
        return values[-1]

    def changes(self, keys: Sequence[str]) -> list[int]:
        """The steps, ascending, from which any of `keys` has a new value; 0 first."""
        return sorted({0, *(entry.from_step for entry in self.entries if entry.key in keys)})

    def changed(self, step: int, key: str, new: object, reason: str) -> Ledger:
        """This ledger with `key = new` from `step` on."""
        return Ledger((*self.entries, Entry(step, key, self.at(step, key), new, reason)))

    @property
    def digest(self) -> str:
        """A hash of all entries; every checkpoint holds it beside the number of entries."""
        return blake2b("".join(map(_line, self.entries)).encode(), digest_size=16).hexdigest()

    @staticmethod
    def read(path: Path) -> Ledger:
        """The ledger in the file `path`; a torn last line (killed while appending) is left out.

        Refused where the file holds anything else: what every step reads depends on it.
        """
        entries = []
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                continue
            try:
                entries.append(Entry(**json.loads(line)))
            except (ValueError, TypeError, RecursionError):
                raise Refused(
                    "this is no entry of a ledger.",
                    where=f"{path}:{number}",
                    found=repr(line[:60])[2:-1],
                    do="Restore the file, or begin a new run: --run DIR.",
                ) from None
        return Ledger(tuple(entries))

    def write(self, path: Path) -> None:
        """Make `path` hold this ledger: what is there already must be its beginning, the rest is appended and synced."""
        known = len(Ledger.read(path).entries) if path.exists() else 0
        append(path, self.entries[known:])


def append(path: Path, entries: Iterable[Entry]) -> None:
    """Append `entries` to the file `path` and sync it; a torn last line is cut off first."""
    with path.open("ab") as file:
        torn = path.read_bytes().rpartition(b"\n")[2]
        file.truncate(file.tell() - len(torn))
        file.writelines(_line(entry).encode() for entry in entries)
        file.flush()
        os.fsync(file.fileno())


def _line(entry: Entry) -> str:
    return json.dumps(asdict(entry), sort_keys=True) + "\n"
