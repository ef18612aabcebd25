"""Single processes: forked, watched, their end explained, and gone when the parent is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from argosy.errors import MACHINE, Refused
from argosy.fleet import workers
from argosy.fleet.hold import Hold
from argosy.fleet.workers import Child, WarmServer
from argosy.policy.events import Broken, GiveUp
from argosy.policy.rules import decide
from argosy.policy.state import Fleet
from argosy.run.folder import Run
from argosy.run.incarnation import Incarnation

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
    assert (end.manner, end.signal, end.starved) == ("killed", signal.SIGKILL, "")
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


def test_a_kill_for_memory_is_told_by_the_kernels_count(sleeper, run, tmp_path, monkeypatch):
    count = tmp_path / "memory.events"
    count.write_text("low 0\noom 3\noom_kill 2\noom_group_kill 9\n")
    (tmp_path / "memory.max").write_text("2147483648\n")
    monkeypatch.setattr(
        workers.memory, "kills", lambda pid: {}
    )  # the file alone counts, whatever happens on this machine
    child = Child("worker", "rank-0000", 1, sleeper.pid, sleeper, 0)
    child.kills[count] = 2
    assert child.look_at_memory(time.monotonic()) == ""
    count.write_text("low 0\noom 4\noom_kill 3\n")
    child.kill()
    assert workers.wait_gone([child], LONG) == []
    end = child.end(run)
    assert end.starved == f"the memory of its control group (at most 2.0 GiB, {tmp_path / 'memory.max'})"
    decision = decide(Fleet(world=2, limit=3, step=7), Broken((end,)))
    assert decision.actions == (GiveUp(4, "out_of_memory"),)
    assert (
        decision.because
        == f"worker 0 was killed (signal 9, SIGKILL) at step 7: {end.starved} ran out and the kernel chose it"
    )
    child.close()


def test_what_was_killed_for_memory_long_ago_explains_no_other_kill(sleeper, tmp_path, monkeypatch):
    count = tmp_path / "vmstat"
    count.write_text("oom_kill 2\n")
    monkeypatch.setattr(workers.memory, "kills", lambda pid: {count: workers.memory.kill_count(count)})
    child = Child("worker", "rank-0000", 1, sleeper.pid, sleeper, 0)
    count.write_text("oom_kill 3\n")  # a stranger's, who shares the count
    now = time.monotonic()
    assert child.look_at_memory(now) == "the machine's memory"
    assert child.look_at_memory(now + workers.RECENT) == "the machine's memory"
    assert child.look_at_memory(now + workers.RECENT + 1) == ""
    count.write_text("oom_kill 4\n")
    assert child.look_at_memory(now + workers.RECENT + 2) == "the machine's memory"
    child.close()


def test_what_is_sent_never_reaches_who_got_the_number_since(sleeper):
    other = subprocess.Popen([sys.executable, "-c", ""])
    held = Hold(other.pid)
    if held.descriptor < 0:
        pytest.skip("this system has no pidfd: only the number is known")
    other.wait()
    held.pid = sleeper.pid  # as if the system had given it out again
    sleeper.send_signal(signal.SIGSTOP)
    psutil_wait(sleeper.pid, psutil.STATUS_STOPPED)
    assert held.gone and not held.still()
    held.send(signal.SIGKILL)
    sleeper.send_signal(signal.SIGCONT)
    sleeper.stdin.close()
    assert sleeper.wait(LONG) == 0, "it was killed"


def test_a_server_that_stands_still_is_not_waited_for(made, monkeypatch):
    trades = Path(__file__).parent / "trades"
    monkeypatch.syspath_prepend(str(trades))
    monkeypatch.setenv("PYTHONPATH", str(trades))
    monkeypatch.setattr(workers, "ANSWER", 600.0)  # never reached: the server is found standing
    run, _ = made
    (run.path / "script.json").write_text(json.dumps({"1:0:1": "await never"}))
    Incarnation(1, 1, "dp1", 1, parent=os.getpid()).write(run)
    server = WarmServer(("argosy.run.bound", "argosy.run.child"))
    with run.lock(LONG) as lock:
        child = workers.start_worker(server, run, 1, 0, lock, "tiny:worker")
        try:
            first = server.pid
            os.kill(first, signal.SIGSTOP)
            psutil_wait(first, psutil.STATUS_STOPPED)
            child.kill()
            assert workers.wait_gone([child], LONG) == []
            end = child.end(run)
        finally:
            server.stop()
            child.kill()
            child.close()
    assert (end.manner, end.signal) == ("killed", signal.SIGKILL)
    assert server.stood == first


def test_a_server_that_ends_again_and_again_is_named(run, tmp_path, monkeypatch):
    (tmp_path / "ends_at_once.py").write_text("import os\n\nos._exit(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    server = WarmServer(("ends_at_once",))
    with run.lock(LONG) as lock, pytest.raises(Refused, match=r"fork them ends first.*3 times in a row") as refused:
        server.fork(lock, ())
    assert refused.value.code == MACHINE
    server.stop()


CROWDED = """
    import os, resource
    from argosy.errors import Refused
    from argosy.fleet.workers import WarmServer, start_beside
    from argosy.run.folder import Run

    server, held = WarmServer(()), []
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    for attempt in (lambda: server.start(), lambda: start_beside("reader", Run("run"), 1, 0, "a:b")):
        try:
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
        try:
            attempt()
        except Refused as refused:
            print(refused.code, refused.text)
"""


def test_a_machine_that_gives_no_more_files_is_named_as_such():
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(CROWDED)], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("4 no worker can be started. Found: Too many open files. `ulimit -a`")
    assert lines[1].startswith("4 the reader process cannot be started. Found: Too many open files.")


def test_what_is_no_matter_of_room_is_not_told_as_one(run, monkeypatch):
    """As where the environment was removed: the system says so, and fewer workers would change nothing."""
    monkeypatch.setattr(workers.sys, "executable", str(run.path / "gone" / "python"))
    with run.lock(LONG) as lock, pytest.raises(Refused) as refused:
        workers.start_beside("reader", run, 1, lock, "a:b")
    assert refused.value.text == (
        f"{run.path}/gone/python: the reader process cannot be started. Found: No such file or directory."
    )
    assert refused.value.code == MACHINE
    once = workers._none(EOFError("closed"))
    assert "in a row" not in once.text and "EOFError: closed" in once.text


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
