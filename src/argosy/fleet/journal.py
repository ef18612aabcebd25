"""Every event, decision and reason of a run in one file, `journal.jsonl`: written by the driver, read by report and people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from argosy.policy.events import Event
from argosy.policy.rules import Decision
from argosy.run.folder import Run
from argosy.run.lines import rows


class Journal:
    """Writes one line for each thing that happens to a run."""

    def __init__(self, run: Run):
        self.run = run

    def started(self, incarnation: int, world: int, step: int) -> None:
        """All workers were started, from the checkpoint of `step`."""
        self.note("started", incarnation=incarnation, world=world, step=step)

    def decided(self, event: Event, decision: Decision) -> None:
        """An event and what is done about it."""
        self.note(
            "decided",
            event=type(event).__name__,
            because=decision.because,
            seen=asdict(event),
            actions=[{"action": type(action).__name__, **asdict(action)} for action in decision.actions],
            incarnation=decision.fleet.incarnation,
            step=decision.fleet.step,
        )

    def note(self, what: str, **facts: object) -> None:
        """Anything else: asked to stop, saved, ended."""
        self.run.journal({"what": what, **facts})


def read(path: Path) -> list[Mapping[str, Any]]:
    """The lines of a journal, oldest first; a torn last one is left out, a missing file is empty."""
    return list(rows(path))
