"""The signals that ask a run to save and to stop, and the one that says to leave at once.

Whoever leads the run turns them into requests.
"""

from __future__ import annotations

import signal
import time

# Ctrl-C; a scheduler's end, and its warning before; a terminal that was closed or a connection that was lost.
ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
AT_ONCE = 0.5  # seconds in which several Ctrl-C are one


def heard() -> tuple[signal.Signals, ...]:
    """Those of ASKING that this process was not told to ignore: `nohup` is meant to outlive its terminal."""
    return tuple(number for number in ASKING if signal.getsignal(number) is not signal.SIG_IGN)


def hurried(seen: dict[str, float], name: str) -> bool:
    """Whether the signal `name` says to leave at once, without saving: a second Ctrl-C. `seen` keeps when each came first.

    One press may arrive several times, from the terminal and from whatever started us: what comes at once counts as one.
    """
    now = time.monotonic()
    return now - seen.setdefault(name, now) >= AT_ONCE and name == "SIGINT"
