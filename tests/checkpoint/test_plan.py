"""Who writes which bytes: every element once, whatever the layout."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argosy.checkpoint import plan
from argosy.checkpoint.manifest import row
from argosy.checkpoint.plan import SIZES, TensorSpec, node_file, node_of, pieces, ranks_of, written
from argosy.layout.layout import Layout
from argosy.layout.placement import Split, inside, volume


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[TensorSpec], Layout, tuple[int, ...]]:
    degrees = {axis: draw(st.integers(1, 3)) for axis in ("pp", "dp_replicate", "dp_shard", "tp")}
    layout = Layout(**degrees)
    specs = []
    for index in range(draw(st.integers(1, 4))):
        shape = tuple(draw(st.lists(st.integers(0, 9), max_size=3)))
        splits = []
        for axis in draw(st.permutations(["dp_shard", "tp"])):
            if shape and draw(st.booleans()):
                splits.append(Split(axis, draw(st.integers(0, len(shape) - 1))))
        stage = draw(st.sampled_from([None, *range(layout.pp)]))
        specs.append(TensorSpec(f"t{index}", draw(st.sampled_from(sorted(SIZES))), shape, tuple(splits), stage))
    first = draw(st.integers(1, layout.world))
    return specs, layout, (first, layout.world - first) if first < layout.world else (first,)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(cases(), st.booleans())
def test_every_element_is_written_once_and_to_its_own_bytes(
    case: tuple[list[TensorSpec], Layout, tuple[int, ...]], small: bool
) -> None:
    specs, layout, nodes = case
    largest, smallest = plan.LARGEST, plan.SMALLEST
    try:
        if small:  # so that these tensors are cut as large ones are
            plan.LARGEST, plan.SMALLEST = 64, 16
        counts = {spec.name: np.zeros(spec.shape, int) for spec in specs}
        for node in range(len(nodes)):
            whole = node_file(specs, layout, nodes, node)
            offset = len(whole.header)
            for piece in whole.pieces:
                assert piece.bytes > 0
                assert piece.offset == offset, "pieces lie one after the other, without a gap"
                offset += piece.bytes
                assert piece.node == node == node_of(nodes, piece.rank)
                counts[piece.tensor][inside(piece.box, ((0,) * len(piece.begin), piece.begin))] += 1
            assert offset == whole.bytes
            table = json.loads(whole.header[8:])
            assert len(whole.header) % 8 == 0
            table.pop("__metadata__")
            by_begin = sorted(table.values(), key=lambda entry: entry["data_offsets"])
            end = 0
            for entry in by_begin:
                assert entry["data_offsets"][0] == end, "the safetensors format allows no holes"
                assert end % SIZES[entry["dtype"]] == 0, "every entry is aligned to its type"
                end = entry["data_offsets"][1]
            for rank in ranks_of(nodes, node):
                assert list(pieces(specs, layout, nodes, rank)) == [p for p in whole.pieces if p.rank == rank]
        for name, count in counts.items():
            assert (count == 1).all(), name
    finally:
        plan.LARGEST, plan.SMALLEST = largest, smallest


def test_a_large_replicated_tensor_is_spread_over_its_holders() -> None:
    spec = TensorSpec("w", "F32", (4096, 4096))
    layout = Layout(dp_replicate=4)
    shares = [sum(volume(part) for part in written(spec, layout, rank)) for rank in range(4)]
    assert shares == [4096 * 4096 // 4] * 4


def test_small_replicated_tensors_are_spread_by_name() -> None:
    specs = [TensorSpec(f"blocks.{n}.norm.weight", "F32", (64,)) for n in range(64)]
    layout = Layout(dp_replicate=4)
    shares = [sum(len(written(spec, layout, rank)) for spec in specs) for rank in range(4)]
    assert sum(shares) == 64 and min(shares) >= 8


def test_a_piece_is_never_larger_than_a_reader_wants_to_check() -> None:
    spec = TensorSpec("w", "F32", (100_000, 1024))
    file = node_file([spec], Layout(), (1,), 0)
    assert max(piece.bytes for piece in file.pieces) <= plan.LARGEST + 4096
    assert list(json.loads(file.header[8:])) == ["__metadata__", "w"], "it stays one entry of the file"


def test_what_the_manifest_holds_does_not_grow_with_ranks() -> None:
    small = [row(TensorSpec("w", "F32", (8, 8), (Split("dp_shard", 0),)))]
    assert small == [["w", "F32", [8, 8], [["dp_shard", 0]], None]]


def test_a_rank_beyond_the_nodes_is_an_error() -> None:
    with pytest.raises(IndexError, match="3 ranks of 2 nodes"):
        node_of((2, 1), 3)
