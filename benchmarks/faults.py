"""Fifty kills in a row of the laptop job, the last save and the command itself included, against a run that nobody disturbed.

`python benchmarks/faults.py [--kills 50] [--seed 1] [--quick]`

A worker chosen at random is killed (SIGKILL) at a random moment up to `--pause` seconds after the kill before it, so that many
fall into starting, compiling and evaluating. Then the run is asked to stop and a worker is killed during that last save; then
the same command goes on and is killed itself. What is told: the phase that each kill met, the seconds until no process of the
run was left, and whether metrics.jsonl is the undisturbed run's, bit for bit.
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
from pathlib import Path
from typing import Any

import psutil

import measure
import runs

REPEATED = ("step", "tokens", "loss", "bits_per_byte", "lr", "gradient_norm")
OFTEN = ["checkpoint.every=10", "evaluate.every=15", "evaluate.tokens=8192", "observe.sample_every=never"]
STEPS = 100_000  # the run's length, never reached: the two runs are compared on the steps that both took


class Training:
    """One `argosy train` of the run in `run`, and the processes it ever named."""

    def __init__(self, run: Path, overrides: list[str]) -> None:
        self.run, self.seen = run, set[int]()
        length = [f"train.steps={STEPS}", "optim.schedule=constant", "faults.restarts=1000"]
        with open(run.with_suffix(".log"), "ab") as log:
            command = runs.train(run, [*overrides, *length, *OFTEN], 2)
            self.process = subprocess.Popen(command, env=runs.environment(), stdout=log, stderr=log)

    def pids(self) -> dict[str, int]:
        """The processes of this command by role."""
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((self.run / "local" / "processes.json").read_text(encoding="utf-8"))
            if found["parent"] == self.process.pid:
                self.seen.update(found.values())
                return dict(found)
        return {}

    def last(self) -> dict[str, Any]:
        """The newest row of the metrics, once this command has taken a step."""
        rows = runs.rows(self.run / "metrics.jsonl")
        return rows[-1] if rows else {"step": 0, "incarnation": 0}

    def waited(self, condition: Any, what: str) -> Any:
        """Wait for a condition while the command lives."""

        def look() -> Any:
            if self.process.poll() is not None:
                raise SystemExit(
                    f"argosy ended with {self.process.returncode} before {what}:\n"
                    + self.run.with_suffix(".log").read_text(encoding="utf-8")[-4000:]
                )
            return condition()

        return runs.waited(look, what, 300.0)

    def kill(self, role: str, but: int | None) -> int:
        """Kill the process in a role, which is not the one killed before; gives its number."""
        while True:
            pid: int = self.waited(lambda: (found := self.pids().get(role)) != but and found, f"a process in {role}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return pid

    def gone(self) -> float:
        """Seconds from the end of the command until none of its processes is left."""
        self.pids()
        self.process.wait(300)
        ended = time.monotonic()
        runs.waited(lambda: not any(map(living, self.seen)), "the last process to leave", 300.0)
        return time.monotonic() - ended


def living(pid: int) -> bool:
    """Whether a process runs (one that ended and was not waited for does not)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def disturbed(run: Path, overrides: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """All kills; what they met, and the seconds until the last process left."""
    chance, met = random.Random(options.seed), collections.Counter[str]()
    training = Training(run, overrides)
    training.waited(lambda: training.last()["step"] > 0, "the first step")
    before: dict[str, int] = {}
    for number in range(options.kills):
        time.sleep(chance.uniform(0, options.pause))
        role = f"rank-{chance.randrange(2):04d}"
        before[role] = training.kill(role, before.get(role))
        # Every kill so far ended one incarnation; the one that this kill ended has rows only if it got that far.
        met["training" if training.last()["incarnation"] == number + 1 else "starting or compiling"] += 1
    (run / "stop").touch()
    journal = run / "journal.jsonl"
    asked = lambda: any(row["what"] == "asked" and row["stop"] for row in runs.rows(journal))  # noqa: E731
    training.waited(asked, "the stop to be passed on")
    last = training.pids().get("rank-0001")
    with contextlib.suppress(ProcessLookupError):
        if last and living(last):
            os.kill(last, signal.SIGKILL)
            met["the last save"] += 1
    left = {"asked to stop": training.gone()}
    code = training.process.returncode
    if code != 0:
        raise SystemExit(f"argosy ended with {code} after it was asked to stop")
    again, taken = Training(run, overrides), training.last()["step"]
    again.waited(lambda: again.last()["step"] > taken + 5, "steps after going on")
    again.pids()
    again.process.kill()
    left["killed itself"] = again.gone()
    met["the command itself"] += 1
    return {"met": dict(met), "left": left}


def undisturbed(run: Path, overrides: list[str], step: int) -> None:
    """The same run to the same step, stopped by request."""
    training = Training(run, overrides)
    training.waited(lambda: training.last()["step"] >= step, "the undisturbed run")
    (run / "stop").touch()
    training.gone()


def main() -> None:
    """Read the options, kill, compare, print, and write the page unless it was quick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--pause", type=float, default=6.0, help="seconds between two kills at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="three kills of a tiny model, nothing written")
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
        mine = runs.rows(run / "metrics.jsonl")
        undisturbed(calm, overrides, len(mine))
        theirs = runs.rows(calm / "metrics.jsonl")[: len(mine)]
    one, other = ([{key: row[key] for key in REPEATED} for row in rows] for rows in (mine, theirs))
    same = one == other and [row["step"] for row in mine] == list(range(1, len(mine) + 1))
    table = measure.Table("faults", "seconds")
    (rate,) = measure.gemm()
    for name, seconds in found["left"].items():
        details = {"met": found["met"]}
        table.samples.append(measure.Sample(name, 0, seconds, measured["foreign"], rate, measured["seconds"], details))
    table.settings = {
        "what": "seconds from the command's end until none of its processes was left",
        "job": "laptop as shipped, two workers; checkpoint every 10 steps, evaluation every 15; faults.restarts = 1000",
        "kills": f"{options.kills} workers (SIGKILL), up to {options.pause:g} s apart, seed {options.seed}; then as named",
    }
    lines = ["### faults", "", *measure.markdown(table), ""]
    lines += [f"- what the kills met: {', '.join(f'{name} {count}' for name, count in found['met'].items())}"]
    worst = max(table.samples, key=lambda sample: sample.value)
    lines += [measure.verdict("seconds until the last process left", worst.value, 5.0, at_least=False)]
    lines += [
        f"- metrics.jsonl of {len(mine)} steps against the undisturbed run: **{'identical' if same else 'DIFFERENT'}**"
    ]
    lines += [f"- no hang: all of it took {time.monotonic() - began:.0f} s"]
    measure.finish(table, lines, write=not options.quick and same)
    if not same:
        raise SystemExit("the runs differ")


if __name__ == "__main__":
    sys.exit(main())
