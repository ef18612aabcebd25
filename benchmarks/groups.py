"""What it costs to make all process groups: operations on the store, and seconds, beside torch's `init_device_mesh`.

`python benchmarks/groups.py [--ranks 8 64 128] [--rounds 3] [--quick]`

Real processes on this machine join real gloo groups over one TCP store, through a store that counts. Every rank is a process:
hundreds of them share the cores, so the seconds are those of the slowest rank, and say more about the operations than about a
cluster. 512 of them are for machines with many cores: two cores had not joined them after 13 minutes, at a load of 1,500. The
closed form is what the count is held against, here and, for 12,288 ranks, in the tests.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    import measure
    from argosy.layout.layout import Layout

SHAPES = {8: "pp2 dp2 tp2", 64: "pp4 dp4 tp4", 128: "pp4 dp8 tp4", 512: "pp8 dp8 tp8"}
LARGE = "pp8 dp192 tp8"  # 12,288 ranks, as MegaScale's
EACH = 40 << 20  # bytes that a rank takes for itself, most of them buffers of gloo's connections


@dataclass(frozen=True)
class Counted:
    """What the store was asked: operations of each rank, and how many over all ranks were on keys of barriers."""

    operations: list[int]
    barriers: int


def operations(sizes: list[int]) -> int:
    """Most store operations of a rank whose groups have `sizes`: it sets its address, and waits for and gets each member's."""
    return sum(2 * size + 1 for size in sizes)


def counting(inner: Any) -> tuple[Any, Counter[str]]:
    """A store that passes everything on to `inner`, and what was asked of it: operations, and those on keys of barriers."""
    import torch.distributed as dist

    counted: Counter[str] = Counter()

    def note(key: str) -> None:
        counted["operations"] += 1
        counted["barriers"] += "barrier" in key

    class Counting(dist.Store):
        """Counts."""

        def set(self, key: str, value: Any) -> None:
            note(key)
            inner.set(key, value)

        def get(self, key: str) -> Any:
            note(key)
            return inner.get(key)

        def add(self, key: str, amount: int) -> Any:
            note(key)
            return inner.add(key, amount)

        def check(self, keys: list[str]) -> Any:
            note(keys[0] if keys else "")
            return inner.check(keys)

        def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
            note(keys[0] if keys else "")
            inner.wait(keys, timeout) if timeout is not None else inner.wait(keys)

        def compare_set(self, key: str, expected: Any, desired: Any) -> Any:
            note(key)
            return inner.compare_set(key, expected, desired)

        def delete_key(self, key: str) -> Any:
            note(key)
            return inner.delete_key(key)

        def num_keys(self) -> Any:
            note("")
            return inner.num_keys()

    return Counting(), counted


