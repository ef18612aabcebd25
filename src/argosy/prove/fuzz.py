"""Draw after draw until the number or the minutes are spent; what failed is made smaller and written as a job file.

The order: the covering array and random draws in float64, and every tenth draw one of a fixed sample in float32 or bfloat16.
Knows no torch; the pool's ranks do.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

from argosy.prove.cover import Cover
from argosy.prove.options import WRITABLE, Case, plain, ranks_of
from argosy.prove.parity import Bench, Found, Trial
from argosy.prove.shrink import differs, smallest

EVERY = 10  # one draw in so many is of the narrow sample
NARROW: tuple[tuple[str, Case], ...] = tuple(
    (precision, {**plain(), **more})
    for precision in ("float32", "bfloat16")
    for more in (
        {"replicate": 2, "micros": 2, "uneven": True, "layers": 2, "norm": "layer", "biases": True, "packed": True},
        {"shard": 2, "zero": 3, "heads": "4/2", "layers": 2, "clip": 0.05, "window": "all", "tied": True},
        {"tp": 2, "sequence": True, "heads": "4/1", "layers": 2, "parallel": True, "vocabulary": 31},
        {  # stages of a rank end at different times, and copies of shards are added up at each one's end
            "pp": 2, "schedule": "interleaved", "virtual": 2, "layers": 4, "replicate": 2, "shard": 2, "zero": 2, "micros": 3,
            "tied": True, "dropout": 0.2,
        },
        {"pp": 2, "tp": 2, "shard": 2, "zero": 2, "schedule": "1f1b", "layers": 2, "recompute": "block"},
    )
)  # fmt: skip


@dataclass(frozen=True)
class Draw:
    """One draw and how it went."""

    number: int
    case: Case
    precision: str
    found: Found

    def row(self) -> dict[str, Any]:
        """As JSON; null is what was not compared, because a rank raised, and what is no number."""
        found = self.found

        def number(value: float) -> float | None:
            """A number that JSON has; None for what is none."""
            return value if isfinite(value) and not found.raised else None

        def tensor(name: str, error: float) -> dict[str, Any]:
            """The worst tensor, as JSON."""
            return {"name": name or None, "error": number(error)}

        row = {
            "draw": self.number,
            "options": {**self.case, "precision": self.precision},
            "ranks": ranks_of(self.case) if "pp" in self.case else self.case["ranks"],
            "worst_loss": number(found.worst_loss),
            "worst_gradient": tensor(*found.worst_gradient),
            "worst_norm": number(found.worst_norm),
            "worst_weight": tensor(*found.worst_weight),
            "seconds": round(found.seconds, 3),
            "ok": found.ok,
        }
        return row if found.ok else {**row, "wrong": found.wrong}


@dataclass
class Fuzzer:
    """Draws for `seed`, tried on `bench`."""

    bench: Bench
    seed: int = 0
    cover: Cover = field(default_factory=Cover)

    def draws(self, cases: int | None, minutes: float | None) -> Iterator[Draw]:
        """Draws until there are `cases` of them or `minutes` are over, whichever comes first."""
        end = time.monotonic() + 60 * minutes if minutes is not None else None
        wide, narrow = self.cover.cases(self.seed), 0
        number = 0
        while (cases is None or number < cases) and (end is None or time.monotonic() < end):
            number += 1
            if number % EVERY == 0:
                precision, case = NARROW[narrow % len(NARROW)]
                narrow += 1
            else:
                precision, case = "float64", next(wide)
            yield Draw(number, case, precision, self.bench.try_(Trial.of(case, precision)))

    def smallest(self, draw: Draw) -> tuple[Case, Found]:
        """The smallest case that fails as `draw` did, and how it fails. The draw itself where it does not fail again."""

        def fails(case: Case) -> bool:
            """Whether `case` fails in the same way."""
            found = self.bench.try_(Trial.of(case, draw.precision))
            return not found.ok and found.raised == draw.found.raised

        case = smallest(draw.case, fails, rules=WRITABLE)
        found = self.bench.try_(Trial.of(case, draw.precision))
        if found.ok:
            return draw.case, replace(draw.found, wrong=f"{draw.found.wrong}; not every time")
        return case, found


def job_file(trial: Trial, head: str) -> str:
    """`trial` as a job file that `argosy parity --job` takes: what differs from the defaults, after `head` as a comment."""
    from argosy.job import leaves
    from argosy.job.check import DEAD
    from argosy.job.schema import Job
    from argosy.job.text import toml

    usual, values = leaves.leaves(Job()), leaves.leaves(trial.job)
    dead = {key for rule in DEAD if rule.kills(values[rule.because]) for key in rule.keys}
    tables: dict[str, list[str]] = {}
    for key, value in values.items():
        kept = leaves.plain(value)
        if (value == usual[key] and key != "version") or key in dead:
            continue
        section, _, name = key.rpartition(".")
        if kept is None:
            kept = "none"  # optim.clip: the only default that is switched off
        tables.setdefault(section, []).append(f"{name} = {toml(kept)}")
    comment = "\n".join(f"# {line}" for line in head.splitlines())
    parts = [comment] + ["\n".join(([f"[{section}]"] if section else []) + rows) for section, rows in tables.items()]
    return "\n\n".join(parts) + "\n"


def told(case: Mapping[str, Any]) -> str:
    """A case in a few words: what is not plain in it."""
    return ", ".join(f"{name} {value}" for name, value in differs(dict(case)).items()) or "all plain"
