"""What people and schedulers ask of a running job, as rank 0 sees it: save, stop.

Whoever leads the run writes `request` into its local folder; rank 0 looks at that file's time once a step and says it in its
vote, through which the others learn it.
"""

from __future__ import annotations

import time

from argosy.run import gone, requests
from argosy.run.folder import Run

FRESH = 1_000_000_000  # nanoseconds in which a file is read again though it looks the same


class Wishes:
    """Asked once a step, by `Trainer.asked`. `looks` is false on the other ranks, whom it costs nothing."""

    def __init__(self, run: Run, *, looks: bool):
        self.run, self.looks = run, looks
        self._file = run.local / "request"
        self._seen: tuple[int, int] | None = None
        self._stop = False
        self._save = False
        self._last = 0  # number of the last request whose save was taken up

    def __call__(self) -> frozenset[str]:
        """Which of "save" and "stop" this rank brings to the next vote. A save is brought once, a stop from then on."""
        if self.looks and self._changed():
            told = requests.told(self.run)
            self._stop = self._stop or told.stop
            if told.save and told.number != self._last:
                self._save, self._last = True, told.number
        found = {word for word, wanted in (("save", self._save), ("stop", self._stop)) if wanted}
        self._save = False
        return frozenset(found)

    def _changed(self) -> bool:
        try:
            found = self._file.stat()
        except FileNotFoundError:
            if not self.run.path.exists():  # it would go on without being heard, and save nowhere
                raise gone.refused(self.run.path) from None
            return False
        # Another request may come within the tick of the clock in which the last one was read: a new file, the same time.
        before, self._seen = self._seen, (found.st_ino, found.st_mtime_ns)
        return self._seen != before or time.time_ns() - found.st_mtime_ns < FRESH
