"""A process that is itself a rank: what it leaves with, and what happens when its clerk cannot go on."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from argosy.cluster.here import machine
from argosy.commands import conduct, launched
from argosy.commands.conduct import Start, Wanted
from argosy.errors import DONE, SAVED
from argosy.fleet.clerk import Clerk
from argosy.layout.world import World
from argosy.observe import progress
from argosy.run import requests
from argosy.run.folder import Run
from argosy.run.requests import Request
from argosy.run.rule import Verdict

Begin = Callable[..., tuple[Start, Run]]


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Begin:
    """`begin("train.steps=3")`: all that stands before the first worker starts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ARGOSY_RUNS", raising=False)
    monkeypatch.delenv("ARGOSY_LOCAL", raising=False)
    (tmp_path / "text").mkdir()
    for number in range(30):
        (tmp_path / f"text/{number}.txt").write_text(f"line {number}\n" * 50)

    def made(*overrides: str) -> tuple[Start, Run]:
        words = ["data.source=text", "data.cache=cache", "train.precision=float32", "train.compile=false", *overrides]
        wanted = Wanted("smoke", [*words, "evaluate.every=never", "observe.sample_every=never"], workers=0)
        screen = progress.screen("plain", io.StringIO())
        start = Start(wanted, wanted.loaded(), Verdict("create", Path("runs/smoke"), "new"), machine(), 0, screen)
        conduct.ready(start)
        return start, conduct.keep(start)

    return made


def test_a_rank_that_follows_leaves_with_the_code_of_what_stopped_it(begin: Begin) -> None:
    start, run = begin("train.steps=3")
    where = World(0, 1, 0, 1, "localhost", 1, "torchrun")
    note = launched._note(where, Path("runs"))
    ended = []
    for reason in ("SIGUSR1", "argosy stop", ""):
        requests.clear(run)
        if reason:
            requests.tell(run, Request(stop=True, reason=reason, number=1))
        made = conduct.incarnation(start, run, os.getpid())
        made.write(run)
        note.write_text(json.dumps({"run": str(run.path), "incarnation": made.number, "pid": os.getpid()}))
        outcome, _ = launched.follow(where, Path("runs"))
        ended.append((outcome.code, outcome.state, outcome.step))
    assert ended == [(SAVED, "stopped", 1), (DONE, "stopped", 2), (DONE, "finished", 3)]


def test_a_clerk_that_cannot_go_on_stops_the_run_and_is_heard_of(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    start, run = begin("train.steps=300")

    def full(clerk: Clerk) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Clerk, "tick", full)
    with pytest.raises(OSError, match="No space left"):
        launched.alone(start, run)
    assert 0 < run.newest_step() < 300
