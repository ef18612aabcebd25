"""How long a step takes: as the last such run took, from timed pieces of the model, or from rates. Knows no machine.

Where nothing of the model could be timed only rates are known. On a CPU a small model's time is the time of its matrix
products and, as much or more, of everything else: norms, softmax, activations, the loss. The second part is then counted in
elements kept for the backward pass, each as if a number of bytes were moved; that number is fitted to the laptop job's step
in both types, compiled and not, beside the probe of the same minute.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from argosy.job.schema import BlockSection, Job, ModelSection, layers
from argosy.layout import schedule
from argosy.layout.layout import Layout
from argosy.plan import flops, layouts, moved
from argosy.plan.bytes import WIDTH, kept

MOVED = {True: 110.0, False: 250.0}  # bytes an element of activations costs, with and without the compiler
# Of what a model does beside matrix products and attention, the share of its time that the compiler leaves: fitted to steps of
# the laptop job on quiet cores (two workers and one; 3, 4 and 6 layers; Muon and AdamW), which it then told within
# about a tenth (two workers: 6 layers +5%, Muon +3%, AdamW +11%).
LEFT = {"float32": 0.6, "bfloat16": 0.47, "float64": 0.6}
# Seconds of a step in which a rank of a CPU that is not the only one waits: for the others at the vote, its batch, the record.
# Fitted with two ranks; what a rank that is alone waits was not measured.
BETWEEN = 0.004
EXCHANGE = 1.0e9  # bytes/s at which a rank hands gradients to others of its machine over gloo
EXCHANGE_LINK = 5e10  # the same between devices of one machine
EFFICIENCY = 0.4  # share of the matrix-multiply rate that a model reaches where only that rate is known
RATE_UNKNOWN = 20.0  # GFLOP/s of a worker when nothing was measured: a slow core, so that lengths err on the short side


def rate(probed: Mapping[str, Any], precision: str) -> float:
    """GFLOP/s of this machine's devices together, in `precision`; float64 is half of float32 where it was not measured."""
    measured = probed.get("gemm", {})
    if precision in measured:
        return float(measured[precision])
    found = float(measured.get("float32", RATE_UNKNOWN))
    return found / 2 if precision == "float64" else found


def seen(job: Job) -> str:
    """The name under which a run's own step is kept for the next one: what changes it, and is known before its length is.

    A request (`plan/trial.py`) asks about one block and a few rows of it; a run's step is that of the whole model.
    """
    compiled = "eager" if job.train.compile is False else "compiled"
    model = job.model.model_dump_json(exclude={"preset", "init"})
    batch = f"{job.batch.tokens}x{job.batch.sequence}"
    inside = f"{model} {job.layout.model_dump_json()} {job.memory.recompute}"
    return f"{job.train.precision} {compiled} {batch} {job.layout.shape} {blake2b(inside.encode(), digest_size=8).hexdigest()}"


def known(job: Job, probed: Mapping[str, Any]) -> float | None:
    """Seconds of a step of the last run of this kind here; None before the first."""
    found = probed.get("seen", {}).get(seen(job))
    return float(found) if found else None


def basis(job: Job, probed: Mapping[str, Any]) -> str:
    """Where `step_seconds` has its figure from, in words."""
    if known(job, probed) is not None:
        return "as the last such run here took"
    if job.train.precision in probed.get("pieces", {}):
        return "predicted from layers timed here"
    return "predicted from measured rates" if probed.get("gemm") else "a guess, nothing was measured"


def step_seconds(job: Job, probed: Mapping[str, Any], workers: int, devices: int) -> float:
    """Seconds of one step, from the best that is known: the last such run here, pieces timed here, or rates alone."""
    last = known(job, probed)
    if last is not None:
        return last
    if job.train.precision in probed.get("pieces", {}):
        return from_pieces(job, probed, workers)
    return _from_rates(job, probed, workers, devices)


