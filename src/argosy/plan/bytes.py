"""A worker's memory at its peak, and what a run writes to disk, by closed formulas. Knows job and layout, no machine.

What is counted exactly: weights, gradients, optimizer (benchmarks/memory.py holds them against real runs). What is fitted, with
torch 2.13 on a CPU, to the peak of eleven small models (1,024 to 8,192 tokens at once, eager and compiled, both types): the
constants below. Those runs lay within 20%.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from argosy.job.schema import BlockSection, Job, ModelSection, layers
from argosy.layout import schedule
from argosy.layout.layout import Layout, share
from argosy.plan import classes, flops, layouts

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
# at 128 tokens and flash takes half the time at 256; in bfloat16 dense is the faster at 256, flash from 512 on.
DENSE = {"float64": 96, "float32": 96, "bfloat16": 384}
OUTSIDE = 220 << 20  # the processes of a machine that are no workers
SCORE = 6  # bytes each of them takes then
PLACE = 24  # bytes that a batch holds for each place of a token: five numbers and a weight (data/ring.py)
AHEAD = 3  # batches that a machine's reader makes before they are asked for (data/ring.py)
MAKING = (
    40  # bytes for each place that stand beside them while the next one is made: its arrays, and what counts its bytes
)
STRETCH = 200  # bytes of Python's objects beside each of its sequences
ENDS = 56  # bytes per token and width at both ends of the model: embedding, last norm, their gradients


@dataclass(frozen=True)
class Peak:
    """Bytes of one worker by what they hold.

    weights, gradients and optimizer stand between micro-batches; copies are weights and gradients that are made of them within
    one, in another type or gathered from shards, and dropped.
    """

    base: int
    weights: int
    gradients: int
    optimizer: int
    copies: int
    activations: int
    logits: int
    batch: int = 0  # this worker's own copy of its part of a global batch

    @property
    def state(self) -> int:
        """What stands between two micro-batches of a step."""
        return self.weights + self.gradients + self.optimizer

    @property
    def tensors(self) -> int:
        """All tensors."""
        return self.state + self.copies + self.activations + self.logits + self.batch

    @property
    def total(self) -> int:
        """All of it."""
        return self.base + self.tensors


def kept(
    model: ModelSection, block: BlockSection, tp: int = 1, sequence: bool = False, recompute: Sequence[str] = ()
) -> float:
    """Elements per token that one block keeps for its backward pass, on one of `tp` ranks that share it.

    sequence: they share the tokens between layers too, but the input of a product is gathered and kept whole.
    recompute: what is computed again. Of a "block" its input is kept; what goes into an operator is kept by others anyway.
    """
    heads, kv_heads, hidden = flops.held(model, block, tp)
    size, inner = flops.head_size(model, block), (3 if block.activation == "swiglu" else 2) * hidden
    residual = (model.width or 0) / (tp if sequence else 1)
    if "block" in recompute:
        return residual
    # Residual in and out, two normed inputs; queries, output of attention; keys, values; the feed-forward's inner values.
    normed = (4 if block.norm_placement == "peri" else 2) * (model.width or 0)
    attention = 0 if "attention" in recompute else 2 * heads * size + 2 * kv_heads * size
    return 2 * residual + normed + attention + (0 if "mlp" in recompute else inner)


def _block_activations(
    model: ModelSection, block: BlockSection, width: float, tp: int, sequence: bool, recompute: Sequence[str] = ()
) -> float:
    """Bytes kept for backward per token by one block, `width` bytes an element."""
    elements = width * kept(model, block, tp, sequence, recompute)
    if "block" in recompute:
        return elements
    scores = 0 if "attention" in recompute else 4 * flops.held(model, block, tp)[0]
    return elements + scores + 8 + (8 * (model.width or 0) if block.dropout else 0)


def pieces(job: Job, layout: Layout, micro: int) -> int:
    """Micro-batches of `micro` sequences that a rank computes in a step."""
    return max(1, -(-len(share(job.batch.tokens // job.batch.sequence, layout.data, layout.data - 1)) // micro))


@dataclass(frozen=True)
class Part:
    """What one coordinate of a pipeline holds: parameters, those of them in blocks' matrices, and what it runs in order."""

    parameters: int
    matrices: int
    passes: tuple[tuple[range, bool], ...]  # (layers of a stage, whether forward), in the order of the schedule
    whole: int = 0  # norms that ranks do not shard, whatever they do with the rest (plan/classes.py)
    outer: int = 0  # at the ends of the model, without those
    head: bool = True  # whether it computes logits

    def standing(self, each: Sequence[float]) -> float:
        """The most of `each` layer's number that stands at once: from its forward pass to its backward pass."""
        now = most = 0.0
        for blocks, forward in self.passes:
            now += (1 if forward else -1) * sum(each[block] for block in blocks)
            most = max(most, now)
        return most


