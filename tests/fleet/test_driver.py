"""The driver over real processes: what ends is noticed, decided, journalled and repaired; and all are gone afterwards."""

from __future__ import annotations

import json
import os
import shutil
import sys

import psutil
import pytest

from argosy.fleet.clerk import Clerk, left
from argosy.fleet.journal import read
from argosy.fleet.workers import WarmServer
from argosy.run import gone
from argosy.run.folder import Run
from argosy.run.requests import Request

ALL = [1, 2, 3, 4, 5, 6]


def test_a_run_without_a_fault(lead):
    led = lead({})
    assert (led.outcome.code, led.outcome.state, led.outcome.step) == (0, "finished", 6)
    assert led.steps == ALL
    assert led.screen.steps == ALL
    assert led.screen.faults == []
    assert [row["what"] for row in led.journal] == ["started", "ended"]
    info = led.run.info()
    assert (info["state"], info["step"], info["workers"], info["incarnation"]) == ("finished", 6, 2, 1)
    assert led.run.busy() is None
    processes = json.loads((led.run.local / "processes.json").read_text())
    assert set(processes) == {"parent", "server", "reader", "snapshot", "rank-0000", "rank-0001"}
    assert processes.pop("parent") == os.getpid()
    assert not [role for role, pid in processes.items() if living(pid)]


