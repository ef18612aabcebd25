"""The drawing of a layout: what a person reads, and the same facts for programs."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from argosy.layout.draw import TALK, drawing, facts, grid, groups, listed
from argosy.layout.layout import GROUPS, Layout

degrees = st.integers(1, 3)
layouts = st.builds(Layout, pp=degrees, dp_replicate=degrees, dp_shard=degrees, cp=degrees, tp=degrees)


def test_the_grid_of_three_dimensions() -> None:
    assert drawing(Layout.parse("tp2 pp2 dp2")) == [
        "      dp 0     dp 1",
        "pp 0  [ 0 1 ]  [ 2 3 ]",
        "pp 1  [ 4 5 ]  [ 6 7 ]",
    ]
    assert drawing(Layout.parse("pp2 replicate2"), ["layers 0-1", "layers 2-3"]) == [
        "      replicate 0  replicate 1",
        "pp 0  [ 0 ]        [ 1 ]         layers 0-1",
        "pp 1  [ 2 ]        [ 3 ]         layers 2-3",
    ]
    assert drawing(Layout()) == ["[ 0 ]"]


def test_a_layout_of_thousands_fits_a_screen() -> None:
    lines = drawing(Layout.parse("pp8 tp8 dp192"))
    assert len(lines) == 8 and max(map(len, lines)) <= 120
    assert "..." in lines[0] and lines[4] == "..." and "12280-12287" in lines[-1]


def test_long_lists_leave_out_the_middle() -> None:
    assert listed([0, 2, 4]) == "0 2 4"
    assert listed([4, 5, 6, 7]) == "4-7"
    assert listed(list(range(0, 100, 8))) == "0 8 16 24 ... 72 80 88 96"


@given(layouts)
def test_every_rank_stands_once_in_the_grid(layout: Layout) -> None:
    cells = [rank for row in grid(layout) for cell in row for rank in cell]
    assert sorted(cells) == list(range(layout.world))
    assert [len(row) for row in grid(layout)] == [layout.data] * layout.pp


@given(layouts, st.data())
def test_groups_are_those_that_a_mesh_makes(layout: Layout, data: st.DataObject) -> None:
    """Every set of ranks for which a mesh has a group, and what each group of the table is for, is in the drawing."""
    rank = data.draw(st.integers(0, layout.world - 1))
    found = groups(layout, rank)
    made = {name: layout.group(rank, *axes) for name, axes in GROUPS.items()}
    made |= {"all": list(range(layout.world))}
    wanted = {tuple(ranks) for ranks in made.values() if len(ranks) > 1}
    assert {tuple(sorted(group.ranks)) for group in found} == wanted
    assert all(rank in group.ranks and group.talk for group in found)
    assert len({group.name for group in found}) == len(found)
    told = {sentence: tuple(sorted(group.ranks)) for group in found for sentence in group.talk}
    for name, ranks in made.items():
        hybrid = layout.dp_replicate > 1 and layout.dp_shard > 1
        if len(ranks) > 1 and (name != "data" or hybrid):
            assert told[TALK[name]] == tuple(ranks)
    assert len(told) == sum(len(group.talk) for group in found)


def test_one_axis_is_named_after_it_and_what_several_share_is_said_once() -> None:
    def named(shape: str) -> list[tuple[str, list[int], int]]:
        return [(group.name, group.ranks, len(group.talk)) for group in groups(Layout.parse(shape), 0)]

    assert named("tp2 pp2 dp2") == [
        ("tp", [0, 1], 1), ("dp", [0, 2], 1), ("pp", [0, 4], 1), ("stage", [0, 1, 2, 3], 1), ("all", list(range(8)), 1),
    ]  # fmt: skip
    assert named("replicate2 dp2 tp2")[2:] == [
        ("replicate", [0, 4], 1), ("data", [0, 2, 4, 6], 1), ("all", list(range(8)), 2),
    ]  # fmt: skip
    assert named("dp2") == [("dp", [0, 1], 2), ("all", [0, 1], 1)]
    assert named("dp1") == []


@given(layouts)
def test_facts_are_json(layout: Layout) -> None:
    read = json.loads(json.dumps(facts(layout, layout.world - 1)))
    assert read["ranks"] == layout.world and read["rank"]["rank"] == layout.world - 1
    assert read["rank"]["data"] == layout.data - 1


def test_a_grid_of_one_column_has_no_heading() -> None:
    assert drawing(Layout.parse("tp2 pp2")) == ["pp 0  [ 0 1 ]", "pp 1  [ 2 3 ]"]