def from_pieces(job: Job, probed: Mapping[str, Any], workers: int) -> float:
    """Seconds of one step from the pieces that `python -m argosy.train.trial` timed in the job's type.

    Timed eagerly. The compiler leaves matrix products, and attention where it is a kernel, as they are and shortens everything
    else.
    """
    one, asked = probed["pieces"][str(job.train.precision)], probed["request"]
    layout = (
        Layout(dp_replicate=max(1, workers)) if job.layout.shape == "auto" else layouts.of(job.layout, max(1, workers))
    )
    left = LEFT[str(job.train.precision)] if job.train.compile is not False else 1.0

    def part(name: str) -> float:
        """Seconds of a pass over a piece, compiled where the job is."""
        stays = min(one[f"{name}_products"] + one.get(f"{name}_attention", 0.0), one[name])
        return float(stays + left * (one[name] - stays))

    each = _blocks(job) * part("block") / (asked["rows"] * asked["sequence"]) + part("ends") / asked["ends"]
    rows = -(-(job.batch.tokens // job.batch.sequence) // layout.data)
    computed = rows * job.batch.sequence * each / (layout.tp * layout.pp)
    if "block" in job.memory.recompute:
        computed *= 4 / 3  # the forward pass once more; backward takes twice as long as it
    cpu = asked["device"] == "cpu"
    sent = (exchanged(job, layout, rows) + shared_out(job, layout)) / (EXCHANGE if cpu else EXCHANGE_LINK)
    took = (computed + sent) / (1 - waiting(job, layout, rows)) + update(job, one, layout)
    return float(took + (BETWEEN if cpu and layout.world > 1 else 0.0))


def update(job: Job, one: Mapping[str, float], layout: Layout) -> float:
    """Seconds of a rank's update, from the pieces `one`.

    Each rank updates what it holds. The iterations of Muon, of whole matrices, are shared out among all that hold the same
    layers.
    """
    together = one.get("block_orthogonal", 0.0)
    own = _blocks(job) * max(0.0, one["block_update"] - together) + one["ends_update"]
    return float((own / layout.dp_shard + _blocks(job) * together / layout.data) / (layout.tp * layout.pp))


def _blocks(job: Job) -> float:
    """How many times the work of `model.block` the job's layers are; those of a pattern may be larger or smaller."""
    like = sum(work(job.model, block, job.batch.sequence) for block in layers(job.model))
    return like / work(job.model, job.model.block, job.batch.sequence)


def exchanged(job: Job, layout: Layout, rows: int) -> float:
    """Bytes that a rank which reads `rows` sequences a step sends: gradients to other replicas, activations along tp."""
    gradients = 4.0 * flops.parameters(job.model) / (layout.tp * layout.pp) * 2 * (layout.data - 1) / layout.data
    tokens, width = rows * job.batch.sequence, (job.model.width or 0) * WIDTH[str(job.train.precision)]
    return gradients + moved.passes(job) / layout.pp * (layout.tp - 1) / layout.tp * tokens * width


def shared_out(job: Job, layout: Layout) -> float:
    """Bytes that a rank sends so that every rank gets each matrix from the one that made it orthogonal; see optim/muon.py."""
    if job.optim.name != "muon":
        return 0.0
    shards, ranks = layout.dp_shard * layout.tp, layout.data * layout.tp
    gathered = 4.0 * (shards - 1) / shards  # in the type of the momentum; what is made of it is in that of the products
    made = WIDTH[str(job.train.precision)] * (ranks - 1) / ranks
    return flops.matrix_parameters(job.model) / layout.pp * (gathered + made)


def waiting(job: Job, layout: Layout, rows: int) -> float:
    """The share of a step in which a rank of a pipeline waits for the others, where it reads `rows` sequences a step."""
    if layout.pp == 1:
        return 0.0
    # While batch.micro is open: plan/fit.py takes four micro-batches for each of the pipeline's ranks, where there are as many.
    micro = job.batch.micro if isinstance(job.batch.micro, int) else max(1, rows // (4 * layout.pp))
    return schedule.bubble(job.layout.schedule, schedule.Shape(layout.pp, layout.virtual, -(-rows // micro)))


def work(model: ModelSection, block: BlockSection, sequence: int) -> float:
    """FLOP of one block, forward and backward, for one token."""
    one = model.model_copy(update={"layers": 1, "pattern": (), "block": block, "vocabulary": 0})
    return flops.flops_per_token(one, sequence)


def _from_rates(job: Job, probed: Mapping[str, Any], workers: int, devices: int) -> float:
    """Matrix products at the measured rate, and everything else at the measured bandwidth."""
    total = flops.flops_per_token(job.model, job.batch.sequence) * job.batch.tokens
    together = rate(probed, str(job.train.precision)) * (max(1, workers) if devices else 1) * 1e9
    bandwidth = float(probed.get("bandwidth", 0))
    if devices or not bandwidth:
        return total / (together * EFFICIENCY)
    blocks = layers(job.model)
    elements = sum(kept(job.model, block) for block in blocks) * (1 + 1 / len(blocks)) * job.batch.tokens
    return total / together + elements * MOVED[job.train.compile is not False] / bandwidth
