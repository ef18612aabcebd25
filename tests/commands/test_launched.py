"""A process that is itself a rank: what it leaves with, and what happens when its clerk cannot go on."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from argosy.cluster.here import machine
from argosy.commands import conduct, launched
from argosy.commands.conduct import Start, Wanted
from argosy.errors import DONE, INPUT, SAVED, Refused
from argosy.fleet.clerk import Clerk
from argosy.fleet.driver import Outcome
from argosy.layout.world import World
from argosy.observe import progress
from argosy.run import requests
from argosy.run.folder import Run, write_whole
from argosy.run.incarnation import Incarnation
from argosy.run.requests import Request
from argosy.run.rule import Verdict

Begin = Callable[..., tuple[Start, Run]]
WORDS = [
    "data.source=text",
    "data.cache=cache",
    "train.precision=float32",
    "train.compile=false",
    "evaluate.every=never",
    "observe.sample_every=never",
]


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
        wanted = Wanted("smoke", [*WORDS, *overrides], workers=0)
        screen = progress.screen("plain", io.StringIO())
        start = Start(wanted, wanted.loaded(), Verdict("create", Path("runs/smoke"), "new"), machine(), 0, screen)
        conduct.ready(start)
        return start, conduct.keep(start)

    return made


def test_a_rank_that_follows_leaves_with_the_code_of_what_stopped_it(begin: Begin) -> None:
    start, run = begin("train.steps=3")
    where = World(0, 1, 0, 1, "localhost", 1, "torchrun")
    ended = []
    for reason in ("SIGUSR1", "argosy stop", ""):
        requests.clear(run)
        if reason:
            requests.tell(run, Request(stop=True, reason=reason, number=1))
        made = conduct.incarnation(start, run, os.getpid())
        with launched.Note(where, None) as note:
            note.tell(run, made)
            outcome, _ = launched.follow(where, Path("runs"))
        assert not note.path.exists()
        ended.append((outcome.code, outcome.state, outcome.step))
    assert ended == [(SAVED, "stopped", 1), (DONE, "stopped", 2), (DONE, "finished", 3)]


def test_each_node_keeps_what_is_short_lived_on_its_own_disk(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process as the only rank of a launch, on another node than the one where the start was described."""
    start, run = begin("train.steps=3")
    where = World(0, 1, 0, 1, "localhost", 1, "torchrun", node=1, nodes=2)
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
    with launched.Note(where, None) as note:
        note.tell(run, replace(made, nodes=2))
        again = json.loads(note.path.read_text())
        again["start"] = asdict(made)
        monkeypatch.setattr(
            launched, "_wait", lambda where, note: again
        )  # of a launch of two, this is one that can run alone
        outcome, found = launched.follow(where, Path("runs"))
    assert found.path == run.path.absolute()
    assert (outcome.code, outcome.state, outcome.step) == (SAVED, "stopped", 1)
    assert stale.read_text() == described.read_text()
    assert list(own.glob("record-*")) and not list((run.path / "local").glob("record-*"))