def made(rank: int, ranks: int, board: str, asked: Mapping[str, Any]) -> dict[str, float]:
    """Join the groups of `asked["shape"]` as one of `ranks` processes: {operations, barriers, seconds}. Runs in the pool."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    from argosy.layout.layout import AXES, Layout
    from argosy.parallel.mesh import LOOPBACK, Mesh, joined_over, publish, wait_for

    layout, place = Layout.parse(asked["shape"], ranks), Path(board)
    if rank == 0:
        inner = dist.TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)
        publish(place, str(inner.port))
    else:
        inner = dist.TCPStore(LOOPBACK, int(wait_for(place)), is_master=False, wait_for_workers=False)
    store, counted = counting(dist.PrefixStore("groups", inner))
    begin = time.perf_counter()
    if asked["how"] == "argosy":
        joined_over(Mesh(layout, rank), store, "gloo")
    else:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
        axes = [axis for axis in AXES if getattr(layout, axis) > 1]
        init_device_mesh("cpu", tuple(getattr(layout, axis) for axis in axes), mesh_dim_names=tuple(axes))
    seconds = time.perf_counter() - begin
    found = {"operations": counted["operations"], "barriers": counted["barriers"], "seconds": seconds}
    dist.barrier()  # rank 0 keeps the store until all are through
    dist.destroy_process_group()
    return found


def joined_by(pool: Any, ranks: int, how: str, counts: dict[str, Counted]) -> list[measure.Taken]:
    """One round: all ranks of `pool` join their groups in the way `how`; counts are kept under its name."""
    rows = pool.call(f"{Path(__file__).resolve()}:made", {"shape": SHAPES[ranks], "how": how}, ranks=ranks, limit=1800)
    found = Counted([int(row["operations"]) for row in rows], sum(int(row["barriers"]) for row in rows))
    counts[f"{how}, {ranks} ranks"] = found
    details = {"operations": found.operations, "barriers": found.barriers}
    return [(max(row["seconds"] for row in rows), details)]


def within(layout: Layout, counted: Counted) -> int:
    """The largest bound of a rank of `layout`. AssertionError where a rank asked for more than its own, or met a barrier."""
    from argosy.parallel.mesh import groups_of

    bounds = [operations([len(group) for group in groups_of(layout, rank)]) for rank in range(layout.world)]
    assert all(0 < found <= bound for found, bound in zip(counted.operations, bounds, strict=True)), (
        "more than its groups"
    )
    assert counted.barriers == 0, "a barrier"
    return max(bounds)


def large() -> tuple[int, list[int]]:
    """The bound of a rank of 12,288, and the sizes of its groups. AssertionError where it grows with anything but those."""
    from argosy.layout.layout import Layout
    from argosy.parallel.mesh import groups_of

    layout = Layout.parse(LARGE)
    sizes = [len(group) for group in groups_of(layout, 0)]
    assert layout.world == 12_288 and sizes[0] == layout.world
    for rank in range(0, layout.world, 97):
        assert sorted(len(group) for group in groups_of(layout, rank)) == sorted(sizes), "ranks that differ"
    # The vote's group of all is one; the others are as large as the axes, and there are no more of them than axes.
    assert operations(sizes) <= 2 * (layout.world + layout.world // layout.pp + layout.data + layout.pp + layout.tp) + 5
    return operations(sizes), sizes


def main() -> None:
    """Read the options, measure, print, and write the page unless it was quick."""
    import measure  # beside this file; ranks of a pool load it from elsewhere and need none
    from argosy.layout.layout import Layout
    from argosy.prove.pool import Pool

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 128], choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=3, help="one with 512 ranks, of which each takes minutes")
    parser.add_argument("--quick", action="store_true", help="8 ranks once, nothing written")
    options = parser.parse_args()
    if options.quick:
        options.ranks, options.rounds = [8], 1
    table = measure.Table("groups", "seconds")
    table.settings = {"shapes": ", ".join(SHAPES[ranks] for ranks in options.ranks), "backend": "gloo over loopback"}
    counts: dict[str, Counted] = {}
    for ranks in options.ranks:  # a pool at a time: hundreds of processes take gigabytes
        free = psutil.virtual_memory().available
        if free < ranks * EACH:
            raise SystemExit(
                f"{ranks} ranks need about {ranks * EACH / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free"
            )
        with Pool(ranks) as pool:
            contestants = {
                f"{how}, {ranks} ranks": functools.partial(joined_by, pool, ranks, how, counts)
                for how in ("argosy", "init_device_mesh")
            }
            measure.alternate(table, contestants, options.rounds if ranks < 512 else 1)
    lines = ["### groups", "", *measure.markdown(table), ""]
    for ranks in options.ranks:
        ours, theirs = (counts[f"{how}, {ranks} ranks"] for how in ("argosy", "init_device_mesh"))
        form = within(Layout.parse(SHAPES[ranks]), ours)
        lines.append(
            f"- store operations of a rank, {ranks} ranks: {max(ours.operations):,} (closed form at most {form:,}, held by "
            f"each; no barrier); init_device_mesh: {max(theirs.operations):,}, {theirs.barriers:,} on barriers over all ranks"
        )
    bound, sizes = large()
    lines.append(f"- by the closed form, 12,288 ranks ({LARGE}): at most {bound:,} a rank, of groups of {sizes}")
    measure.finish(table, lines, write=not options.quick)


if __name__ == "__main__":
    main()
