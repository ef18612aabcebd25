"""Killed at every named point: the run goes on by itself, and every step is what it is in an undisturbed run, bit for bit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.system.harness import Command, Started, same

from argosy.points import POINTS
from argosy.run.folder import Run

# One after the other. Those at the start of a worker come when a kill before them has made workers start again; while those of
# the reader and the writer act, the workers go on taking steps.
ORDER = sorted(POINTS, key=lambda name: (name == "worker.end", name.startswith("worker."), name.startswith("step.")))


def killed_at(command: Command, name: str, points: list[str], tmp_path: Path) -> Started:
    """A run in which each of `points` kills the process that passes it, one after the other; then it is stopped."""
    marks = [Path(f"{tmp_path / 'hit'}.{point}") for point in points]
    asked = ",".join(f"{point}:1:kill" for point in points)
    environment = {"ARGOSY_POINT": asked, "ARGOSY_POINT_ONCE": str(tmp_path / "hit")}
    started = command.train(name, environment=environment)
    waited = [mark for mark, point in zip(marks, points, strict=True) if point != "worker.end"]
    for mark in waited:
        started.until(mark.exists, f"the kill at {mark.name}")
    reached = started.step
    started.reach(reached + 2)
    assert started.stop() == 0, started.text
    assert all(mark.exists() for mark in marks), "every kill happened"
    return started


def test_killed_in_the_middle_it_goes_on_bit_for_bit(command: Command, undisturbed: Run, tmp_path: Path) -> None:
    started = killed_at(command, "some-points", ["step.vote.after", "checkpoint.rename.before", "step.begin"], tmp_path)
    same(started.run, undisturbed, 4)
    assert "was killed (signal 9, SIGKILL)" in started.text


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_killed_at_every_point(command: Command, undisturbed: Run, tmp_path: Path) -> None:
    started = killed_at(command, "all-points", ORDER, tmp_path)
    same(started.run, undisturbed, 16)


def test_no_point_is_left_out() -> None:
    assert sorted(ORDER) == sorted(POINTS) and ORDER[-1] == "worker.end"
    assert len(POINTS) >= 20 and not os.environ.get("ARGOSY_POINT")
