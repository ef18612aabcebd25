"""A process that is itself a rank: what it leaves with, and what happens when its clerk cannot go on."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from argosy.cluster.here import machine
from argosy.commands import conduct, launched
from argosy.commands.conduct import Start, Wanted
from argosy.errors import DONE, INPUT, SAVED, Refused
from argosy.fleet.clerk import Clerk
from argosy.layout.world import World
from argosy.observe import progress
from argosy.run import requests
from argosy.run.folder import Run, write_whole
from argosy.run.incarnation import Incarnation
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
        with launched._posted(note, run, made):
            outcome, _ = launched.follow(where, Path("runs"))
        assert not note.exists()
        ended.append((outcome.code, outcome.state, outcome.step))
    assert ended == [(SAVED, "stopped", 1), (DONE, "stopped", 2), (DONE, "finished", 3)]


def test_each_node_keeps_what_is_short_lived_on_its_own_disk(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process as the only rank of a launch, on another node than the one where the start was described."""
    start, run = begin("train.steps=3")
    where = World(0, 1, 0, 1, "localhost", 1, "torchrun", node=1, nodes=2)
    note = launched._note(where, Path("runs"))
    made = replace(conduct.incarnation(start, run, os.getpid()), world=1, nodes=1)
    made.write(run)
    described = run.local / f"incarnation-{made.number}.json"
    monkeypatch.setenv("ARGOSY_LOCAL", str(tmp_path / "scratch"))
    own = run.local
    assert own.is_relative_to(tmp_path / "scratch") and not own.exists()
    own.mkdir(parents=True)
    stale = own / described.name  # of a start that died before anybody counted it
    stale.write_text(described.read_text().replace('"world": 1', '"world": 7'))
    # Its own last request, from when this node led, says nothing about this start; what rank 0 was told does.
    for folder, request in (
        (own, Request(stop=True, reason="argosy stop")),
        (run.path / "local", Request(reason="SIGUSR1")),
    ):
        write_whole(folder / "request", json.dumps(asdict(request)))
    with launched._posted(note, run, replace(made, nodes=2)):
        again = json.loads(note.read_text())
        again["start"] = asdict(made)
        monkeypatch.setattr(
            launched, "_wait", lambda where, note: again
        )  # of a launch of two, this is one that can run alone
        outcome, found = launched.follow(where, Path("runs"))
    assert found.path == run.path.absolute()
    assert (outcome.code, outcome.state, outcome.step) == (SAVED, "stopped", 1)
    assert stale.read_text() == described.read_text()
    assert list(own.glob("record-*")) and not list((run.path / "local").glob("record-*"))


def test_a_node_whose_disk_cannot_be_used_says_so(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, run = begin("train.steps=3")
    (tmp_path / "file").touch()
    monkeypatch.setenv("ARGOSY_LOCAL", str(tmp_path / "file" / "scratch"))
    where = World(1, 2, 0, 1, "localhost", 1, "Slurm", node=1, nodes=2)
    with pytest.raises(Refused, match=r"node 1 cannot keep there.*ARGOSY_LOCAL must name a folder") as refused:
        launched._own_folder(where, run, conduct.incarnation(start, run, None))
    assert refused.value.code == INPUT


def test_a_note_that_nobody_renews_is_of_a_launch_that_was_killed(tmp_path: Path) -> None:
    where = World(1, 2, 0, 1, "localhost", 1, "Open MPI", node=1, nodes=2)
    note = launched._note(where, tmp_path)
    note.write_text(json.dumps({"run": "old", "start": {}, "pid": os.getpid(), "beat": 3}))
    with pytest.raises(Refused, match="rank 0 prepared no run"):
        launched._wait(where, note, 0.3)
    with launched._posted(note, Run(tmp_path / "new"), Incarnation(1, 2, "replicate2", 1, nodes=2)):
        assert launched._wait(where, note, 600)["run"] == str(tmp_path / "new")
    assert not note.exists()
    beside = World(1, 2, 1, 2, "localhost", 1, "Open MPI")  # on the same node its writer can be looked for
    note = launched._note(beside, tmp_path)
    note.write_text(json.dumps({"run": "old", "start": {}, "pid": 2**31 - 1, "beat": 0}))
    with pytest.raises(Refused, match="rank 0 prepared no run"):
        launched._wait(beside, note, 0.3)


def test_ranks_meet_beside_the_run_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_RUNS", str(tmp_path / "runs"))
    assert launched.root(None) == tmp_path / "runs"
    assert launched.root(Path("/shared/one")) == Path("/shared")


def test_a_clerk_that_cannot_go_on_stops_the_run_and_is_heard_of(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    start, run = begin("train.steps=300")

    def full(clerk: Clerk) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Clerk, "tick", full)
    with pytest.raises(OSError, match="No space left"):
        launched.alone(start, run)
    assert 0 < run.newest_step() < 300


def test_who_leaves_at_once_is_told_what_is_saved(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    start, run = begin("train.steps=3")

    def hurried(*given: object) -> str:
        raise KeyboardInterrupt  # as the second Ctrl-C does

    monkeypatch.setattr("argosy.train.worker.live", hurried)
    outcome = launched.alone(start, run)
    assert outcome.because.startswith("left at once by a second Ctrl-C")
    assert outcome.state != "failed"
