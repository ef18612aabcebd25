"""What a run came to, read from its folder alone: the facts that end block and page share. Reads; writes nothing."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from argosy.observe import goodput
from argosy.observe.text import harmless
from argosy.run import parquet, record
from argosy.run.folder import Run
from argosy.run.lines import rows


class _Data(BaseModel):
    notes: list[Any] = []


class _Machine(BaseModel):
    memory_bytes: float | None = None
    devices: list[str] | None = None


class _Probed(BaseModel):
    gemm: dict[str, float | None] | None = None


class _Predicted(BaseModel):
    parameters: int | None = None
    flops_per_token: float | None = None
    step_seconds: float | None = None
    tokens_per_second: float | None = None
    memory_bytes: float | None = None
    disk_bytes: float | None = None


# The form of what run.json holds, as far as anything is made of it but text.
_FORMS: Mapping[str, TypeAdapter[Any]] = {
    "data": TypeAdapter(_Data | None),
    "machine": TypeAdapter(_Machine | None),
    "probed": TypeAdapter(_Probed | None),
    "predicted": TypeAdapter(_Predicted | None),
    "versions": TypeAdapter(dict[str, Any] | None),
    "environment": TypeAdapter(dict[str, Any] | None),
    "steps": TypeAdapter(int | None),
    "threads": TypeAdapter(int),
    "workers": TypeAdapter(int),
}


def _fits(key: str, value: object) -> bool:
    """Whether an entry of run.json has the form that Argosy gives it: others' folders are read too."""
    try:
        if key in _FORMS:
            _FORMS[key].validate_python(value)
    except ValidationError:
        return False
    return True


@dataclass(frozen=True)
class Compared:
    """A figure that was predicted and then measured, both in `unit`: "s", "bytes", "tokens/s"."""

    name: str
    predicted: float
    measured: float
    unit: str

    @property
    def difference(self) -> float:
        """How much more was measured than predicted, as a share."""
        return self.measured / self.predicted - 1 if self.predicted else 0.0


