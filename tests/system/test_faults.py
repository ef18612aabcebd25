"""Interrupted, killed, damaged, moved: the same command goes on, and every step is what it is in an undisturbed run."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.system.harness import EVALUATE, Command, Started, repeated, rows, same, wait_for

from argosy.checkpoint.store import newest, opened, problems
from argosy.data.ring import SLOW
from argosy.errors import DONE, INTERRUPTED, MACHINE, SAVED, TERMINATED
from argosy.observe.goodput import account
from argosy.run.folder import Run

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

KILLS = int(os.environ.get("ARGOSY_TEST_KILLS", "20"))


def saved_step(run: Run) -> int:
    """The step of the newest checkpoint, which is whole."""
    found = newest(run)
    assert found is not None and found.skipped == (), "the last checkpoint is there, and nothing beside it is damaged"
    found.close()
    return found.step


def last_step(run: Run) -> int:
    """The step of the last line in metrics.jsonl."""
    return int(rows(run.path / "metrics.jsonl")[-1]["step"])


INTERRUPTIONS: dict[str, tuple[Callable[[Started], object], int]] = {
    "Ctrl-C": (lambda started: os.killpg(started.process.pid, signal.SIGINT), INTERRUPTED),
    "SIGTERM": (lambda started: started.process.terminate(), TERMINATED),
    "SIGTERM to all of a scheduler's step": (
        lambda started: [os.kill(pid, signal.SIGTERM) for pid in (*started.pids().values(), started.process.pid)],
        TERMINATED,
    ),
    "SIGTERM to a worker": (lambda started: started.kill("rank-0001", signal.SIGTERM), TERMINATED),
    "a terminal that is closed": (lambda started: started.process.send_signal(signal.SIGHUP), TERMINATED),
    "SIGUSR1": (lambda started: started.process.send_signal(signal.SIGUSR1), SAVED),
}


@pytest.mark.parametrize("how", INTERRUPTIONS)
def test_interrupted_it_saves_leaves_and_goes_on(command: Command, undisturbed: Run, how: str) -> None:
    """All interruptions of one run, one after the other: each start goes on from the one before."""
    interrupt, code = INTERRUPTIONS[how]
    run = Run(command.folder / "runs" / "interrupted")
    before = last_step(run) if run.exists else 0
    started = command.train("interrupted")
    started.reach(before + 3)
    interrupt(started)
    assert started.ended() == code, started.text
    assert saved_step(run) == last_step(run) > before, "a final checkpoint was made"
    assert run.info()["state"] == "stopped"
    same(run, undisturbed, before + 3)


def test_the_command_killed_leaves_nothing_and_goes_on(command: Command, undisturbed: Run) -> None:
    started = command.train("orphaned")
    started.reach(4)
    started.pids()
    started.process.kill()
    assert started.ended() == -signal.SIGKILL
    again = command.train("orphaned")
    again.reach(8)
    assert again.stop() == DONE, again.text
    same(again.run, undisturbed, 8)


def test_what_stands_beside_the_workers_is_started_again(command: Command, undisturbed: Run) -> None:
    started = command.train("beside")
    started.reach(2)
    chance = random.Random(20261122)
    for role in ("reader", "snapshot", "server", "reader, stopped", "reader"):
        role, _, stopped = role.partition(",")
        how = signal.SIGSTOP if stopped else signal.SIGKILL
        time.sleep(chance.uniform(0, 0.3))  # somewhere within a step
        killed = started.kill(role, how)
        started.until(lambda role=role, killed=killed: started.pids().get(role, killed) != killed, f"a new {role}")
        started.reach(started.step + 3)
    assert started.stop() == DONE, started.text
    assert {row["incarnation"] for row in rows(started.run.path / "metrics.jsonl")} == {1}, "no worker was restarted"
    same(started.run, undisturbed, 8)


def test_a_slow_store_is_waited_for_and_told_and_no_worker_opens_the_text(command: Command, undisturbed: Run) -> None:
    """The reader hangs before a batch, and later the text is out of reach of whoever would open it anew."""
    point, once = "reader.batch.before", command.folder / "slow"
    # The third batch is one to train on: those of an evaluation, whose wait is a part of it, are asked for after step 4.
    environment = {"ARGOSY_POINT": f"{point}:3:hang", "ARGOSY_POINT_ONCE": str(once)}
    started = command.train("slow", environment=environment)

    def told(what: str) -> list[dict[str, Any]]:
        return [row for row in rows(started.run.path / "journal.jsonl") if row["what"] == what]

    started.until(lambda: told("waiting"), "the wait to be told")
    reader = started.pid("reader")
    Path(f"{once}.{point}.on").touch()
    started.until(lambda: told("waited"), "the batch to come")
    slow = int(told("waited")[0]["step"])
    started.until(lambda: started.run.newest_step() > slow, "a checkpoint behind it")
    assert started.pid("reader") == reader, "a slow one is not replaced"
    hidden = {path: path.with_suffix(".away") for path in started.run.prepared().glob("*.shard")}
    assert hidden
    for path, away in hidden.items():
        path.rename(away)
    try:
        killed = started.kill("rank-0001")
        started.until(lambda: started.pids().get("rank-0001", killed) != killed, "a new worker")
        started.reach(last_step(started.run) + EVALUATE)
        assert started.pid("reader") == reader
    finally:
        for path, away in hidden.items():
            away.rename(path)
    assert started.stop() == DONE, started.text
    waited = float(told("waited")[0]["seconds"])
    assert waited >= SLOW
    found = account(started.run, rows(started.run.path / "journal.jsonl"))
    assert found.seconds["data"] >= SLOW, "the wait is rank 0's, whose time the account divides"
    same(started.run, undisturbed, 8)


def test_kills_in_a_row_at_random_moments(command: Command, undisturbed: Run) -> None:
    """Also while starting and while saving for the last time; the seed is printed by a failure's arguments."""
    seed = 20261121
    chance = random.Random(seed)
    started = command.train("killed")
    started.reach(1)
    victims: list[int] = []
    for _ in range(KILLS):
        role = f"rank-{chance.randrange(2):04d}"
        kind = chance.choice(["start", "start", "step", "save"])
        if kind == "step":  # after some steps of progress
            started.reach(started.step + chance.randrange(1, 4))
        elif kind == "save":  # while somebody asked for a checkpoint
            (started.run.path / "save").touch()
        time.sleep(chance.uniform(0, 0.5))
        victims.append(started.kill(role))
        killed = victims[-1]
        started.until(lambda role=role, killed=killed: started.pids().get(role, killed) != killed, "a new worker")
    (started.run.path / "stop").touch()
    journal = started.run.path / "journal.jsonl"
    wait_for(lambda: any(row["what"] == "asked" and row["stop"] for row in rows(journal)), "the stop to be passed on")
    last = started.pids().get("rank-0001")  # killed while it saves for the last time, if it has not left by then
    if last is not None and started.process.poll() is None:
        try:
            os.kill(last, signal.SIGKILL)
        except ProcessLookupError:
            last = None
    assert started.ended() == DONE, started.text
    assert len(set(victims)) == KILLS
    decided = [row for row in rows(journal) if row["what"] == "decided"]
    assert len(decided) >= KILLS
    assert saved_step(started.run) == last_step(started.run)
    same(started.run, undisturbed, 1)


