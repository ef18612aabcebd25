"""From a checkpoint into tensors of any layout: each rank reads only the pieces that touch its own boxes.

In: a checkpoint (store.py finds it) and the tensors to fill, DTensors or whole ones. Out: their values, and the facts that
were saved with them. Every piece read is verified against its checksum. Nothing is unpickled, nothing is run.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Container, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from argosy.checkpoint.manifest import Damaged, checksum
from argosy.checkpoint.plan import Piece, TensorSpec
from argosy.checkpoint.save import TYPES
from argosy.checkpoint.store import Checkpoint, at, newest, plan_of, search, set_aside, sidecar_of
from argosy.device.shards import box, local
from argosy.errors import MACHINE, Refused
from argosy.layout.placement import Box, inside, overlap, volume
from argosy.run.folder import Run, append_line

__all__ = ["at", "load", "newest", "search", "tell_skipped"]

_DTYPES = {name: dtype for dtype, name in TYPES.items()}


def load(
    run: Run,
    checkpoint: Checkpoint,
    tensors: Mapping[str, Tensor],
    *,
    partial: bool = False,
    elsewhere: Container[str] = (),
    grown: Container[str] = (),
) -> dict[str, Any]:
    """Fill `tensors` in place from `checkpoint`; gives its facts. The layout that wrote it does not matter.

    partial: the checkpoint may hold more than is asked for, by somebody who does not go on with its run. elsewhere: names that
    ranks with other stages ask for. grown: names that may have more rows than the checkpoint has of them; those rows stay as
    they are. Refused where tensors do not fit; where bytes are damaged the checkpoint is set aside, so that the next start
    takes the one before it, and Refused has code 4.
    """
    specs = {spec.name: spec for spec in checkpoint.manifest.specs}
    _fits(checkpoint, specs, tensors, partial, elsewhere, grown)
    wanted = {name: box(tensor) for name, tensor in tensors.items()}
    try:
        for node in range(len(checkpoint.manifest.files)):
            _read_node(checkpoint, node, specs, tensors, wanted)
    except Damaged as reason:
        if partial:  # who only looks changes nothing
            do = "The same command passes it over."
            raise Refused(f"{reason}.", do=do, code=MACHINE) from None
        aside = set_aside(checkpoint.folder, str(reason))
        raise Refused(
            f"{reason}.",
            do=f"It was set aside as {aside.name}; the same command goes on from the one before.",
            code=MACHINE,
        ) from None
    return dict(checkpoint.facts)


def tell_skipped(run: Run, found: Checkpoint | None, reasons: Sequence[str]) -> None:
    """Tell whoever leads `run` why newer checkpoints than `found` are not used: lines in saved.jsonl, which it shows."""
    used = f"step {found.step} is used instead" if found is not None else "there is no other: training begins anew"
    for reason in reasons:
        sentence = f"{reason}; {used}"
        print(sentence, file=sys.stderr)
        append_line(
            run.local / "saved.jsonl", {"ok": False, "error": "damaged", "sentence": sentence, "time": time.time()}
        )


def _fits(
    checkpoint: Checkpoint,
    specs: Mapping[str, TensorSpec],
    tensors: Mapping[str, Tensor],
    partial: bool,
    elsewhere: Container[str],
    grown: Container[str],
) -> None:
    where = str(checkpoint.folder)
    missing = [name for name in tensors if name not in specs]
    more = [] if partial else [name for name in specs if name not in tensors and name not in elsewhere]
    for names, what in ((missing, "does not hold"), (more, "also holds")):
        if names:
            named = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise Refused(f"this checkpoint is of another model or optimizer: it {what} {named}.", where=where)
    for name, tensor in tensors.items():
        spec, shape = specs[name], tuple(tensor.shape)
        larger = name in grown and len(shape) == len(spec.shape) and shape[1:] == spec.shape[1:] and shape > spec.shape
        if (spec.shape != shape and not larger) or spec.dtype != TYPES.get(tensor.dtype):
            raise Refused(
                f"tensor {name} does not fit: the job makes {TYPES.get(tensor.dtype)} {list(tensor.shape)}.",
                where=where,
                found=f"{spec.dtype} {list(spec.shape)}",
                do="Give the settings that wrote it, or another run: --run DIR.",
            )


def _read_node(
    checkpoint: Checkpoint,
    node: int,
    specs: Mapping[str, TensorSpec],
    tensors: Mapping[str, Tensor],
    wanted: Mapping[str, Box],
) -> None:
    plan = plan_of(checkpoint, node)
    chosen: list[tuple[Piece, str, Box]] = []
    sidecar = None
    for index, piece in enumerate(plan.pieces):
        common = overlap(piece.box, wanted[piece.tensor]) if piece.tensor in wanted else None
        if common is not None and volume(common):
            sidecar = sidecar or sidecar_of(checkpoint, node, plan)
            chosen.append((piece, sidecar.pieces[index], common))
    if not chosen:
        return
    path = checkpoint.folder / checkpoint.manifest.files[node].name
    try:
        with path.open("rb", buffering=0) as file:
            for piece, expected, common in chosen:
                file.seek(piece.offset)
                data = _bytes(file.fileno(), piece.bytes)
                if checksum(data) != expected:
                    raise Damaged(f"{path}: tensor {piece.tensor} is damaged at byte {piece.offset}")
                shape = [end - begin for begin, end in zip(piece.begin, piece.end, strict=True)]
                source = torch.frombuffer(data, dtype=_DTYPES[specs[piece.tensor].dtype]).view(shape)
                target = local(tensors[piece.tensor]).detach()
                target[inside(common, wanted[piece.tensor])].copy_(source[inside(common, piece.box)])
    except OSError as error:
        raise Refused(  # of the disk or the network: the checkpoint may be as good as ever
            "a checkpoint cannot be read.",
            where=str(path),
            found=error.strerror or str(error),
            do="Nothing was changed. Give the same command again once the disk answers.",
            code=MACHINE,
        ) from None


def _bytes(descriptor: int, count: int) -> bytearray:
    """The next `count` bytes, fewer at the end of the file."""
    data = bytearray(count)
    view, done = memoryview(data), 0
    while done < count:
        read = os.readv(descriptor, [view[done:]])
        if read == 0:
            break
        done += read
    return data
