"""A job of any size made small enough to be compared: the same layout and the same kinds of layers. Pure, and without torch.

A job that is small enough, as the fuzzer's own are, is tried first as it stands, in its own types and batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from argosy.errors import Refused
from argosy.layout.layout import Layout, divisors, nearest
from argosy.plan.classes import DIGITS, of_classes
from argosy.prove.options import HIDDEN, RANKS, SEQUENCE, TOLERANCES

if TYPE_CHECKING:
    from argosy.job.schema import Job, ModelSection
    from argosy.prove.parity import Trial

WIDTH, VOCABULARY, WINDOW, LAYERS, HEAD = 24, 31, 5, 4, 6  # most of each
EPSILON = 1e-3  # AdamW's: with less it turns gradients that are zero but for rounding into whole steps
ROWS, ENTRIES, DEEP = (
    64,
    32,
    5,
)  # most sequences, entries of the vocabulary and layers of a job that is tried as it stands


def trials(job: Job, precision: str = "float64") -> Iterator[tuple[dict[str, Any], Trial]]:
    """Draws of `job`, the first ones as it stands where it is small enough, then at small sizes: what differs, and the trial.

    Refused for a layout not said or wrong.
    """
    from argosy.layout import legal
    from argosy.plan import layouts
    from argosy.prove.parity import Trial

    own = layout_of(job)
    if (itself := as_it_stands(job, own)) is not None:
        legal.check(replace(layouts.asked(itself, own, {}), ranks=None))
        rows, micro = job.batch.tokens // job.batch.sequence, int(job.batch.micro)
        for packed, update in ((True, job.optim.name), (False, job.optim.name), (False, "sgd"), (True, "sgd")):
            yield (
                {"rows": rows, "micro": micro, "packed": packed, "update": update},
                Trial(itself, update, packed, own.world),
            )
    layout = fewer(own, job.layout.secondary)
    small = shrunk(job, layout, precision)
    name = small.optim.name
    data, least = layout.data, layout.pp if small.layout.virtual > 1 else 1  # micro-batches that a schedule needs
    batches = ((data * least, 1), (2 * data * least + 1, 1), (4 * data * least, 2), (3 * data * least - 1, 3))
    for packed, update in ((False, "sgd"), (True, name), (True, "sgd"), (False, name)):
        for rows, micro in batches:
            batch = small.batch.model_copy(update={"tokens": rows * SEQUENCE, "micro": micro})
            drawn = small.model_copy(update={"batch": batch})
            legal.check(replace(layouts.asked(drawn, layouts.of(drawn.layout, layout.world), {}), ranks=None))
            varied = {"rows": rows, "micro": micro, "packed": packed, "update": update}
            yield varied, Trial(drawn, update, packed, layout.world)


def as_it_stands(job: Job, layout: Layout) -> Job | None:
    """`job` with its blocks whole, where it is small enough to be compared as it is and leaves nothing to the machine."""
    from argosy.job import presets
    from argosy.job.schema import layers
    from argosy.plan.settle import whole

    model, train, optim = presets.filled(job.model), job.train, job.optim
    kinds = tuple(whole(model, block) for block in layers(model)[: len(model.pattern)]) if model.layers else ()
    model = model.model_copy(update={"block": whole(model, model.block), "pattern": kinds})
    said: list[Any] = [model.width, model.vocabulary, model.layers, model.positions, model.tied, optim.lr]
    said.append(model.rope_theta if model.positions == "rotary" else model.context)
    said += [value for block in (model.block, *model.pattern) for value in block.model_dump().values()]
    said += [optim.momentum, optim.newton_schulz] if optim.name == "muon" else []
    said += [model.base_width] if model.scaling == "mup" else []
    types = train.precision in TOLERANCES and "auto" not in (train.master, train.reduce) and train.compile is False
    if None in said or not types or not isinstance(job.batch.micro, int) or layout.world > RANKS:
        return None
    if min(map(DIGITS.__getitem__, of_classes(train).values())) < DIGITS[str(train.precision)]:
        return None  # a class computes in a narrower type than the one that its tolerance is for
    if optim.epsilon < EPSILON:
        return None
    sizes = (
        (model.width or 0, WIDTH),
        (model.vocabulary or 0, ENTRIES),
        (model.layers or 0, DEEP),
        (job.batch.sequence, SEQUENCE + 1),
        (job.batch.tokens // job.batch.sequence, ROWS),
    )
    small = all(size <= most for size, most in sizes)
    return job.model_copy(update={"model": model}) if small else None


def layout_of(job: Job) -> Layout:
    """The layout that `job` names. Refused where it leaves it to the machine."""
    from argosy.plan import layouts

    if job.layout.shape == "auto":
        raise Refused(
            'layout.shape = "auto" is chosen by the machine that trains: nothing to check.',
            do='Name one, for example layout.shape="tp2 dp2".',
        )
    return layouts.of(job.layout, Layout.parse(job.layout.shape).world)


def fewer(layout: Layout, secondary: int = 0) -> Layout:
    """`layout` with at most RANKS ranks: the largest degree made smaller, again and again, but none that acts to 1.

    A `secondary` shard lies over a part of dp, so that four is the least there.
    """
    least = {"dp_shard": 4 if secondary else 2, "dp_replicate": 2, "pp": 2, "tp": 2, "cp": 2}
    while layout.world > RANKS:
        degrees = {axis: int(getattr(layout, axis)) for axis in least if getattr(layout, axis) > least[axis]}
        if not degrees:
            raise Refused(
                f'layout.shape = "{layout.text()}" splits in more ways than {RANKS} ranks can show.',
                do="Check two of its dimensions at a time.",
            )
        axis = max(degrees, key=lambda one: degrees[one])
        less = least[axis] if least[axis] > 2 else max(2, degrees[axis] // 2)
        layout = replace(layout, ep=1, **{axis: less})  # type: ignore[arg-type]
    return layout


def second_shard(job: Job, layout: Layout) -> int:
    """`layout.secondary` of `job`, or where dp became smaller the nearest that it still can have."""
    secondary = job.layout.secondary
    fits = [parts for parts in divisors(layout.dp_shard) if 1 < parts < layout.dp_shard]
    changed = layout.dp_shard != layout_of(job).dp_shard
    return nearest(secondary, fits) if secondary and fits and changed else secondary


def shrunk(job: Job, layout: Layout, precision: str) -> Job:
    """`job`, in force, on `layout` with a small model, a small batch and double precision."""
    from argosy.job.schema import Job

    master = "float64" if precision == "float64" else "float32"
    values = {
        "name": "parity",
        "model": model_of(job, layout),
        "batch": {"sequence": SEQUENCE, "tokens": layout.data * SEQUENCE, "micro": 1},
        "train": {"seed": 5, "steps": 3, "precision": precision, "master": master, "reduce": master, "compile": False},
        "optim": _optim(job),
        "layout": job.layout.model_dump()
        | {"shape": layout.text(), "stages": stages_of(job, layout), "secondary": second_shard(job, layout)},
        "memory": {"recompute": job.memory.recompute, "loss_chunk": 5},
    }
    return Job.model_validate(values)


def stages_of(job: Job, layout: Layout) -> tuple[int, ...]:
    """The layers of each stage where `job` lists them: at most two of each."""
    listed = tuple(min(count, 2) for count in job.layout.stages)
    if not listed or len(listed) == layout.stages:
        return listed
    return listed[: layout.stages - 1] + listed[-1:]  # ranks were left out; first and last stage stay what they are


def model_of(job: Job, layout: Layout) -> dict[str, Any]:
    """The model with the kinds of layers that `job` has, in small."""
    from argosy.job import presets
    from argosy.job.schema import layers
    from argosy.plan.derive import growth

    model = presets.filled(job.model)
    stages = stages_of(job, layout)
    count = sum(stages) if stages else max(layout.stages, min(model.layers or 1, LAYERS))
    kinds = [_block(model, block, layout.tp) for block in layers(model)[: max(1, len(model.pattern))]]
    if count % len(kinds) and not stages:
        count += -count % len(kinds)
    small: dict[str, Any] = {
        "layers": count,
        "width": min(model.width or WIDTH, WIDTH),
        "vocabulary": min(model.vocabulary or VOCABULARY, VOCABULARY),
        "positions": model.positions,
        "tied": model.tied,
        "softcap": model.softcap,
        "z_loss": model.z_loss,
        "scaling": model.scaling,
        "block": _block(model, model.block, layout.tp),
    }
    if model.scaling == "mup":  # as many times as wide as its base
        small["base_width"] = max(1, round(small["width"] / growth(model)))
    if model.positions == "learned":
        small["context"] = SEQUENCE
    else:
        small["rope_theta"] = model.rope_theta or 1e4
        small["rope_scaling"] = model.rope_scaling
    if len(kinds) > 1 and count % len(kinds) == 0:
        small["pattern"] = kinds
    return small


def _block(model: ModelSection, block: Any, tp: int) -> dict[str, Any]:
    """One kind of block in small, its heads still shared out over `tp` ranks, its groups still groups."""
    from argosy.plan.settle import whole

    full = whole(model, block)
    heads, kv_heads = full.heads or 1, full.kv_heads or 1
    if heads > 2 * tp and heads > 6:
        each = heads // kv_heads
        kv_heads = 1 if each == heads else 2
        heads = tp if tp > 1 else 2
        while heads % kv_heads or (each > 1 and heads == kv_heads):
            heads += tp
        kv_heads = heads if each == 1 else kv_heads
    values: dict[str, Any] = full.model_dump()
    return values | {
        "heads": heads,
        "kv_heads": kv_heads,
        "head_size": min(full.head_size or HEAD, HEAD),
        "hidden": min(full.hidden or HIDDEN, HIDDEN),
        "window": min(full.window or 0, WINDOW),
    }


def _optim(job: Job) -> dict[str, Any]:
    """The job's optimizer, with steps that show; see `options.job_of` for epsilon."""
    kept = job.optim.model_dump(exclude={"decay", "warmup"})
    kept |= {"lr": 0.05, "schedule": "constant", "warmup": 0, "epsilon": max(EPSILON, job.optim.epsilon)}
    if kept["name"] == "muon":
        kept |= {"momentum": kept["momentum"] or 0.95, "newton_schulz": kept["newton_schulz"] or 5}
    kept["clip"] = "none" if kept["clip"] is None else kept["clip"]
    return kept
