"""The drawing of a layout: what a person reads, and the same facts for programs."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from argosy.layout.draw import drawing, facts, grid, groups, listed
from argosy.layout.layout import AXES, Layout

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
def test_groups_are_those_of_the_layout(layout: Layout, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, layout.world - 1))
    found = groups(layout, rank)
    named = [group.axis for group in found]
    assert named == [axis for axis in reversed(AXES) if getattr(layout, axis) > 1] + ["world"] * (layout.world > 1)
    assert all(rank in group.ranks and group.talk for group in found)
    assert all(group.ranks == layout.line(rank, group.axis) for group in found if group.axis != "world")


@given(layouts)
def test_facts_are_json(layout: Layout) -> None:
    read = json.loads(json.dumps(facts(layout, layout.world - 1)))
    assert read["ranks"] == layout.world and read["rank"]["rank"] == layout.world - 1
    assert read["rank"]["data"] == layout.data - 1


def test_a_grid_of_one_column_has_no_heading() -> None:
    assert drawing(Layout.parse("tp2 pp2")) == ["pp 0  [ 0 1 ]", "pp 1  [ 2 3 ]"]