def living(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_workers_killed_and_stopped_are_noticed_and_all_start_again(lead):
    script = {"1:0:3": "save 2", "1:0:4": "await never", "1:1:4": "signal SIGKILL"}
    script |= {"2:0:4": "signal SIGKILL", "2:1:4": "await never"}
    script |= {"3:0:5": "await never", "3:1:5": "signal SIGSTOP"}
    led = lead(script)
    assert (led.outcome.code, led.outcome.faults) == (0, 3)
    assert led.steps == ALL
    assert led.actions() == ["Restart", "Restart", "Restart"]
    words = (
        "worker 1 was killed (signal 9, SIGKILL)",
        "worker 0 was killed (signal 9",
        "worker 1 was stopped (signal 19",
    )
    for fault, word in zip(led.screen.faults, words, strict=True):
        assert word in fault
    assert led.run.info()["incarnation"] == 4


def test_what_helps_the_workers_is_replaced_without_them(lead):
    script = {"1:0:2": "break reader SIGKILL", "1:0:3": "break snapshot SIGKILL", "1:0:4": "break reader SIGSTOP"}
    script |= {"1:0:5": "break server SIGKILL"}
    led = lead(script)
    assert (led.outcome.code, led.steps) == (0, ALL)
    assert led.actions() == ["Mend"] * 4
    words = (
        "reader process was killed",
        "snapshot process was killed",
        "reader process was stopped",
        "warm server was killed",
    )
    for fault, word in zip(led.screen.faults, words, strict=True):
        assert word in fault
    assert led.run.info()["incarnation"] == 1


def test_a_worker_killed_while_its_server_stands_still(lead):
    led = lead({"1:0:3": "save 2", "1:0:4": "strand", "1:1:4": "await never"})
    assert (led.outcome.code, led.steps) == (0, ALL)
    told = " ".join(led.screen.faults)
    assert "worker 0 was killed (signal 9, SIGKILL)" in told
    assert "the warm server was stopped (signal 19)" in told
    # Who was seen first is a matter of load; the workers were started again once, by a server that works.
    assert (led.actions().count("Restart"), led.run.info()["incarnation"]) == (1, 2)


@pytest.mark.long
def test_a_worker_killed_after_its_server(lead):
    led = lead({"1:0:3": "break server SIGKILL", "1:0:4": "signal SIGKILL"}, world=1)
    assert (led.outcome.code, led.steps) == (0, ALL)
    assert led.actions() == ["Mend", "Restart"]


def test_a_bug_ends_the_run_with_its_traceback(lead):
    led = lead({"1:0:2": "bug", "1:1:2": "peer"})
    assert (led.outcome.code, led.outcome.state) == (1, "failed")
    crash = (led.run.path / "crash.txt").read_text()
    for words in ("ValueError: two and two is five", "Traceback", "argosy 0"):
        assert words in crash
    assert "canary" not in crash
    assert "crash.txt" in led.screen.faults[0]
    assert led.run.info()["state"] == "failed"


@pytest.mark.long
def test_a_refusal_ends_the_run_with_its_code(lead):
    led = lead({"1:1:2": "refuse 3", "1:0:2": "await never"})
    assert led.outcome.code == 3
    assert led.outcome.because.endswith("no.")
    assert led.actions() == ["GiveUp"]


@pytest.mark.long
def test_a_lost_peer_is_only_a_victim(lead):
    led = lead({"1:0:2": "lonely"}, world=1)
    assert (led.outcome.code, led.steps) == (0, ALL)
    assert led.actions() == ["Restart"]


@pytest.mark.long
def test_without_recover_the_first_kill_ends_the_run(lead):
    led = lead({"1:0:2": "signal SIGKILL"}, "faults.recover=false", world=1)
    assert led.outcome.code == 4
    assert "faults.recover" in led.outcome.because


def test_tries_are_spent(lead):
    script = {f"{start}:0:2": "signal SIGKILL" for start in range(1, 9)}
    led = lead(script, "faults.restarts=2", world=1)
    assert led.outcome.code == 4
    assert led.actions() == ["Restart", "Restart", "GiveUp"]
    assert led.screen.faults[-1].count("before:") == 2


def test_steps_behind_an_older_checkpoint_are_progress_where_the_newest_is_damaged(lead):
    script = {"loaded": "1", "1:0:3": "signal SIGKILL", "2:0:4": "signal SIGKILL"}
    led = lead(script, "faults.restarts=1", world=1, newest=5)
    assert (led.outcome.code, led.steps) == (0, [2, 3, 4, 5, 6])
    assert led.actions() == ["Restart", "Restart"]
    recovered = [row["step"] for row in led.journal if row["what"] == "recovered"]
    assert len(recovered) == 2 and recovered[0] == 3


def test_workers_that_cannot_be_forked_end_the_run_with_the_reason(lead):
    led = lead({}, server=WarmServer(("deadly",)))
    assert (led.outcome.code, led.outcome.state) == (4, "failed")
    assert "no worker can be started" in led.outcome.because and "no worker can be started" in led.screen.faults[0]
    assert led.run.info()["state"] == "failed"


@pytest.mark.parametrize(
    "action, code, reason",
    [
        pytest.param("parent SIGINT", 130, "SIGINT", marks=pytest.mark.long),
        ("self SIGTERM", 143, "SIGTERM"),
        pytest.param("ask stop", 0, "argosy stop", marks=pytest.mark.long),
    ],
)
def test_a_request_stops_after_a_checkpoint_and_the_same_run_goes_on(lead, action, code, reason):
    led = lead({"1:0:3": action}, world=1)
    assert (led.outcome.code, led.outcome.state, led.outcome.step) == (code, "stopped", 3)
    assert led.screen.reasons == [reason]
    assert led.run.info()["state"] == "stopped"
    assert not (led.run.path / "stop").exists()
    if reason == "argosy stop":
        again = lead({}, world=1, run=led.run)
        assert (again.outcome.state, again.steps, again.run.info()["incarnation"]) == ("finished", ALL, 2)


def test_a_second_ctrl_c_leaves_without_saving_and_says_so(lead):
    led = lead({"1:0:3": "save 2", "1:0:5": "hurry"}, world=1)
    assert (led.outcome.code, led.outcome.state, led.outcome.step) == (130, "stopped", 2)
    assert led.outcome.because.endswith("nothing is saved since step 2; step 4 was reached")
    assert led.screen.faults == [f"{led.outcome.because} "]
    assert (led.journal[-1]["step"], led.journal[-1]["because"]) == (2, led.outcome.because)
    assert left(4, 4).endswith("step 4, the last one, is saved")


@pytest.mark.parametrize(
    "reason, requeue, variable, outcome, code",
    [
        ("SIGINT", False, "", "stopped", 130),
        ("SIGINT", True, "", "stopped", 130),
        ("SIGTERM", False, "", "stopped", 143),
        ("SIGTERM", True, "", "stopped", 75),
        ("SIGTERM", False, "SLURM_JOB_ID", "stopped", 75),
        ("SIGTERM", False, "KUBERNETES_SERVICE_HOST", "stopped", 75),
        ("SIGUSR1", False, "", "stopped", 75),
        ("argosy stop", True, "SLURM_JOB_ID", "stopped", 0),
        ("SIGTERM", True, "SLURM_JOB_ID", "finished", 0),
    ],
)
def test_exit_codes_of_what_was_asked(made, monkeypatch, reason, requeue, variable, outcome, code):
    for name in ("SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "1")
    run, screen = made
    clerk = Clerk(run, screen, requeue)
    clerk.request, clerk.outcome = Request(stop=True, reason=reason), outcome
    assert clerk.code == code


@pytest.mark.parametrize("others", [False, True])
def test_a_run_whose_folder_is_moved_away_ends_and_says_where_it_lies(lead, tmp_path, monkeypatch, others):
    if others:  # short-lived files are elsewhere, and stay
        monkeypatch.setenv("ARGOSY_LOCAL", str(tmp_path / "disk"))
    path, there = tmp_path / "run", tmp_path / "moved"
    with pytest.raises(FileNotFoundError, match=r"journal\.jsonl"):  # of the fixture, which looks by the old name
        lead({"1:0:2": "save 1", "1:0:3": "move moved"}, world=1)
    assert not path.exists()
    run = Run(there)
    ended = read(there / "journal.jsonl")[-1]
    assert (ended["what"], ended["code"], ended["state"], ended["step"]) == ("ended", 4, "failed", 1)
    assert "was moved or removed while it was going" in ended["because"]
    assert sys.platform != "linux" or f"--run {there}" in ended["because"]
    assert run.info()["state"] == "failed" and run.busy() is None
    again = lead({}, world=1, run=run)
    assert (again.outcome.state, again.steps[-1]) == ("finished", 6)


def test_a_folder_is_gone_only_where_that_is_sure(made, tmp_path):
    run, _ = made
    identity = run.info()["id"]
    assert not gone.gone(run, identity)
    (run.path / "run.json").write_text("{")  # unreadable is not gone
    assert not gone.gone(run, identity)
    (run.path / "run.json").write_text('{"version": 1, "id": "another"}')
    assert gone.gone(run, identity)
    with run.lock() as lock:
        run.path.rename(tmp_path / "moved")
        assert gone.found_at(lock) in (tmp_path / "moved", None)
        assert gone.gone(run, identity)
        shutil.rmtree(tmp_path / "moved")
        assert gone.found_at(lock) is None
