"""Where the time of a run went: every second in exactly one class, by rank 0's record and the journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from argosy.run import parquet, record
from argosy.run.parquet import Folder
from argosy.run.record import Entries

# From what is weakest to what is strongest: where two overlap, the later of them counts.
CLASSES = {
    "other": "between the steps, timing matrix products alone, and leaving",
    "start": "from the command to the first step: data, processes, groups, model, checkpoint",
    "recovery": "from the end of one start of the workers to the first step of the next",
    "training": "forward, backward, agreeing, update",
    "data": "waiting for a batch",
    "evaluation": "measuring on held-out documents",
    "samples": "letting the model write",
    "saving": "copying for the writer, and waiting for it",
    "garbage": "collecting Python's garbage",
    "compile": "compiling the blocks",
    "lost": "steps that a fault undid, and that were done again",
}
_PHASES = {
    "start": "start",
    "groups": "start",
    "build": "start",
    "load": "start",
    "compile": "compile",
    "data": "data",
    "forward_backward": "training",
    "vote": "training",
    "update": "training",
    "evaluate": "evaluation",
    "sample": "samples",
    "save": "saving",
    "collect": "garbage",
    "wait": "other",
    "gauge": "other",
}


@dataclass(frozen=True)
class Account:
    """Seconds of each class, in CLASSES' order, and of all together; seconds between sessions, when nothing ran."""

    seconds: Mapping[str, float]
    total: float
    away: float = 0.0

    @property
    def shares(self) -> list[tuple[str, float]]:
        """(class, share of the whole), largest first; what took no time is left out."""
        found = [(name, value / self.total) for name, value in self.seconds.items() if value > 0]
        return sorted(found, key=lambda pair: -pair[1])


@dataclass(frozen=True)
class Life:
    """One incarnation as rank 0 recorded it; times in ns."""

    number: int
    entries: Entries
    loaded: int | None  # step whose state it began with

    @property
    def begin(self) -> int:
        """When its first entry began."""
        return int(self.entries["entered"].min())

    @property
    def end(self) -> int:
        """When its last entry ended."""
        return int(self.entries["left"].max())


def account(run: Folder, journal: Sequence[Mapping[str, Any]] = ()) -> Account:
    """Where the time of `run` went. journal: its events, oldest first; "begun" and "ended" bound its sessions."""
    lives = [life for life in (_life(run, number) for number in parquet.incarnations(run)) if len(life.entries)]
    return divide(lives, journal)


def divide(lives: Sequence[Life], journal: Sequence[Mapping[str, Any]]) -> Account:
    """Every second of the sessions in exactly one class. Pure."""
    if not lives:
        return Account(dict.fromkeys(CLASSES, 0.0), 0.0)
    sessions = _sessions(lives, journal)
    spans: list[tuple[str, NDArray[Any], NDArray[Any]]] = []
    for begin, _, inside in sessions:
        spans.append(("start", np.array([begin]), np.array([_first_step(inside[0]) or inside[0].end])))
        for before, life in pairwise(inside):
            spans.append(("recovery", np.array([before.end]), np.array([_first_step(life) or life.end])))
        for life in inside:
            spans += _phases(life, first=life is inside[0])
    spans += _lost(lives)
    bounds = np.unique(
        np.concatenate(
            [[t for begin, end, _ in sessions for t in (begin, end)], *(np.concatenate(s[1:]) for s in spans)]
        )
    ).astype(np.int64)
    lengths = np.diff(bounds)
    label = np.zeros(len(lengths), np.int16)
    for index, name in enumerate(CLASSES):
        label[_covered(bounds, [span for span in spans if span[0] == name])] = index
    counted = _covered(bounds, [("", np.array([begin]), np.array([end])) for begin, end, _ in sessions])
    sums = np.bincount(label[counted], weights=lengths[counted], minlength=len(CLASSES)) / 1e9
    total = sum(end - begin for begin, end, _ in sessions) / 1e9
    whole = (sessions[-1][1] - sessions[0][0]) / 1e9
    return Account(dict(zip(CLASSES, sums.tolist(), strict=True)), total, max(0.0, whole - total))


