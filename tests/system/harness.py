"""Real runs of the real command: a small job on a small text, and ways to break it at a moment that cannot be missed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

import psutil

from argosy.run.folder import Run

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # runs inherit it: tests under nohup shall see what others see
WAIT = 240.0  # seconds that a condition may take on a busy machine; no test depends on how fast anything is
EVALUATE, SAMPLE = 4, 8  # steps between two
REFERENCE = 100  # steps of the undisturbed run
SAME = (
    "step",
    "tokens",
    "loss",
    "bits_per_byte",
    "lr",
    "gradient_norm",
)  # what a repeated step must repeat, bit for bit

JOB = """
version = 1
name    = "faults"
[model]
preset = "tiny"
layers = 1
width  = 32
block  = { heads = 2 }
[data]
source    = "text"
tokenizer = "bytes"
held_out  = "10%"
cache     = "cache"
[batch]
sequence = 64
tokens   = 512
[train]
steps     = 100000
precision = "float32"
compile   = false
collect_every = 7
[optim]
lr       = 2e-3
schedule = "constant"
warmup   = 5120
[checkpoint]
every = 2
keep  = 1
[evaluate]
every  = EVALUATE
tokens = 512
[observe]
sample_every  = SAMPLE
sample_tokens = 4
prompts       = ["the "]
log_every     = "1 s"
[faults]
restarts = 1000
""".replace("EVALUATE", str(EVALUATE)).replace("SAMPLE", str(SAMPLE))

T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str = "") -> T:
    """The first true answer of `condition`; a failed test that says `what` after a generous while."""
    end = time.monotonic() + WAIT
    while not (answer := condition()):
        assert time.monotonic() < end, f"waited {WAIT:.0f} s in vain: {what or condition}"
        time.sleep(0.02)
    return answer


def rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a .jsonl file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def repeated(path: Path) -> list[dict[str, Any]]:
    """What a run must repeat of its metrics, evaluations or samples."""
    keys = (*SAME, "prompt", "text", "documents", "held_out_tokens")
    return [{key: row[key] for key in keys if key in row} for row in rows(path)]


def same(disturbed: Run, undisturbed: Run, least: int) -> None:
    """Both runs say the same, bit for bit, of every step that both have; at least `least` of them, none missing or twice."""
    mine, theirs = repeated(disturbed.path / "metrics.jsonl"), repeated(undisturbed.path / "metrics.jsonl")
    last = min(len(mine), len(theirs))
    assert [row["step"] for row in mine] == list(range(1, len(mine) + 1)), "one line a step, ascending"
    assert last >= least and mine[:last] == theirs[:last]
    mine, theirs = (_asked_for(run, "evaluations.jsonl", EVALUATE, last) for run in (disturbed, undisturbed))
    assert len(theirs) == last // EVALUATE and mine == theirs
    mine, theirs = (_asked_for(run, "samples.jsonl", SAMPLE, last) for run in (disturbed, undisturbed))
    assert [row["step"] for row in mine] == [row["step"] for row in theirs] == list(range(SAMPLE, last + 1, SAMPLE))
    assert mine == theirs


def _asked_for(run: Run, name: str, every: int, last: int) -> list[dict[str, Any]]:
    """The rows of the steps that the job asks for: a run that is stopped may also evaluate at its end."""
    return [row for row in repeated(run.path / name) if row["step"] % every == 0 and row["step"] <= last]


@dataclass
class Started:
    """One `argosy train` that is going on."""

    run: Run
    process: subprocess.Popen[bytes]
    output: Path
    before: int = 0  # the last incarnation of an earlier command
    seen: set[int] = field(default_factory=set)

    @property
    def text(self) -> str:
        """What it printed so far."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    @property
    def step(self) -> int:
        """The newest step that this command took, 0 before its first: what an earlier one left is not its work.

        Once it is above 0 the command holds the run, and hears whoever asks it to stop.
        """
        found = rows(self.run.path / "metrics.jsonl")
        return int(found[-1]["step"]) if found and found[-1]["incarnation"] > self.before else 0

    def pids(self) -> dict[str, int]:
        """The processes by role, as the parent lists them; those of the latest start of the workers."""
        try:
            found = json.loads((self.run.path / "local" / "processes.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        if found["parent"] != self.process.pid:
            return {}
        self.seen.update(found.values())
        return {str(role): int(pid) for role, pid in found.items()}

    def pid(self, role: str) -> int:
        """The process in `role`, once there is one."""
        return wait_for(lambda: self._living(self.pids().get(role)), f"a process in role {role}\n{self.text}")

    def reach(self, step: int) -> None:
        """Wait until this command took `step`, or began after it."""
        self.until(lambda: self.step >= step, f"step {step}")

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for `condition` while the command lives."""

        def look() -> bool:
            assert self.process.poll() is None, f"left with {self.process.poll()} before {what}:\n{self.text}"
            return bool(condition())

        wait_for(look, f"{what}\n{self.text[-2000:]}")

    def kill(self, role: str, number: int = signal.SIGKILL) -> int:
        """Send a signal to the process in `role`, which lives; gives its pid."""
        while True:
            pid = self.pid(role)
            try:
                os.kill(pid, number)
                return pid
            except ProcessLookupError:
                continue

    def stop(self) -> int:
        """`argosy stop`; gives the exit code of the run after its last checkpoint."""
        (self.run.path / "stop").touch()
        return self.ended()

    def ended(self) -> int:
        """Wait for the end; gives the exit code. Nothing may be left of it."""
        code = self.process.wait(WAIT)
        self.gone()
        return code

    def gone(self) -> None:
        """Wait until no process is left that worked for this run: each holds the lock of its folder.

        How long that took after the command's own end is printed, and checked by nobody: it is a matter of load.
        """
        self.pids()
        begin = time.monotonic()
        wait_for(lambda: self.run.busy() is None and not any(map(self._living, self.seen)), "processes to leave")
        print(f"{self.run.path.name}: the last process left {time.monotonic() - begin:.1f} s after the command")

    @staticmethod
    def _living(pid: int | None) -> int | None:
        try:
            return pid if pid and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None


@dataclass
class Command:
    """`argosy train` with one job, in one place, with one cache."""

    folder: Path
    environment: dict[str, str]
    started: list[Started] = field(default_factory=list)
    count: int = 0

    def train(
        self,
        name: str,
        *words: str,
        workers: int | None = 2,
        job: str | None = None,
        environment: Mapping[str, str] | None = None,
        program: Sequence[str] = (sys.executable, "-P", "-m", "argosy"),
        **options: Any,
    ) -> Started:
        """Start it for the run called `name`; job: another than the one of the fault tests."""
        path = self.folder / "runs" / name
        before = max((int(row["incarnation"]) for row in rows(path / "metrics.jsonl")), default=0)
        self.count += 1
        output = self.folder / f"{name}-{self.count}.txt"
        how = [] if workers is None else ["--workers", str(workers)]
        command = [*program, "train", job or str(self.folder / "faults.toml"), "--run", str(path), *how, *words]
        file: IO[bytes]
        with output.open("wb") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**self.environment, **(environment or {})},
                **{"start_new_session": True, **options},
            )
        made = Started(Run(path), process, output, before)
        self.started.append(made)
        return made

    def finish(self, name: str, *words: str, **options: Any) -> Started:
        """Start it and wait until it is finished."""
        made = self.train(name, *words, **options)
        assert made.ended() == 0, made.text
        return made

    def clean(self) -> None:
        """End whatever a failed test left."""
        for made in self.started:
            made.pids()
            for pid in {made.process.pid, *made.seen, *_named(made.run.path)}:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            made.process.wait()
        self.started.clear()


def _named(run: Path) -> list[int]:
    """Processes that name `run` in their command line: ranks that a killed launcher leaves behind."""
    found = psutil.process_iter(["pid", "cmdline"])
    return [process.info["pid"] for process in found if str(run) in (process.info["cmdline"] or ())]


def write_text(folder: Path) -> None:
    """Some forty documents of plain words that differ, so that a wrong order of samples shows in the loss."""
    folder.mkdir()
    words = "the ship sails over a calm sea while wind and stars lead every sailor home past rocks and foam"
    chosen = words.split()
    for document in range(40):
        lines = []
        for line in range(20 + document % 7):
            picked = [chosen[(document * 7 + line * 3 + word * (1 + document % 5)) % len(chosen)] for word in range(12)]
            lines.append(" ".join(picked) + f" {document * line}.")
        (folder / f"document-{document:02d}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
