"""The record made readable: `metrics.jsonl` and `evaluations.jsonl` kept up while a run goes, Parquet per node afterwards.

The parent of a run holds one Archive and polls it a few times a second. The record is the truth; the two files are exports
of rank 0's entries: exactly one line per step, ascending, whatever was killed. A step done twice keeps the later incarnation's
line; the entries of both stay in the record. Torch-free.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from argosy.run import parquet, record
from argosy.run.lines import Rows, whole
from argosy.run.parquet import Folder
from argosy.run.record import Entries

YARDSTICKS = ("flops_per_token", "gemm_rate", "peak_rate")  # scalars that speed is compared with
LAYERS = "layer_"  # what scalars of single layers begin with
MINUTE = 60_000_000_000  # ns after which a measured rate says nothing more about a step


@dataclass(frozen=True)
class Line:
    """News for the screen: kind "step", "held_out", "sample" or "mark", and the row (for a mark: name, step, value)."""

    kind: str
    row: dict[str, Any]


class Archive:
    """The parent's hold on a run's record. Its files are made anew from the record when it is opened.

    sets: names of the held-out sets that rank 0 numbers from 1; by: the set that says what is best, where one was chosen.
    """

    def __init__(self, run: Folder, sets: Sequence[str] = (), by: str = ""):
        self.run, self.sets, self.by = run, tuple(sets), by
        self.metrics = Rows(run.path / "metrics.jsonl")
        self.evaluations = Rows(run.path / "evaluations.jsonl")
        self._samples = run.path / "samples.jsonl"
        self._samples_at = 0
        self._follower: record.Follower | None = None
        self._merge: Merge | None = None
        self._rebuild()

    def begin(self, incarnation: int) -> None:
        """Follow `incarnation` from now on; what is left of the one before is merged first.

        Lines of steps behind the one that rank 0 marks as loaded are dropped then.
        """
        self.poll()
        self.close()
        self._samples_at = self._samples.stat().st_size if self._samples.exists() else 0
        self._follower, self._merge = record.follow(self.run, 0, incarnation), Merge(incarnation, self.sets, self.by)

    def poll(self) -> list[Line]:
        """Merge what rank 0 wrote since the last call; the news, in order."""
        if self._follower is None or self._merge is None:
            return []
        lines = list(self._merge.take(self._follower.poll()))
        self._apply(lines)
        return lines + self._new_samples(self._merge.incarnation)

    def close(self) -> None:
        """Stop following; what a killed writer left without its end is merged."""
        if self._merge is not None:
            self._apply(list(self._merge.rest()))
        if self._follower is not None:
            self._follower.close()
        self._follower = self._merge = None

    def rotate(self, running: int | None = None) -> list[Path]:
        """Turn the record files of all incarnations but `running` into one Parquet file each; the new files."""
        groups: dict[int, list[Path]] = {}
        for name, path in record.files(self.run.local):
            if name.incarnation != running:
                groups.setdefault(name.incarnation, []).append(path)
        made = []
        for incarnation, paths in sorted(groups.items()):
            made.append(parquet.rotate(self.run.path / "record", incarnation, paths))
            for path in paths:
                path.unlink()
        for path in self.run.local.glob("record-rank-*.bin"):
            if record.parse(path).incarnation != running and record.unborn(path):
                path.unlink()
        return made

    def _rebuild(self) -> None:
        incarnations = sorted({name.incarnation for name, _ in record.files(self.run.local, rank=0)})
        steps = self.metrics.steps
        if not steps or steps[-1] - steps[0] + 1 != len(steps):
            # Lines are missing that only the rotated record still has: start from nothing.
            self.metrics.cut(-1)
            self.evaluations.cut(-1)
            incarnations = sorted({*incarnations, *(number for number, _ in parquet.rotated(self.run.path))})
        for incarnation in incarnations:
            merge = Merge(incarnation, self.sets, self.by)
            self._apply([*merge.take(parquet.entries(self.run, incarnation)), *merge.rest()], again=True)

    def _apply(self, lines: list[Line], again: bool = False) -> None:
        """Write `lines` into the two files. again: lines that a later incarnation replaced already stay as they are."""
        steps: list[dict[str, Any]] = []
        evaluations: list[dict[str, Any]] = []
        for line in lines:
            if line.kind == "step":
                if not (again and self._known(self.metrics, line.row)):
                    self._complete(line.row, steps[-1] if steps else self.metrics.last)
                    steps.append(line.row)
            elif line.kind == "held_out":
                if not (again and self._known(self.evaluations, line.row)):
                    evaluations.append(line.row)
            elif line.kind == "mark" and line.row["name"] == "loaded":
                self.metrics.put(steps)
                self.evaluations.put(evaluations)
                steps, evaluations = [], []
                self._cut(int(line.row["step"]), line.row["incarnation"])
        self.metrics.put(steps)
        self.evaluations.put(evaluations)

    @staticmethod
    def _known(rows: Rows, row: Mapping[str, Any]) -> bool:
        """Whether `row` is there already, or was dropped for what a later incarnation did."""
        if rows.incarnation(int(row["step"])) >= int(row["incarnation"]):
            return True
        return bool(rows.last) and int(rows.last.get("incarnation", 0)) > int(row["incarnation"])

    def _cut(self, step: int, incarnation: int | None = None) -> None:
        """Drop the lines behind `step`, unless `incarnation` or a later one wrote them."""
        for rows in (self.metrics, self.evaluations):
            if incarnation is None or int(rows.last.get("incarnation", -1)) < incarnation:
                rows.cut(step)

    @staticmethod
    def _complete(row: dict[str, Any], before: Mapping[str, Any]) -> None:
        """Add the speed, for which the step before must be known, and its shares of what the machine could do."""
        tokens, earlier = row["tokens"], before.get("tokens") if before.get("step") == row["step"] - 1 else None
        if row["step"] == 1:
            earlier = 0
        rates = {name: row.pop(name, None) for name in YARDSTICKS}
        if tokens is None or earlier is None or row["seconds"] <= 0:
            return
        row["tokens_per_second"] = (tokens - earlier) / row["seconds"]
        if rates["flops_per_token"]:
            done = rates["flops_per_token"] * row["tokens_per_second"]
            row |= {
                key: done / rates[name]
                for key, name in (("gemm_share", "gemm_rate"), ("mfu", "peak_rate"))
                if rates[name]
            }

    def _new_samples(self, incarnation: int) -> list[Line]:
        if not self._samples.exists():
            return []
        with self._samples.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self._samples_at:  # the worker cut off what it will write again
                self._samples_at = 0
            file.seek(self._samples_at)
            lines = file.readlines()
        found = []
        for line in lines:
            row = whole(line, "text")
            if row is None:
                break
            self._samples_at += len(line)
            if row.get("incarnation", incarnation) == incarnation:
                found.append(Line("sample", row))
        return found


class Merge:
    """Turns rank 0's entries of one incarnation into rows, entry by entry."""

    def __init__(self, incarnation: int, sets: Sequence[str] = (), by: str = ""):
        self.incarnation, self.sets, self.by = incarnation, tuple(sets), by
        self._values: dict[int, dict[str, float]] = {}
        self._held: dict[int, dict[str, float]] = {}
        self._named: dict[int, dict[int, dict[str, float]]] = {}  # the same of named sets, by step and number
        self._layers: dict[int, dict[str, dict[int, float]]] = {}  # by step, name and number of the layer
        self._seconds: dict[int, float] = {}
        self._tokens: float | None = None
        self._rates: dict[str, tuple[int, float]] = {}  # of YARDSTICKS: when it was written, in ns, and how much

    def take(self, found: Entries) -> Iterator[Line]:
        """The rows that `found` completes."""
        for _, kind, index, _, step, entered, left, value, extra, *_ in found.tolist():
            name = record.name(kind, index)
            if kind == record.SCALAR:
                if name in YARDSTICKS:
                    self._rates[name] = (entered, value)
                    continue
                if name.startswith(LAYERS):
                    self._layers.setdefault(step, {}).setdefault(name.removeprefix(LAYERS), {})[extra] = value
                    continue
                into = self._held if name.startswith("held_out_") else self._values
                if into is self._held and extra:
                    self._named.setdefault(step, {}).setdefault(extra, {})[name] = value
                else:
                    into.setdefault(step, {})[name] = value
            elif kind == record.STEP:
                yield from self._evaluated(before=step)
                yield Line("step", self._step(step, entered, left))
            elif kind == record.PHASE and name == "evaluate":
                self._seconds[step] = (left - entered) / 1e9
                yield from self._evaluated(time=left)
            elif kind == record.MARK:
                if name in ("evaluated", "finished", "stopped", "ended"):
                    yield from self._evaluated(time=entered)
                row = {"name": name, "step": step, "value": value, "extra": extra, "time": entered / 1e9}
                yield Line("mark", {**row, "incarnation": self.incarnation})

    def rest(self) -> Iterator[Line]:
        """What a killed writer left without its end."""
        yield from self._evaluated()

    def _step(self, step: int, entered: int, left: int) -> dict[str, Any]:
        values = self._values.pop(step, {})
        for older in [number for number in self._values if number < step]:
            del self._values[older]
        loss, counted, size = values.get("loss"), values.get("counted"), values.get("bytes")
        bits = loss * counted / (math.log(2) * size) if loss is not None and counted and size else None
        self._tokens = values.get("tokens")
        row: dict[str, Any] = {
            "step": step,
            "tokens": None if self._tokens is None else int(self._tokens),
            "loss": loss,
            "bits_per_byte": bits,
            "lr": values.get("lr"),
            "gradient_norm": values.get("gradient_norm"),
            "seconds": (left - entered) / 1e9,
            "tokens_per_second": None,
            "incarnation": self.incarnation,
            "time": left / 1e9,
        }
        row |= {name: self._rates[name][1] for name in YARDSTICKS if name in self._rates}
        measured = self._rates.get("gemm_rate")
        if measured is not None and entered - measured[0] > MINUTE:
            del row["gemm_rate"]
        if values.get("skipped"):
            row["skipped"] = True
        layers = self._layers.pop(step, None)
        if layers:
            row["layers"] = {name: _listed(found) for name, found in layers.items()}
        return row

    def _evaluated(self, before: int | None = None, time: int | None = None) -> Iterator[Line]:
        for step in sorted(self._held):
            if (before is not None and step >= before) or "held_out_loss" not in self._held[step]:
                continue
            values = self._held.pop(step)
            row: dict[str, Any] = {"step": step, "tokens": None if self._tokens is None else int(self._tokens)}
            row |= _measured(values)
            named = self._named.pop(step, {})
            if named:
                row["sets"] = {self._name(number): _measured(held) for number, held in sorted(named.items())}
            if "held_out_best" in values:
                row["best"] = values["held_out_best"] > 0
                row |= {"by": self.by} if self.by else {}
            row |= {"seconds": self._seconds.pop(step, None), "incarnation": self.incarnation}
            row["time"] = None if time is None else time / 1e9
            yield Line("held_out", row)

    def _name(self, number: int) -> str:
        return self.sets[number - 1] if number <= len(self.sets) else f"set {number}"


def _measured(values: Mapping[str, float]) -> dict[str, Any]:
    """One held-out set's part of a line of evaluations.jsonl."""
    row: dict[str, Any] = {"loss": values.get("held_out_loss"), "bits_per_byte": values.get("held_out_bits_per_byte")}
    for name in ("documents", "tokens"):
        value = values.get(f"held_out_{name}")
        row["documents" if name == "documents" else "held_out_tokens"] = None if value is None else int(value)
    return row


def _listed(values: Mapping[int, float]) -> list[float | None]:
    """Numbers of layers in their order, six digits each; None for what is missing or not finite."""
    known = (values.get(layer, math.nan) for layer in range(max(values) + 1))
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in known]