def _life(run: Folder, number: int) -> Life:
    entries = parquet.entries(run, number)
    marks = entries[(entries["kind"] == record.MARK) & (entries["name"] == record.number(record.MARK, "loaded"))]
    return Life(number, entries, int(marks["step"][0]) if len(marks) else None)


def _steps(life: Life) -> Entries:
    found: Entries = life.entries[life.entries["kind"] == record.STEP]
    return found


def _first_step(life: Life) -> int | None:
    steps = _steps(life)
    return int(steps["entered"][0]) if len(steps) else None


def _sessions(lives: Sequence[Life], journal: Sequence[Mapping[str, Any]]) -> list[tuple[int, int, list[Life]]]:
    """(begin, end, incarnations) of each time somebody ran the run; what the journal lacks is taken from the record."""
    begun = [int(event["time"] * 1e9) for event in journal if event.get("what") == "begun"]
    ended = [int(event["time"] * 1e9) for event in journal if event.get("what") == "ended"]
    first = min(life.begin for life in lives)
    groups: dict[int, list[Life]] = {}
    for life in lives:
        earlier = [moment for moment in begun if moment <= life.begin]
        groups.setdefault(earlier[-1] if earlier else first, []).append(life)
    found = []
    starts = sorted(groups)
    for begin, following in zip(starts, [*starts[1:], None], strict=True):
        inside = groups[begin]
        last = max(life.end for life in inside)
        ends = [moment for moment in ended if moment >= last and (following is None or moment <= following)]
        end = ends[0] if ends else last
        found.append((begin, min(end, following) if following is not None else end, inside))
    return found


def _phases(life: Life, first: bool) -> list[tuple[str, Any, Any]]:
    """The classes that the entries of one incarnation say."""
    entries = life.entries
    steps = _steps(life)
    spans: list[tuple[str, Any, Any]] = [("training", steps["entered"], steps["left"])]
    for index, name in enumerate(record.PHASES):
        chosen = entries[(entries["kind"] == record.PHASE) & (entries["name"] == index)]
        kind = _PHASES.get(name, "other")
        if kind == "start" and not first:
            kind = "recovery"
        if len(chosen) and kind != "other":
            spans.append((kind, chosen["entered"], chosen["left"]))
    marks = entries[entries["kind"] == record.MARK]
    begin = marks[marks["name"] == record.number(record.MARK, "compiling")]["entered"]
    end = marks[marks["name"] == record.number(record.MARK, "compiled")]["entered"]
    pairs = min(len(begin), len(end))
    spans.append(("compile", begin[:pairs], end[:pairs]))
    return spans


def _lost(lives: Sequence[Life]) -> list[tuple[str, Any, Any]]:
    """The steps of each incarnation that a later one did again."""
    found: list[tuple[str, Any, Any]] = []
    kept: int | None = None
    for life in reversed(lives):
        steps = _steps(life)
        if kept is not None:
            again = steps[steps["step"] > kept]
            found.append(("lost", again["entered"], again["left"]))
        begins = [
            number for number in (life.loaded, int(steps["step"][0]) - 1 if len(steps) else None) if number is not None
        ]
        kept = min([*begins, *([kept] if kept is not None else [])], default=None)
    return found


def _covered(bounds: NDArray[Any], spans: Sequence[tuple[str, Any, Any]]) -> NDArray[Any]:
    """For each stretch between two bounds, whether one of `spans` covers it."""
    change = np.zeros(len(bounds), np.int64)
    for _, begin, end in spans:
        np.add.at(change, np.searchsorted(bounds, begin), 1)
        np.add.at(change, np.searchsorted(bounds, end), -1)
    covered: NDArray[np.bool_] = np.cumsum(change)[:-1] > 0
    return covered
