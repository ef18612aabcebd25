from __future__ import annotations

from contextlib import suppress
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy.errors import Refused
from argosy.layout.layout import AXES, Layout, divisors, nearest, share

degrees = st.integers(1, 3)
orders = st.sampled_from(sorted(permutations(AXES)))
layouts = st.builds(
    Layout, pp=degrees, dp_replicate=degrees, dp_shard=degrees, cp=degrees, tp=degrees, virtual=degrees, order=orders
)


@given(layouts, st.data())
def test_rank_and_coordinates_are_inverse(layout: Layout, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, layout.world - 1))
    assert layout.rank(**layout.at(rank)) == rank
    assert {layout.rank(**layout.at(other)) for other in range(layout.world)} == set(range(layout.world))


@given(layouts, st.sampled_from([("tp",), ("pp",), ("dp_shard",), ("dp_replicate", "dp_shard"), AXES]))
def test_groups_cut_the_ranks_into_equal_parts(layout: Layout, axes: tuple[str, ...]) -> None:
    groups = {tuple(layout.group(rank, *axes)) for rank in range(layout.world)}
    assert sorted(rank for group in groups for rank in group) == list(range(layout.world))
    assert len({len(group) for group in groups}) == 1
    assert [list(group) for group in sorted(groups)] == layout.groups(*axes)
    for group in groups:
        assert list(group) == sorted(group)
        assert sorted(layout.line(group[0], *axes)) == list(group)
        places = [{axis: place for axis, place in layout.at(rank).items() if axis not in axes} for rank in group]
        assert all(place == places[0] for place in places)


@given(layouts)
def test_the_innermost_axis_joins_neighbours(layout: Layout) -> None:
    innermost = layout.order[-1]
    assert layout.line(0, innermost) == list(range(getattr(layout, innermost)))


@given(layouts)
def test_a_line_is_in_the_order_of_its_coordinates(layout: Layout) -> None:
    places = [layout.at(rank) for rank in layout.line(layout.world - 1, "dp_replicate", "dp_shard")]
    found = [(place["dp_replicate"], place["dp_shard"]) for place in places]
    assert found == sorted(found) and len(found) == layout.data


@given(layouts, st.data())
def test_every_stage_has_one_holder_in_each_pipeline(layout: Layout, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, layout.world - 1))
    pipeline = layout.group(rank, "pp")
    held = [stage for member in pipeline for stage in layout.stages_of(member)]
    assert sorted(held) == list(range(layout.stages))
    for stage in range(layout.stages):
        assert layout.holder(rank, stage) in pipeline
        assert stage in layout.stages_of(layout.holder(rank, stage))
    assert all(len(layout.stages_of(member)) == layout.virtual for member in pipeline)


@given(layouts)
def test_text_reads_back(layout: Layout) -> None:
    assert Layout.parse(layout.text(), layout.world).degrees == layout.degrees


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


