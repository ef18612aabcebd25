"""Batch n + 1 while step n runs: the machine's reader process, the workers' side, the same within one process. No torch.

One process per machine opens the prepared text and feeds all workers there through a ring in memory (`ring`); no worker does.
Where a launcher started workers on several machines, each reader makes the sequences that its own workers train on.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Any

import psutil

from argosy.data import ring as rings
from argosy.data.batch import Batch, Given, HeldOut, given
from argosy.data.held import sets
from argosy.data.ring import AHEAD, MEMORY, Batches, Heard, Reader, RingBatches, own, unheard
from argosy.data.shards import Shards
from argosy.errors import MACHINE, Refused
from argosy.layout.layout import Layout
from argosy.run import guardian
from argosy.run.folder import Run
from argosy.run.incarnation import Incarnation
from argosy.run.ledger import Ledger

PATIENCE = 60.0  # seconds without a batch after which a worker whose parent is gone gives up
LOOK = 0.5  # seconds between two looks at a reader that this process started
STOPPED_FOR = 1.0  # seconds that it may stand still (SIGSTOP) before it is replaced


class LocalBatches:
    """Batches made by a thread of this process, up to AHEAD before they are asked for."""

    def __init__(
        self,
        seed: int,
        ledger: Ledger,
        shards: Shards,
        first_step: int,
        held: Callable[[], list[HeldOut]] = list,
        heard: Heard = unheard,
    ):
        self.heard, self._held = heard, held
        self._sets: list[HeldOut] = []
        self._make: Callable[[int], Given] = lambda step: given(step, seed, ledger, shards)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._coming: dict[int, Future[Given]] = {}
        self._ask(first_step)

    def get(self, step: int) -> Given:
        """See Batches. Raises what making it raised."""
        self._ask(step)
        coming, begun = self._coming[step], time.monotonic()
        late = not wait([coming], rings.SLOW).done
        if late:
            self.heard(time.monotonic() - begun, False)
        found = coming.result()
        if late:
            self.heard(time.monotonic() - begun, True)
        return found

    def held_out(self, number: int, rows: int) -> Iterator[Batch]:
        """See Batches."""
        self._sets = self._sets or self._held()
        for index in count():
            batch = self._sets[number].batch(index, rows)
            if batch is None:
                return
            yield batch

    def close(self) -> None:
        """See Batches."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _ask(self, step: int) -> None:
        for old in [known for known in self._coming if not step <= known <= step + AHEAD]:
            self._coming.pop(old).cancel()
        for wanted in range(step, step + AHEAD + 1):
            if wanted not in self._coming:
                self._coming[wanted] = self._pool.submit(self._make, wanted)


def shares(start: Incarnation, node: int) -> tuple[tuple[int, ...], int] | None:
    """Which shares of the global batch, of how many, the workers of machine `node` train on; None = all of it.

    The machine is told by the rank that asks: the file that describes a start may be one for all machines.
    """
    if start.nodes == 1:
        return None
    layout, first = Layout.parse(start.layout, start.world), node * start.local_world
    ranks = range(first, first + start.local_world)
    return tuple(sorted({layout.data_index(rank) for rank in ranks})), layout.data


def places(run: Run, start: Incarnation, node: int = 0) -> list[Path]:
    """The folders in which the ring may be: memory first, the run's local folder where there is none.

    The name tells what the batches depend on, so that one of other batches is never taken for it.
    """
    job = run.job()
    measured = f"{job.batch.sequence} {job.evaluate.tokens}"
    what = f"2 {job.train.seed} {run.ledger().digest} {run.prepared().name} {measured} {shares(start, node)}"
    name = _name(run, node) + blake2b(what.encode(), digest_size=6).hexdigest()
    return [MEMORY / name, run.local / name]


def remove(run: Run, node: int = 0, but: Path | None = None) -> None:
    """Remove the rings of `run` on this node, whatever they hold, except `but`."""
    for folder in (MEMORY, run.local):
        for ring in folder.glob(f"{_name(run, node)}*"):
            if ring != but:
                shutil.rmtree(ring, ignore_errors=True)


