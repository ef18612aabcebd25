"""This rank's micro-batches of a step, on its device: the global batch cut by rows, padded with fillers to fixed shapes.

In: global batches (from the node's reader or a local one). Out: `Part`. Every rank computes the same number of micro-batches of
the same shape, so that collectives of sharded layouts meet; a missing row is a filler of weight zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch

from argosy.data.batch import Batch, filler
from argosy.layout.layout import Layout, share


class Batches(Protocol):
    """Where global batches come from."""

    def get(self, step: int) -> Batch:
        """The global batch of `step`; views that hold until the next call."""
        ...

    def close(self) -> None:
        """Nothing more will be asked."""


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


def joined(first: Batch, second: Batch) -> Batch:
    """The rows of two batches, one after the other."""
    pairs = {field.name: (getattr(first, field.name), getattr(second, field.name)) for field in fields(Batch)}
    return Batch(**{name: np.concatenate(pair) for name, pair in pairs.items()})


def tensors(batch: Batch, device: torch.device) -> Batch:
    """The same batch as torch tensors on `device`: copies, so that the reader may overwrite its own."""
    return Batch(**{field.name: torch.tensor(getattr(batch, field.name), device=device) for field in fields(Batch)})
