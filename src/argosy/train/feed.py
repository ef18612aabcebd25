"""This rank's micro-batches of a step, on its device: the global batch cut by rows, padded with fillers to fixed shapes.

In: what the machine was given of global batches, by its reader or a thread. Out: `Part`. Every rank computes the same number of
micro-batches of the same shape, so that collectives of sharded layouts meet; a missing row is a filler of weight zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from argosy.data.batch import Batch, filler, joined
from argosy.data.ring import Batches
from argosy.layout.layout import Layout, share
from argosy.model import kernels


@dataclass(frozen=True)
class Part:
    """What a rank computes in one step, and what it knows of the whole global batch."""

    micro: Sequence[Any]
    counted: int  # labels of the global batch that count
    tokens: int  # of the global batch
    bytes: int | None = None  # UTF-8 bytes that the counted labels stand for, where the data are text


class Feed:
    """Cuts global batches for one rank."""

    def __init__(self, batches: Batches, layout: Layout, rank: int, micro: int, device: torch.device):
        self.batches, self.layout, self.micro, self.device = batches, layout, micro, device
        self.part = layout.data_index(rank)

    def __call__(self, step: int) -> Part:
        """This rank's part of `step`."""
        given = self.batches.get(step)
        rows = pieces(given.part, given.whole, self.layout.data, self.part, self.micro)
        tokens = given.whole * given.batch.tokens.shape[1]
        return Part([tensors(piece, self.device) for piece in rows], given.counted, tokens, given.bytes)

    def close(self) -> None:
        """Nothing more will be asked."""
        self.batches.close()


def cut(batch: Batch, parts: int, part: int, micro: int) -> list[Batch]:
    """The rows of `part` of `parts` as micro-batches of `micro` rows each, as many on every part, padded with fillers. Pure."""
    return pieces(lambda rows: batch.rows(slice(rows.start, rows.stop)), len(batch), parts, part, micro)


def pieces(rows_of: Callable[[range], Batch], whole: int, parts: int, part: int, micro: int) -> list[Batch]:
    """The same of a batch of `whole` rows, some of which `rows_of` gives: those of `part` must be among them. Pure."""
    mine = share(whole, parts, part)
    most = max(len(share(whole, parts, other)) for other in range(parts))
    found = []
    for begin in range(0, most, micro):
        rows = rows_of(mine[begin : begin + micro])
        missing = micro - len(rows)
        found.append(joined(rows, filler(rows, missing)) if missing else rows)
    return found


def tensors(batch: Batch, device: torch.device) -> Batch:
    """The same batch as torch tensors on `device`: copies, so that the reader may overwrite its own."""
    moved = Batch(**{field.name: _moved(getattr(batch, field.name), device) for field in fields(Batch)})
    if device.type != "cpu":  # counted here, so that no layer has to ask the device how many documents there are
        borders = kernels.borders(torch.from_numpy(batch.segments))
        kernels.remember(torch.as_tensor(moved.segments), _moved(borders.numpy(), device))
    return moved


def _moved(values: Any, device: torch.device) -> torch.Tensor:
    """A copy of the array `values` on `device`; the host does not wait until a GPU has it."""
    if device.type != "cuda":
        return torch.tensor(values, device=device)
    return torch.tensor(values, pin_memory=True).to(device, non_blocking=True)
