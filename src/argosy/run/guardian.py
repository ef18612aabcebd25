"""A process that must not outlive another: `watch(parent)` ends this one as soon as `parent` is gone.

The kernel tells it through a pidfd (Linux); elsewhere the parent's existence is looked at four times a second.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable

ORPHANED = 137  # exit status of a process that ended because its parent was gone
farewell: list[Callable[[], object]] = []  # called before an orphan ends: removes what lies outside the run folder
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def watch(parent: int, leave: Callable[[], None] | None = None) -> threading.Thread:
    """Start a daemon thread that ends this process when the process `parent` is gone; `leave` replaces the ending."""
    thread = threading.Thread(target=_wait, args=(parent, leave or _leave), name="guardian", daemon=True)
    thread.start()
    return thread


def bind(parent: int | None = None) -> None:
    """Let the kernel kill this process when the one that started it dies (Linux; elsewhere nothing happens).

    For a process that may have no second thread. Not kept by processes forked from it. parent: who that must be; it may
    have died before.
    """
    if sys.platform == "linux":
        parent = parent or os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died in between
            _leave()


def alive(pid: int) -> bool:
    """Whether a process `pid` exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _wait(parent: int, leave: Callable[[], None]) -> None:
    try:
        descriptor = os.pidfd_open(parent) if hasattr(os, "pidfd_open") else None
    except ProcessLookupError:
        leave()
        return
    except OSError:
        descriptor = None  # a kernel or a container without pidfd
    if descriptor is None:
        while alive(parent):
            time.sleep(0.25)
    else:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll()
        os.close(descriptor)
    leave()


def _leave() -> None:
    try:
        for last in farewell:
            last()
    finally:
        os._exit(ORPHANED)