@given(st.integers(1, 400))
def test_divisors(number: int) -> None:
    assert divisors(number) == [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def test_nearest_prefers_the_smaller_of_two() -> None:
    assert nearest(3, [1, 2, 4, 8]) == 2
    assert nearest(7, [1, 2, 4, 8]) == 8


def test_tensor_parallel_is_innermost() -> None:
    layout = Layout(pp=2, dp_shard=2, tp=2)
    assert layout.group(0, "tp") == [0, 1]
    assert layout.group(0, "dp_shard") == [0, 2]
    assert layout.group(0, "pp") == [0, 4]


def test_interleaved_stages_go_round() -> None:
    layout = Layout(pp=2, tp=2, virtual=3)
    assert layout.stages == 6
    assert layout.stages_of(1) == (0, 2, 4) and layout.stages_of(3) == (1, 3, 5)
    assert layout.holder(1, 4) == 1 and layout.holder(1, 3) == 3


def test_ranks_not_named_go_to_sharded_data_parallel() -> None:
    assert Layout.parse("tp2", 8) == Layout(dp_shard=4, tp=2)
    assert Layout.parse("replicate2", 2) == Layout(dp_replicate=2)
    assert Layout.parse("", 3) == Layout(dp_shard=3)
    assert Layout.parse("tp2 pp2 dp4") == Layout(pp=2, dp_shard=4, tp=2)


@pytest.mark.parametrize(
    ("shape", "world", "words"),
    [
        ("dp3", 2, 'makes 3 ranks, there are 2 workers. Nearest: layout.shape="dp2", or --workers 3'),
        ("tp3", 8, 'makes 3 ranks, there are 8 workers.*must divide.*layout.shape="dp4 tp2", or --workers 9'),
        ("tp4 pp3 dp2", 16, 'makes 24 ranks.*layout.shape="pp2 dp2 tp4", or --workers 24'),
        ("dp2 dp2", 4, "named twice"),
        ("zp2", 2, "zp2 is no degree. Write ppN, replicateN, dpN, tpN"),
        ("TP2 PP2", 4, 'Did you mean layout.shape="tp2 pp2"?'),
        ("tp=2,pp2", 4, 'Did you mean layout.shape="tp2 pp2"?'),
        ("tp2", 10**18, "more than any fleet has"),
        ("tp2", 1, "there is 1 worker: the product"),
        ("dp0", 1, "dp0 is no degree"),
        ("tp99999999999", 1, "tp99999999999 is no degree"),
        ("dp2 ep4", 2, "must divide.*Nearest: ep 2"),
    ],
)
def test_what_does_not_divide_is_refused_with_the_numbers(shape: str, world: int, words: str) -> None:
    with pytest.raises(Refused, match=words):
        Layout.parse(shape, world)


def test_only_what_is_good_is_offered() -> None:
    with pytest.raises(Refused, match=r'Nearest: layout.shape="dp3 tp2", or --workers 4\.'):
        Layout.parse("tp4", 6, good=lambda layout: layout.tp in (2, 4) and layout.dp_shard in (1, 3))
    with pytest.raises(Refused, match=r"the product of the degrees must divide them\.$"):
        Layout.parse("tp4", 6, good=lambda layout: False)


def test_many_ranks_and_axes_are_answered_at_once() -> None:
    with pytest.raises(Refused, match=r"Nearest: layout\.shape="):  # 448 divisors, for each of three axes
        Layout.parse("pp17 tp19 replicate23", 8_648_640)


@given(st.text("tprdelica pc0123456789", max_size=24), st.integers(1, 64))
def test_any_text_is_a_layout_of_all_ranks_or_refused(shape: str, world: int) -> None:
    with suppress(Refused):
        assert Layout.parse(shape, world).world == world


@given(st.fixed_dictionaries({}, optional={"tp": degrees, "pp": degrees, "dp": degrees, "replicate": degrees}))
def test_the_nearest_shape_that_a_refusal_names_is_taken(named: dict[str, int]) -> None:
    shape = " ".join(f"{word}{degree}" for word, degree in named.items())
    try:
        Layout.parse(shape, 8)
    except Refused as error:
        advised = error.do.split('"')[1]
        assert Layout.parse(advised, 8).world == 8
        workers = int(error.do.split("--workers ")[1].rstrip("."))
        assert Layout.parse(shape, workers).world == workers


def test_no_such_rank() -> None:
    with pytest.raises(IndexError):
        Layout(dp_shard=2).at(2)
    with pytest.raises(IndexError):
        Layout(dp_shard=2).rank(dp_shard=2)
    with pytest.raises(IndexError):
        Layout(pp=2).holder(0, 2)


def test_an_order_names_every_axis_once() -> None:
    assert Layout(pp=2, tp=2, order=("tp", "pp", "dp_replicate", "dp_shard", "cp")).group(0, "pp") == [0, 1]
    with pytest.raises(Refused, match="must name each axis once"):
        Layout(order=("tp", "pp"))
