"""One node: its processes as a whole. Starts an incarnation, says what broke, ends what is left; decides nothing.

In: an Incarnation. Out: `End`s, those that belong together in one list. The driver calls it; several nodes will each have one.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from argosy.data import reader
from argosy.fleet import workers
from argosy.fleet.workers import Child, WarmServer
from argosy.policy.events import End, Trade
from argosy.run.folder import Run, write_whole
from argosy.run.incarnation import Incarnation

TOGETHER = 2.0  # seconds in which whoever lost a peer is not yet blamed: that peer's own end must show
LOOK = 0.5  # seconds between looks for processes that stand still
FAREWELL = 120.0  # seconds that the snapshot process may take to write what is complete, at the end of a run
FINISH = "finish-snapshot"  # the file that tells it so


class Agent:
    """The processes of one node of a run."""

    def __init__(
        self, run: Run, lock: int, server: WarmServer | None = None, entries: Mapping[str, str] = workers.ENTRIES
    ):
        self.run, self.lock, self.entries = run, lock, entries
        self.server = server or WarmServer()
        self.incarnation: Incarnation | None = None
        self.children: list[Child] = []
        self._looked = 0.0
        (run.local / FINISH).unlink(missing_ok=True)

    def start(self, incarnation: Incarnation) -> None:
        """Start all workers of `incarnation`, and what is missing beside them."""
        self.incarnation = incarnation
        incarnation.write(self.run)
        for trade in ("reader", "snapshot"):  # they serve workers of any incarnation
            if not self._of(trade):
                self._beside(trade)
        for rank in range(incarnation.world):
            child = workers.start_worker(
                self.server, self.run, incarnation.number, rank, self.lock, self.entries["worker"]
            )
            self.children.append(child)
        self._note_server()
        self._list()

    def mend(self, trade: Trade) -> None:
        """Start one process of `trade` anew; the workers go on."""
        if trade == "reader":
            self._end("reader")
            self._beside("reader")
        elif trade == "snapshot":
            self._end("snapshot")
            self._beside("snapshot")
        elif trade == "server":
            self._end("server")
            self.server.start()
            self._note_server()
        self._list()

    def end_workers(self) -> None:
        """SIGKILL all workers that are left and wait until they are gone; this frees them from any collective at once."""
        self._end("worker")

    def poll(self, seconds: float, wake: int | None = None) -> list[End]:
        """Wait up to `seconds` for processes to end or stand still; what ended together is given together.

        wake: a descriptor that ends the waiting early when it becomes readable.
        """
        ends = self._gone(seconds, wake) + self._still()
        last = time.monotonic() + TOGETHER
        while any(end.kind == "peer" for end in ends) and not any(map(_cause, ends)) and self._of("worker"):
            # Who lost a peer may be seen before that peer: nobody is blamed before the others had time to tell.
            if time.monotonic() >= last:
                break
            ends += self._gone(last - time.monotonic(), None)
        return ends

    @property
    def working(self) -> bool:
        """Whether any worker is left."""
        return bool(self._of("worker"))

    def stacks(self) -> None:
        """Let every process write its stacks into its log."""
        for child in self.children:
            if child.trade != "server":
                child.kill(signal.SIGUSR2)

    def finish(self) -> None:
        """After the last worker left well: let the snapshot process write what is complete, then end the rest."""
        if self._of("snapshot"):
            (self.run.local / FINISH).touch()
            workers.wait_gone(self._of("snapshot"), FAREWELL)
        self.close()

    def close(self) -> None:
        """End everything at once."""
        self.server.stop()
        for trade in ("worker", "reader", "snapshot", "server"):
            self._end(trade)
        with suppress(OSError):
            reader.remove(self.run)
        (self.run.local / FINISH).unlink(missing_ok=True)

    def log_of(self, end: End) -> Path:
        """The log of the process that ended."""
        role = f"rank-{end.rank:04d}" if end.rank is not None else end.trade
        return self.run.log / f"{role}.txt"

    def _gone(self, seconds: float, wake: int | None) -> list[End]:
        poll = select.poll()
        by_descriptor = {child.descriptor: child for child in self.children}
        for descriptor in by_descriptor:
            poll.register(descriptor, select.POLLIN)
        if wake is not None:
            poll.register(wake, select.POLLIN)
        ready = [descriptor for descriptor, _ in poll.poll(max(0.0, seconds) * 1000)]
        if wake is not None and wake in ready:
            with suppress(BlockingIOError):
                os.read(wake, 4096)
        ended = [by_descriptor[descriptor] for descriptor in ready if descriptor in by_descriptor]
        ends = [self._forget(child) for child in ended]
        return ends + self._stood() if ends else ends

    def _forget(self, child: Child) -> End:
        self.children.remove(child)
        end = child.end(self.run)
        child.close()
        if child.trade == "server" and child.pid == self.server.stood:  # ended by us, for it owed us an answer
            return replace(end, manner="stopped", signal=signal.SIGSTOP)
        return end

    def _stood(self) -> list[End]:
        """The warm server, where it stood still just when it had to tell how a worker ended, and was ended for that."""
        found = [child for child in self._of("server") if child.pid == self.server.stood]
        workers.wait_gone(found)
        return [self._forget(child) for child in found]

    def _still(self) -> list[End]:
        now = time.monotonic()
        if now - self._looked < LOOK:
            return []
        self._looked = now
        ends = []
        for child in self.children:
            child.look_at_memory(now)
            if child.still(now):
                after = now - (child.still_since or now)
                ends.append(End(child.trade, child.pid, "stopped", rank=child.rank, signal=signal.SIGSTOP, after=after))
        return ends

    def _of(self, trade: Trade) -> list[Child]:
        return [child for child in self.children if child.trade == trade]

    def _end(self, trade: Trade) -> None:
        children = self._of(trade)
        for child in children:
            child.kill()
        left = workers.wait_gone(children)
        if left:
            raise RuntimeError(f"processes {[child.pid for child in left]} do not end after SIGKILL")
        for child in children:
            self._forget(child)

    def _beside(self, trade: Trade) -> None:
        number = self.incarnation.number if self.incarnation else 0
        self.children.append(workers.start_beside(trade, self.run, number, self.lock, self.entries[trade]))

    def _list(self) -> None:
        """Keep the processes by role where people and tests find them."""
        found = {child.role: child.pid for child in self.children}
        write_whole(self.run.local / "processes.json", json.dumps({"parent": os.getpid(), **found}) + "\n")

    def _note_server(self) -> None:
        pid = self.server.pid
        if pid is not None and all(child.pid != pid for child in self._of("server")):
            self._end("server")
            self.children.append(Child("server", "server", 0, pid, None))


def _cause(end: End) -> bool:
    """Whether an end explains those of others."""
    return end.manner != "left" or (end.code != 0 and end.kind != "peer")
