"""Runs led by a real driver over tiny processes: forked, killed and reaped like real ones, without torch."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from argosy.fleet.agent import Agent
from argosy.fleet.driver import Driver, Outcome
from argosy.fleet.workers import WarmServer
from argosy.job import leaves
from argosy.job.load import load
from argosy.job.setting import Setting
from argosy.run import folder, requests
from argosy.run.folder import Run
from argosy.run.incarnation import Incarnation

TRADES = Path(__file__).parent / "trades"
ENTRIES = {"worker": "tiny:worker", "reader": "tiny:reader", "snapshot": "tiny:snapshot"}
LIGHT = ("argosy.run.bound", "argosy.run.child", "argosy.run.record", "argosy.run.incarnation")  # no torch


class Heard:
    """A screen that remembers."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.faults: list[str] = []
        self.notes: list[str] = []
        self.reasons: list[str] = []

    def news(self, line, steps):
        if line.kind == "step":
            self.steps.append(line.row["step"])

    def note(self, text):
        self.notes.append(text)

    def saved(self, row):
        self.notes.append(f"saved {row['step']}")

    def fault(self, sentence, followup=""):
        self.faults.append(f"{sentence} {followup}")

    def stopping(self, reason):
        self.reasons.append(reason)

    def tick(self):
        pass


class Led:
    """One run after the driver left it."""

    def __init__(self, run: Run, outcome: Outcome, screen: Heard):
        self.run, self.outcome, self.screen = run, outcome, screen
        self.journal = [json.loads(line) for line in (run.path / "journal.jsonl").read_text().splitlines()]
        metrics = run.path / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        self.steps = [json.loads(line)["step"] for line in lines]

    def actions(self) -> list[str]:
        decided = [row for row in self.journal if row["what"] == "decided"]
        return [action["action"] for row in decided for action in row["actions"]]


def make(path: Path, script: dict[str, str], *overrides: str) -> Run:
    loaded = load("smoke", ["train.steps=6", *overrides])
    run = folder.create(path, asked=loaded.job, text=loaded.text, origin={"versions": {"argosy": "0"}})
    rows = [Setting(key, None, leaves.plain(value), "default") for key, value in leaves.leaves(loaded.job).items()]
    folder.settle(run, loaded.job, loaded.written, rows, path, loaded.text)
    (path / "script.json").write_text(json.dumps(script))
    return run


@pytest.fixture
def lead(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(TRADES))
    monkeypatch.setenv("PYTHONPATH", str(TRADES))
    for name in ("SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    server = WarmServer(LIGHT)

    def led(
        script: dict[str, str],
        *overrides: str,
        world: int = 2,
        run: Run | None = None,
        server: WarmServer = server,
        newest: int = 0,
        **options,
    ) -> Led:
        run = run or make(tmp_path / "run", script, *overrides)
        if newest:  # a checkpoint that lies there before
            (run.checkpoints / f"step-{newest:06d}").mkdir()
            (run.checkpoints / f"step-{newest:06d}/manifest.json").touch()
        screen = Heard()
        with run.lock(60) as lock:
            requests.clear(run)  # as every start does as soon as it holds the run
            first = Incarnation(Incarnation.next(run), world, f"dp{world}", 1, parent=os.getpid())
            outcome = Driver(run, first, screen, Agent(run, lock, server, ENTRIES), **options).run()
        return Led(run, outcome, screen)

    yield led
    server.stop()


@pytest.fixture
def made(tmp_path):
    """A run that nobody leads, and a screen."""
    return make(tmp_path / "run", {}), Heard()