def test_a_stop_that_comes_before_another_node_is_heard_there(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, run = begin("train.steps=3")
    monkeypatch.setenv("ARGOSY_LOCAL", str(tmp_path / "scratch"))
    run.local.mkdir(parents=True)
    shutil.rmtree(run.path / "local")  # of the time before $ARGOSY_LOCAL was set
    heard = []

    def lead(start: Start, run: Run, number: int) -> Outcome:
        """In the place of the training: it is asked to stop before anybody has come."""
        Clerk(run, start.screen).stop("argosy stop")
        heard.append(requests.told(run, requests.shared(run)))
        return Outcome(DONE, "stopped", 0, "argosy stop")

    monkeypatch.setattr(launched, "lead", lead)
    with launched.Note(World(0, 2, 0, 1, "localhost", 1, "Slurm", node=0, nodes=2), None) as note:
        launched.first(note, start, run)
    assert [(request.stop, request.reason) for request in heard] == [(True, "argosy stop")]


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
    with launched.Note(where, tmp_path / "new") as posted:
        assert posted.path == note
        posted.tell(Run(tmp_path / "new"), Incarnation(1, 2, "replicate2", 1, nodes=2))
        assert launched._wait(where, note, 600)["run"] == str(tmp_path / "new")
    assert not note.exists()
    beside = World(1, 2, 1, 2, "localhost", 1, "Open MPI")  # on the same node its writer can be looked for
    note = launched._note(beside, tmp_path)
    note.write_text(json.dumps({"run": "old", "start": {}, "pid": 2**31 - 1, "beat": 0}))
    with pytest.raises(Refused, match="rank 0 prepared no run"):
        launched._wait(beside, note, 0.3)


class Hours:
    """A clock on which a minute passes whenever it is looked at, and what happens at each look."""

    def __init__(self, happens: Callable[[int], None]):
        self.minutes, self.happens = 0, happens

    def __call__(self) -> float:
        self.minutes += 1
        self.happens(self.minutes)
        return 60.0 * self.minutes


@pytest.mark.parametrize("node", [0, 1])
def test_rank_0_is_waited_for_while_it_prepares_however_long_that_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], node: int
) -> None:
    where = World(1, 2, 1 - node, 2 - node, "localhost", 1, "Slurm", node=node, nodes=1 + node)
    note = launched.Note(where, tmp_path / "run")

    def happens(minute: int) -> None:
        if 3 <= minute < 20:
            note._write()
        elif minute == 20:
            note.tell(Run(tmp_path / "run"), Incarnation(1, 2, "replicate2", 1))

    hours = Hours(happens)
    assert launched._wait(where, note.path, 300.0, 150.0, hours)["run"] == str(tmp_path / "run")
    assert hours.minutes == 20
    said = capsys.readouterr().err.splitlines()
    if node == 0:  # rank 0 itself speaks there
        assert said == []
    else:
        assert said[0] == "waiting for rank 0, of which nothing is seen yet (1 min so far)"
        assert said[-1] == "waiting for rank 0, which prepares the run (18 min so far)"


@pytest.mark.parametrize("node", [0, 1])
def test_a_rank_0_that_leaves_while_it_prepares_is_not_waited_for(tmp_path: Path, node: int) -> None:
    """On its own node it is missed at once, on another one when its note was not renewed for a while."""
    where = World(1, 2, 1 - node, 2 - node, "localhost", 1, "Slurm", node=node, nodes=1 + node)
    note = tmp_path / "note.json"
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    def happens(minute: int) -> None:
        if minute < 10:
            write_whole(note, json.dumps({"pid": process.pid, "beat": minute}))
        elif minute == 10:
            process.kill()
            process.communicate()
            note.unlink()

    hours = Hours(happens)
    with pytest.raises(Refused, match=r"rank 0 left before it had prepared a run\. Its output tells why\."):
        launched._wait(where, note, 36_000.0, 150.0, hours)
    assert hours.minutes == (10 if node == 0 else 12)


@pytest.mark.parametrize("launcher", ["Slurm", "torchrun"])
def test_a_rank_0_that_was_refused_is_not_waited_for_by_who_comes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    """torchrun and mpirun end all ranks when one fails, srun does not: there the note stays, for a day."""
    where = World(1, 2, 1, 2, "localhost", 1, launcher)
    note = launched.Note(World(0, 2, 0, 2, "localhost", 1, launcher), tmp_path / "run")
    with pytest.raises(Refused, match="no such text"), note:
        raise Refused("no such text")
    assert note.path.exists() == (launcher == "Slurm")
    if launcher == "Slurm":
        hours = Hours(lambda minute: None)
        with pytest.raises(Refused, match="rank 0 left before it had prepared a run"):
            launched._wait(where, note.path, 36_000.0, 150.0, hours)
        assert hours.minutes == 2
    monkeypatch.setenv("SLURM_JOB_ID", "another")
    for old, left in ((False, launcher == "Slurm"), (True, False)):
        if old and note.path.exists():
            os.utime(note.path, (0, 0))
        with launched.Note(where, tmp_path / "run"):
            assert note.path.exists() == left