def test_no_step_waits_for_a_slow_writer(command: Command, undisturbed: Run) -> None:
    """A checkpoint that takes minutes to write: the steps beside it are taken, and a kill in the midst of it harms nothing."""
    never = "checkpoint.every=never"
    started = command.train("slowed", never, "checkpoint.bandwidth=1 KB/s")
    started.reach(3)
    (started.run.path / "save").touch()
    started.until(lambda: list(started.run.checkpoints.glob("step-*/*.safetensors")), "the writer to begin")
    started.reach(started.step + 20)
    assert started.run.newest_step() == 0, "it is still being written"
    started.process.kill()
    assert started.ended() == -signal.SIGKILL
    (started.run.path / "save").unlink(missing_ok=True)
    again = command.train("slowed", never)
    again.reach(6)
    assert again.stop() == DONE, again.text
    same(again.run, undisturbed, 6)


def test_a_damaged_checkpoint_is_passed_over_with_the_reason(command: Command, undisturbed: Run) -> None:
    started = command.train("damaged", "checkpoint.keep=3")
    started.reach(7)
    assert started.stop() == DONE, started.text
    folders = sorted((started.run.path / "checkpoints").iterdir())
    assert len(folders) >= 2
    (file,) = folders[-1].glob("*.safetensors")
    with file.open("r+b") as damaged:
        damaged.seek(-3, os.SEEK_END)
        damaged.write(b"\xff\xff\xff")
    again = command.train("damaged", "checkpoint.keep=3")
    again.reach(last_step(started.run) + 2)
    assert again.stop() == DONE, again.text
    assert "is damaged at bytes" in " ".join(again.text.split()), again.text
    same(again.run, undisturbed, 9)
    for folder in (again.run.path / "checkpoints").iterdir():
        assert list(problems(opened(folder))) == [], "the damaged one was written anew or removed"