def held(job: Job, layout: Layout, micro: int) -> list[Part]:
    """What each coordinate of the pipeline holds, on the largest of the tensor ranks; one part where there is no pipeline."""
    model, carried = job.model, classes.carried(job.train)
    stages = layouts.stage_layers(job, layout) if layout.pp > 1 else (range(len(layers(model))),)
    shape, found = schedule.Shape(layout.pp, layout.virtual, pieces(job, layout, micro)), []
    for place in range(layout.pp):
        blocks = [block for stage in range(place, layout.stages, layout.pp) for block in stages[stage]]
        ends = {"first": place == 0, "last": place == layout.pp - 1}
        order = schedule.ORDERS[job.layout.schedule](shape, place) if layout.pp > 1 else []
        passes = tuple((stages[action.stage], action.kind == schedule.FORWARD) for action in order)
        count = flops.stage_parameters(model, blocks, **ends, tp=layout.tp)
        inside, after = flops.norm_parameters(model, blocks, last=ends["last"], tp=layout.tp)
        after *= carried.last_norm
        whole = inside * carried.norms + after if layout.dp_shard > 1 else 0
        outer = flops.stage_parameters(model, (), **ends, tp=layout.tp) - after
        found.append(Part(count, flops.stage_matrices(model, blocks, layout.tp), passes, whole, outer, ends["last"]))
    return found


def activations(job: Job, micro: int, tp: int = 1, part: Part | None = None) -> int:
    """Bytes held for micro-batches of `micro` sequences: what backward needs, and one block's gradients beside it.

    What is recomputed stands for one block at a time.
    `part`: what this rank of a pipeline holds; otherwise all layers of one micro-batch.
    """
    width = WIDTH[str(job.train.precision)] + WIDER[job.train.compile is True]
    blocks, split = layers(job.model), job.layout.sequence and tp > 1
    whole = [_block_activations(job.model, block, width, tp, split) for block in blocks]
    each = [_block_activations(job.model, block, width, tp, split, job.memory.recompute) for block in blocks]
    again = max(all_ - some for all_, some in zip(whole, each, strict=True))
    kept_now = sum(each) if part is None else part.standing(each)
    held_now = micro * job.batch.sequence * (kept_now + again + max(whole) + ENDS * (job.model.width or 0))
    heads = max(flops.held(job.model, block, tp)[0] for block in blocks)
    dense = DENSE[str(job.train.precision)]
    capped = any(block.softcap for block in blocks)  # no kernel but the dense one caps scores
    scores = micro * heads * job.batch.sequence**2 * SCORE if capped or job.batch.sequence <= dense else 0
    return round(held_now + scores)


