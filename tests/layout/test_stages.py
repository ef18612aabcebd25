"""Layers to stages: everything once, in order, and the slowest stage as fast as can be."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy.errors import Refused
from argosy.layout.stages import assign


def slowest(counts: list[int], ends: tuple[float, float]) -> float:
    """The cost of the slowest stage."""
    cost = [float(count) for count in counts]
    cost[0] += ends[0]
    cost[-1] += ends[1]
    return max(cost)


# No subnormal ones: a worker that ran in this process before may have set it to flush them.
COSTS = st.floats(0, 3, allow_subnormal=False)


@given(st.integers(1, 9), st.integers(1, 5), st.tuples(COSTS, COSTS))
def test_no_other_assignment_has_a_faster_slowest_stage(layers: int, stages: int, ends: tuple[float, float]) -> None:
    """Against all ways to cut a row of layers."""
    if stages > layers:
        with pytest.raises(Refused, match="each needs one"):
            assign(layers, stages, ends=ends)
        return
    found = assign(layers, stages, ends=ends)
    assert [layer for held in found for layer in held] == list(range(layers)) and all(found)
    best = min(
        slowest([end - begin for begin, end in zip((0, *cut), (*cut, layers), strict=True)], ends)
        for cut in combinations(range(1, layers), stages - 1)
    )
    assert slowest([len(held) for held in found], ends) == pytest.approx(best)


@pytest.mark.parametrize(
    "layers, stages, ends, counts",
    [
        (8, 4, (0.0, 0.0), [2, 2, 2, 2]),
        (5, 2, (0.0, 0.0), [2, 3]),  # the later one: it keeps fewer micro-batches
        (7, 4, (0.2, 2.5), [2, 2, 2, 1]),  # the head is worth two layers and a half
        (3, 2, (0.0, 0.4), [2, 1]),
        (4, 4, (0.0, 9.0), [1, 1, 1, 1]),  # nothing to be done
    ],
)
def test_embedding_and_head_are_counted(layers: int, stages: int, ends: tuple[float, float], counts: list[int]) -> None:
    """Known assignments."""
    assert [len(held) for held in assign(layers, stages, ends=ends)] == counts


def test_a_list_is_taken_as_it_is_or_refused() -> None:
    """Ends may be without layers: then a stage embeds, or predicts, and does nothing else."""
    assert [len(held) for held in assign(4, 3, (0, 3, 1))] == [0, 3, 1]
    for given_list in ((1, 2), (1, 2, 2)):
        with pytest.raises(Refused, match="3 stages of 4 layers"):
            assign(4, 3, given_list)
