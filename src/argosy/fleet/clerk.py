"""What goes in and out of a running job besides training: requests to the workers, and the record's news to the screen.

Shared by the parent of worker processes and by a process that is the worker itself. Called a few times a second; never waits.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from argosy.errors import DONE, INTERRUPTED, SAVED, TERMINATED
from argosy.fleet.journal import Journal
from argosy.run import requests
from argosy.run.archive import Archive, Line
from argosy.run.folder import Run
from argosy.run.lines import whole
from argosy.run.requests import Request

SCHEDULERS = ("SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST")  # who asks again after SIGTERM


class Screen(Protocol):
    """Where the news goes; `observe/progress.py` makes them."""

    def news(self, line: Line, steps: int) -> None:
        """A line of the archive."""

    def note(self, text: str) -> None:
        """Something to know."""

    def saved(self, row: Mapping[str, Any]) -> None:
        """A checkpoint was written and verified."""

    def fault(self, sentence: str, followup: str = "") -> None:
        """Something broke, and what is done about it."""

    def tick(self) -> None:
        """Time passed."""

    def stopping(self, reason: str) -> None:
        """The run was asked to save and stop."""


def leaving(reason: str, requeue: bool) -> int:
    """The exit code after the signal `reason`; requeue: whether who sent SIGTERM asks again, as schedulers do."""
    again = requeue or any(name in os.environ for name in SCHEDULERS)
    if reason == "SIGUSR1" or (reason == "SIGTERM" and again):
        return SAVED
    return INTERRUPTED if reason == "SIGINT" else TERMINATED


def left(saved: int, reached: int) -> str:
    """What a second Ctrl-C has cost, in words; `saved` and `reached` are steps."""
    if saved >= reached:
        return f"left at once by a second Ctrl-C; step {saved:,}, the last one, is saved"
    since = f"nothing is saved since step {saved:,}" if saved else "nothing is saved"
    return f"left at once by a second Ctrl-C, without saving: {since}; step {reached:,} was reached"


def enough(by: str, worse: int, best: int) -> str:
    """Why a run ends early: `worse` evaluations in a row on the set `by` were no better than the one at step `best`."""
    times = f"the last {worse:,} evaluations were" if worse > 1 else "the last evaluation was"
    return f"finished early (evaluate.patience): {times} no better on {by} than the one at step {best:,}"


class Clerk:
    """Keeps requests and news of one run."""

    def __init__(self, run: Run, screen: Screen, requeue: bool = False):
        self.run, self.screen = run, screen
        self.requeue = requeue
        self.journal = Journal(run)
        job = run.job()
        self.evaluated = job.evaluate
        self.archive = Archive(run, [one.name for one in self.evaluated.sets], self.evaluated.by)
        self.request = Request()
        self.steps = int(job.train.steps or 0)
        self.step = 0
        self.loaded: int | None = None  # the step after which the first start that came so far goes on
        self._now = (0, 0)  # incarnation, and its furthest step that was recorded
        self._wished = (0, 0)  # the same when a save was asked for: only a later state answers
        self.outcome = ""  # "finished" or "stopped", as rank 0 marked it
        self.early = ""  # why the run ends before its last step as a finished one
        self.lost = ""  # a sentence, once the disk could not take a checkpoint
        self._saved = run.local / "saved.jsonl"
        self._saved_at = self._saved.stat().st_size if self._saved.exists() else 0

    def begin(self, incarnation: int) -> None:
        """Follow the workers of `incarnation` from now on."""
        self.outcome = ""
        self._now = (incarnation, 0)
        self.archive.begin(incarnation)

    def stop(self, reason: str) -> None:
        """Ask the workers to save and stop; the first reason counts."""
        if not self.request.stop:
            self._ask(replace(self.request, stop=True, reason=reason))
            self.screen.stopping(reason)

    def tick(self) -> None:
        """Pass on what came since the last call."""
        self._asked()
        self._news()
        self._saves()
        self.screen.tick()

    def answer(self, step: int) -> None:
        """Tell who asked to save or to stop that the run has ended, with `step` saved."""
        for wish in requests.asked(self.run):
            requests.answered(self.run, wish, step)

    def because(self, state: str) -> str:
        """Why the run came to `state`; that a finished one ended early is kept in run.json, where its readers look."""
        early = self.early if state == "finished" else ""
        if early or self.run.info().get("early"):
            self.run.update_info(early=early)
        return early or self.request.reason

    def close(self) -> None:
        """Pass on the rest, and turn the record of ended workers into Parquet."""
        self.tick()
        self.archive.close()
        self.archive.rotate()

    @property
    def code(self) -> int:
        """The exit code of a run whose workers left well."""
        reason = self.request.reason
        if self.outcome == "finished" or not self.request.stop or reason == "argosy stop":
            return DONE
        return leaving(reason, self.requeue)

    def _asked(self) -> None:
        name = requests.forwarded(self.run)
        if name is not None:
            self.stop(name)
        wishes = requests.asked(self.run)
        if "stop" in wishes:
            self.stop("argosy stop")
        if ("save" in wishes) != self.request.save:
            self._news()  # what was recorded until now lies before the wish
            self._wished = self._now
            self._ask(replace(self.request, save="save" in wishes))

    def _ask(self, request: Request) -> None:
        self.request = replace(request, number=self.request.number + 1)
        requests.tell(self.run, self.request)
        self.journal.note("asked", stop=request.stop, save=request.save, reason=request.reason)

    def _news(self) -> None:
        for line in self.archive.poll():
            self._show(line)

    def _show(self, line: Line) -> None:
        if line.kind == "step":
            self.step = max(self.step, int(line.row["step"]))
            self._now = max(self._now, (int(line.row["incarnation"]), int(line.row["step"])))
        elif line.kind == "mark" and line.row["name"] == "loaded" and self.loaded is None:
            self.loaded = int(line.row["step"])
        elif line.kind == "mark" and line.row["name"] in ("finished", "stopped"):
            self.outcome = line.row["name"]
        elif line.kind == "mark" and line.row["name"] == "enough":
            self.early = enough(self.evaluated.by, int(line.row["value"]), int(line.row["extra"]))
            self.screen.note(self.early)
        elif line.kind == "mark" and line.row["name"] in ("starving", "fed"):
            self._waited(int(line.row["step"]), float(line.row["value"]), line.row["name"] == "fed")
        self.screen.news(line, self.steps)

    def _waited(self, step: int, seconds: float, there: bool) -> None:
        """A batch that is long in coming is an event: when it is missed, and when it is there."""
        if there:
            self.screen.note(f"the batch for step {step:,} came after {seconds:.1f} s")
        else:
            reason = "whatever holds the prepared text is slow, or the reader process cannot keep up"
            self.screen.note(f"step {step:,} waits for its batch, for {seconds:.0f} s now: {reason}")
        self.journal.note("waited" if there else "waiting", step=step, seconds=seconds, incarnation=self._now[0])

    def _saves(self) -> None:
        if not self._saved.exists():
            return
        with self._saved.open("rb") as file:
            file.seek(self._saved_at)
            lines = file.readlines()
        for line in lines:
            if not line.endswith(b"\n"):
                break
            self._saved_at += len(line)
            row = whole(line, "ok")
            if row is None:  # of a disk that was full
                continue
            if row.get("ok"):
                self.screen.saved(row)
                self.journal.note("saved", **row)
                later = (int(row.get("incarnation", self._now[0])), int(row["step"])) > self._wished
                if later and self.request.save and "save" in requests.asked(self.run):
                    requests.answered(self.run, "save", int(row["step"]))
            elif row.get("error") == "disk":
                self.lost = str(row.get("sentence", "the disk is full"))
            else:
                sentence = str(row.get("sentence", f"the checkpoint of step {row.get('step')} was not written"))
                self.screen.note(sentence)
                self.journal.note("damaged" if row.get("error") == "damaged" else "noted", sentence=sentence)