def logits(job: Job, tp: int = 1) -> int:
    """Bytes of one chunk of logits, of which each of `tp` ranks has its part: as computed, in float32, and their gradient."""
    width = WIDTH[classes.of_classes(job.train)["head"]]
    return job.memory.loss_chunk * -(-(job.model.vocabulary or 0) // tp) * (2 * width + 4)


def optimizer_bytes(job: Job, tp: int = 1) -> int:
    """Bytes of the optimizer's state, unsharded over data parallel ranks, on one of `tp` ranks."""
    return _optimizer(job, flops.parameters(job.model, tp), flops.matrix_parameters(job.model, tp))


def _optimizer(job: Job, parameters: int, matrices: int) -> int:
    """AdamW keeps two numbers for each parameter, Muon one for each in a matrix of a block."""
    return WIDTH[str(job.train.master)] * (2 * parameters - (matrices if job.optim.name == "muon" else 0))


def unit(job: Job, layout: Layout) -> int:
    """Parameters of the largest part that is gathered at once where weights are sharded: a block, or the ends of the model."""
    model, inside = job.model, {"first": False, "last": False}
    ends = max(flops.stage_parameters(model, (), **{**inside, end: True}, tp=layout.tp) for end in inside)
    if layout.pp == 1:
        ends = flops.stage_parameters(model, (), first=True, last=True, tp=layout.tp)
    blocks = range(len(layers(model)))
    return max(ends, *(flops.stage_parameters(model, [block], **inside, tp=layout.tp) for block in blocks))


def copies(job: Job, layout: Layout, total: float) -> float:
    """Bytes of weights and gradients, of `total` parameters on a rank, that are made within a micro-batch and dropped."""
    compute, master, reduce = (WIDTH[str(kind)] for kind in (job.train.precision, job.train.master, job.train.reduce))
    if layout.dp_shard == 1:  # a layer casts its weights, and its backward pass wants them again
        return total * compute if compute != master else 0
    whole = min(unit(job, layout), total)  # its gradients, and the buffer in which they are added up over ranks
    made = whole * (compute + reduce)
    if job.layout.zero == 3:
        made += whole * 2 * compute  # this one, and the next one, which comes meanwhile
        if job.layout.secondary:  # a second shard stands from a block's forward pass to its backward pass
            made += total * compute / job.layout.secondary
    return made


def peak(job: Job, layout: Layout, micro: int, device: str = "cpu") -> Peak:
    """Memory of one worker at its peak, for the job in force: of the fullest one, where a pipeline makes them differ."""
    parts = [_peak(job, layout, micro, device, part) for part in held(job, layout, micro)]
    return max(parts, key=lambda part: part.total)


def _peak(job: Job, layout: Layout, micro: int, device: str, part: Part) -> Peak:
    total, compute, master = part.parameters, WIDTH[str(job.train.precision)], WIDTH[str(job.train.master)]
    shards, zero, cut = layout.dp_shard, job.layout.zero, part.parameters - part.whole
    # Whole weights stand from the first forward pass of a step to its last backward pass, unless each pass gives them back;
    # whole gradients from one micro-batch to the next, unless each scatters its own.
    gathered = (cut - part.outer) * compute + part.outer * WIDTH[classes.carried(job.train).ends]
    standing = gathered if shards > 1 and zero < 3 else 0
    adam = 2 * part.whole * master  # of what is whole on every rank
    summed_once = zero == 1 and pieces(job, layout, micro) > 1
    # Sharded weights come in the type of the products; the head's gradient is added up over chunks in the master's.
    head = -(-(job.model.vocabulary or 0) // layout.tp) * (job.model.width or 0) if part.head else 0
    summed = master * head if shards > 1 and compute != master else 0
    return Peak(
        base=(BASE_CPU if device == "cpu" else BASE_CUDA) + WORKING + (COMPILER if job.train.compile is True else 0),
        weights=round(cut * master / shards + part.whole * master + standing),
        gradients=round(cut * master / (1 if summed_once else shards) + part.whole * master),
        optimizer=round((_optimizer(job, total, part.matrices) - adam) / shards + adam),
        copies=round(copies(job, layout, total)),
        activations=activations(job, micro, layout.tp, part if layout.pp > 1 else None),
        logits=logits(job, layout.tp) + summed,
        batch=PLACE * pieces(job, layout, micro) * micro * job.batch.sequence,
    )


def beside(job: Job, part: float = 1.0) -> int:
    """Bytes that a node needs beside its workers: parent, snapshot process, two slots of the state in /dev/shm, its reader."""
    return OUTSIDE + 2 * checkpoint(job) + reader(job, part)


def reader(job: Job, part: float = 1.0) -> int:
    """Bytes of batches on a machine whose workers train on `part` of each: those of the ring, and the one that is made.

    The machine of rank 0 makes all of a batch to know what its bytes are; the ring holds what its workers read.
    """
    ring = (AHEAD + 1) * PLACE * part + MAKING
    return round(job.batch.tokens * (ring + STRETCH / job.batch.sequence))


def checkpoint(job: Job) -> int:
    """Bytes of one checkpoint on disk: master weights and optimizer state."""
    return WIDTH[str(job.train.master)] * flops.parameters(job.model) + optimizer_bytes(job)


def disk(job: Job, steps: int, workers: int) -> int:
    """Bytes that a run of `steps` may need at once: one checkpoint more than are kept, the best, the record and the exports."""
    per_step = 330 + 300 + 64 * 8 * workers  # a line of metrics, one of the report's figures, eight entries per rank
    return (job.checkpoint.keep + 1 + job.evaluate.keep_best) * checkpoint(job) + steps * per_step + (8 << 20)