def _name(run: Run, node: int) -> str:
    place = blake2b(str(run.local.resolve()).encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()
    return f"argosy-ring-{os.getuid()}-{place}-{node}-"


def batches(run: Run, incarnation: int, rank: int = 0, heard: Heard = unheard) -> Batches:
    """A worker's side of its machine's reader."""
    start = Incarnation.read(run, incarnation)
    last_sign = time.monotonic()
    begun = (run.local / f"incarnation-{incarnation}.json").stat().st_mtime_ns

    def failed() -> Exception | None:
        """Why no batch will come any more; None while one may."""
        nonlocal last_sign
        told = _failure(run, begun)
        if told is not None:
            if told["kind"] == "refused":
                return Refused(str(told["sentence"]), code=int(told["code"]))
            return RuntimeError(f"the reader process failed: {told['sentence']}; its log is in {run.log}")
        if start.parent is None or guardian.alive(start.parent):
            last_sign = time.monotonic()
        if time.monotonic() - last_sign < PATIENCE:
            return None
        return Refused(
            f"no batch came for {PATIENCE:.0f} s: the reader process is gone, and so is process {start.parent}"
            " that would start another.",
            where=str(run.path),
            do="Start the run again: it goes on from its last checkpoint.",
            code=MACHINE,
        )

    return RingBatches(places(run, start, rank // start.local_world), failed, heard)


def _failure(run: Run, since: int) -> dict[str, Any] | None:
    """What a reader told that failed after the time `since` (ns); readers may be older than the workers they serve."""
    for path in run.local.glob("ended-reader-*.json"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime_ns >= since and (told := json.loads(path.read_text(encoding="utf-8")))["code"]:
                return dict(told)
    return None


def main(run: str, incarnation: int) -> int:
    """The reader process of a machine: makes batches until its parent ends it, for workers of any incarnation."""
    return serve(run, 0, incarnation)


def serve(run: str, rank: int, incarnation: int) -> int:
    """The same, of the machine on which `rank` is."""
    place = Run(run)
    start = Incarnation.read(place, incarnation)
    while True:
        _serve(place, start, rank // start.local_world)


def _serve(run: Run, start: Incarnation, node: int) -> None:
    """Make batches in a ring until the ledger says something new."""
    read, mine = _stamp(run), shares(start, node)
    ledger, seed, shards = run.ledger(), run.job().train.seed, Shards(run.prepared())
    folders = places(run, start, node)
    if _stamp(run) != read:  # it was changed meanwhile: the ring's name may tell of another ledger than the one in hand
        return
    ring = _choose(folders, ledger)
    remove(run, node, but=ring)
    guardian.farewell[:] = [lambda: shutil.rmtree(ring, ignore_errors=True)]
    held: list[HeldOut] = []

    def measured(number: int, index: int, rows: int) -> Batch | None:
        """Batch `index` of held-out set `number`; None after its last."""
        held[:] = held or sets(run, shards)  # opened when the first of them is asked for
        return held[number].batch(index, rows)

    # Rank 0 writes down how many bytes the labels of the whole batch stand for; nobody else has to read it all for that.
    reader = Reader(ring, lambda step: given(step, seed, ledger, shards, mine, weigh=node == 0), measured)
    while True:
        if not reader.turn():
            reader.wait(1.0)
            if _stamp(run) != read:
                break
    reader.close()


def _stamp(run: Run) -> tuple[int, int]:
    """Changes when the ledger does."""
    status = (run.path / "ledger.jsonl").stat()
    return status.st_mtime_ns, status.st_size


class OwnReader:
    """The reader process of a machine where no parent of ours watches: the first rank there starts it, and a new one where it
    was killed or stands still. One that tells why it failed is not started again: the workers hear of it.
    """

    def __init__(self, run: Run, incarnation: int, rank: int = 0):
        self._run, self._node = run, rank // Incarnation.read(run, incarnation).local_world
        words = ["argosy.data.reader:serve", f"reader-{self._node}", str(run.path), str(incarnation), str(os.getpid())]
        self._command = [sys.executable, "-P", "-m", "argosy.run.child", *words, str(rank)]
        self._process = self._start()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._care, name="reader watch", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """The process that reads now."""
        return self._process.pid

    def close(self) -> None:
        """End it, and remove its ring."""
        self._done.set()
        self._thread.join()
        self._process.kill()
        self._process.wait()
        with suppress(OSError):
            remove(self._run, self._node)

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, stdin=subprocess.DEVNULL, process_group=0)

    def _care(self) -> None:
        still = 0.0
        while not self._done.wait(LOOK):
            still = still + LOOK if _stands(self._process.pid) else 0.0
            if still >= STOPPED_FOR:
                self._process.kill()
                self._process.wait()
            code = self._process.poll()
            if code is not None and code < 0:
                self._process, still = self._start(), 0.0
            elif code is not None:
                return


def _stands(pid: int) -> bool:
    """Whether our child `pid` is stopped by a signal; nobody else can have its number as long as nobody waited for it."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def _choose(folders: list[Path], ledger: Ledger) -> Path:
    """The ring that an earlier reader began, else memory where it has room."""
    for folder in folders:
        if own(folder):
            return folder
    most = max(int(str(entry.new)) for entry in ledger.entries if entry.key == "batch.tokens")
    need = 32 * most * (AHEAD + 3)
    memory, disk = folders
    if not memory.parent.is_dir() or os.path.lexists(memory):  # no memory, or somebody else's folder of that name
        return disk
    return memory if shutil.disk_usage(memory.parent).free > 2 * need else disk
