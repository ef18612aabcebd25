"""The signals that ask a run to save and to stop; whoever leads the run turns them into requests."""

from __future__ import annotations

import signal

# Ctrl-C; a scheduler's end, and its warning before; a terminal that was closed or a connection that was lost.
ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def heard() -> tuple[signal.Signals, ...]:
    """Those of ASKING that this process was not told to ignore: `nohup` is meant to outlive its terminal."""
    return tuple(number for number in ASKING if signal.getsignal(number) is not signal.SIG_IGN)
