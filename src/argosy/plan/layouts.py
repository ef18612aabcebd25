"""How many workers there are, and a layout for them. Pure."""

from __future__ import annotations

from math import prod

from argosy.cluster.here import Machine
from argosy.errors import Refused
from argosy.job.schema import Job
from argosy.layout.layout import Layout


def workers(job: Job, machine: Machine, asked: int | None = None, world: int | None = None) -> int:
    """The number of workers: the launcher's `world`, else what was asked, else devices (2 on a CPU) or the named degrees.

    0 means one rank inside the calling process.
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
    named = 1 if job.layout.shape == "auto" else _product(job.layout.shape)
    count = max(len(machine.devices) or min(2, machine.cores), named)
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


def _product(shape: str) -> int:
    return prod(degree for axis, degree in Layout.degrees_named(shape).items() if axis != "ep")


def automatic(world: int, accelerated: bool) -> tuple[Layout, str]:
    """The layout of `world` ranks where the job says "auto", with the reason."""
    if accelerated:
        return Layout(dp_shard=world), "each device holds a share of weights and optimizer"
    return Layout(dp_replicate=world), "replication is the fastest at sizes that a CPU trains"


def chosen(job: Job, world: int, accelerated: bool) -> tuple[Layout, str]:
    """The layout in force over `world` ranks. Refused when the named degrees do not divide them, or cannot run yet."""
    if job.layout.shape == "auto":
        return automatic(world, accelerated)
    layout = Layout.parse(job.layout.shape, world)
    for axis in ("pp", "cp", "tp", "ep"):
        if getattr(layout, axis) > 1:
            raise Refused(
                f'layout.shape = "{job.layout.shape}": this version trains with dpN and replicateN, not {axis}.',
                do=f"Write layout.shape=dp{world}, or leave it out.",
            )
    return layout, ""
