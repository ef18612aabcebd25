"""The journal: events, decisions and reasons, read back; a torn line is no line."""

from __future__ import annotations

from argosy.fleet.journal import Journal, read
from argosy.policy.events import Broken, End
from argosy.policy.rules import decide
from argosy.policy.state import Fleet
from argosy.run.folder import Run


def test_there_and_back(tmp_path):
    journal = Journal(Run(tmp_path))
    journal.started(1, 2, 0)
    event = Broken((End("worker", 7, "killed", rank=1, signal=9),))
    decision = decide(Fleet(2), event)
    journal.decided(event, decision)
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"what": "en')
    started, decided = read(tmp_path / "journal.jsonl")
    assert started["incarnation"] == 1
    assert decided["because"] == decision.because
    assert decided["seen"]["ends"][0]["rank"] == 1
    assert decided["actions"] == [{"action": "Restart", "incarnation": 2}]
    assert read(tmp_path / "nothing") == []


def test_half_a_line_of_a_full_disk_costs_that_line_alone(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"what": "begun"}\n{"what": "sav{"what": "asked"}\n{"what": "ended"}\n{"wh')
    assert [row["what"] for row in read(path)] == ["begun", "ended"]
    assert read(tmp_path / "none.jsonl") == []
