"""A rank's side of saving: copy what it writes into a slot, announce it, go on training. The disk is the writer's business.

In: the state's tensors at the end of a step. Out: a slot in memory, and seconds that training stood still. Knows no files on
disk; `snapshot.py` takes the slots from here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from argosy.checkpoint import plan as plans
from argosy.checkpoint.manifest import row, spec_from
from argosy.checkpoint.plan import Piece, TensorSpec
from argosy.checkpoint.slots import SHM, Ready, SavePlan, Slots, places
from argosy.device.shards import cuts, local
from argosy.device.torch_versions import gather_into
from argosy.errors import BUG, MACHINE, Refused
from argosy.layout.layout import AXES, Layout
from argosy.layout.placement import Split, inside
from argosy.points import point
from argosy.run.folder import Run, append_line

TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
LOOK = 0.005  # seconds between two looks at a slot that is still being written
TELL = 3.0  # seconds after which a start that waits for an earlier one's checkpoint says so


def specs_of(tensors: Mapping[str, Tensor], stage: int | None = None) -> list[TensorSpec]:
    """The tensors as the plan sees them. A DTensor's mesh must name its dimensions as the layout's AXES."""
    return [_spec(name, tensor, stage) for name, tensor in tensors.items()]


def specs_over(
    tensors: Mapping[str, Tensor], layout: Layout, rank: int, group: dist.ProcessGroup | None
) -> list[TensorSpec]:
    """The specs of the tensors of all stages, in one order everywhere; `group` are the ranks along pp, None where pp is 1.

    What two stages hold (a tied embedding) is the first one's to write.
    """
    if group is None:
        return specs_of(tensors)
    rows = [row(spec) for spec in specs_of(tensors, layout.at(rank)["pp"])]
    own = torch.frombuffer(bytearray(json.dumps(rows).encode()), dtype=torch.uint8)
    ranks = dist.get_world_size(group)
    device = next(iter(tensors.values())).device
    sizes = torch.zeros(ranks, dtype=torch.int64, device=device)
    gather_into(sizes, torch.tensor([len(own)], device=device), group)
    longest = int(sizes.max())
    sent = torch.zeros(longest, dtype=torch.uint8, device=device)
    sent[: len(own)] = own.to(device)
    everything = torch.empty(ranks * longest, dtype=torch.uint8, device=device)
    gather_into(everything, sent, group)
    found: dict[str, TensorSpec] = {}
    for part, size in zip(everything.cpu().split(longest), sizes.tolist(), strict=True):
        for values in json.loads(bytes(part[:size].tolist())):
            spec = spec_from(values)
            found.setdefault(spec.name, spec)
    return list(found.values())


def _spec(name: str, tensor: Tensor, stage: int | None) -> TensorSpec:
    splits = []
    if isinstance(tensor, DTensor):
        names = tensor.device_mesh.mesh_dim_names or ()
        if any(placement.is_partial() for placement in tensor.placements):
            raise ValueError(f"{name} is partial: a sum that was not taken cannot be saved")
        for axis, dim in cuts(tensor):
            if axis >= len(names) or names[axis] not in AXES:
                raise ValueError(f"{name} is cut over {names[axis : axis + 1]}; only cuts over {AXES} can be saved")
            splits.append(Split(names[axis], dim))
    if tensor.dtype not in TYPES:
        raise ValueError(f"{name} has type {tensor.dtype}, which no checkpoint can hold")
    return TensorSpec(name, TYPES[tensor.dtype], tuple(tensor.shape), tuple(splits), stage)


@dataclass
class _Slot:
    path: Path
    memory: Tensor  # uint8
    taken: Path | None = None  # the announcement that names it
    generation: int | None = None  # of this incarnation, counted from 0; None before a copy is whole


class Saver:
    """Copies this rank's share of the state into slots. All ranks call `begin` at the same steps.

    nodes: ranks on each node. child: no parent of ours watches, so the node's first rank starts the snapshot process.
    `note` is a sentence where the slots had to go to a disk.
    """

    def __init__(
        self,
        run: Run,
        rank: int,
        world: int,
        incarnation: int,
        layout: Layout,
        specs: Sequence[TensorSpec],
        *,
        nodes: Sequence[int] | None = None,
        slots: int = 2,
        child: bool = False,
        shm: Path = SHM,
    ):
        nodes = tuple(nodes or (world,))
        self.node = plans.node_of(nodes, rank)
        self.role = f"snapshot-{self.node}" if self.node else "snapshot"  # nodes may share the folder of logs
        self.run, self.rank, self.incarnation = run, rank, incarnation
        self.files = Slots(run.path, run.local, self.node, shm=shm)
        self.specs = {spec.name: spec for spec in specs}
        self.layout = layout
        self.pieces: list[Piece] = list(plans.pieces(specs, layout, nodes, rank))
        self.begins, size = places(self.pieces)
        self.slots = [self._slot(index, size) for index in range(slots)]
        on_disk = [slot.path.parent for slot in self.slots if slot.path.parent != self.files.folder]
        self.note = f"/dev/shm has no room for snapshots: they are kept in {on_disk[0]}" if on_disk else None
        self.first = rank == plans.ranks_of(nodes, self.node)[0]
        self.writer: subprocess.Popen[bytes] | None = None
        self.child = child and self.first
        self.generations = 0
        if self.first:
            versions = {"argosy": version("argosy"), "torch": torch.__version__}
            self.files.write_plan(SavePlan(incarnation, layout, nodes, self.node, tuple(specs), **versions))
        self._care()

    def begin(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> float:
        """Copy the state at the end of `step` and hand it to the writer; the state may change at once afterwards.

        `facts` is JSON that comes back from `load`. Returns the seconds that training stood still. Refused(code 4) when
        nothing can be saved any more.
        """
        begin = time.perf_counter()
        point("save.copy.before")
        slot = self._free()
        slot.generation = None
        for piece, offset in zip(self.pieces, self.begins, strict=True):
            self._copy(piece, slot.memory[offset : offset + piece.bytes], tensors[piece.tensor])
        point("save.copy.after")
        waited = time.perf_counter() - begin
        slot.taken = self.files.announce(
            Ready(self.incarnation, step, self.rank, str(slot.path), waited, {**facts, "step": step})
        )
        point("save.announce.after")
        slot.generation = self.generations
        self.generations += 1
        return time.perf_counter() - begin

    def held(self) -> tuple[float, ...]:
        """For the vote: which generations lie whole in this rank's slots, written or not; 1.0 at generation modulo eight."""
        there = {slot.generation % 8 for slot in self.slots if slot.generation is not None}
        return tuple(float(index in there) for index in range(8))

    def settle(self) -> None:
        """Wait until the snapshot process has taken, or given up, all that earlier incarnations announced on this node.

        Rank 0 does this before it chooses the newest checkpoint: one that is committed after the choice would be newest for
        the start that follows, though this incarnation never did the steps before it. To give it up instead would lose its
        steps, which take longer than the disk: the snapshot process writes without its limit of bandwidth meanwhile.
        """
        begin, told = time.monotonic(), False
        while earlier := [step for incarnation, step in self.files.ready() if incarnation < self.incarnation]:
            if not told and time.monotonic() - begin > TELL:
                told = True
                sentence = f"waiting until step {max(earlier):,}, which an earlier start announced, is on the disk"
                row = {"ok": False, "error": "waiting", "sentence": sentence, "time": time.time()}
                append_line(self.run.local / "saved.jsonl", row)
            self._wait()

    def flush(self) -> float:
        """Wait until everything announced is on disk and verified. Returns the seconds; Refused where it cannot be."""
        begin = time.perf_counter()
        while any(self._taken(slot) for slot in self.slots):
            self._wait()
        self._check()
        return time.perf_counter() - begin

    def close(self) -> None:
        """Leave; the child process, where this rank started one, ends after writing what is whole."""
        if self.writer is not None:
            self.files.finish()
            self.writer.wait()
            self.writer = None
        for slot in self.slots:
            slot.memory = torch.empty(0)
        self.files.close()

    def _slot(self, index: int, size: int) -> _Slot:
        try:
            path, memory = self.files.slot(self.rank, self.incarnation, index, size)
        except OSError as error:
            raise Refused(
                f"no room for a snapshot of {size:,} bytes, neither in memory nor on disk.",
                where=str(self.files.local),
                found=error.strerror or str(error),
                do="Make room, or move short-lived files elsewhere: ARGOSY_LOCAL=FOLDER.",
                code=MACHINE,
            ) from None
        return _Slot(path, torch.frombuffer(memory, dtype=torch.uint8))

    def _copy(self, piece: Piece, memory: Tensor, tensor: Tensor) -> None:
        spec = self.specs[piece.tensor]
        whole = plans.held(spec, self.layout, self.rank)
        if whole is None:
            raise AssertionError(f"rank {self.rank} writes {piece} but holds nothing of it")
        source = local(tensor).detach()[inside(piece.box, whole)]
        memory.view(tensor.dtype).view(source.shape).copy_(source)

    def _free(self) -> _Slot:
        self._check()
        while True:
            for slot in self.slots:
                if not self._taken(slot):
                    return slot
            self._wait()

    def _taken(self, slot: _Slot) -> bool:
        if slot.taken is not None and not slot.taken.exists():
            slot.taken = None
        return slot.taken is not None

    def _wait(self) -> None:
        self._check()
        self._care()
        time.sleep(LOOK)

    def _check(self) -> None:
        sentence = self.files.failure(self.incarnation)
        if sentence is not None:
            raise Refused(sentence, code=MACHINE)

    def _care(self) -> None:
        """Where this rank is its own parent: start the snapshot process, again when it was killed."""
        if not self.child:
            return
        if self.writer is not None and self.writer.poll() is not None:
            self._check()  # it may have told why
            if self.writer.returncode >= 0:  # not killed: it ended by itself, and would again
                raise Refused(
                    f"the snapshot process ended with {self.writer.returncode}.",
                    where=str(self.run.log / f"{self.role}.txt"),
                    do="Nothing can be saved without it; its log tells why.",
                    code=MACHINE if self.writer.returncode == MACHINE else BUG,
                )
            self.writer = None
        if self.writer is None:
            self.files.finish(False)
            words = ["argosy.checkpoint.snapshot:serve", self.role, str(self.run.path)]
            words += map(str, (self.incarnation, os.getpid(), self.node))
            self.writer = subprocess.Popen([sys.executable, "-P", "-m", "argosy.run.child", *words])
