"""A worker's memory at its peak, and what a run writes to disk, by closed formulas. Knows job and layout, no machine.

What is counted exactly: weights, gradients, optimizer. What is fitted, with torch 2.13 on a CPU, to the peak of eleven small
models (1,024 to 8,192 tokens at once, eager and compiled, both types): the constants below. Those runs lay within 20%.
"""

from __future__ import annotations

from dataclasses import dataclass

from argosy.job.schema import BlockSection, Job, ModelSection, layers
from argosy.layout import schedule
from argosy.layout.layout import Layout, share
from argosy.plan import flops, layouts

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


def kept(model: ModelSection, block: BlockSection, tp: int = 1, sequence: bool = False) -> float:
    """Elements per token that one block keeps for its backward pass, on one of `tp` ranks that share it.

    sequence: they share the tokens between layers too, but the input of a product is gathered and kept whole.
    """
    heads, kv_heads, hidden = flops.held(model, block, tp)
    size, inner = flops.head_size(model, block), (3 if block.activation == "swiglu" else 2) * hidden
    # Residual in and out, two normed inputs; queries, output of attention; keys, values; the feed-forward's inner values.
    stream = (2 / tp if sequence else 2) + (4 if block.norm_placement == "peri" else 2)
    return stream * (model.width or 0) + 2 * heads * size + 2 * kv_heads * size + inner


def _block_activations(model: ModelSection, block: BlockSection, width: float, tp: int, sequence: bool) -> float:
    """Bytes kept for backward per token by one block, `width` bytes an element."""
    beside = 4 * flops.held(model, block, tp)[0] + 8 + (8 * (model.width or 0) if block.dropout else 0)
    return width * kept(model, block, tp, sequence) + beside


def pipelined(job: Job, layout: Layout, micro: int) -> tuple[float, float]:
    """What the fullest rank of a pipeline holds: its share of all parameters, and layers x micro-batches that stand at once."""
    stages, model = layouts.stage_layers(job, layout), job.model
    total, end = flops.parameters(model), (model.vocabulary or 0) * (model.width or 0)
    layer = (total - end * (1 if model.tied else 2)) / len(layers(model))
    pieces = -(-len(share(job.batch.tokens // job.batch.sequence, layout.data, layout.data - 1)) // micro)
    shape = schedule.Shape(layout.pp, layout.virtual, max(1, pieces))
    parameters = most = 0.0
    for place in range(layout.pp):
        own = range(place, layout.stages, layout.pp)
        ends = (place == 0) + (place == layout.pp - 1)
        parameters = max(parameters, sum(len(stages[stage]) for stage in own) * layer + ends * end)
        standing = 0
        for action in schedule.ORDERS[job.layout.schedule](shape, place):
            standing += len(stages[action.stage]) * (1 if action.kind == schedule.FORWARD else -1)
            most = max(most, standing)
    return parameters / total, most


def activations(job: Job, micro: int, tp: int = 1, standing: float | None = None) -> int:
    """Bytes held for micro-batches of `micro` sequences: what backward needs, and one block's gradients beside it.

    `standing`: layers x micro-batches that a rank of a pipeline holds; otherwise all layers of one micro-batch.
    """
    width = WIDTH[str(job.train.precision)] + WIDER[job.train.compile is True]
    blocks, split = layers(job.model), job.layout.sequence and tp > 1
    each = [_block_activations(job.model, block, width, tp, split) for block in blocks]
    blocks_kept = sum(each) if standing is None else standing * sum(each) / len(each)
    held = micro * job.batch.sequence * (blocks_kept + max(each) + ENDS * (job.model.width or 0))
    heads = max(flops.held(job.model, block, tp)[0] for block in blocks)
    dense = DENSE[str(job.train.precision)]
    capped = any(block.softcap for block in blocks)  # no kernel but the dense one caps scores
    scores = micro * heads * job.batch.sequence**2 * SCORE if capped or job.batch.sequence <= dense else 0
    return round(held + scores)


def logits(job: Job, tp: int = 1) -> int:
    """Bytes of one chunk of logits, of which each of `tp` ranks has its part: as computed, in float32, and their gradient."""
    width = WIDTH[str(job.train.precision)]
    return job.memory.loss_chunk * -(-(job.model.vocabulary or 0) // tp) * (2 * width + 4)


def optimizer_bytes(job: Job, tp: int = 1) -> int:
    """Bytes of the optimizer's state, unsharded over data parallel ranks, on one of `tp` ranks."""
    master = WIDTH[str(job.train.master)]
    total, matrices = flops.parameters(job.model, tp), flops.matrix_parameters(job.model, tp)
    return master * (2 * total - matrices if job.optim.name == "muon" else 2 * total)


def peak(job: Job, layout: Layout, micro: int, device: str = "cpu") -> Peak:
    """Memory of one worker at its peak, for the job in force."""
    total, tp = float(flops.parameters(job.model, layout.tp)), layout.tp
    optimizer, standing = float(optimizer_bytes(job, tp)), None
    if layout.pp > 1:
        part, standing = pipelined(job, layout, micro)
        total, optimizer = total * part, optimizer * part
    compute, master = WIDTH[str(job.train.precision)], WIDTH[str(job.train.master)]
    shards = layout.dp_shard
    zero = job.layout.zero if shards > 1 else 0
    whole_copy = compute if compute != master else 0
    weights = (master / shards + compute / (shards if zero == 3 else 1)) if shards > 1 else master + whole_copy
    gradients = master / (shards if zero >= 2 else 1)
    return Peak(
        base=(BASE_CPU if device == "cpu" else BASE_CUDA) + WORKING + (COMPILER if job.train.compile is True else 0),
        weights=round(total * weights),
        gradients=round(total * gradients),
        optimizer=round(optimizer / (shards if shards > 1 else 1)),
        activations=activations(job, micro, tp, standing),
        logits=logits(job, tp),
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
