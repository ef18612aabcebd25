"""Fifty kills in a row of the laptop job, then aimed ones, the last save and the command itself, against an undisturbed run.

`python benchmarks/faults.py [--kills 50] [--seed 1] [--quick]`

A worker chosen at random is killed (SIGKILL) at a random moment up to `--pause` seconds after the kill before it, so that many
fall into starting, compiling and evaluating. What a kill met is read from the killed rank's own record, which outlives it;
what chance has left out is aimed at until it is met. Then the command itself is killed. The next one saves last at a pace that
is held back, so that a worker is killed in the middle of that save for sure, and a third one goes on from what was saved.

What is told: what the kills met, the seconds until no process of the run was left (found by a variable that all of them
inherit), and whether metrics.jsonl and evaluations.jsonl are the undisturbed run's, bit for bit.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

import measure
import runs
from argosy.errors import Refused
from argosy.run import record

REPEATED = ("step", "tokens", "loss", "bits_per_byte", "lr", "gradient_norm", "documents", "held_out_tokens")
SAVE, EVALUATE = 10, 15  # steps between two
OFTEN = [
    f"checkpoint.every={SAVE}",
    f"evaluate.every={EVALUATE}",
    "evaluate.tokens=32768",
    "observe.sample_every=never",
]
STEPS = 100_000  # the run's length, never reached: the two runs are compared on the steps that both took
LEAST = 10.0  # seconds that the last save takes at least, held back: time to find and to kill
TRIES = 50  # aimed kills, until one meets what it is meant for
MARK = "FAULTS_OF"  # the variable that every process of a run inherits


class Training:
    """One `argosy train` of the run in `run`, and the processes it ever named."""

    def __init__(self, run: Path, overrides: Sequence[str]) -> None:
        self.run, self.seen, self.doomed = run, set[int](), set[int]()
        length = [f"train.steps={STEPS}", "optim.schedule=constant", "faults.restarts=1000"]
        with open(run.with_suffix(".log"), "ab") as log:
            command = runs.train(run, [*length, *OFTEN, *overrides], 2)
            environment = runs.environment(**{MARK: str(run)})
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def pids(self) -> dict[str, int]:
        """The processes of this command by role."""
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((self.run / "local" / "processes.json").read_text(encoding="utf-8"))
            if found["parent"] == self.process.pid:
                self.seen.update(found.values())
                return dict(found)
        return {}

    def last(self) -> int:
        """The newest step of the metrics; 0 before the first."""
        rows = runs.rows(self.run / "metrics.jsonl")
        return int(rows[-1]["step"]) if rows else 0

    def waited(self, condition: Callable[[], Any], what: str, every: float = 0.05) -> Any:
        """Wait for a condition while the command lives."""

        def look() -> Any:
            if self.process.poll() is not None:
                raise SystemExit(
                    f"argosy ended with {self.process.returncode} before {what}:\n"
                    + self.run.with_suffix(".log").read_text(encoding="utf-8")[-4000:]
                )
            return condition()

        return runs.waited(look, what, 300.0, every)

    def doing(self, rank: int, pid: int) -> str:
        """What the process `pid`, which is or was this rank, does or did last."""
        try:
            mine = [path for _, path in record.files(self.run / "local", rank=rank) if record.header(path).pid == pid]
            entries = record.read(mine[-1]) if mine else ()
        except (OSError, Refused):  # its record is just being made
            entries = ()
        told = [(int(one["kind"]), record.name(one["kind"], one["name"]), int(one["step"])) for one in entries]
        steps = [step for kind, _, step in told if kind == record.STEP]
        if not steps:
            marks = {name for kind, name, _ in told if kind == record.MARK}
            return "compiling" if "compiling" in marks and "compiled" not in marks else "starting"
        done = {name for kind, name, step in told if kind == record.PHASE and step == steps[-1]}
        for name, what, every in (("evaluate", "evaluation", EVALUATE), ("save", "a save", SAVE)):
            if steps[-1] % every == 0 and name not in done:  # a phase is recorded when it is left
                return what
        return "training"

    def kill(self, rank: int, wanted: str = "") -> str:
        """Kill this rank, of workers of which none was killed yet, when it does what is wanted; what it did then."""

        def found() -> dict[int, int] | None:
            workers = {number: pid for number in (0, 1) if (pid := self.pids().get(f"rank-{number:04d}"))}
            fresh = rank in workers and not self.doomed & set(workers.values()) and living(workers[rank])
            return workers if fresh and wanted in ("", self.doing(rank, workers[rank])) else None

        workers = self.waited(found, f"rank {rank}: {wanted or 'any'}", 0.002 if wanted else 0.05)
        self.doomed |= set(workers.values())  # the others are ended with it
        os.kill(workers[rank], signal.SIGKILL)
        runs.waited(lambda: not living(workers[rank]), f"rank {rank} to be gone", 60.0)
        return self.doing(rank, workers[rank])

    def gone(self) -> float:
        """Seconds from the end of the command until none of its processes is left."""
        self.pids()
        self.process.wait(300)
        ended = time.monotonic()
        runs.waited(lambda: not any(map(living, self.seen | marked(self.run))), "the last process to leave", 300.0)
        return time.monotonic() - ended

    def stop(self) -> float:
        """Ask it to stop; seconds from its end until none of its processes is left. It must end well."""
        (self.run / "stop").touch()
        left = self.gone()
        if self.process.returncode != 0:
            raise SystemExit(f"argosy ended with {self.process.returncode} after it was asked to stop")
        return left


def living(pid: int) -> bool:
    """Whether a process runs (one that ended and was not waited for does not)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def marked(run: Path) -> set[int]:
    """All processes that were started, however indirectly, by a command of `run`."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == str(run):
                found.add(process.pid)
    return found


def size(run: Path) -> int:
    """Bytes of the newest checkpoint."""
    return max(path.stat().st_size for path in (run / "checkpoints").glob("*/*.safetensors"))


def disturbed(run: Path, overrides: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """All kills; what they met, and the seconds until the last process left."""
    chance, met = random.Random(options.seed), collections.Counter[str]()
    wanted = ["starting", "evaluation"] + ["compiling"] * (not options.quick)
    training = Training(run, overrides)
    training.waited(lambda: training.last() > 0, "the first step")
    for _ in range(options.kills):
        time.sleep(chance.uniform(0, options.pause))
        met[training.kill(chance.randrange(2))] += 1
    aimed = 0
    for what in wanted:
        while not met[what]:
            if aimed == TRIES:
                raise SystemExit(f"{TRIES} aimed kills did not meet {what}: {dict(met)}")
            met[training.kill(chance.randrange(2), what)] += 1
            aimed += 1
    taken = training.last()
    training.waited(lambda: training.last() > taken and training.pids(), "a step after the kills")
    training.process.kill()
    left = {"killed itself": training.gone()}
    met["the command itself"] += 1
    left["asked to stop"] = last_save(run, overrides, met)
    again, taken = Training(run, overrides), training.last()
    again.waited(lambda: again.last() > taken + 5, "steps after going on")
    again.stop()
    return {"met": dict(met), "left": left, "aimed": aimed}


def last_save(run: Path, overrides: list[str], met: collections.Counter[str]) -> float:
    """Go on, save for the last time slowly, kill a worker meanwhile; seconds until the last process left."""
    pace = f"checkpoint.bandwidth={max(1, int(size(run) / LEAST / 1000))} KB/s"
    training = Training(run, [*overrides, "checkpoint.every=never", pace])
    taken = training.last()
    training.waited(lambda: training.last() > taken, "a step after going on")
    (run / "stop").touch()

    def saving() -> Path | None:
        """The folder in which the checkpoint of the last step is being written."""
        folder = run / "checkpoints" / f"step-{training.last():06d}"
        begun = any(folder.glob("*.safetensors")) and not (folder / "manifest.json").exists()
        return folder if begun and training.last() > taken else None

    folder = training.waited(saving, "the last save to begin")
    pid = training.pids()["rank-0001"]
    os.kill(pid, signal.SIGKILL)
    if (folder / "manifest.json").exists():
        raise SystemExit("the last save was over before a worker could be killed")
    met["the last save"] += 1
    return training.stop()


def undisturbed(run: Path, overrides: list[str], step: int) -> None:
    """The same run to the same step, stopped by request."""
    training = Training(run, overrides)
    training.waited(lambda: training.last() >= step, "the undisturbed run")
    training.stop()


def repeated(run: Path, name: str, last: int) -> list[dict[str, Any]]:
    """What a run must repeat, of each step up to `last`."""
    rows = [row for row in runs.rows(run / name) if row["step"] <= last]
    return [{key: row[key] for key in REPEATED if key in row} for row in rows]


def main() -> None:
    """Read the options, kill, compare, print, and write the page unless it was quick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--pause", type=float, default=6.0, help="seconds between two kills at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="three kills at random of a tiny model, nothing written")
    options = parser.parse_args()
    overrides = [*runs.SMALL, "train.compile=false"] if options.quick else []
    if options.quick:
        options.kills = 3
    overrides = [word for word in overrides if not word.startswith("observe.sample_every")]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run, calm = Path(folder) / "killed", Path(folder) / "calm"
        with measure.load() as measured:
            found = disturbed(run, overrides, options)
        last = len(runs.rows(run / "metrics.jsonl"))
        undisturbed(calm, overrides, last)
        pairs = [[repeated(path, f"{name}.jsonl", last) for path in (run, calm)] for name in ("metrics", "evaluations")]
    whole = [row["step"] for row in pairs[0][0]] == list(range(1, last + 1))
    same = whole and all(one == other for one, other in pairs)
    table = measure.Table("faults", "seconds")
    (rate,) = measure.gemm()
    for name, seconds in found["left"].items():
        details = {"met": found["met"], "aimed": found["aimed"]}
        table.samples.append(measure.Sample(name, 0, seconds, measured["foreign"], rate, measured["seconds"], details))
    every = f"checkpoint every {SAVE} steps, evaluation every {EVALUATE}"
    table.settings = {
        "what": "seconds from the command's end until none of its processes was left",
        "job": f"laptop as shipped, two workers; {every}; faults.restarts = 1000",
        "kills": f"{options.kills} workers (SIGKILL), up to {options.pause:g} s apart, seed {options.seed}; then "
        f"{found['aimed']} aimed at what chance left out, the command itself, and a worker in a last save of {LEAST:.0f} s",
    }
    lines = ["### faults", "", *measure.markdown(table), ""]
    lines += [f"- what the kills met: {', '.join(f'{name} {count}' for name, count in found['met'].items())}"]
    worst = max(table.samples, key=lambda sample: sample.value)
    lines += [measure.verdict("seconds until the last process left", worst.value, 5.0, at_least=False)]
    lines += [
        f"- metrics.jsonl of {last} steps, and their evaluations, against the undisturbed run: "
        f"**{'identical' if same else 'DIFFERENT'}**"
    ]
    lines += [f"- no hang: all of it took {time.monotonic() - began:.0f} s"]
    measure.finish(table, lines, write=not options.quick and same)
    if not same:
        raise SystemExit("the runs differ")


if __name__ == "__main__":
    sys.exit(main())
