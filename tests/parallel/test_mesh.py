"""Groups on real gloo ranks: who is in which, what a device mesh is cut from, and what they cost the store."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from argosy.layout.layout import GROUPS, Layout
from argosy.parallel.mesh import groups_of
from argosy.prove.pool import Pool

HERE = str(Path(__file__))
BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "groups.py"


def look(rank: int, ranks: int, board: str, shape: str) -> dict[str, Any]:
    """The members of every group, the device meshes, and a sum over each group."""
    import torch
    import torch.distributed as dist

    from argosy.parallel.mesh import Meeting, joined

    found: dict[str, Any] = {}
    with joined(Layout.parse(shape, ranks), rank, Meeting("mesh/1", Path(board))) as mesh:
        for name in GROUPS:
            group = getattr(mesh, name)
            total = torch.tensor([float(rank)])
            if group is not None:
                dist.all_reduce(total, group=group)
            found[name] = None if group is None else dist.get_process_group_ranks(group)
            found[f"{name} sum"] = total.item()
        for name, made in (("root", mesh.root()), ("grid", mesh.grid()), ("tensor", mesh.tensor())):
            found[name] = None if made is None else (made.mesh_dim_names, made.mesh.tolist())
        ends = [mesh.layout.holder(rank, 0), mesh.layout.holder(rank, mesh.layout.stages - 1)]
        found["again"] = mesh.among(sorted(set(ends))) is mesh.among(sorted(set(ends)))
    assert mesh.world is None and mesh.tp is None
    return found


@pytest.mark.parametrize("shape", ["tp2 dp2", "pp2 tp2", "replicate2 dp2", "pp2 dp2 tp2", "replicate2 dp2 tp2"])
def test_every_rank_is_in_its_groups_and_in_no_other(pool: Pool, shape: str) -> None:
    layout = Layout.parse(shape)
    for rank, found in enumerate(pool.call(f"{HERE}:look", shape, ranks=layout.world)):
        for name, axes in GROUPS.items():
            ranks = layout.group(rank, *axes)
            assert found[name] == (ranks if len(ranks) > 1 else None), name
            assert found[f"{name} sum"] == sum(ranks), name
        named = [axis for axis in ("dp_replicate", "dp_shard", "tp") if getattr(layout, axis) > 1]
        assert found["root"] is None if not named else found["root"][0] == named
        assert (found["grid"] is None) == (layout.dp_shard == 1)
        if layout.tp > 1:
            assert found["tensor"] == [["tp"], layout.line(rank, "tp")]
        if layout.dp_shard > 1 and layout.dp_replicate > 1:
            rows = [layout.line(first, "dp_shard") for first in layout.line(rank, "dp_replicate")]
            assert found["grid"] == [["dp_replicate", "dp_shard"], [sorted(row) for row in sorted(rows)]]
        assert found["again"]


def again(rank: int, ranks: int, board: str, asked: dict[str, Any]) -> list[list[float]]:
    """In meshes one after the other: of whole numbers shared out over tp, those of all ranks of the group, gathered."""
    import torch
    from torch.distributed.tensor import DTensor, Shard

    from argosy.device.shards import whole
    from argosy.parallel.mesh import Meeting, joined

    found = []
    for number, shape in enumerate(asked["shapes"]):
        layout = Layout.parse(shape)
        if rank >= layout.world:
            continue
        meeting = Meeting(f"again/{number}", Path(f"{board}-{number}"))
        with joined(layout, rank, meeting, forgets=asked["forgets"]) as mesh:
            grid = mesh.tensor()
            assert grid is not None
            own = DTensor.from_local(torch.full((3,), float(rank)), grid, (Shard(0),), run_check=False)
            made = torch.lerp(own, own, 0.5)  # an operator on what is shared out: torch remembers what comes of it
            found.append(whole(made).tolist())
    return found


@pytest.mark.parametrize("forgets", [True, False])
def test_a_mesh_is_not_taken_for_an_earlier_one_of_the_same_ranks(pool: Pool, forgets: bool) -> None:
    """Ranks 0 and 1 are the whole world, then a group in a larger one whose name is another; and a group, then the world."""
    shapes = ["tp2", "pp2 tp2", "pp2 tp2", "replicate2 tp2", "tp2"]
    first, second, third, last = pool.call(f"{HERE}:again", {"shapes": shapes, "forgets": forgets}, ranks=4)
    assert first == second == [[0.0] * 3 + [1.0] * 3] * 5
    assert third == last == [[2.0] * 3 + [3.0] * 3] * 3


def benchmark() -> Any:
    """The benchmark's module: it has the closed form of store operations, and a store that counts."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("groups", BENCHMARK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["groups"] = module
    spec.loader.exec_module(module)
    return module


