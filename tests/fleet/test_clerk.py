"""Requests in, news out: what the parent passes on while the workers train."""

from __future__ import annotations

import pytest

from argosy.fleet.clerk import Clerk
from argosy.fleet.journal import read
from argosy.run import requests
from argosy.run.folder import append_line
from argosy.run.recorder import Recorder


def test_a_wish_to_save_is_told_and_answered_by_the_next_checkpoint(made):
    run, screen = made
    clerk = Clerk(run, screen)
    clerk.tick()
    assert not requests.told(run).save
    requests.ask(run, "save")
    clerk.tick()
    first = requests.told(run)
    assert first.save and not first.stop
    clerk.tick()
    assert requests.told(run) == first  # told once
    append_line(run.local / "saved.jsonl", {"step": 5, "ok": True})
    clerk.tick()
    assert screen.notes == ["saved 5"]
    assert requests.asked(run) == set()
    assert requests.answer(run, "save") == 5
    clerk.tick()
    assert not requests.told(run).save
    assert requests.told(run).number > first.number


def test_the_first_reason_to_stop_counts(made):
    run, screen = made
    clerk = Clerk(run, screen)
    clerk.stop("SIGTERM")
    clerk.stop("SIGINT")
    assert requests.told(run).reason == "SIGTERM"
    assert screen.reasons == ["SIGTERM"]


def test_a_full_disk_is_heard_and_half_a_line_is_not(made):
    run, screen = made
    clerk = Clerk(run, screen)
    with (run.local / "saved.jsonl").open("a") as file:
        file.write('{"step": 5, "ok": false, "error": "disk", "sentence": "no room"}\n{"step": 6')
    clerk.tick()
    assert clerk.lost == "no room"
    assert screen.notes == []


def test_what_an_earlier_start_saved_is_no_news(made):
    run, screen = made
    append_line(run.local / "saved.jsonl", {"step": 3, "ok": True})
    Clerk(run, screen).tick()
    assert screen.notes == []


def test_who_asked_before_the_clerk_came_is_heard(made):
    run, screen = made
    requests.ask(run, "stop")
    Clerk(run, screen).tick()
    assert requests.told(run).stop


def recorded(run, steps):
    """What rank 0 of incarnation 1 records."""
    recorder = Recorder(run, 0, 1)
    for step in range(1, steps + 1):
        recorder.scalar("loss", step, 1.0)
        recorder.step(step, step * 10**9, (step + 1) * 10**9)
    recorder.finish()


def test_a_batch_that_is_long_in_coming_is_an_event_at_once_and_when_it_came(made):
    run, screen = made
    clerk = Clerk(run, screen)
    clerk.begin(1)
    recorder = Recorder(run, 0, 1)
    recorder.mark("starving", 3, 5.25)
    clerk.tick()
    assert len(screen.notes) == 1, "told while it is still being waited for"
    assert screen.notes[0].startswith(
        "step 3 waits for its batch, for 5 s now: whatever holds the prepared text is slow"
    )
    recorder.mark("fed", 3, 31.25)
    recorder.finish()
    clerk.close()
    assert screen.notes[1:] == ["the batch for step 3 came after 31.2 s"]
    told = [row for row in read(run.path / "journal.jsonl") if row["what"] in ("waiting", "waited")]
    assert [(row["what"], row["step"], row["seconds"], row["incarnation"]) for row in told] == [
        ("waiting", 3, 5.25, 1),
        ("waited", 3, 31.25, 1),
    ]


@pytest.fixture
def wished(made):
    """A clerk that was asked for a checkpoint after three steps, and its run."""
    run, screen = made
    clerk = Clerk(run, screen)
    clerk.begin(1)
    recorded(run, 3)
    requests.ask(run, "save")
    clerk.tick()
    return clerk, run, screen


def test_a_checkpoint_of_before_the_wish_does_not_answer_it(wished):
    clerk, run, screen = wished
    assert screen.steps == [1, 2, 3]
    append_line(run.local / "saved.jsonl", {"step": 3, "ok": True, "incarnation": 1})  # begun before anybody asked
    clerk.tick()
    assert requests.asked(run) == {"save"}
    append_line(run.local / "saved.jsonl", {"step": 4, "ok": True, "incarnation": 1})
    clerk.tick()
    assert requests.answer(run, "save") == 4
    assert requests.asked(run) == set()


def test_after_a_restart_an_earlier_step_answers_too(wished):
    clerk, run, _ = wished
    clerk.begin(2)
    append_line(run.local / "saved.jsonl", {"step": 2, "ok": True, "incarnation": 2})
    clerk.tick()
    assert requests.answer(run, "save") == 2


def test_a_checkpoint_that_is_passed_over_stands_in_the_journal(made):
    run, screen = made
    clerk = Clerk(run, screen)
    clerk.begin(1)
    row = {"ok": False, "error": "damaged", "sentence": "a file is missing; step 3 is used instead"}
    append_line(run.local / "saved.jsonl", row)
    append_line(
        run.local / "saved.jsonl", {**row, "error": "waiting", "sentence": "waiting until step 4 is on the disk"}
    )
    clerk.tick()
    told = [(line["what"], line["sentence"]) for line in read(run.path / "journal.jsonl")]
    assert told == [("damaged", row["sentence"]), ("noted", "waiting until step 4 is on the disk")]
    assert screen.notes == [sentence for _, sentence in told]
