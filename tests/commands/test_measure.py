"""What a start measures and what a finished run teaches: with a stand-in for the program that times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from argosy.cluster import here
from argosy.cluster.here import Machine, Trial
from argosy.commands import measure
from argosy.job.load import load
from argosy.plan import seconds
from argosy.plan.prepared import PreparedFacts
from argosy.run.folder import Run

FACTS = PreparedFacts(2048, 2_900_000, 469, 9, 3.2)
HERE = Machine(cores=2, memory_bytes=16 << 30, memory_available=16 << 30, compiler="g++", processor="this one")
FAST = {
    "block": 0.1,
    "ends": 0.05,
    "block_update": 0.01,
    "ends_update": 0.001,
    "block_products": 0.01,
    "ends_products": 0.01,
}


class Asked(Trial):
    """Answers at once that bfloat16 is twice as fast, or the other way round, and counts."""

    count = 0
    slow = "float32"

    def ask(self, request: Any) -> dict[str, Any]:
        self.count += 1
        half = {name: 2 * taken for name, taken in FAST.items()}
        fast = "bfloat16" if self.slow == "float32" else "float32"
        return {**here.tried(request, self.cache), "pieces": {self.slow: half, fast: FAST}, "request": dict(request)}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run folder of which nothing is kept yet."""
    (tmp_path / "run").mkdir()
    return Run(tmp_path / "run")


def start(run: Run, asked: Asked, kept: Any = (), *words: str) -> Any:
    return measure.settled(load("laptop", words), HERE, FACTS, 2, asked, {one.key: one for one in kept}, run, (0, 0))


def info(run: Run, probed: Any, processor: str) -> None:
    facts = {"version": 1, "id": "x", "probed": dict(probed), "machine": {"processor": processor}}
    (run.path / "run.json").write_text(json.dumps(facts), encoding="utf-8")


def test_a_run_that_goes_on_times_nothing_and_decides_nothing(run: Run, tmp_path: Path) -> None:
    asked = Asked(tmp_path / "cache")
    first, probed = start(run, asked)
    assert (asked.count, first.job.train.precision) == (1, "bfloat16")
    info(run, probed, "this one")
    again = Asked(tmp_path / "cache")
    again.slow = "bfloat16"
    second, _ = start(run, again, first.settings)
    assert (again.count, second.job) == (0, first.job)
    assert second.plan.step_seconds == first.plan.step_seconds
    info(run, probed, "another one")  # moved: its speed is measured anew, its type stays
    third, _ = start(run, again, first.settings)
    assert (again.count, third.job.train.precision) == (1, "bfloat16")
    assert third.plan.step_seconds > first.plan.step_seconds


def test_a_busy_machine_is_noted_by_the_start_that_decides(run: Run, tmp_path: Path) -> None:
    class Busy(Asked):
        def ask(self, request: Any) -> dict[str, Any]:
            return {**super().ask(request), "steady": False}

    first, probed = start(run, Busy(tmp_path / "cache"))
    assert [note for note in first.notes if "this machine was busy" in note]
    info(run, probed, "this one")
    again, _ = start(run, Busy(tmp_path / "cache"), first.settings)  # it goes on: what was decided stays
    assert not [note for note in again.notes if "busy" in note]


def test_the_next_prediction_is_what_the_last_run_took(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path / "cache"))
    settled, probed = start(run, Asked())
    info(run, probed, "this one")
    lines = [{"step": step, "seconds": 0.25 if step > 1 else 9.0} for step in range(1, measure.ENOUGH)]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    measure.learn(run, settled, probed)
    assert here.tried(probed["request"]) == {}  # too few steps to rest on
    with (run.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": measure.ENOUGH, "seconds": 0.25}) + "\n")
    measure.learn(run, settled, probed)
    assert here.tried(probed["request"])["seen"] == {seconds.seen(settled.job): 0.25}
    timed, _ = start(run, Asked(), (), "train.time=3 min")
    assert (timed.job.train.steps, timed.plan.basis) == (720, "as the last such run here took")
    measure.learn(run, settled, {"failed": "no torch"})  # nothing to keep it beside


def test_steps_before_the_last_start_teach_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may have been of another size."""
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path / "cache"))
    settled, probed = start(run, Asked())
    info(run, probed, "this one")
    key, few = seconds.seen(settled.job), measure.ENOUGH - 1
    old = [{"step": step, "seconds": 9.0, "incarnation": 1} for step in range(1, 101)]
    new = [{"step": 100 + step, "seconds": 0.5, "incarnation": 2} for step in range(1, few + 2)]
    for lines in (old + new[:few], old + new):
        (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        measure.learn(run, settled, probed)
        assert here.tried(probed["request"]).get("seen", {}) == ({key: 0.5} if len(lines) > 100 + few else {})