def bound(layout: Layout, rank: int) -> int:
    """Most store operations of `rank`."""
    most: int = benchmark().operations([len(ranks) for ranks in groups_of(layout, rank)])
    return most


@pytest.mark.parametrize("shape", ["pp2 dp2 tp2", "dp4 tp2", "replicate2 pp2"])
def test_a_rank_asks_the_store_for_its_own_groups_only(pool: Pool, shape: str) -> None:
    layout = Layout.parse(shape)
    rows = pool.call(f"{BENCHMARK}:made", {"shape": shape, "how": "argosy"}, ranks=layout.world)
    for rank, row in enumerate(rows):
        assert 0 < row["operations"] <= bound(layout, rank)
        assert row["barriers"] == 0


def later(rank: int, ranks: int, board: str, shape: str) -> dict[str, int]:
    """Store operations of what is made when the groups of all axes are there: device meshes, a second shard, both ends."""
    import torch.distributed as dist

    from argosy.parallel.mesh import LOOPBACK, Mesh, joined_over, publish, wait_for

    layout, place = Layout.parse(shape, ranks), Path(board)
    if rank == 0:
        inner = dist.TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)
        publish(place, str(inner.port))
    else:
        inner = dist.TCPStore(LOOPBACK, int(wait_for(place)), is_master=False, wait_for_workers=False)
    store, counted = benchmark().counting(dist.PrefixStore("groups", inner))
    mesh = Mesh(layout, rank)
    joined_over(mesh, store, "gloo")
    ends = sorted({layout.holder(rank, 0), layout.holder(rank, layout.stages - 1)})
    found = {}
    for name, make in (
        ("meshes", lambda: [mesh.root(), mesh.grid(), mesh.tensor()]),
        ("secondary", lambda: mesh.secondary(2)),
        ("ends", lambda: mesh.among(ends) if rank in ends else None),
    ):
        before = counted["operations"]
        make()
        found[name] = counted["operations"] - before
    found["barriers"] = counted["barriers"]
    dist.barrier()  # rank 0 keeps the store until all are through
    mesh.close()
    return found


@pytest.mark.parametrize("shape", ["replicate2 dp4", "pp4 tp2"])
def test_what_is_made_later_asks_the_store_for_its_members_only(pool: Pool, shape: str) -> None:
    two = benchmark().operations([2])
    for rank, found in enumerate(pool.call(f"{HERE}:later", shape, ranks=8)):
        assert found["meshes"] == found["barriers"] == 0
        if shape == "pp4 tp2":
            assert found["secondary"] == 0
            assert (0 < found["ends"] <= two) if rank in (0, 1, 6, 7) else found["ends"] == 0
        else:
            assert 0 < found["secondary"] <= 2 * two and found["ends"] == 0


def test_at_12288_ranks_the_bound_grows_with_the_groups_not_with_their_number() -> None:
    layout = Layout.parse("pp8 dp192 tp8")
    assert layout.world == 12_288
    for rank in (0, 1, 700, 6_143, 12_287):
        joined = groups_of(layout, rank)
        assert all(rank in ranks for ranks in joined)
        assert [len(ranks) for ranks in joined] == [12_288, 8, 192, 8, 1_536]
        # All groups of all axes are 1,536 + 64 + 1,536 + 8: a rank meets four of those 3,144, and the world.
        assert bound(layout, rank) == 2 * (12_288 + 8 + 192 + 8 + 1_536) + 5
        assert bound(layout, rank) - (2 * 12_288 + 1) < 3_500
