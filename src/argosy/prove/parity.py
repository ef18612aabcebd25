"""A layout against the reference: loss of three steps, every gradient, the clipping norm, every weight afterwards.

In: a job (in force) and where its draw came from. Real ranks (pool.py) train it with the worker's own step while one more
process judges (judge.py); then every rank compares its own part of every tensor. Knows no torch: the ranks do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from argosy.prove.options import RANKS, TOLERANCES, Case, job_of, ranks_of
from argosy.prove.pool import Failed, Pool

if TYPE_CHECKING:
    from argosy.job.schema import Job

STEPS = 3
LIMIT = 300.0  # seconds that a draw may take before it counts as hung
RUN = "argosy.prove.measure:steps"
COMPARE = "argosy.prove.measure:compare"
JUDGE = "argosy.prove.judge:judge"


@dataclass(frozen=True)
class Trial:
    """What is compared: a job in force, the update, and whether rows hold several documents."""

    job: Job
    update: str
    packed: bool
    ranks: int

    @staticmethod
    def of(case: Case, precision: str = "float64") -> Trial:
        """The trial of a draw."""
        return Trial(job_of(case, precision), case["update"], case["packed"], ranks_of(case))

    @property
    def precision(self) -> str:
        """In which type."""
        return str(self.job.train.precision)

    def payload(self) -> dict[str, Any]:
        """What ranks and judge are told."""
        rows = self.job.batch.tokens // self.job.batch.sequence
        batch = {"rows": rows, "sequence": self.job.batch.sequence, "packed": self.packed}
        return {
            "job": json.loads(self.job.model_dump_json()),
            "update": self.update,
            "steps": STEPS,
            "batch": batch | {"vocabulary": self.job.model.vocabulary},
        }


@dataclass(frozen=True)
class Found:
    """How far a trial was off, each number as the table of tolerances measures it; and what was wrong, in words."""

    worst_loss: float = 0.0
    worst_gradient: tuple[str, float] = ("", 0.0)
    worst_norm: float = 0.0
    worst_weight: tuple[str, float] = ("", 0.0)
    first_loss: float = 0.0  # of the first step, before any update
    norm: float = 0.0  # of the first step's gradient, before it is clipped
    wrong: str = ""
    raised: bool = False  # a rank raised, died or hung: nothing was compared
    order: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether all agree."""
        return not self.wrong


@dataclass
class Bench:
    """The pool's ranks and its judge, who remembers what he has worked out already. Ranks are told to call `run`."""

    pool: Pool
    run: str = RUN
    told: Mapping[str, Any] = field(default_factory=dict)  # what else ranks are told
    _folder: TemporaryDirectory[str] = field(default_factory=lambda: TemporaryDirectory(prefix="parity-"))
    _known: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    @staticmethod
    def ranks() -> int:
        """How many processes the pool needs: the judge is the last one."""
        return RANKS + 1

    def try_(self, trial: Trial) -> Found:
        """Train `trial` on real ranks and compare. Never raises for what the ranks do."""
        begin = time.monotonic()
        payload = trial.payload()
        name = _question(payload)
        file = str(Path(self._folder.name) / f"{name}.npz")
        asked = {**payload, "file": file}
        try:
            judging = None if name in self._known else self.pool.ask(JUDGE, asked, [self.pool.ranks - 1])
            answers = self.pool.answers(
                self.pool.ask(self.run, {**payload, **self.told}, range(trial.ranks)), limit=LIMIT
            )
            if judging is not None:
                (self._known[name],) = self.pool.answers(judging, limit=LIMIT)
            told = {"file": file, "precision": trial.precision}
            compared = self.pool.call(COMPARE, told, ranks=trial.ranks, limit=LIMIT)
        except Failed as error:
            return Found(wrong=_told(str(error)), raised=True, seconds=time.monotonic() - begin)
        found = measured(answers, compared, self._known[name], _shapes(file))
        return replace(
            found,
            wrong=found.wrong or too_far(found, trial.precision),
            order=tuple(answers[0]["order"]),
            seconds=time.monotonic() - begin,
        )

    def close(self) -> None:
        """Remove what the judge wrote."""
        self._folder.cleanup()


def _question(payload: Mapping[str, Any]) -> str:
    """A name for all that the judge's answer depends on: not the layout."""
    job = payload["job"]
    parts = {key: payload[key] for key in ("update", "steps", "batch")}
    parts |= {"model": job["model"], "optim": job["optim"], "train": [job["train"][key] for key in ("master", "seed")]}
    return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=12).hexdigest()


def _shapes(file: str) -> dict[str, tuple[int, ...]]:
    with np.load(file, allow_pickle=False) as arrays:
        return {name[7:]: arrays[name].shape for name in arrays.files if name.startswith("weight.")}


def _told(text: str) -> str:
    """The last line of a traceback, with who it was."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[0] if len(lines) == 1 else f"{lines[0].rstrip(':')}: {lines[-1].strip()}"


def measured(
    answers: list[dict[str, Any]],
    compared: list[dict[str, Any]],
    true: list[dict[str, float]],
    shapes: Mapping[str, tuple[int, ...]],
) -> Found:
    """The largest differences over all ranks and steps; wrong where a part of a tensor is nobody's. Pure."""
    steps = [list(zip(one["steps"], true, strict=True)) for one in answers]
    losses, norms = (
        [[_off(step[what], exact[what]) for step, exact in each] for each in steps] for what in ("loss", "norm")
    )
    worst = {kind: max((one[kind]["error"], one[kind]["name"]) for one in compared) for kind in ("gradient", "weight")}
    return Found(
        worst_loss=max(map(max, losses)),
        worst_gradient=worst["gradient"][::-1],
        worst_norm=max(map(max, norms)),
        worst_weight=worst["weight"][::-1],
        first_loss=max(each[0] for each in losses),
        norm=true[0]["norm"],
        wrong=missing([one["boxes"] for one in compared], shapes),
    )


def _off(value: float, true: float) -> float:
    off = abs(value - true) / abs(true)
    return off if off == off else float("inf")


def missing(boxes: list[Mapping[str, list[list[int]]]], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What of the tensors of `shapes` no rank holds, in words; empty where all is there. Pure."""
    for name, shape in shapes.items():
        there = np.zeros(shape, dtype=bool)
        for held in boxes:
            if name in held:
                there[tuple(slice(*place) for place in held[name])] = True
        if not there.all():
            return f"no rank holds {int(there.size - there.sum())} of the {there.size} elements of {name}"
    return ""


def too_far(found: Found, precision: str) -> str:
    """What differs by more than is allowed, a sentence; empty where nothing does."""
    limit = TOLERANCES[precision]
    for what, error, most in (  # the cause before what follows from it
        ("loss of the first step", found.first_loss, limit.loss),
        (f"gradient of {found.worst_gradient[0]}", found.worst_gradient[1], limit.gradient),
        ("gradient norm", found.worst_norm, limit.norm),
        (f"{found.worst_weight[0]} after the last step", found.worst_weight[1], limit.weight),
        ("loss of a later step", found.worst_loss, limit.loss),
    ):
        if not error <= most:  # also true where it is not a number
            return f"{what} differs by {error:.1e}, allowed {most:.0e}"
    return ""
