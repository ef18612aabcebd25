"""What people and schedulers ask of a running job, as one rank sees it: save, stop.

The parent writes `request` into the run's local folder; rank 0 looks at that file's time once a step. A rank that no parent
watches (`--workers 0`, a launcher) looks itself, and answers the files `save` and `stop` in the run folder too.
"""

from __future__ import annotations

from argosy.run import requests
from argosy.run.folder import Run


class Wishes:
    """Asked once a step, by `Trainer.asked`. `looks` is false on ranks that need not look: they cost nothing."""

    def __init__(self, run: Run, *, looks: bool, alone: bool):
        self.run, self.looks, self.alone = run, looks, alone
        self._file = run.local / "request"
        self._seen: int | None = None
        self._stop = self._save = False
        self._answered = 0

    def __call__(self) -> frozenset[str]:
        """Which of "save" and "stop" this rank brings to the next vote. A save is brought once, a stop from now on."""
        if not self.looks:
            return frozenset()
        self._look()
        found = {"stop"} if self._stop else set()
        if self.alone:
            found |= requests.asked(self.run)
        if self._save:
            found.add("save")
            self._save = False
        return frozenset(found)

    def saved(self, step: int) -> None:
        """A checkpoint of `step` was handed over or is on disk: whoever asked by file learns it, where no parent does that."""
        if self.alone and self.looks:
            for wish in requests.asked(self.run):
                requests.answered(self.run, wish, step)

    def _look(self) -> None:
        try:
            changed = self._file.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if changed == self._seen:
            return
        self._seen = changed
        told = requests.told(self.run)
        self._stop = self._stop or told.stop
        if told.save and told.number != self._answered:
            self._save, self._answered = True, told.number
