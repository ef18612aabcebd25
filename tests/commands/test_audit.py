"""`argosy audit`: every kind of event has its sentence; foreign and torn lines cost nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from argosy.__main__ import main
from argosy.commands.audit import line, sentence
from argosy.fleet.journal import Journal
from argosy.policy.events import Broken, End
from argosy.policy.rules import decide
from argosy.policy.state import Fleet
from argosy.run.folder import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    path = tmp_path / "runs" / "small"
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps({"version": 1, "id": "x", "name": "small", "state": "new"}))
    return Run(path)


def happened(run: Run) -> str:
    """One event of each kind, as driver and clerk write them; gives the sentence of the decision."""
    journal = Journal(run)
    journal.note("begun", time=1.5, command="argosy train smoke", because="new run")
    journal.started(1, 2, 0)
    journal.note("saved", step=1200, bytes=2_000_000, seconds=0.25, waited=0.031, ok=True, incarnation=1)
    event = Broken((End("worker", 7, "killed", rank=1, signal=9),))
    decision = decide(Fleet(2, step=1300), event)
    journal.decided(event, decision)
    journal.started(2, 1, 1200)
    journal.note("recovered", step=1201, seconds=1.26)
    journal.note("waiting", step=1202, seconds=5.0, incarnation=2)
    journal.note("waited", step=1202, seconds=31.25, incarnation=2)
    journal.note("damaged", sentence="a file is missing; step 1,200 is used instead")
    journal.note("noted", sentence="waiting until step 1,300 is on the disk")
    journal.note("asked", stop=False, save=True, reason="")
    journal.note("asked", stop=True, save=False, reason="SIGTERM")
    journal.note("asked", stop=False, save=False, reason="")
    journal.note("ended", code=143, state="stopped", step=1300, because="SIGTERM")
    return decision.because


def test_every_event_is_a_sentence(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    because = happened(run)
    assert main(["audit", str(run.path)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "1970-01-01T00:00:01Z  begun      argosy train smoke (new run)"
    assert [row[22:] for row in told[1:]] == [
        "started    incarnation 1: 2 workers, from the beginning",
        "saved      step 1,200, 1.9 MiB, written and verified in 0.25 s; training waited 0.03 s",
        f"decided    {because}",
        "started    incarnation 2: 1 worker, from step 1,200",
        "recovered  at step 1,201, 1.3 s after the fault",
        "waiting    for the batch of step 1,202, which did not come for 5 s",
        "waited     31.2 s for the batch of step 1,202",
        "damaged    a file is missing; step 1,200 is used instead",
        "noted      waiting until step 1,300 is on the disk",
        "asked      to save (argosy save)",
        "asked      to save and stop (SIGTERM)",
        "asked      what was asked is done",
        "ended      stopped at step 1,300, exit code 143: SIGTERM",
    ]
    assert "worker 1 was killed (signal 9, SIGKILL) at step 1,300" in because


def test_json_is_the_journal(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    happened(run)
    with (run.path / "journal.jsonl").open("a") as file:
        file.write('{"what": "en')
    assert main(["audit", str(run.path), "--json"]) == 0
    rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert rows == [json.loads(row) for row in (run.path / "journal.jsonl").read_text().splitlines()[:-1]]


def test_what_is_not_known_is_told_as_it_is() -> None:
    assert sentence({"what": "drained", "time": 3, "node": "b12"}) == "node b12"
    assert sentence({"what": "saved", "step": "x", "bytes": None}) == "step x, bytes None"
    assert line({"time": "late"}).startswith("-" * 20)
    assert line({"time": 1e300, "what": ["a"], "k": 1}).endswith("k 1")


def test_a_run_without_journal_is_empty_and_no_run_is_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", str(run.path)]) == 0
    assert capsys.readouterr().out == ""
    assert main(["audit", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
