"""How well a model predicts text it was not trained on: nats per token, bits per byte, perplexity.

In: batches of held-out documents, all ranks the same. Out: `Held`, the same on every rank. The forward pass runs the training
graph with gradients switched on and drops it, so that nothing is compiled a second time, and leaves weights, optimizer and
gradients as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from argosy.data.batch import Batch
from argosy.parallel.execute import Executor


@dataclass(frozen=True)
class Held:
    """A measurement. `nats` is the sum over `counted` labels, which stand for `bytes` bytes of UTF-8 text."""

    nats: float
    counted: int
    bytes: int
    documents: int

    @property
    def loss(self) -> float:
        """Nats per counted token."""
        return self.nats / self.counted if self.counted else math.nan

    @property
    def bits_per_byte(self) -> float | None:
        """Bits that the model needs for one byte of text; None where the labels stand for none."""
        return self.nats / math.log(2) / self.bytes if self.bytes else None

    @property
    def perplexity(self) -> float:
        """exp(loss): between how many equally likely tokens the model chooses, in effect."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


def held_out(
    batches: Iterable[Batch],
    execute: Executor,
    mine: Callable[[Batch], list[Batch]],
    bytes_of: Callable[[Batch], int],
    group: dist.ProcessGroup | None = None,
    device: torch.device | str = "cpu",
    documents: int | None = None,
    copies: int = 1,
) -> Held:
    """Measure on `batches`. `mine` cuts this rank's micro-batches from one; ranks of `group` add up what they found.

    `copies` ranks compute the same micro-batches. `documents` is their number where the caller knows it; otherwise those
    that begin in a batch are counted.
    """
    total: Tensor = torch.zeros((), dtype=torch.float64, device=device)
    counted = size = found = 0
    within = False
    for batch in batches:
        total += execute(mine(batch), scale=1.0, backward=False).to(device) / copies
        counted += batch.counted
        size += bytes_of(batch)
        found += begun(batch, within)
        within = unended(batch)
    if group is not None:
        dist.all_reduce(total, group=group)
    return Held(float(total), counted, size, found if documents is None else documents)


def begun(batch: Batch, within: bool = False) -> int:
    """How many documents begin in a batch: places of position 0 that are no padding, no filler and go on with none before.

    within: the batch before ended within a document.
    """
    first = (batch.segments > 0) & (batch.positions == 0) & (batch.sequence >= 0)[:, None]
    first[:, 0] &= ~np.append(within, _open(batch)[:-1])
    return int(np.count_nonzero(first))


def unended(batch: Batch) -> bool:
    """Whether the last sequence of a batch, fillers left out, ends within a document."""
    found = _open(batch)[batch.sequence >= 0]
    return bool(len(found) and found[-1])


def _open(batch: Batch) -> NDArray[np.bool_]:
    """Which sequences [B] end within a document: their last place has a label. A document's last token has none."""
    last = (batch.labels[:, -1] != 0) | (batch.weights[:, -1] != 0)
    return np.asarray((batch.segments[:, -1] > 0) & last, np.bool_)
