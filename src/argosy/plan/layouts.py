"""How many workers there are, and a layout for them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from types import MappingProxyType

from argosy.cluster.here import Machine
from argosy.errors import Refused
from argosy.job.schema import Job, LayoutSection, layers
from argosy.layout import legal, stages
from argosy.layout.asked import Asked
from argosy.layout.layout import Layout, axes_of, share
from argosy.plan import flops


def workers(
    job: Job,
    machine: Machine,
    asked: int | None = None,
    world: int | None = None,
    written: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """The number of workers: the launcher's `world`, else what was asked, else devices (2 on a CPU) or the named degrees.

    0 means one rank inside the calling process. written: where each key of the job was written, for a shape that none can read.
    """
    if machine.missing:
        there = f"{len(machine.devices)} of the devices it names" if machine.devices else "none of the devices it names"
        raise Refused(
            f"no such device: {', '.join(machine.missing)}.",
            where="CUDA_VISIBLE_DEVICES",
            found=f"{there} on this machine",
            do="Correct the variable; empty (CUDA_VISIBLE_DEVICES=) trains on the CPU.",
        )
    if world is not None:
        if asked is not None and asked != world:
            raise Refused(f"--workers {asked}, but the launcher started {world} ranks.", do="Leave --workers out.")
        return world
    if asked is not None:
        if asked < 0:
            raise Refused(f"--workers {asked} is no number of workers.", do="Give 0 (inside this process) or more.")
        return _seated(asked, machine, f"--workers {asked}")
    least = 1 if job.layout.shape == "auto" else named(job.layout.shape, written.get("layout.shape", ""))
    count = max(len(machine.devices) or min(2, machine.cores), least)
    return _seated(count, machine, f'layout.shape = "{job.layout.shape}"')


def _seated(count: int, machine: Machine, asked_by: str) -> int:
    """`count`, where every worker has a device of its own, or none needs one."""
    if machine.devices and count > len(machine.devices):
        raise Refused(
            f"{asked_by} needs {count} devices.",
            found=f"{len(machine.devices)} ({machine.devices[0].name})",
            do=f"Use --workers {len(machine.devices)}, or CUDA_VISIBLE_DEVICES= for the CPU.",
        )
    return count


def named(shape: str, where: str = "") -> int:
    """The ranks that the degrees of `shape`, written at `where`, make. Refused where it cannot be read."""
    try:
        return prod(degree for axis, degree in Layout.degrees_named(shape).items() if axis != "ep")
    except Refused as refused:
        refused.where = where
        raise


def automatic(world: int, accelerated: bool) -> tuple[Layout, str]:
    """The layout of `world` ranks where the job says "auto", with the reason."""
    if accelerated:
        return Layout(dp_shard=world), "each device holds a share of weights and optimizer"
    return Layout(dp_replicate=world), "replication is the fastest at sizes that a CPU trains"


def chosen(
    job: Job, world: int, accelerated: bool, written: Mapping[str, str], launched: bool = False
) -> tuple[Layout, str]:
    """The layout in force over `world` ranks, with the reason where the machine chose. launched: a launcher set `world`.

    Refused where the shape does not make as many ranks; what is offered instead breaks no rule of layouts.
    """
    if job.layout.shape == "auto":
        return automatic(world, accelerated)

    def good(layout: Layout) -> bool:
        """Whether `job` may have this layout."""
        return legal.holds(asked(job, _with(job.layout, layout), written))

    ranks = named(job.layout.shape)
    if world % ranks or (world > ranks and "dp_shard" in Layout.degrees_named(job.layout.shape)):
        # No number of ranks mends a shape that the model itself cannot have.
        itself = replace(asked(job, of(job.layout, ranks), written), secondary=0, launched=launched, ranks=world)
        legal.check(itself)
    return _with(job.layout, Layout.parse(job.layout.shape, world, launched, good)), ""


def of(section: LayoutSection, world: int, micro: int = 1) -> Layout:
    """The layout that `section` (its shape not "auto") makes of `world` ranks with `micro` micro-batches each."""
    return _with(section, Layout.parse(section.shape, world), micro)


def _with(section: LayoutSection, layout: Layout, micro: int = 1) -> Layout:
    """`layout` with the stages and the order of axes of `section`."""
    virtual = section.virtual if layout.pp > 1 else 1  # without a pipeline there is one stage
    return replace(layout, virtual=virtual, micro=micro, order=axes_of(section.order))


def in_force(job: Job, world: int, shape: str | None = None) -> Layout:
    """The layout of `job`, which is in force, over `world` ranks, with its micro-batches; `shape`: instead of the job's own."""
    section = job.layout.model_copy(update={"shape": shape or job.layout.shape})
    layout = of(section, world)
    rows = job.batch.tokens // job.batch.sequence
    own = max(len(share(rows, layout.data, part)) for part in range(layout.data))
    return of(section, world, max(1, -(-own // int(job.batch.micro))))


def rows_at_once(job: Job, layout: Layout) -> int:
    """Sequences that an evaluation of `job`, in force, reads at once: a micro-batch for each rank that reads its own.

    In a pipeline so many more that its ranks are busy, but no more than the evaluation has: one at a time would leave all of
    them but one idle.
    """
    rows = int(job.batch.micro) * layout.data
    if layout.pp == 1:
        return rows
    return rows * min(4 * layout.pp, -(-job.evaluate.tokens // (rows * job.batch.sequence)))


def asked(job: Job, layout: Layout, written: Mapping[str, str]) -> Asked:
    """What the table of rules is asked for `job`, whose model section is in force; `written`: the keys somebody wrote."""
    return Asked(
        layout,
        layers=job.model.layers or 0,
        heads=[block.heads or 1 for block in layers(job.model)],
        sequence=job.batch.sequence,
        sequences=job.batch.tokens // job.batch.sequence,
        zero=job.layout.zero,
        secondary=job.layout.secondary,
        schedule=job.layout.schedule,
        stages=job.layout.stages,
        rows=job.batch.micro if isinstance(job.batch.micro, int) else None,
        written=written,
    )


def stage_layers(job: Job, layout: Layout) -> tuple[range, ...]:
    """The layers of each pipeline stage of `job`, whose model section is in force: what the engine cuts and the plan shows."""
    model = job.model
    count = len(layers(model))
    head = 6.0 * (model.vocabulary or 0) * (model.width or 0)
    layer = (flops.flops_per_token(model, job.batch.sequence) - head) / max(1, count)
    # Looking a row up and adding it to a gradient are two operations an element.
    ends = (2.0 * (model.width or 0) / layer, head / layer) if layer else (0.0, 0.0)
    return stages.assign(count, layout.stages, job.layout.stages if layout.pp > 1 else (), ends)


def stages_held(job: Job, layout: Layout) -> list[str]:
    """What each pp coordinate holds, in words; nothing where there is no pipeline."""
    if layout.pp == 1:
        return []
    found = stage_layers(job, layout)
    return [
        ", ".join(_layers(found[stage], stage, layout.stages) for stage in range(row, layout.stages, layout.pp))
        for row in range(layout.pp)
    ]


def _layers(held: range, stage: int, of: int) -> str:
    """One stage in words: "embedding + layers 0-3", "layers 4-6 + head"."""
    parts = ["embedding"] if stage == 0 else []
    if held:
        parts.append(f"layers {held[0]}-{held[-1]}" if len(held) > 1 else f"layer {held[0]}")
    return " + ".join([*parts, *(["head"] if stage == of - 1 else [])])


def refuse_own(job: Job, layout: Layout, written: Mapping[str, str]) -> None:
    """Refused where ranks would share what only its owner knows how to share: a model's class, or a loss, of one's own."""
    model = getattr(job.model, "class")
    for key, said, axes in (("model.class", model, ("tp", "pp")), ("train.loss", job.train.loss, ("pp",))):
        shared = [f"{axis}{getattr(layout, axis)}" for axis in axes if getattr(layout, axis) > 1]
        if said is not None and shared:
            raise Refused(
                f"{key} = {said} is code of your own, which {' and '.join(shared)} cannot share out.",
                where=written.get("layout.shape", ""),
                do=f"Leave {' and '.join(shared)} away: its ranks then go to dp.",
            )
