"""The node's snapshot process: takes whole generations from the slots, writes, verifies and commits them. No torch.

`main(run, incarnation)` is what the parent starts, once for all incarnations, and `serve` each node's first rank where none
watches; a new one takes up what a killed one left in the slots. It ends when a file `finish-snapshot` appears in the run's
`local/` (after writing what is whole), with its parent, or with Refused(code 4) when the disk is full. In: slot files. Out:
checkpoints, and a line in `local/saved.jsonl` for each.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from argosy.checkpoint import store
from argosy.checkpoint.manifest import MANIFEST, Damaged, DataFile, Grid, Manifest, Sidecar, checksum, row
from argosy.checkpoint.plan import NodeFile, node_file, ranks_of
from argosy.checkpoint.slots import FINISH, Ready, SavePlan, Slots, places
from argosy.checkpoint.sweep import sweep
from argosy.errors import FULL, MACHINE, Refused
from argosy.points import point
from argosy.quantities import bytes_text
from argosy.run.folder import Run, append_line

CHUNK = 4 << 20  # bytes between two looks at the limit of bandwidth
PAUSE = 0.05  # seconds between two looks at the slots

Generation = Mapping[int, Ready]  # the announcements of one (incarnation, step), by rank


class Pace:
    """Holds writing to `limit` bytes per second on the whole; None = no limit."""

    def __init__(self, limit: float | None):
        self.limit, self.begin, self.written = limit, time.monotonic(), 0
        self.chunk = CHUNK if limit is None else max(4096, min(CHUNK, int(limit / 20)))

    def wrote(self, count: int) -> None:
        """Sleep until `count` more bytes are allowed to have been written."""
        self.written += count
        if self.limit is not None:
            time.sleep(max(0.0, self.begin + self.written / self.limit - time.monotonic()))


class Writer:
    """Writes what the ranks of one node announced. `note` is told a line for each checkpoint, written or failed."""

    def __init__(
        self,
        slots: Slots,
        checkpoints: Path,
        *,
        keep: int,
        bandwidth: float | None,
        note: Callable[[dict[str, object]], None],
    ):
        self.slots, self.checkpoints, self.keep, self.bandwidth, self.note = slots, checkpoints, keep, bandwidth, note

    def turn(self) -> bool:
        """Write the oldest generation that is whole; drop what can never become whole. Whether there was one."""
        ready = self.slots.ready()
        plans = self.slots.plans()  # afterwards: the plan of whatever was announced is there by then
        latest = max(plans, default=-1)
        for order in sorted(ready):
            generation = ready[order]
            plan = plans.get(order[0])
            if plan is not None and set(ranks_of(plan.nodes, plan.node)) <= set(generation):
                self._take(plan, generation, order[1])
                return True
            if plan is None or plan.incarnation < latest:  # its ranks are gone: it stays half for ever
                self._release(generation)
        if plans and not any(incarnation < latest for incarnation, _ in ready):
            self.slots.drop(latest)
        return False

    def _take(self, plan: SavePlan, generation: Generation, step: int) -> None:
        begin = time.monotonic()
        folder = self.checkpoints / store.folder_name(step)
        try:
            manifest = self._write(plan, generation, folder)
        except OSError as error:
            raise self._failed(error, folder, plan, generation, step) from None
        self._release(generation)
        if manifest is not None:
            seconds, waited = time.monotonic() - begin, max(ready.waited for ready in generation.values())
            line = {"step": step, "bytes": manifest.bytes, "seconds": round(seconds, 3), "waited": round(waited, 4)}
            self.note({**line, "ok": True, "incarnation": plan.incarnation, "time": time.time()})
            store.prune(self.checkpoints, self.keep, manifest)

    def _write(self, plan: SavePlan, generation: Generation, folder: Path) -> Manifest | None:
        """Write, verify and commit one generation; None on a node that leaves the commit to the first one."""
        committed = _committed(folder, plan.incarnation)
        if committed is not None:
            return committed if plan.node == 0 else None
        point("checkpoint.write.before")
        self.checkpoints.mkdir(exist_ok=True)
        folder.mkdir(exist_ok=True)  # the run's own folder is never made here: it may have been moved away
        name = f"node-{plan.node:04d}-inc-{plan.incarnation:04d}.safetensors"
        layout = node_file(plan.specs, plan.layout, plan.nodes, plan.node)
        step = int(folder.name.removeprefix("step-"))
        for attempt in (1, 2):
            checksums = self._data(folder / name, layout, generation)
            sidecar = Sidecar(step, plan.incarnation, layout.bytes, checksum(layout.header), checksums)
            store.write_synced(folder / name.replace(".safetensors", ".json"), sidecar.text())
            point("checkpoint.data.after")
            wrong = next(store.data_problems(folder / name, layout, sidecar), None)
            if wrong is None:
                break
            print(f"what was just written does not read back (attempt {attempt}): {wrong}", file=sys.stderr)
        else:
            raise Refused("the disk does not give back what was written to it.", found=wrong or "", code=MACHINE)
        if plan.node != 0:
            return None
        files = [store.file_of(name, sidecar)]
        for node in range(1, len(plan.nodes)):
            other = self._sidecar(folder, plan, node, step)
            if other is None:
                return None
            files.append(other)
        facts = generation[min(generation)].facts
        grid = Grid.of(plan.layout, plan.nodes)
        manifest = Manifest(
            version=grid.version,
            step=step,
            incarnation=plan.incarnation,
            argosy=plan.argosy,
            torch=plan.torch,
            created=time.time(),
            grid=grid,
            tensors=tuple(tuple(row(spec)) for spec in plan.specs),
            facts=facts,
            files=tuple(files),
        )
        store.commit(folder, manifest)
        return manifest

    def _data(self, path: Path, layout: NodeFile, generation: Generation) -> tuple[str, ...]:
        """Write the data file and sync it; gives the checksum of each piece, taken from the slots."""
        views = {rank: _view(Path(ready.path)) for rank, ready in generation.items()}
        incarnation = min(ready.incarnation for ready in generation.values())
        begins: dict[int, list[int]] = {}
        for rank in generation:
            begins[rank] = places([piece for piece in layout.pieces if piece.rank == rank])[0]
        pace, checksums = Pace(self.bandwidth), []
        with path.open("wb", buffering=0) as file:
            if hasattr(os, "posix_fallocate"):  # a disk without room says so before anything is written
                os.posix_fallocate(file.fileno(), 0, layout.bytes)
            _all(file.fileno(), layout.header)
            for piece in layout.pieces:
                begin = begins[piece.rank].pop(0)
                data = views[piece.rank][begin : begin + piece.bytes]
                checksums.append(checksum(data))
                for offset in range(0, piece.bytes, pace.chunk):
                    part = data[offset : offset + pace.chunk]
                    _all(file.fileno(), part)
                    if pace.limit is not None and self.slots.later(incarnation):
                        pace.limit = None  # the ranks wait for this checkpoint: there is no training to spare
                    pace.wrote(len(part))
            os.fsync(file.fileno())
        return tuple(checksums)

    def _sidecar(self, folder: Path, plan: SavePlan, node: int, step: int) -> DataFile | None:
        """The data file of another node, once its snapshot process has written it; None when that will not happen."""
        name = f"node-{node:04d}-inc-{plan.incarnation:04d}.safetensors"
        while True:
            later = max(self.slots.plans(), default=-1) > plan.incarnation
            with contextlib.suppress(Damaged):
                sidecar = Sidecar.read(folder / name.replace(".safetensors", ".json"))
                if (sidecar.step, sidecar.incarnation) == (step, plan.incarnation):
                    return store.file_of(name, sidecar)
            if later:  # its ranks are gone; what it wrote before was looked for once more
                return None
            time.sleep(PAUSE)

    def _release(self, generation: Generation) -> None:
        for ready in generation.values():
            self.slots.release(ready)

    def _failed(self, error: OSError, folder: Path, plan: SavePlan, generation: Generation, step: int) -> Refused:
        """Give back the room of the unfinished checkpoint, tell ranks and parent; gives what is to be raised."""
        if not (folder / MANIFEST).exists():
            store.remove(folder)
        else:  # an earlier incarnation's is good; only what was added goes
            (folder / f"node-{plan.node:04d}-inc-{plan.incarnation:04d}.safetensors").unlink(missing_ok=True)
        needed = node_file(plan.specs, plan.layout, plan.nodes, plan.node).bytes
        good = store.listed(self.checkpoints)[0]
        last = f"The last good checkpoint is step {good[0].step}." if good else "There is no earlier checkpoint."
        why = FULL.get(error.errno or 0, error.strerror or str(error))
        refused = Refused(
            f"step {step} cannot be saved: {why}; {bytes_text(needed)} are needed.",
            where=str(self.checkpoints),
            found=f"{bytes_text(_free(self.checkpoints))} free",
            do=f"{last} Make room and give the same command again.",
            code=MACHINE,
        )
        self.slots.give_up(plan.incarnation, refused.text)
        line = {"step": step, "ok": False, "error": "disk", "sentence": refused.text, "incarnation": plan.incarnation}
        try:
            self.note({**line, "time": time.time()})
        except OSError:  # not even that fits; the exit code and the log say it too
            print(refused.text, file=sys.stderr)
        return refused


def _committed(folder: Path, incarnation: int) -> Manifest | None:
    """What a predecessor, killed before it gave the slots back, has committed: it must not be written over."""
    try:
        found = store.opened(folder)
    except Damaged:
        return None
    same = found.manifest.incarnation == incarnation and not any(store.problems(found))
    found.close()
    return found.manifest if same else None


def _view(path: Path) -> memoryview:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return memoryview(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ))
    finally:
        os.close(descriptor)


def _all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of `data`: near a limit the kernel takes a part first and fails the next time."""
    view = memoryview(data)
    while len(view):
        view = view[os.write(descriptor, view) :]


def _free(folder: Path) -> int:
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def main(run: str, incarnation: int) -> int:
    """Write checkpoints of `run` until told to finish. Refused(code 4) when the disk is full."""
    return serve(run, 0, incarnation)


def serve(run: str, node: int, incarnation: int) -> int:
    """The same, of what the ranks of machine `node` announce."""
    place = Run(run)
    section = place.job().checkpoint
    place.local.mkdir(parents=True, exist_ok=True)
    slots = Slots(place.path, place.local, node)
    slots.write_alone()
    sweep(slots)
    writer = Writer(
        slots,
        place.checkpoints,
        keep=section.keep,
        bandwidth=section.bandwidth,
        note=lambda line: append_line(place.local / "saved.jsonl", line),
    )
    while True:
        # Looked at before the slots: whatever was announced before the file appeared is seen below.
        told = any((folder / FINISH).exists() for folder in (place.local, slots.folder))
        if (told or slots.stirred()) and writer.turn():
            continue
        if told:
            slots.clear()
            return 0
        time.sleep(PAUSE)
