"""Processes for tests of the fleet: they keep a record and checkpoints like real ones, without torch, and do as `script.json`
says: {"INCARNATION:RANK:STEP": action}, and in "loaded", if it is there, after which step they go on. Loaded by name in
children of the driver.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from argosy.errors import Refused
from argosy.run import requests
from argosy.run.folder import Run
from argosy.run.incarnation import Incarnation
from argosy.run.recorder import Recorder

STEPS = 6


def worker(run: str, rank: int, incarnation: int) -> int:
    place = Run(run)
    start = Incarnation.read(place, incarnation)
    script = json.loads((place.path / "script.json").read_text())
    recorder = Recorder(place, rank, incarnation)
    first = int(script.get("loaded", place.newest_step()))  # what is newest may be damaged
    recorder.mark("loaded", first)
    for step in range(first + 1, STEPS + 1):
        act(script.get(f"{incarnation}:{rank}:{step}", ""), place, start)
        if rank == 0:
            began = time.time_ns()
            for name, value in (("loss", 1 / step), ("counted", 8), ("bytes", 8), ("tokens", 8 * step), ("lr", 0.1)):
                recorder.scalar(name, step, value)
            recorder.step(step, began, time.time_ns())
        if requests.told(place).stop:
            return left(place, recorder, rank, step, "stopped")
    return left(place, recorder, rank, STEPS, "finished")


def left(place: Run, recorder: Recorder, rank: int, step: int, how: str) -> int:
    if rank == 0:
        save(place, step)
        recorder.mark(how, step)
    recorder.finish()
    return 0


def save(place: Run, step: int) -> None:
    folder = place.checkpoints / f"step-{step:06d}"
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").touch()


def act(action: str, place: Run, start: Incarnation) -> None:
    word, _, rest = action.partition(" ")
    if word == "signal":
        os.kill(os.getpid(), signal.Signals[rest])
        time.sleep(600)  # a stopped one goes on only if somebody continues it
    elif word == "bug":
        raise ValueError("two and two is five, HF_TOKEN=canary-0123456789")
    elif word == "refuse":
        raise Refused("no.", code=int(rest))
    elif word == "peer":
        until((place.local / f"ended-rank-0000-{start.number}.json").exists)
        raise RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:2")
    elif word == "save":
        save(place, int(rest))
    elif word == "move":  # the run's folder gets another name, and this process knows only the old one
        place.path.rename(place.path.with_name(rest))
        time.sleep(600)
    elif word == "lonely":
        raise RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:2")
    elif word == "break":  # another process of the run; go on when it was replaced
        trade, number = rest.split()
        until(lambda: processes(place).get("rank-0000") == os.getpid())
        old = processes(place)[trade]
        os.kill(old, signal.Signals[number])
        until(lambda: processes(place).get(trade, old) != old)
    elif word == "strand":  # the warm server stands still, and this process is killed: nobody can tell how it ended
        until(lambda: processes(place).get("rank-0000") == os.getpid())
        server = processes(place)["server"]
        os.kill(server, signal.SIGSTOP)
        until(lambda: stands(server))
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "parent":
        os.kill(start.parent or 0, signal.Signals[rest])
        until(lambda: requests.told(place).stop)
    elif word == "hurry":  # Ctrl-C again and again, until somebody ends this process
        while True:
            os.kill(start.parent or 0, signal.SIGINT)
            time.sleep(0.1)
    elif word == "self":  # as a scheduler does that signals every process
        os.kill(os.getpid(), signal.Signals[rest])
        until(lambda: requests.told(place).stop)
    elif word == "ask":
        requests.ask(place, rest)  # type: ignore[arg-type]
        until(lambda: requests.told(place).stop)
    elif word == "await":
        until((place.path / rest).exists)
    elif action:
        raise ValueError(action)


def until(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.01)


def stands(pid: int) -> bool:
    """Whether the process is stopped, or gone already: the driver repairs what stands still."""
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def processes(place: Run) -> dict[str, int]:
    path = Path(place.local / "processes.json")
    return dict(json.loads(path.read_text())) if path.exists() else {}


def reader(run: str, incarnation: int) -> int:
    time.sleep(600)
    return 0


def snapshot(run: str, incarnation: int) -> int:
    until((Run(run).local / "finish-snapshot").exists)
    return 0
