"""`argosy train` as it is typed: real workers, real signals. What needs no worker is in test_conduct.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path

import psutil
import pytest

from argosy.errors import INTERRUPTED, SAVED
from argosy.run.folder import Run

LONG = 240  # seconds; only a failure waits so long
SIZE = ["model.width=32", "model.layers=1", "batch.sequence=32", "batch.tokens=128"]
PLAIN = ["train.precision=float32", "checkpoint.every=5", "evaluate.every=never"]
LAUNCHED = (
    "RANK",
    "LOCAL_",
    "GROUP_",
    "ROLE_",
    "WORLD_SIZE",
    "MASTER_",
    "TORCHELASTIC_",
    "SLURM_",
    "OMPI_",
    "PMI",
    "MPI_",
)
LAUNCHED += ("KUBERNETES_", "ARGOSY_POINT")
ENDLESS = [*SIZE, *PLAIN, "train.steps=1000000"]


@pytest.fixture
def words(tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for number in range(40):
        (text / f"{number}.txt").write_text(f"{number} ships sail past island {number * 7}, and none is lost.\n" * 30)
    return [f"data.source={text}", f"data.cache={tmp_path / 'cache'}", "data.held_out=20%"]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in os.environ:  # what a launcher or a scheduler around the tests said is not meant for these runs
        if name.startswith(LAUNCHED) or name in ("ARGOSY_RUNS", "ARGOSY_LOCAL"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def argosy(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "argosy", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=LONG)


def begin(*words: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", *before, "argosy", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def rows(run: Path) -> list[dict[str, int]]:
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def steps(run: Path) -> list[int]:
    return [row["step"] for row in rows(run)]


def reach(run: Path, step: int, process: subprocess.Popen[str], after: int = 0) -> None:
    """Wait until `step` is done, by workers started after incarnation `after`; an endless run cannot miss it."""
    last = time.monotonic() + LONG
    while not (done := rows(run)) or done[-1]["step"] < step or done[-1]["incarnation"] <= after:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < last, f"step {step} was not reached"
        time.sleep(0.05)


def whole(run: Path) -> None:
    done = steps(run)
    assert done == list(range(1, len(done) + 1))


@pytest.mark.timeout(600)
def test_from_the_command_to_the_page_and_what_the_same_command_does_then(words, place):
    asked = ["train", "smoke", *SIZE, *words, "train.steps=4", "evaluate.tokens=256"]
    asked += ["observe.sample_every=50%", "observe.sample_tokens=4"]
    done = argosy(*asked, "--workers", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Done: 4 steps" in done.stdout
    run = Run(place / "runs/smoke")
    assert steps(run.path) == [1, 2, 3, 4]
    assert run.info()["state"] == "finished"
    assert run.newest_step() == 4
    for name in ("report.html", "job.toml", "log.txt", "ledger.jsonl", "tokenizer.json", "log/rank-0001.txt"):
        assert (run.path / name).is_file(), name
    assert (place / "runs/latest").resolve() == run.path.resolve()
    assert not list((run.path / "local").glob("record*.bin")), "the record was not turned into Parquet"

    again = argosy(*asked, "--run", "runs/smoke")
    assert again.returncode == 0
    assert "finished at step 4: nothing to do" in again.stdout
    changed = argosy(*asked, "--run", "runs/smoke", "model.layers=2")
    assert changed.returncode == 2
    assert "model.layers 1 → 2" in changed.stderr
    listed = argosy("runs")
    assert "finished" in listed.stdout and "4/4" in listed.stdout


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_killed_command_leaves_nothing_behind_and_goes_on(words, place):
    run = place / "runs/smoke"
    first = begin("train", "smoke", *ENDLESS, *words, "--workers", "2")
    reach(run, 12, first)
    children = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    first.wait()
    assert psutil.wait_procs(children, timeout=LONG)[1] == []
    kept, before = Run(run).newest_step(), rows(run)[-1]["incarnation"]  # how far it was saved is a matter of speed

    second = begin("train", "smoke", *ENDLESS, *words, "--workers", "1")
    reach(run, kept + 7, second, after=before)
    third = argosy("train", "smoke", *ENDLESS, *words, "--run", "runs/smoke")
    assert third.returncode == 2
    assert f"in use by process {second.pid}" in third.stderr
    saved = argosy("save", "smoke")
    assert saved.returncode == 0, saved.stderr
    second.send_signal(signal.SIGINT)
    out = second.communicate(timeout=LONG)[0]
    assert second.returncode == INTERRUPTED, out
    assert (f"goes on after step {kept:,} of 1,000,000" if kept else "no checkpoint yet") in out
    assert "with 1 workers, before with 2" in out
    whole(run)
    assert Run(run).newest_step() == steps(run)[-1]
    assert Run(run).info()["state"] == "stopped"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_inside_this_process_and_stopped_by_file(words, place):
    """In the folder in which the command is given, which has no name but "."."""
    run = place / "runs/smoke"
    run.mkdir(parents=True)
    with chdir(run):
        process = begin("train", "smoke", *ENDLESS, *words, "--workers", "0", "--run", ".")
    reach(run, 6, process)
    asked = argosy("stop", "smoke")
    out = process.communicate(timeout=LONG)[0]
    assert process.returncode == 0, out
    assert asked.returncode == 0, asked.stderr
    assert "stopped at step" in asked.stdout
    whole(run)
    assert Run(run).newest_step() == steps(run)[-1]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_as_ranks_of_torchrun(words, place):
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--")
    process = begin("train", "smoke", *ENDLESS, *words, before=launcher)
    run = place / "runs/smoke"
    reach(run, 6, process)
    os.kill(Run(run).info()["pid"], signal.SIGUSR1)
    out = process.communicate(timeout=LONG)[0]
    assert f"exitcode  : {SAVED}" in out or f"exitcode: {SAVED}" in out, out
    assert "started by torchrun" in out
    whole(run)
    assert Run(run).newest_step() == steps(run)[-1]