class Summary:
    """Everything that is said about a run, each part read when it is first asked for; a missing file is an empty part."""

    def __init__(self, run: Run):
        self.run = run
        self.info: dict[str, Any] = {key: value for key, value in run.info().items() if _fits(key, value)}

    @cached_property
    def settings(self) -> list[Any]:
        """Every key in force; empty where the run never came so far."""
        return self.run.settings() if (self.run.path / "settings.json").is_file() else []

    def used(self, key: str, default: Any = None) -> Any:
        """The value in force of one key."""
        return next((setting.used for setting in self.settings if setting.key == key), default)

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return _stepped(rows(self.run.path / "metrics.jsonl"))

    @cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of evaluations.jsonl."""
        return _stepped(rows(self.run.path / "evaluations.jsonl"))

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """The lines of samples.jsonl, one for each step and prompt, by step."""
        told = [row for row in _stepped(rows(self.run.path / "samples.jsonl")) if "text" in row]
        found = {(row["step"], str(row.get("prompt", ""))): row for row in told}
        return sorted(found.values(), key=lambda row: int(row["step"]))

    @cached_property
    def journal(self) -> list[dict[str, Any]]:
        """Everything that happened and was decided."""
        return rows(self.run.path / "journal.jsonl")

    @cached_property
    def saves(self) -> list[dict[str, Any]]:
        """What the writer committed, or could not."""
        told = [row for row in self.journal if row.get("what") == "saved"]
        return told or rows(self.run.local / "saved.jsonl")

    @cached_property
    def faults(self) -> list[dict[str, Any]]:
        """The decisions about what broke."""
        return [row for row in self.journal if row.get("what") == "decided" and row.get("because")]

    @cached_property
    def account(self) -> goodput.Account:
        """Where the time went."""
        return goodput.account(self.run, self.journal)

    @cached_property
    def checkpoints(self) -> list[dict[str, Any]]:
        """The checkpoints that lie there: folder, step, bytes, when, with which versions."""
        found = []
        for folder in sorted(self.run.checkpoints.glob("step-*")):
            try:
                manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
                size = sum(int(file["bytes"]) for file in manifest["files"])
                found.append(
                    {
                        "name": folder.name,
                        "bytes": size,
                        **{key: manifest.get(key) for key in ("step", "created", "torch")},
                    }
                )
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                continue  # half written, or damaged: no checkpoint
        return found

    @property
    def name(self) -> str:
        """The run's own, which its folder has; the job's may be another."""
        return self.run.path.resolve().name

    @property
    def own(self) -> bool:
        """Whether it trained a module of somebody's own: its steps and losses are no matter of tokens."""
        return bool(self.info.get("fit"))

    @property
    def step(self) -> int:
        """The last step that stands in metrics.jsonl."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def steps(self) -> int:
        """The length of the run."""
        return int(self.info.get("steps") or self.used("train.steps") or 0)

    @property
    def tokens(self) -> int:
        """Tokens trained on."""
        return int(self.metrics[-1].get("tokens") or 0) if self.metrics else 0

    @property
    def state(self) -> str:
        """new, running, stopped, finished or failed; a running one that nobody holds was interrupted."""
        state = str(self.info.get("state", "new"))
        return "interrupted" if state == "running" and self.run.busy() is None else state

    @property
    def predicted(self) -> Mapping[str, Any]:
        """What was predicted when the run started."""
        found = self.info.get("predicted")
        return found if isinstance(found, dict) else {}

    @property
    def parameters(self) -> int | None:
        """The model's parameters."""
        return self.predicted.get("parameters") or None

    @property
    def flops_per_token(self) -> float | None:
        """Forward and backward."""
        return self.predicted.get("flops_per_token") or None

    @cached_property
    def tokens_per_second(self) -> float | None:
        """The median over the steps."""
        return self._median("tokens_per_second")

    @cached_property
    def step_seconds(self) -> float | None:
        """The median over the steps."""
        return self._median("seconds")

    @cached_property
    def gemm_share(self) -> float | None:
        """Training's FLOP/s over what the model's own matrix products reach alone: the median over the steps."""
        return self._median("gemm_share")

    @cached_property
    def mfu(self) -> float | None:
        """Training's FLOP/s over the devices' dense peak: the median over the steps; None where no peak is known."""
        return self._median("mfu")

    def _median(self, key: str) -> float | None:
        found = [row[key] for row in self.metrics if row.get(key)]
        return median(found) if found else None

    @cached_property
    def memory_peak(self) -> float | None:
        """Bytes of rank 0 at its peak: on its device where it has one, else of the process."""
        found: dict[str, float] = {}
        for number in parquet.incarnations(self.run):
            entries = parquet.entries(self.run, number)
            for name in ("memory_device", "memory_peak"):
                index = record.number(record.SCALAR, name)
                chosen = entries[(entries["kind"] == record.SCALAR) & (entries["name"] == index)]["value"]
                if len(chosen):
                    found[name] = max(found.get(name, 0.0), float(chosen.max()))
        return found.get("memory_device") or found.get("memory_peak")

    @cached_property
    def compared(self) -> list[Compared]:
        """Predicted beside measured."""
        pairs: Sequence[tuple[str, str, float | None, str]] = (
            ("step", "step_seconds", self.step_seconds, "s"),
            ("speed", "tokens_per_second", self.tokens_per_second, "tokens/s"),
            ("memory", "memory_bytes", self.memory_peak, "bytes"),
            ("disk", "disk_bytes", float(disk(self.run.path)), "bytes"),
        )
        return [
            Compared(name, float(self.predicted[key]), measured, unit)
            for name, key, measured, unit in pairs
            if self.predicted.get(key) and measured
        ]

    @cached_property
    def sets(self) -> dict[str, list[dict[str, Any]]]:
        """The evaluations of each named held-out set: step, loss and bits_per_byte."""
        found: dict[str, list[dict[str, Any]]] = {}
        for row in self.evaluations:
            named = row.get("sets")
            for name, held in named.items() if isinstance(named, dict) else ():
                values = {key: held.get(key) if isinstance(held, dict) else None for key in ("loss", "bits_per_byte")}
                if all(isinstance(value, int | float | None) for value in values.values()):
                    found.setdefault(harmless(str(name)), []).append({"step": row["step"], **values})
        return found

    @property
    def best(self) -> dict[str, Any] | None:
        """The evaluation that was the best by the set that decided; where none says so, the one with the lowest loss."""
        found = [row for row in self.evaluations if row.get("loss") is not None]
        chosen = [row for row in found if row.get("best") is True]
        if chosen:
            return chosen[-1]
        return min(found, key=lambda row: float(row["loss"])) if found else None

    @property
    def figure(self) -> tuple[float, str, str] | None:
        """The result in one number: (value, unit, "held out" or "training"); the newest. None before the first step."""
        for source, place in ((self.evaluations, "held out"), (self.metrics, "training")):
            for key, unit in (("bits_per_byte", "bits/byte"), ("loss", "loss" if self.own else "nats/token")):
                if source and source[-1].get(key) is not None:
                    return float(source[-1][key]), unit, place
        return None


def _stepped(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of `found` that name a step, with nothing but numbers where numbers belong: others' folders are read too."""
    numbers = ("tokens", "loss", "bits_per_byte", "lr", "gradient_norm", "seconds", "tokens_per_second", "time")
    shares = ("gemm_share", "mfu")
    return [
        row
        for row in found
        if isinstance(row.get("step"), int)
        and all(isinstance(row.get(key), int | float | None) for key in (*numbers, *shares))
    ]


def disk(path: Path) -> int:
    """Bytes that the files under `path` hold. One that goes meanwhile, as of a run that is in work, counts nothing."""
    found = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                facts = os.lstat(os.path.join(folder, name))
                found += facts.st_size if stat.S_ISREG(facts.st_mode) else 0
    return found
