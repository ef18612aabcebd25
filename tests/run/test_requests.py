"""Asking a running job: files that appear, change and vanish."""

from __future__ import annotations

import signal

import pytest

from argosy.run import requests
from argosy.run.folder import Run
from argosy.run.requests import Request


@pytest.fixture
def run(tmp_path):
    (tmp_path / "local").mkdir()
    return Run(tmp_path)


def test_a_wish_stands_until_it_is_answered(run):
    assert requests.asked(run) == set()
    file = requests.ask(run, "save")
    requests.ask(run, "stop")
    assert requests.asked(run) == {"save", "stop"}
    requests.answered(run, "save", 12)
    assert not file.exists()
    assert requests.answer(run, "save") == 12
    assert requests.answer(run, "stop") is None
    assert requests.asked(run) == {"stop"}


def test_what_the_workers_are_told(run):
    assert requests.told(run) == Request()
    requests.tell(run, Request(stop=True, reason="SIGTERM", number=1))
    assert requests.told(run) == Request(stop=True, reason="SIGTERM", number=1)


def test_wishes_of_an_earlier_start_are_forgotten(run):
    requests.ask(run, "stop")
    requests.tell(run, Request(stop=True))
    requests.forward(run.local, signal.SIGTERM)
    requests.clear(run)
    assert requests.asked(run) == set()
    assert requests.told(run) == Request()
    assert requests.forwarded(run) is None


def test_a_signal_to_a_worker_is_forwarded_once(run):
    requests.forward(run.local, signal.SIGINT)
    assert requests.forwarded(run) == "SIGINT"
    assert requests.forwarded(run) is None


def test_nodes_with_a_local_folder_of_their_own_meet_in_the_run_folder(run, tmp_path, monkeypatch):
    (tmp_path / "run.json").write_text('{"version": 1, "id": "one"}')
    monkeypatch.setenv("ARGOSY_LOCAL", str(tmp_path / "scratch"))
    run.local.mkdir(parents=True)
    folder = requests.shared(run)
    assert folder == tmp_path / "local" and folder != run.local
    requests.forward(folder, signal.SIGTERM)  # by a rank of another node
    assert requests.forwarded(run) == "SIGTERM"
    assert requests.forwarded(run) is None
    told = Request(stop=True, reason="SIGTERM", number=2)
    requests.tell(run, told)
    assert requests.told(run) == requests.told(run, folder) == told
    requests.forward(folder, signal.SIGTERM)
    requests.clear(run)
    assert requests.told(run) == requests.told(run, folder) == Request()
    assert requests.forwarded(run) is None
    folder.rmdir()  # no other node: nothing is made there
    requests.tell(run, told)
    assert requests.told(run) == told and not folder.exists()
