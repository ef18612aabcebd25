"""Requests in, news out: what the parent passes on while the workers train."""

from __future__ import annotations

from argosy.fleet.clerk import Clerk
from argosy.run import requests
from argosy.run.folder import append_line


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


def test_what_an_earlier_start_was_asked_is_forgotten(made):
    run, screen = made
    requests.ask(run, "stop")
    append_line(run.local / "saved.jsonl", {"step": 3, "ok": True})
    clerk = Clerk(run, screen)
    clerk.tick()
    assert screen.reasons == []
    assert screen.notes == []
