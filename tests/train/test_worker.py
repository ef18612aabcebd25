"""Ranks from birth to end: alone and together, stopped and going on, under one layout and another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from argosy.run import requests
from argosy.run.folder import Run
from argosy.run.requests import Request


def rows(run: Run, name: str) -> list[dict[str, Any]]:
    """The lines of one of the run's files."""
    return [json.loads(line) for line in (run.path / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the undisturbed run of this module's job lies, trained by one rank."""
    return tmp_path_factory.mktemp("whole") / "run"


@pytest.fixture
def undisturbed(whole: Path, make_run: Any, work: Any, losses_of: Any) -> Run:
    """One rank, from the first step to the last, once for all tests of this module."""
    if not whole.exists():
        assert work(make_run(whole)) == 0
        losses_of(Run(whole))
    return Run(whole)


def test_a_run_trains_to_its_end(undisturbed: Run, losses_of: Any) -> None:
    found = losses_of(undisturbed)
    assert [step for step, _ in found] == list(range(1, 9))
    assert found[-1][1] < found[0][1]
    assert undisturbed.newest_step() == 8
    assert [row["step"] for row in rows(undisturbed, "evaluations.jsonl")] == [4, 8]
    assert [row["step"] for row in rows(undisturbed, "samples.jsonl")] == [4, 8]
    metrics = rows(undisturbed, "metrics.jsonl")
    assert metrics[-1]["tokens"] == 8 * 256
    assert all(row["bits_per_byte"] > 0 and row["lr"] > 0 and row["gradient_norm"] > 0 for row in metrics)


def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    undisturbed: Run, make_run: Any, work: Any, losses_of: Any, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run")
    requests.tell(run, Request(stop=True, reason="SIGTERM", number=1))
    assert work(run) == 0
    assert run.newest_step() == 1  # the first vote heard it
    requests.clear(run)
    assert work(run) == 0
    assert losses_of(run) == losses_of(undisturbed)
    assert rows(run, "samples.jsonl")[-1]["text"] == rows(undisturbed, "samples.jsonl")[-1]["text"]
    for file in ("evaluations.jsonl",):
        assert [row["loss"] for row in rows(run, file)] == [row["loss"] for row in rows(undisturbed, file)]


LAYOUTS = [
    ("replicate2", 2, None),
    ("replicate3", 3, None),
    ("dp2", 2, 1),
    ("dp2", 2, 2),
    ("dp2", 2, 3),
    ("replicate2 dp2", 4, 2),
]


@pytest.mark.parametrize("shape, ranks, zero", LAYOUTS, ids=str)
def test_a_layout_gives_the_same_losses_and_another_goes_on(
    undisturbed: Run,
    make_run: Any,
    work: Any,
    workers: Any,
    losses_of: Any,
    tmp_path: Path,
    shape: str,
    ranks: int,
    zero: int | None,
) -> None:
    """E2 in float32 along a whole run, and E3: the second half is done by one rank, from the checkpoint of many."""
    stage = {} if zero is None else {"layout.zero": zero}
    run = make_run(tmp_path / "run", ranks, **{"layout.shape": shape, **stage})
    assert workers(run, shape, ranks) == [0] * ranks
    expected = losses_of(undisturbed)
    assert [step for step, _ in losses_of(run)] == [step for step, _ in expected]
    assert [loss for _, loss in losses_of(run)] == pytest.approx([loss for _, loss in expected], rel=2e-5)
    shutil.rmtree(run.checkpoints / "step-000008")
    assert work(run) == 0
    assert [loss for _, loss in losses_of(run)] == pytest.approx([loss for _, loss in expected], rel=2e-5)
    assert run.newest_step() == 8
