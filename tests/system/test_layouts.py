"""The shipped layouts train the laptop model to the losses of the laptop job, and a run goes on in another layout."""

from __future__ import annotations

import argparse
import ast
import inspect
import shutil
import subprocess
import typing

import pytest
from tests.system.harness import Command, Started, rows

from argosy.checkpoint.store import newest
from argosy.errors import DONE
from argosy.run.folder import Run
from argosy.run.incarnation import Incarnation

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

STEPS = 4
# In float32 an addition is off by 6e-8. Layouts add in other orders, some thousand numbers a sum, and Muon's iterations over
# some steps carry that on. What a wrong layout does (a share of a gradient missing, a row counted twice) is off by 1e-2.
CLOSE = 1e-4
WORDS = (
    "--model.layers", "4", "--strict", "--train.steps", "1000", "--batch.tokens", "1024", "--train.precision", "float32",
    "--train.compile", "false",
    "--checkpoint.every", "never", "--evaluate.every", "never", "--observe.sample_every", "never",
)  # fmt: skip


def train(command: Command, name: str, job: str, *words: str, workers: int | None = None) -> Started:
    """`argosy train JOB` on some modules of the standard library, for more steps than anybody waits for."""
    text = command.folder / "modules"
    if not text.exists():
        text.mkdir()
        for module in (argparse, ast, inspect, shutil, subprocess, typing):
            shutil.copy(str(module.__file__), text)
    given = ("--data.source", str(text), "--data.cache", str(command.folder / "cache"), *WORDS, *words)
    return command.train(name, *given, job=job, workers=workers)


def stopped(started: Started, step: int) -> Run:
    """The run, stopped after `step` or a little later."""
    started.reach(step)
    assert started.stop() == DONE, started.text
    return started.run


def same_training(run: Run, other: Run) -> None:
    """Both have trained the same model on the same tokens, as far as both have come."""
    mine, theirs = (rows(one.path / "metrics.jsonl") for one in (run, other))
    both = min(len(mine), len(theirs))
    assert both >= STEPS and [row["step"] for row in mine] == list(range(1, len(mine) + 1))
    for key in ("tokens", "lr"):
        assert [row[key] for row in mine[:both]] == [row[key] for row in theirs[:both]]
    for key in ("loss", "gradient_norm"):
        assert [row[key] for row in mine[:both]] == pytest.approx([row[key] for row in theirs[:both]], rel=CLOSE), key


@pytest.fixture(scope="module")
def laptop(place: Command) -> Run:
    """The laptop job on one worker."""
    run = stopped(train(place, "laptop", "laptop", workers=1), 3 * STEPS)
    place.clean()
    return run


JOBS = {"tp2": 2, "pp2": 2, "tp2-dp2": 4, "tp2-pp2": 4, "tp2-pp2-dp2": 8}


@pytest.mark.parametrize("job", JOBS)
def test_a_shipped_layout_trains_the_laptop_model(command: Command, laptop: Run, job: str) -> None:
    run = stopped(train(command, f"layout-{job}", job), STEPS)
    assert Incarnation.read(run, 1).world == JOBS[job]
    same_training(run, laptop)


ONWARDS = [
    ("tp2 dp2", 4, ("--layout.zero", "3", "--layout.order", "tp replicate dp cp pp")),
    ("pp2 dp2", 4, ("--layout.schedule", "interleaved", "--layout.virtual", "2")),
    ("dp1", 1, ()),
]


def test_a_run_stops_in_one_layout_and_goes_on_in_others(command: Command, laptop: Run) -> None:
    """E3: what a pipeline saved tensor ranks take up, then ranks of several stages each, then a single process."""
    run = stopped(train(command, "onwards", "pp2"), 2)
    for shape, workers, more in ONWARDS:
        step = len(rows(run.path / "metrics.jsonl"))
        found = newest(run)
        assert found is not None and found.step == step
        found.close()
        stopped(train(command, "onwards", "pp2", "--layout.shape", shape, *more, workers=workers), step + 2)
    incarnations = [row["incarnation"] for row in rows(run.path / "metrics.jsonl")]
    assert sorted(set(incarnations)) == [1, 2, 3, 4]
    assert [Incarnation.read(run, number).world for number in (1, 2, 3, 4)] == [2, 4, 4, 1]
    same_training(run, laptop)