def test_what_somebody_else_left_where_ranks_meet_hinders_nobody(tmp_path: Path) -> None:
    theirs = tmp_path / ".launch-Slurm-theirs.json"
    theirs.mkdir()  # nobody, also no root, can unlink a folder
    os.utime(theirs, (0, 0))
    with launched.Note(World(0, 2, 0, 2, "localhost", 1, "Slurm"), tmp_path / "run") as note:
        assert note.path.exists()
    assert theirs.exists() and not note.path.exists()


@pytest.mark.parametrize(("launcher", "code"), [("Slurm", 1), ("Slurm", SAVED), ("Slurm", DONE), ("torchrun", 1)])
def test_a_rank_that_comes_when_the_run_has_failed_is_told(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str, code: int
) -> None:
    start, run = begin("train.steps=3")
    monkeypatch.setattr(launched, "lead", lambda *given: Outcome(code, "failed" if code == 1 else "stopped", 0, "why"))
    with launched.Note(World(0, 2, 0, 2, "localhost", 1, launcher), tmp_path / "run") as note:
        launched.first(note, start, run)
    assert note.path.exists() == (launcher == "Slurm" and code == 1)
    if note.path.exists():
        where = World(1, 2, 1, 2, "localhost", 1, launcher)
        with pytest.raises(Refused, match="rank 0 left before this rank came"):
            launched._wait(where, note.path, 36_000.0, 150.0, Hours(lambda minute: None))


def test_a_note_that_cannot_be_taken_away_changes_nothing_of_how_it_ended(tmp_path: Path) -> None:
    with launched.Note(World(0, 2, 0, 2, "localhost", 1, "torchrun"), tmp_path / "run") as note:
        note.path.unlink()
        note.path.mkdir()
    assert note.path.is_dir()


def test_a_rank_0_that_lives_beside_is_waited_for_when_its_note_was_swept(tmp_path: Path) -> None:
    where = World(1, 2, 1, 2, "localhost", 1, "Slurm")
    note = launched.Note(where, tmp_path / "run")

    def happens(minute: int) -> None:
        if minute == 3:
            note._write()
        elif minute == 5:
            note.path.unlink()
        elif minute == 20:
            note.tell(Run(tmp_path / "run"), Incarnation(1, 2, "replicate2", 1))

    assert launched._wait(where, note.path, 300.0, 150.0, Hours(happens))["run"] == str(tmp_path / "run")


def test_only_a_named_run_is_looked_at_by_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conduct, "judged", lambda *given: pytest.fail("every rank reads all runs"))
    assert launched.done(World(1, 2, 1, 2, "localhost", 1, "torchrun"), Wanted("smoke", WORDS)) is None


def test_every_rank_sees_for_itself_that_there_is_nothing_to_do(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    _, run = begin("train.steps=3")
    words = [*WORDS, "train.steps=3"]
    where = World(1, 2, 1, 2, "localhost", 1, "torchrun")
    wanted = Wanted("smoke", words, run=run.path)
    assert launched.done(where, wanted) is None
    run.update_info(state="finished", step=3, steps=3)
    for other in (Wanted("smoke", [*WORDS, "train.steps=4"], run=run.path), Wanted("smoke", words)):  # there is, here
        assert launched.done(where, other) is None
    assert launched.done(where, Wanted("smoke", [*words, "model.layers=7"], run=run.path)) is None  # rank 0 refuses it
    monkeypatch.setattr(launched, "place", lambda: where)
    monkeypatch.setattr(launched, "follow", lambda *given: pytest.fail("it waits for rank 0, which has left"))
    outcome, found = conduct.lead(wanted)
    assert (outcome.code, outcome.state, found.path) == (DONE, "finished", run.path)


def test_ranks_that_cannot_meet_say_where(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    where = World(0, 2, 0, 2, "localhost", 1, "torchrun")
    with pytest.raises(Refused, match=r"cannot meet there.*--run DIR"), launched.Note(where, tmp_path / "file" / "run"):
        pass


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
