"""The parent of a run: starts an incarnation, hears what ends, asks the policy, does what it says, until all is done.

In: a run folder that is settled, an Incarnation to start with, a screen. Out: `Outcome`. Every event and decision goes into
the journal, with the sentence that the screen shows.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import FrameType

from argosy.errors import BUG, FULL, INTERRUPTED, MACHINE, Refused
from argosy.fleet.agent import Agent
from argosy.fleet.clerk import Clerk, Screen, left
from argosy.fleet.journal import read
from argosy.policy.events import Broken, End, Event, GiveUp, Mend, Progress, Restart
from argosy.policy.rules import culprit, decide
from argosy.policy.state import Fleet
from argosy.run import gone
from argosy.run.folder import Run
from argosy.run.incarnation import Incarnation
from argosy.run.origin import mask
from argosy.run.signals import heard, hurried

LOOK = 1.0  # seconds between looks whether the run's folder still lies where it was
BEAT = 0.1  # seconds between looks at record and requests; what ends is seen at once
TAIL = 40  # lines of a failed process's log that crash.txt keeps
SHOWN = 5  # of them that are shown where the process did not say itself why it left


@dataclass(frozen=True)
class Outcome:
    """How a run ended. state: "finished", "stopped" or "failed"."""

    code: int
    state: str
    step: int
    because: str = ""
    faults: int = 0


class Driver:
    """Leads one run from its first worker to its last."""

    def __init__(
        self, run: Run, first: Incarnation, screen: Screen, agent: Agent, *, requeue: bool = False, debug: bool = False
    ):
        self.run_folder, self.screen, self.agent, self.debug = run, screen, agent, debug
        self.incarnation = first
        self.clerk = Clerk(run, screen, requeue)
        self.identity, self._looked = run.info().get("id"), time.monotonic()
        faults = run.job().faults
        self.fleet = Fleet(first.world, faults.recover, faults.restarts, first.number, reached=run.newest_step())
        self.fleet = replace(self.fleet, step=self.fleet.reached)
        self._loaded = False  # whether the record has told after which step it goes on
        self.signals: list[str] = []
        self._broken_at = 0.0

    def run(self) -> Outcome:
        """Train until the workers are done, asked to stop, or given up."""
        with self._signals() as wake:
            try:
                outcome = self._lead(wake)
            except KeyboardInterrupt:  # a second Ctrl-C
                outcome = Outcome(INTERRUPTED, "stopped", 0)
            except (OSError, Refused) as error:
                outcome = self._unable(error)
            finally:
                self.agent.close()
        if self._gone():
            return self._left_behind()
        try:
            self.clerk.close()
            if outcome.code == INTERRUPTED and not outcome.because:
                step = self.run_folder.newest_step()
                outcome = replace(outcome, step=step, because=left(step, self.clerk.step), faults=self.fleet.faults)
                self.screen.fault(outcome.because)
            self.clerk.journal.note(
                "ended", code=outcome.code, state=outcome.state, step=outcome.step, because=outcome.because
            )
            self.run_folder.update_info(state=outcome.state, step=outcome.step, faults=self.fleet.faults)
        except (OSError, Refused) as error:
            if outcome.code != MACHINE:
                outcome = self._unable(error)
        return outcome

    def _gone(self) -> bool:
        return gone.gone(self.run_folder, self.identity)

    def _left_behind(self) -> Outcome:
        """The end of a run whose folder was moved away: told on the screen, and in the folder where it can be found."""
        there = gone.found_at(self.agent.lock)
        refused = gone.refused(self.run_folder.path, there)
        self.screen.fault(refused.text)
        step = 0
        if there is not None:
            moved = Run(there)
            step = moved.newest_step()
            with suppress(OSError, Refused):  # what lies there is whole without it
                ended = {"code": refused.code, "state": "failed", "step": step, "because": refused.text}
                moved.journal({"what": "ended", **ended})
                moved.update_info(state="failed", step=step, faults=self.fleet.faults)
        return Outcome(refused.code, "failed", step, refused.text, self.fleet.faults)

    def _unable(self, error: OSError | Refused) -> Outcome:
        """The end of a run that cannot be led any more; what was moved away is told by `run`."""
        if self._gone():
            return Outcome(MACHINE, "failed", 0)
        if isinstance(error, OSError):
            return self._full(error)
        self.screen.fault(error.text)  # the processes cannot be started: nothing is left to try
        return Outcome(error.code, "failed", self.run_folder.newest_step(), error.text, self.fleet.faults)

    def _full(self, error: OSError) -> Outcome:
        """The end of a run whose folder takes no more. What else goes wrong is raised again: it is a bug."""
        if error.errno not in FULL:
            raise error
        step = self.run_folder.newest_step()
        kept = f"The last good checkpoint is step {step:,}." if step else "There is no checkpoint yet."
        because = f"{self.run_folder.path}: {FULL[error.errno]} ({error.strerror}). {kept}"
        self.screen.fault(because, "Make room and give the same command again.")
        return Outcome(MACHINE, "failed", step, because, self.fleet.faults)

    def _lead(self, wake: int) -> Outcome:
        self._start()
        while True:
            ends = self.agent.poll(BEAT, wake)
            if (ends or time.monotonic() - self._looked >= LOOK) and self._gone():
                return Outcome(MACHINE, "failed", 0)  # before anything is written, or started, by the old name
            if time.monotonic() - self._looked >= LOOK:
                self._looked = time.monotonic()
            self._requests()
            self.clerk.tick()
            self._progress()
            if self.clerk.lost:
                pid = next((child.pid for child in self.agent.children if child.trade == "snapshot"), 0)
                ends.append(End("snapshot", pid, "left", code=MACHINE, kind="out_of_disk", sentence=self.clerk.lost))
            broken = tuple(end for end in ends if not _well(end))
            if broken:
                outcome = self._decide(Broken(broken))
                if outcome is not None:
                    return outcome
            elif not self.agent.working:
                return self._done()

    def _start(self) -> None:
        self.clerk.begin(self.incarnation.number)
        self.clerk.journal.started(self.incarnation.number, self.incarnation.world, self.run_folder.newest_step())
        self.run_folder.update_info(
            state="running",
            incarnation=self.incarnation.number,
            workers=self.incarnation.world,
            pid=os.getpid(),
            place=str(self.run_folder.path.resolve()),
        )
        self.agent.start(self.incarnation)

    def _progress(self) -> None:
        if self.clerk.loaded is not None and not self._loaded:
            # The newest checkpoint may have been damaged: what follows an older one is progress, too.
            self.fleet = replace(self.fleet, step=self.clerk.loaded, reached=self.clerk.loaded)
            self._loaded = True
        if self.clerk.step > self.fleet.step:
            if self._broken_at:
                lost = time.monotonic() - self._broken_at
                self.screen.note(f"going on at step {self.clerk.step:,}, {lost:.1f} s after the fault")
                self.clerk.journal.note("recovered", step=self.clerk.step, seconds=lost)
                self._broken_at = 0.0
            self.fleet = decide(self.fleet, Progress(self.clerk.step)).fleet

    def _decide(self, event: Event) -> Outcome | None:
        began = time.monotonic()
        decision = decide(self.fleet, event)
        self.fleet = decision.fleet
        for action in decision.actions:
            if isinstance(action, GiveUp):
                self.agent.end_workers()
                self.clerk.journal.decided(event, decision)
                return self._failed(event, action, decision.because)
        restarts = any(isinstance(action, Restart) for action in decision.actions)
        if restarts:
            self.agent.end_workers()  # first of all: what is broken holds the others in a collective
            self._broken_at = began
        self.screen.fault(decision.because, "")
        for action in decision.actions:
            if isinstance(action, Restart):
                self.incarnation = replace(self.incarnation, number=action.incarnation)
                self._start()
            elif isinstance(action, Mend):
                self.agent.mend(action.trade)
        self.clerk.journal.decided(event, decision)
        return None

    def _failed(self, event: Event, action: GiveUp, because: str) -> Outcome:
        followup = ""
        if isinstance(event, Broken):
            end = culprit(event.ends)
            log = self.agent.log_of(end)
            tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:] if log.is_file() else []
            if action.code == BUG:
                followup = f"A bug of Argosy, or of the machine: {self._crash(because, tail)} tells what is known."
            elif tail:
                said = [] if end.sentence else tail[-SHOWN:]  # what it told is in `because` already
                followup = "\n".join([*said, f"Its log: {log}"])
            if self.debug:
                followup = "\n".join([followup, *tail])
        if len(self.fleet.evidence) > 1:
            followup = "\n".join([*(f"before: {told}" for told in self.fleet.evidence[:-1]), followup])
        self.screen.fault(because, followup)
        return Outcome(action.code, "failed", self.run_folder.newest_step(), because, self.fleet.faults)

    def _crash(self, because: str, tail: list[str]) -> str:
        path = self.run_folder.path / "crash.txt"
        info = self.run_folder.info()
        events = [str(row) for row in read(self.run_folder.path / "journal.jsonl")[-10:]]
        versions = ", ".join(f"{name} {number}" for name, number in info.get("versions", {}).items())
        parts = [
            because,
            "",
            f"Versions: {versions}",
            f"Platform: {info.get('platform')}",
            "",
            "Last lines of its log:",
        ]
        text = "\n".join([*parts, *tail, "", "Last events:", *events]) + "\n"
        path.write_text(mask(text), encoding="utf-8")
        return str(path)

    def _done(self) -> Outcome:
        self.agent.finish()
        self.clerk.tick()
        step = self.run_folder.newest_step()
        state = self.clerk.outcome or ("stopped" if self.clerk.request.stop else "finished")
        self.clerk.answer(step)
        because = self.clerk.because(state)
        return Outcome(self.clerk.code if state == "stopped" else 0, state, step, because, self.fleet.faults)

    def _requests(self) -> None:
        while self.signals:
            name = self.signals.pop(0)
            if name == "SIGUSR2":
                self.agent.stacks()
            else:
                self.clerk.stop(name)

    @contextmanager
    def _signals(self) -> Iterator[int]:
        """Turn signals into requests while inside; a second Ctrl-C raises KeyboardInterrupt wherever it arrives."""
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)

        def note(number: int, frame: FrameType | None) -> None:
            """Remember a signal and wake the driver; a hurried one leaves at once."""
            name = signal.Signals(number).name
            if hurried(seen, name):
                signal.signal(number, signal.SIG_IGN)  # a third one must not disturb the leaving
                raise KeyboardInterrupt
            self.signals.append(name)
            with suppress(BlockingIOError):
                os.write(writing, b"!")

        seen: dict[str, float] = {}
        numbers = (*heard(), signal.SIGUSR2)
        before = {}
        with suppress(ValueError):  # not the main thread, as in some notebooks: then only files can ask
            before = {number: signal.signal(number, note) for number in numbers}
        try:
            yield reading
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(reading)
            os.close(writing)


def _well(end: End) -> bool:
    """Whether an end is as it should be: exit code 0."""
    return end.manner == "left" and end.code == 0