def test_moved_and_copied_runs_go_on(command: Command, undisturbed: Run) -> None:
    started = command.train("moved")
    started.reach(3)
    assert started.stop() == DONE, started.text
    runs = command.folder / "runs"
    shutil.copytree(runs / "moved", runs / "copied", symlinks=True)
    ids = set()
    for name in ("copied", "elsewhere"):
        if name == "elsewhere":
            (runs / "moved").rename(runs / name)
        again = command.train(name)
        again.reach(last_step(again.run) + 4)
        assert again.stop() == DONE, again.text
        same(again.run, undisturbed, 7)
        ids.add(again.run.info()["id"])
    assert len(ids) == 2, "a copy is a run of its own"


def test_other_numbers_of_workers_go_on(command: Command) -> None:
    """E3: the same losses within rounding, whatever number of workers goes on; in float64, so that rounding is small."""
    words = ("train.precision=float64", "optim.name=adamw", "checkpoint.keep=1000")
    first = command.train("two", *words)
    first.reach(12)
    assert first.stop() == DONE, first.text
    for workers in (1, 3):
        path = command.folder / "runs" / f"then-{workers}"
        shutil.copytree(first.run.path, path)
        for folder in (path / "checkpoints").iterdir():
            if int(folder.name.removeprefix("step-")) > 4:
                shutil.rmtree(folder)
        other = command.train(path.name, *words, workers=workers)
        other.until(lambda path=path: _incarnation_of(path, 12) > 1, "step 12 of the new workers")
        assert other.stop() == DONE, other.text
        mine, theirs = repeated(path / "metrics.jsonl"), repeated(first.run.path / "metrics.jsonl")
        assert mine[:4] == theirs[:4]
        for one, two in zip(mine[4:12], theirs[4:12], strict=True):
            assert one["step"] == two["step"] and one["tokens"] == two["tokens"] and one["lr"] == two["lr"]
            assert one["loss"] == pytest.approx(two["loss"], rel=1e-10)
            assert one["gradient_norm"] == pytest.approx(two["gradient_norm"], rel=1e-8)


def _incarnation_of(path: Path, step: int) -> int:
    """Which incarnation the line of `step` in metrics.jsonl is of, 0 where there is none."""
    return next((int(row["incarnation"]) for row in rows(path / "metrics.jsonl") if row["step"] == step), 0)


def test_a_full_disk_is_named_and_the_last_good_state_kept(command: Command, undisturbed: Run) -> None:
    """A limit on file size, put on the snapshot process alone, stands for the disk: for any user, on any file system."""
    import resource

    started = command.train("full")
    started.until(lambda: started.run.newest_step() > 0, "a checkpoint")
    resource.prlimit(started.pid("snapshot"), resource.RLIMIT_FSIZE, (65_536, 65_536))
    assert started.ended() == MACHINE, started.text
    assert "cannot be saved" in started.text and "Make room and give the same command again" in started.text
    kept = saved_step(started.run)
    assert kept >= 2
    again = command.train("full")
    again.reach(kept + 4)
    assert again.stop() == DONE, again.text
    same(again.run, undisturbed, kept + 4)
