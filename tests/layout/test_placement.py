"""Which box a rank holds: cut as torch cuts, one axis after the other; and how many hold the same."""

from __future__ import annotations

from argosy.layout.layout import Layout
from argosy.layout.placement import Split, box, copies, cut, overlap


def test_boxes_are_cut_as_torch_cuts_chunks() -> None:
    import torch

    for size in range(12):
        for parts in range(1, 6):
            chunks = [len(chunk) for chunk in torch.arange(size).chunk(parts)] if size else []
            expected = chunks + [0] * (parts - len(chunks))
            assert [end - begin for begin, end in (cut(size, parts, part) for part in range(parts))] == expected


def test_two_axes_on_one_dimension_cut_one_after_the_other() -> None:
    layout = Layout(dp_shard=2, tp=2)
    splits = (Split("tp", 0), Split("dp_shard", 0))
    boxes = {tuple(layout.at(rank).values())[2::2]: box((8,), splits, layout, rank) for rank in range(4)}
    assert boxes == {(0, 0): ((0,), (2,)), (1, 0): ((2,), (4,)), (0, 1): ((4,), (6,)), (1, 1): ((6,), (8,))}


def test_copies_count_the_axes_that_do_not_cut() -> None:
    layout = Layout(dp_replicate=2, dp_shard=3, tp=2)
    assert [copies((Split("dp_shard", 0),), layout, rank) for rank in (0, 1, 6, 7)] == [(4, 0), (4, 1), (4, 2), (4, 3)]
    assert copies((), layout, 0, ("tp",)) == (6, 0)


def test_overlap_is_the_common_box_or_nothing() -> None:
    assert overlap(((0, 2), (4, 6)), ((3, 0), (9, 3))) == ((3, 2), (4, 3))
    assert overlap(((0,), (4,)), ((4,), (8,))) is None
    assert overlap(((), ()), ((), ())) == ((), ())
