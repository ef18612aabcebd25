from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy.errors import Refused
from argosy.layout.layout import AXES, Layout, share

degrees = st.integers(1, 3)
layouts = st.builds(Layout, pp=degrees, dp_replicate=degrees, dp_shard=degrees, cp=degrees, tp=degrees)


@given(layouts, st.data())
def test_rank_and_coordinates_are_inverse(layout: Layout, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, layout.world - 1))
    assert layout.rank(**layout.at(rank)) == rank


@given(layouts, st.sampled_from([("tp",), ("dp_shard",), ("dp_replicate", "dp_shard"), AXES]))
def test_groups_cut_the_ranks_into_equal_parts(layout: Layout, axes: tuple[str, ...]) -> None:
    groups = {tuple(layout.group(rank, *axes)) for rank in range(layout.world)}
    assert sorted(rank for group in groups for rank in group) == list(range(layout.world))
    assert len({len(group) for group in groups}) == 1
    for group in groups:
        assert list(group) == sorted(group)
        places = [{axis: place for axis, place in layout.at(rank).items() if axis not in axes} for rank in group]
        assert all(place == places[0] for place in places)


@given(layouts)
def test_text_reads_back(layout: Layout) -> None:
    assert Layout.parse(layout.text(), layout.world) == layout


@given(layouts)
def test_every_share_of_the_batch_is_read_by_as_many_ranks(layout: Layout) -> None:
    counts = [layout.data_index(rank) for rank in range(layout.world)]
    assert {counts.count(index) for index in range(layout.data)} == {layout.world // layout.data}


@given(st.integers(0, 500), st.integers(1, 40))
def test_shares_are_whole_disjoint_and_even(total: int, parts: int) -> None:
    shares = [share(total, parts, part) for part in range(parts)]
    assert [index for part in shares for index in part] == list(range(total))
    lengths = [len(part) for part in shares]
    assert max(lengths) - min(lengths) <= 1


def test_tensor_parallel_is_innermost() -> None:
    layout = Layout(pp=2, dp_shard=2, tp=2)
    assert layout.group(0, "tp") == [0, 1]
    assert layout.group(0, "dp_shard") == [0, 2]
    assert layout.group(0, "pp") == [0, 4]


def test_ranks_not_named_go_to_sharded_data_parallel() -> None:
    assert Layout.parse("tp2", 8) == Layout(dp_shard=4, tp=2)
    assert Layout.parse("replicate2", 2) == Layout(dp_replicate=2)
    assert Layout.parse("", 3) == Layout(dp_shard=3)
    assert Layout.parse("tp2 pp2 dp4") == Layout(pp=2, dp_shard=4, tp=2)


@pytest.mark.parametrize(
    ("shape", "world", "words"),
    [
        ("dp3", 2, "makes 3 ranks, there are 2"),
        ("tp3", 8, "makes 3 ranks, there are 8"),
        ("dp2 dp2", 4, "named twice"),
        ("zp2", 2, "zp2 is no degree"),
        ("dp0", 1, "dp0 is no degree"),
        ("dp2 ep4", 2, "must divide"),
    ],
)
def test_what_does_not_divide_is_refused_with_the_numbers(shape: str, world: int, words: str) -> None:
    with pytest.raises(Refused, match=words):
        Layout.parse(shape, world)


def test_no_such_rank() -> None:
    with pytest.raises(IndexError):
        Layout(dp_shard=2).at(2)
    with pytest.raises(IndexError):
        Layout(dp_shard=2).rank(dp_shard=2)
