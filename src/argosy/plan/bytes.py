"""A worker's memory at its peak, and what a run writes to disk, by closed formulas. Knows job and layout, no machine.

What is counted exactly: weights, gradients, optimizer. What is fitted, with torch 2.13 on a CPU, to the peak of eleven small
models (1,024 to 8,192 tokens at once, eager and compiled, both types): the constants below. Those runs lay within 20%.
"""

from __future__ import annotations

from dataclasses import dataclass

from argosy.job.schema import BlockSection, Job, ModelSection, layers
from argosy.layout.layout import Layout
from argosy.plan import flops

WIDTH = {"float64": 8, "float32": 4, "bfloat16": 2}
BASE_CPU = 250 << 20  # Python, torch and its libraries
BASE_CUDA = 900 << 20  # the same on the host side plus the CUDA context on the device
COMPILER = 170 << 20  # what torch.compile leaves in a process that has used it
WORKING = 110 << 20  # kernels' scratch memory and what the allocator does not give back
WIDER = {
    True: 0.6,
    False: 3.3,
}  # bytes kept beside each activation, compiled or not: float32 copies in norms and rotations
# The longest sequence whose attention scores a CPU holds whole for a moment, by type: where the two kernels of
# model/kernels.py cross, measured by benchmarks/attention.py with one to eight documents a sequence. In float32 they are even
# at 128 tokens and flash takes half the time at 256; in bfloat16 dense is the faster at 256, flash from 512 to 768 on.
DENSE = {"float64": 96, "float32": 96, "bfloat16": 384}
SCORE = 6  # bytes each of them takes then
ENDS = 56  # bytes per token and width at both ends of the model: embedding, last norm, their gradients


@dataclass(frozen=True)
class Peak:
    """Bytes of one worker by what they hold."""

    base: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.base + self.weights + self.gradients + self.optimizer + self.activations + self.logits


def kept(model: ModelSection, block: BlockSection) -> int:
    """Elements per token that one block keeps for its backward pass."""
    heads = block.heads or 1
    size, kv_heads = flops.head_size(model, block), block.kv_heads or heads
    inner = (3 if block.activation == "swiglu" else 2) * flops.hidden(model, block)
    # Residual in and out, two normed inputs; queries, output of attention; keys, values; the feed-forward's inner values.
    return 4 * (model.width or 0) + 2 * heads * size + 2 * kv_heads * size + inner


def _block_activations(model: ModelSection, block: BlockSection, width: float) -> float:
    """Bytes kept for backward per token by one block, `width` bytes an element."""
    beside = 4 * (block.heads or 1) + 8 + (8 * (model.width or 0) if block.dropout else 0)
    return width * kept(model, block) + beside


def activations(job: Job, micro: int) -> int:
    """Bytes held for one micro-batch of `micro` sequences: what backward needs, and one block's gradients beside it."""
    width = WIDTH[str(job.train.precision)] + WIDER[job.train.compile is True]
    each = [_block_activations(job.model, block, width) for block in layers(job.model)]
    held = micro * job.batch.sequence * (sum(each) + max(each) + ENDS * (job.model.width or 0))
    heads = max(block.heads or 1 for block in layers(job.model))
    dense = DENSE[str(job.train.precision)]
    scores = micro * heads * job.batch.sequence**2 * SCORE if job.batch.sequence <= dense else 0
    return round(held + scores)


def logits(job: Job) -> int:
    """Bytes of one chunk of logits: as computed, in float32, and their gradient."""
    width = WIDTH[str(job.train.precision)]
    return job.memory.loss_chunk * (job.model.vocabulary or 0) * (2 * width + 4)


def optimizer_bytes(job: Job) -> int:
    """Bytes of the optimizer's state, unsharded."""
    master = WIDTH[str(job.train.master)]
    total, matrices = flops.parameters(job.model), flops.matrix_parameters(job.model)
    return master * (2 * total - matrices if job.optim.name == "muon" else 2 * total)


def peak(job: Job, layout: Layout, micro: int, device: str = "cpu") -> Peak:
    """Memory of one worker at its peak, for the job in force."""
    total = flops.parameters(job.model)
    compute, master = WIDTH[str(job.train.precision)], WIDTH[str(job.train.master)]
    shards = layout.dp_shard
    zero = job.layout.zero if shards > 1 else 0
    whole_copy = compute if compute != master else 0
    weights = (master / shards + compute / (shards if zero == 3 else 1)) if shards > 1 else master + whole_copy
    gradients = master / (shards if zero >= 2 else 1)
    # Sharded weights come in the type of the products; the head's gradient is added up over chunks in the master's.
    summed = master * (job.model.vocabulary or 0) * (job.model.width or 0) if zero and compute != master else 0
    return Peak(
        base=(BASE_CPU if device == "cpu" else BASE_CUDA) + WORKING + (COMPILER if job.train.compile is True else 0),
        weights=round(total * weights),
        gradients=round(total * gradients),
        optimizer=round(optimizer_bytes(job) / (shards if shards > 1 else 1)),
        activations=activations(job, micro),
        logits=logits(job) + summed,
    )


def beside(job: Job) -> int:
    """Bytes that a node needs beside its workers: parent, reader and snapshot process, two slots of the state in /dev/shm."""
    return (220 << 20) + 2 * checkpoint(job)


def checkpoint(job: Job) -> int:
    """Bytes of one checkpoint on disk: master weights and optimizer state."""
    return WIDTH[str(job.train.master)] * flops.parameters(job.model) + optimizer_bytes(job)


def disk(job: Job, steps: int, workers: int) -> int:
    """Bytes that a run of `steps` may need at once: one checkpoint more than are kept, the record and the exports."""
    per_step = 330 + 300 + 64 * 8 * workers  # a line of metrics, one of the report's figures, eight entries per rank
    return (job.checkpoint.keep + 1) * checkpoint(job) + steps * per_step + (8 << 20)
