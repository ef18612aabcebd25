"""One process, held so that what is sent to it or read of it never reaches another process which has got its number since.

Knows the operating system only: a pidfd where there is one (Linux), else the number, which is then only as good as it can be.
"""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress

import psutil


class Hold:
    """The process `pid`, which exists or is at least not reaped yet. `descriptor` is readable when it is gone; -1 = none."""

    def __init__(self, pid: int):
        self.pid = pid
        self.descriptor = -1
        with suppress(AttributeError, OSError):  # a system, a kernel or a container without pidfd; or gone already
            self.descriptor = os.pidfd_open(pid)

    @property
    def gone(self) -> bool:
        """Whether it has ended, as far as a pidfd tells; False where there is none."""
        if self.descriptor < 0:
            return False
        poll = select.poll()  # not select(): descriptors beyond 1,023 are usual in a parent of many
        poll.register(self.descriptor, select.POLLIN)
        return bool(poll.poll(0))

    def send(self, number: int) -> None:
        """Send it a signal; nothing happens where it is gone."""
        with suppress(ProcessLookupError):
            if self.descriptor >= 0:
                signal.pidfd_send_signal(self.descriptor, number)
            else:
                os.kill(self.pid, number)

    def still(self) -> bool:
        """Whether it is stopped by a signal; one that a debugger holds does not count."""
        try:
            found = bool(psutil.Process(self.pid).status() == psutil.STATUS_STOPPED)
        except psutil.Error:
            return False
        return found and not self.gone  # asked last: as long as it was there, the number was its own

    def close(self) -> None:
        """Let go of it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1

    def __del__(self) -> None:
        self.close()
