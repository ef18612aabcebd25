"""How many bytes a rank sends for tensor parallelism in one step, by closed formulas. Knows job and layout, no machine.

A rank of n sends (n - 1) / n of a tensor in an all-gather or a reduce-scatter, and twice that in an all-reduce: what a ring, or
any algorithm that is optimal in bytes, moves (Patarasuk and Yuan, 2009). The tensor's size is that of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass

from argosy.job.schema import Job, layers
from argosy.layout.layout import Layout
from argosy.plan.bytes import WIDTH


@dataclass(frozen=True)
class Moved:
    """Bytes that one rank sends in a step, by what for."""

    activations: float  # between the parts of a layer, and at the ends of the model
    logits: float  # the softmax over a vocabulary that ranks share: two numbers a token

    @property
    def total(self) -> float:
        """All of it."""
        return self.activations + self.logits


def passes(job: Job) -> int:
    """How often the activations of all tokens are gathered or scattered in a forward and a backward pass together.

    Four a block in each direction, two for the parallel block; one for the embedding and one before the loss. An all-reduce,
    where the sequence is whole on every rank, is two of them, and there are half as many.
    """
    return 2 * sum(2 if block.parallel else 4 for block in layers(job.model)) + 4


def tensor(job: Job, layout: Layout) -> Moved:
    """One step of the job in force, for a rank that has every layer; rows that only fill up a micro-batch are counted too.

    Without norms of queries and keys over all heads (`qk_norm = "full"`), which sum one number a token besides.
    """
    tp, micro = layout.tp, int(job.batch.micro)
    rows = -(-job.batch.tokens // job.batch.sequence // layout.data)
    tokens = -(-rows // micro) * micro * job.batch.sequence
    width = WIDTH[str(job.train.precision)]
    share = (tp - 1) / tp
    activations = passes(job) * share * tokens * (job.model.width or 0) * width
    return Moved(activations, share * tp * 2 * tokens * max(width, 4))
