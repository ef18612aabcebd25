"""Single processes: forked, watched, their end explained, and gone when the parent is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from argosy.fleet import workers
from argosy.fleet.workers import Child
from argosy.run.folder import Run

LONG = 60  # seconds; only a failure waits so long


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def run(tmp_path):
    (tmp_path / "local").mkdir()
    return Run(tmp_path)


def test_a_killed_child_is_told_from_one_that_left(sleeper, run):
    child = Child("reader", "reader", 1, sleeper.pid, sleeper)
    assert not child.gone
    child.kill()
    assert workers.wait_gone([child], LONG) == []
    end = child.end(run)
    assert (end.manner, end.signal, end.starved) == ("killed", signal.SIGKILL, False)
    child.close()


def test_a_child_that_left_without_a_word(sleeper, run):
    child = Child("reader", "reader", 1, sleeper.pid, sleeper)
    sleeper.stdin.close()
    assert workers.wait_gone([child], LONG) == []
    end = child.end(run)
    assert (end.manner, end.code) == ("left", 0)
    child.close()


def test_standing_still_is_seen_after_a_while_and_forgotten_when_it_goes_on(sleeper):
    child = Child("reader", "reader", 1, sleeper.pid, sleeper)
    assert not child.still(100.0)
    child.kill(signal.SIGSTOP)
    psutil_wait(sleeper.pid, psutil.STATUS_STOPPED)
    assert not child.still(101.0)
    assert child.still(101.0 + workers.STOPPED_FOR)
    child.kill(signal.SIGCONT)
    psutil_wait(sleeper.pid, psutil.STATUS_SLEEPING)
    assert not child.still(103.0)
    child.close()


def test_a_kill_for_memory_is_told_by_the_kernels_count(sleeper, run, tmp_path):
    count = tmp_path / "memory.events"
    count.write_text("low 0\noom 3\noom_kill 2\noom_group_kill 9\n")
    child = Child("worker", "rank-0000", 1, sleeper.pid, sleeper, 0)
    child.kills[count] = 2
    assert not child.look_at_memory()
    count.write_text("low 0\noom 4\noom_kill 3\n")
    child.kill()
    assert workers.wait_gone([child], LONG) == []
    assert child.end(run).starved
    child.close()


def test_what_the_server_is_told_is_not_left_in_the_environment(monkeypatch):
    monkeypatch.delenv("ARGOSY_WARM", raising=False)
    for compiles, told in ((True, "compile"), (False, None)):
        with workers._told(compiles):
            assert os.environ.get("ARGOSY_WARM") == told
        assert "ARGOSY_WARM" not in os.environ


def psutil_wait(pid: int, status: str) -> None:
    process = psutil.Process(pid)
    while process.status() != status:  # the kernel is about to say so
        time.sleep(0.005)


PARENT = """
    import os, sys
    sys.path.insert(0, sys.argv[2])
    from conftest import ENTRIES, LIGHT, Heard, make
    from argosy.fleet.agent import Agent
    from argosy.fleet.driver import Driver
    from argosy.fleet.workers import WarmServer
    from argosy.run.incarnation import Incarnation
    from pathlib import Path

    # No main guard: this line must run once, in the parent, and in no worker.
    with open(sys.argv[1] + "/mains", "a") as file:
        file.write("main\\n")
    run = make(Path(sys.argv[1]) / "run", {"1:0:2": "await never", "1:1:2": "await never"})
    with run.lock() as lock:
        first = Incarnation(1, 2, "dp2", 1, parent=os.getpid())
        Driver(run, first, Heard(), Agent(run, lock, WarmServer(LIGHT), ENTRIES)).run()
"""


def test_a_killed_parent_takes_all_with_it_and_frees_the_run(tmp_path, monkeypatch):
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", str(here / "trades"))
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(PARENT))
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path), str(here)])
    run = Run(tmp_path / "run")
    metrics = run.path / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()):
        assert parent.poll() is None, "the parent left before its workers had done a step"
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) >= 5  # server, two workers, reader, snapshot
    assert run.busy() == parent.pid
    parent.kill()
    parent.wait()
    assert psutil.wait_procs(children, timeout=LONG)[1] == []
    with run.lock(LONG):
        pass
    assert (tmp_path / "mains").read_text() == "main\n"
