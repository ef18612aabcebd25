"""Whether a run fits into memory and onto the disk, the micro-batch that does, what to say where none does."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from argosy.cluster.here import Machine
from argosy.errors import FULL, Refused
from argosy.job.schema import Job, LayoutSection
from argosy.layout import legal
from argosy.layout.asked import Remedy, remedy
from argosy.layout.layout import Layout, share
from argosy.plan import bytes as memory
from argosy.plan import layouts
from argosy.quantities import bytes_text

if TYPE_CHECKING:
    from argosy.plan.draft import Draft

TOKENS_AT_ONCE = 16_384  # more tokens in one micro-batch make a CPU no faster and a device hardly


def settle_memory(draft: Draft, layout: Layout, machine: Machine, world: int, local: int) -> None:
    """Put the micro-batch in force; Refused, with overrides that would help, where no micro-batch fits.

    local: how many of the `world` workers are on one machine, at most, and share its memory.
    """
    asked = draft.loaded.job.batch.micro
    device = "cuda" if machine.devices else "cpu"
    job = draft.job()
    free, near = machine.memory_available, local / world
    if memory.OUTSIDE + memory.reader(job, near) > free:
        raise _too_long(draft, job, layout, machine, world, local) or _outgrown(draft, job, near, free, "")
    limit = _limit(draft, job, machine, local, near)
    sequences = job.batch.tokens // job.batch.sequence
    mine = max(len(share(sequences, layout.data, part)) for part in range(layout.data))
    # A pipeline waits for (pp - 1) micro-batches a step: with four for each of its ranks that is a fifth of the time at most.
    most = mine if layout.pp == 1 else max(1, mine // (4 * layout.pp))
    if asked != "auto":
        micro = int(asked)
    elif draft.measured("batch.micro"):
        micro = min(int(draft.values["batch.micro"]), most)
        if memory.peak(job, layout, micro, device).total > limit:  # it was chosen where there was more
            before, micro = micro, _chosen(draft, job, layout, mine, most, limit, device)
            draft.notes.append(f"batch.micro = {before} does not fit into the memory that is free now; using {micro}")
    else:
        micro = _chosen(draft, job, layout, mine, most, limit, device)
    draft.put("batch.micro", micro, "")
    if draft.loaded.job.memory.limit == "auto":
        draft.put("memory.limit", limit * local, "this machine", "free when the run started")
    need = memory.peak(job, layout, micro, device).total
    if need > limit:
        own = (
            draft.loaded.job.memory.limit == "auto" and device == "cpu"
        )  # what the reader needs is taken from the workers
        if own and need <= limit + memory.reader(job, near) // local:
            raise _too_long(draft, job, layout, machine, world, local) or _outgrown(draft, job, near, free, "")
        raise _refusal(draft, job, micro, limit, device, world, local, need)


def _chosen(draft: Draft, job: Job, layout: Layout, mine: int, most: int, limit: int, device: str) -> int:
    """Put the micro-batch of up to `most` that fits, evened out over the parts it makes of `mine` sequences; gives it."""
    micro = largest(job, layout, most, limit, device)
    pieces = -(-mine // micro)
    micro = -(-mine // pieces)
    why = f"{mine} sequences of a worker in {pieces} part{'s' if pieces > 1 else ''}"
    draft.put("batch.micro", micro, "measured", why)
    return micro


def _too_long(draft: Draft, job: Job, layout: Layout, machine: Machine, world: int, local: int) -> Refused | None:
    """The refusal of a batch whose reader leaves too little memory, with one of a length that does fit; None where none does.

    It is the longest of those that are a power of two of sequences.
    """
    near, device, asked = local / world, "cuda" if machine.devices else "cpu", draft.loaded.job.batch
    sequences = 1 << max(0, (job.batch.tokens // job.batch.sequence - 1).bit_length() - 1)
    least = layout.data * layout.pp * (asked.micro if isinstance(asked.micro, int) else 1)
    while job.batch.ramp is None and sequences >= least:
        shorter = job.model_copy(
            update={"batch": job.batch.model_copy(update={"tokens": sequences * job.batch.sequence})}
        )
        limit, micro = _limit(draft, shorter, machine, local, near), 1 if asked.micro == "auto" else int(asked.micro)
        room = memory.OUTSIDE + memory.reader(shorter, near) <= machine.memory_available
        if room and memory.peak(shorter, layout, micro, device).total <= limit:
            return _outgrown(draft, job, near, machine.memory_available, f"batch.tokens={shorter.batch.tokens}")
        sequences //= 2
    return None


def _outgrown(draft: Draft, job: Job, near: float, free: int, do: str) -> Refused:
    """The refusal of a batch that the reader of a machine cannot hold."""
    return Refused(
        f"not enough memory: batches of batch.tokens = {job.batch.tokens:,} need about "
        f"{bytes_text(memory.reader(job, near))} beside the workers, of {bytes_text(free)} that are free.",
        where=draft.loaded.written.get("batch.tokens", ""),
        do=f"Overrides that help:\n  {do}" if do else "Use a smaller batch.tokens, or a larger machine.",
    )


def _limit(draft: Draft, job: Job, machine: Machine, local: int, near: float) -> int:
    """Bytes that each of the `local` workers of a machine may take; the others are taken to be like this one."""
    asked = draft.loaded.job.memory.limit
    if asked != "auto":
        return int(asked) // local
    if machine.devices:
        return min(device.memory_bytes for device in machine.devices)
    return max(0, machine.memory_available - memory.beside(job, near)) // local


def largest(job: Job, layout: Layout, mine: int, limit: int, device: str) -> int:
    """The most sequences at once that fit into `limit` bytes, by halving; at least one."""
    micro = max(1, min(mine, TOKENS_AT_ONCE // job.batch.sequence))
    while micro > 1 and memory.peak(job, layout, micro, device).total > limit:
        micro = -(-micro // 2)
    return micro


def _refusal(draft: Draft, job: Job, micro: int, limit: int, device: str, world: int, local: int, need: int) -> Refused:
    """Which overrides bring the prediction down, those that suffice first."""
    remedies = []
    together = local == world > 1 and device == "cpu" and not draft.launched  # a launcher says how many there are
    if together and memory.peak(job, Layout(), micro, device).total <= limit * world:
        # A shape that somebody wrote has more ranks, and what is said of its pipeline does nothing in one.
        written = draft.loaded.job.layout.shape != "auto"
        alone = "--workers 1" + (f" {_alone(draft, job, world).text()}" if written else "")
        remedies.append((memory.peak(job, Layout(), micro, device).total, alone))
    for text, changed, at in _remedies(job, micro, world, draft.loaded.written):
        found = memory.peak(changed, layouts.of(changed.layout, world), at, device).total
        if found < need:
            remedies.append((found, text))
    lines = [
        f"\n  {text:<34} {bytes_text(found):>9}{'' if found <= limit or text[:2] == '--' else ' (not enough alone)'}"
        for found, text in sorted(remedies, key=lambda one: (one[0] > limit and one[1][:2] != "--", one[0]))
    ]
    may = bytes_text(limit) if limit else "nothing beside what the run keeps outside its workers"
    what = f"not enough memory: a worker needs about {bytes_text(need)}, it may take {may}"
    what += f" ({local} workers share it)." if local > 1 and device == "cpu" else "."
    where = draft.loaded.written.get("memory.limit", "")
    if lines and all(found > limit and text[:2] != "--" for found, text in remedies):
        lines = [" a smaller model.preset, or a larger machine; less need:", *lines]
    return Refused(
        what, where=where, do=("Overrides that help:" + "".join(lines)) if lines else "Use a smaller model.preset."
    )


def _alone(draft: Draft, job: Job, world: int) -> Remedy:
    """One rank instead of the shape that was written."""
    asked = layouts.asked(job, layouts.of(job.layout, world), draft.loaded.written)
    return remedy(asked, {"layout.shape": "dp1"})


def _sharded(job: Job, world: int, written: Mapping[str, str]) -> tuple[str, Job] | None:
    """All ranks share everything: the override and the job with it; None where it is so already or breaks a rule."""
    layout = layouts.of(job.layout, world)
    asked = layouts.asked(job, layout, written)
    way = remedy(asked, {"layout.shape": Layout(dp_shard=world).text(), "layout.zero": 3})
    if world == 1 or not legal.helps(asked, way) or (layout.dp_shard == world and job.layout.zero == 3):
        return None
    usual = LayoutSection()
    values = {key.removeprefix("layout."): value for key, value in way.changes.items()}
    section = {name: getattr(usual, name) if value is None else value for name, value in values.items()}
    return way.text(), job.model_copy(update={"layout": job.layout.model_copy(update=section)})


def _remedies(job: Job, micro: int, world: int, written: Mapping[str, str]) -> list[tuple[str, Job, int]]:
    """(override, the job with it, its micro-batch); `written`: the keys that somebody wrote."""

    def with_(section: str, **values: object) -> Job:
        """The job with other values in a section."""
        inner = getattr(job, section).model_copy(update=values)
        return job.model_copy(update={section: inner})

    found = []
    if micro > 1:
        found.append(("batch.micro=1", job, 1))
    if "block" not in job.memory.recompute:
        found.append(("memory.recompute=block", with_("memory", recompute=("block",)), micro))
    if job.memory.loss_chunk > 128:
        found.append(("memory.loss_chunk=128", with_("memory", loss_chunk=128), micro))
    if job.batch.sequence >= 256:
        half = job.batch.sequence // 2
        found.append((f"batch.sequence={half}", with_("batch", sequence=half), micro))
    if (sharded := _sharded(job, world, written)) is not None:
        found.append((*sharded, micro))
    if (job.model.layers or 0) > 1 and not job.model.pattern and "pp" not in job.layout.shape:
        fewer = (job.model.layers or 0) // 2
        found.append((f"model.layers={fewer}", with_("model", layers=fewer), micro))
    if job.train.precision == "float64":
        found.append(
            ("train.precision=float32", with_("train", precision="float32", master="float32", reduce="float32"), micro)
        )
    return found


def refuse_unwritable(folder: Path, need: int, free: int) -> None:
    """Refused where the disk of `folder` says it has too little room because it takes no file at all, as /proc."""
    if need <= free:
        return
    place = folder.absolute()
    while not place.exists():  # what is missing would be made in the nearest folder that is there
        place = place.parent
    try:
        with TemporaryFile(dir=place):
            return
    except OSError as error:
        if error.errno not in FULL:
            found = f"{place} takes no file: {error.strerror or error}"
            do = "Give --run a folder that can be written."
            raise Refused("a run cannot be kept there.", where=str(folder), found=found, do=do) from error


def check_disk(job: Job, need: int, free: int, own: int = 0) -> None:
    """Refused where the run's files would not fit onto their disk: `free` bytes, and `own` which its checkpoints hold."""
    if need <= free + own:
        return
    lines = []
    if job.checkpoint.keep > 1:
        smaller = need - (job.checkpoint.keep - 1) * memory.checkpoint(job)
        note = "" if smaller <= free + own else " (not enough alone)"
        lines.append(f"\n  {'checkpoint.keep=1':<34} {bytes_text(smaller):>9}{note}")
    raise Refused(
        f"not enough disk: the run needs about {bytes_text(need)}, {bytes_text(free)} are free"
        + (f" beside {bytes_text(own)} of its own checkpoints." if own else "."),
        do="Give --run a folder on a larger disk, or free some."
        + (" Overrides that help:" + "".join(lines) if lines else ""),
    )


def kept(folder: Path) -> int:
    """Bytes of the checkpoints that lie in the run folder `folder` already: room that the run needs only once."""
    sizes = 0
    for file in (folder / "checkpoints").glob("step-*/*"):
        with suppress(OSError):  # one may just be going
            sizes += file.stat().st_size
    return sizes
