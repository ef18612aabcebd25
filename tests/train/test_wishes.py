"""What rank 0 hears of requests: each once, none missed, though the clock's tick is coarse."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from argosy.errors import MACHINE, Refused
from argosy.run import requests
from argosy.run.folder import Run
from argosy.run.requests import Request
from argosy.train.wishes import Wishes


def told(run: Run, request: Request, when: int) -> None:
    requests.tell(run, request)
    os.utime(run.local / "request", ns=(when, when))


def made(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.local.mkdir(parents=True)
    return run


def test_a_save_is_brought_once_and_a_stop_from_then_on(tmp_path: Path) -> None:
    run = made(tmp_path)
    wishes = Wishes(run, looks=True)
    assert wishes() == frozenset()
    requests.tell(run, Request(save=True, number=1))
    assert [wishes(), wishes()] == [{"save"}, frozenset()]
    requests.tell(run, Request(save=True, stop=True, number=2))
    assert [wishes(), wishes()] == [{"save", "stop"}, {"stop"}]
    assert Wishes(run, looks=False)() == frozenset()


def test_who_trains_where_no_folder_is_any_more_ends(tmp_path: Path) -> None:
    run = made(tmp_path)
    wishes = Wishes(run, looks=True)
    assert wishes() == frozenset()
    run.path.rename(tmp_path / "moved")
    assert Wishes(Run(tmp_path / "moved"), looks=True)() == frozenset()
    with pytest.raises(Refused, match="was moved or removed while it was going") as refused:
        wishes()
    assert refused.value.code == MACHINE


def test_two_requests_within_one_tick_of_the_clock_are_both_heard(tmp_path: Path) -> None:
    run = made(tmp_path)
    wishes, long_ago = Wishes(run, looks=True), 10**18
    told(run, Request(save=True, number=1), long_ago)
    assert wishes() == {"save"}
    told(run, Request(stop=True, number=2), long_ago)
    assert wishes() == {"stop"}


def test_a_new_request_is_heard_even_in_the_same_file_at_the_same_time(tmp_path: Path) -> None:
    """A file system may give the new file the number of the one before the last."""
    run = made(tmp_path)
    wishes = Wishes(run, looks=True)
    requests.tell(run, Request(save=True, number=1))
    later = os.stat(run.local / "request").st_mtime_ns + 3_600_000_000_000  # so that it is fresh however slow this is
    os.utime(run.local / "request", ns=(later, later))
    assert wishes() == {"save"}
    (run.local / "request").write_text('{"stop": true, "save": false, "reason": "", "number": 2}')
    os.utime(run.local / "request", ns=(later, later))
    assert wishes() == {"stop"}
