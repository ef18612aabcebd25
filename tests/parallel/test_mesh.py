"""Groups on real gloo ranks: who is in which, what a device mesh is cut from, and what they cost the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from argosy.layout.layout import Layout
from argosy.parallel.mesh import GROUPS, groups_of
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


def bound(layout: Layout, rank: int) -> int:
    """Most store operations of `rank`: for each of its groups one address set, and each member's waited for and read."""
    return sum(2 * len(ranks) + 1 for ranks in groups_of(layout, rank))


@pytest.mark.parametrize("shape", ["pp2 dp2 tp2", "dp4 tp2", "replicate2 pp2"])
def test_a_rank_asks_the_store_for_its_own_groups_only(pool: Pool, shape: str) -> None:
    layout = Layout.parse(shape)
    rows = pool.call(f"{BENCHMARK}:made", {"shape": shape, "how": "argosy"}, ranks=layout.world)
    for rank, row in enumerate(rows):
        assert 0 < row["operations"] <= bound(layout, rank)
        assert row["barriers"] == 0


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
