"""What workers are started with: written, read, and numbers that never come back."""

from __future__ import annotations

import os

import pytest

from argosy.errors import Refused
from argosy.job.load import load
from argosy.run import folder
from argosy.run.incarnation import Incarnation


@pytest.fixture
def run(tmp_path):
    loaded = load("smoke")
    return folder.create(tmp_path / "r", asked=loaded.job, text=loaded.text, origin={})


def test_there_and_back(run):
    made = Incarnation(3, 4, "dp4", 1, nodes=2, master="host:29500")
    made.write(run)
    assert Incarnation.read(run, 3) == made
    assert made.local_world == 2
    with pytest.raises(Refused, match="not described"):
        Incarnation.read(run, 4)


def test_who_is_alone():
    assert Incarnation(1, 1, "dp1", 1).alone
    assert Incarnation(1, 1, "dp1", 1, parent=os.getpid()).alone
    assert not Incarnation(1, 1, "dp1", 1, parent=os.getppid()).alone


def test_numbers_rise_for_ever(run):
    assert Incarnation.next(run) == 1
    Incarnation(1, 1, "dp1", 1).write(run)
    Incarnation(10, 1, "dp1", 1).write(run)
    assert Incarnation.next(run) == 11
    run.update_info(incarnation=20)  # the local folder may be gone, run.json remembers
    assert Incarnation.next(run) == 21
