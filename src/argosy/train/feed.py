"""This rank's micro-batches of a step, on its device: the global batch cut by rows, padded with fillers to fixed shapes.

In: global batches (from the node's reader or a local one). Out: `Part`. Every rank computes the same number of micro-batches of
the same shape, so that collectives of sharded layouts meet; a missing row is a filler of weight zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from argosy.data.batch import Batch, filler, joined
from argosy.data.reader import Batches
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
    """Cuts global batches for one rank. `weigh` tells the bytes of a global batch; only rank 0 needs them."""

    def __init__(
        self,
        batches: Batches,
        layout: Layout,
        rank: int,
        micro: int,
        device: torch.device,
        weigh: Callable[[Batch], int] | None = None,
    ):
        self.batches, self.layout, self.micro, self.device, self.weigh = batches, layout, micro, device, weigh
        self.part = layout.data_index(rank)

    def __call__(self, step: int) -> Part:
        """This rank's part of `step`."""
        batch = self.batches.get(step)
        micro = [tensors(piece, self.device) for piece in cut(batch, self.layout.data, self.part, self.micro)]
        return Part(micro, batch.counted, int(batch.tokens.size), self.weigh(batch) if self.weigh else None)

    def close(self) -> None:
        """Nothing more will be asked."""
        self.batches.close()


def cut(batch: Batch, parts: int, part: int, micro: int) -> list[Batch]:
    """The rows of `part` of `parts` as micro-batches of `micro` rows each, as many on every part, padded with fillers. Pure."""
    mine = share(len(batch), parts, part)
    most = max(len(share(len(batch), parts, other)) for other in range(parts))
    pieces = []
    for begin in range(0, most, micro):
        rows = batch.rows(slice(mine.start + min(begin, len(mine)), mine.start + min(begin + micro, len(mine))))
        missing = micro - len(rows)
        pieces.append(joined(rows, filler(batch, missing)) if missing else rows)
    return pieces


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
