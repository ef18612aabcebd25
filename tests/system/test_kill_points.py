"""Killed at every named point: the run goes on by itself, and every step is what it is in an undisturbed run, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.system.harness import Command, Started, rows, same

from argosy.points import POINTS
from argosy.run.folder import Run

COMPILE = "worker.compile"  # passed only by a run that compiles
# One after the other. Those at the start of a worker come when a kill before them has made workers start again; while those of
# the reader and the writer act, the workers go on taking steps.
ORDER = sorted(
    set(POINTS) - {COMPILE},
    key=lambda name: (name == "worker.end", name.startswith("worker."), name.startswith("step."), name),
)
LAST_SAVE = [
    "save.copy.before",
    "save.copy.after",
    "save.announce.after",
    "checkpoint.data.after",
    "checkpoint.manifest.after",
    "checkpoint.rename.before",
    "checkpoint.rename.after",
    "worker.end",
]


def killed_at(
    command: Command, name: str, points: list[str], tmp_path: Path, *words: str, last: int = 1, further: int = 2
) -> Started:
    """A run in which each of `points` kills the process that passes it, one after the other; then it is stopped.

    The `last` of them come only when it is stopped; before that it goes on for `further` steps.
    """
    marks = [Path(f"{tmp_path / 'hit'}.{point}") for point in points]
    asked = ",".join(f"{point}:1:kill" for point in points)
    environment = {"ARGOSY_POINT": asked, "ARGOSY_POINT_ONCE": str(tmp_path / "hit")}
    environment["ARGOSY_POINTS_LOG"] = str(passed(command))
    started = command.train(name, *words, environment=environment)
    for mark in marks[: len(marks) - last]:
        started.until(mark.exists, f"the kill at {mark.name}")
    reached = started.step
    started.reach(reached + further)
    assert started.stop() == 0, started.text
    assert all(mark.exists() for mark in marks), "every kill happened"
    return started


def passed(command: Command) -> Path:
    """Where every run of this file writes the points that it passes."""
    return command.folder / "points.log"


def test_killed_in_the_middle_it_goes_on_bit_for_bit(command: Command, undisturbed: Run, tmp_path: Path) -> None:
    started = killed_at(
        command, "some-points", ["step.vote.after", "checkpoint.rename.before", "step.begin"], tmp_path, last=0
    )
    same(started.run, undisturbed, 4)
    assert "was killed (signal 9, SIGKILL)" in started.text


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_killed_at_every_point(command: Command, undisturbed: Run, tmp_path: Path) -> None:
    started = killed_at(command, "all-points", ORDER, tmp_path)
    same(started.run, undisturbed, 16)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_killed_throughout_the_last_save(command: Command, undisturbed: Run, tmp_path: Path) -> None:
    """The only save is the one of the end, and every part of it is cut off once."""
    never = ("checkpoint.every=never",)
    started = killed_at(command, "last-save", LAST_SAVE, tmp_path, *never, last=len(LAST_SAVE))
    same(started.run, undisturbed, 1)
    assert started.run.newest_step() == rows(started.run.path / "metrics.jsonl")[-1]["step"]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_killed_while_blocks_are_compiled(command: Command, tmp_path: Path) -> None:
    """The same losses as a compiled run that nobody disturbs: compiled code rounds otherwise than the one taken as written."""
    words = ("train.compile=true",)
    quiet = command.train("compiled", *words)
    quiet.reach(6)
    assert quiet.stop() == 0, quiet.text
    started = killed_at(command, "killed-compiling", [COMPILE], tmp_path, *words, last=0, further=6)
    same(started.run, quiet.run, 6)
    assert "was killed (signal 9, SIGKILL)" in started.text


@pytest.mark.long
def test_no_point_is_left_out(command: Command, request: pytest.FixtureRequest) -> None:
    """Every point of the table was passed by the runs above; one that none passes guards nothing."""
    needed = {test_killed_at_every_point.__name__, test_killed_while_blocks_are_compiled.__name__}
    if not needed <= {item.name for item in request.session.items}:
        pytest.skip("only a session with all kills of this file can tell")
    assert set(passed(command).read_text(encoding="utf-8").split()) == set(POINTS)
