"""Which box of a tensor a rank holds, and how many ranks hold the same one. Arithmetic only; knows no torch.

A placement is a list of `Split(axis, dim)`: the ranks along `axis` cut dimension `dim` between them, the first split of the
whole tensor, the next of what is left. Axes that are not named hold copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from argosy.layout.layout import AXES, Layout

Box = tuple[tuple[int, ...], tuple[int, ...]]  # begin and end in every dimension


@dataclass(frozen=True)
class Split:
    """The ranks along `axis` (one of AXES) cut dimension `dim` of a tensor between them."""

    axis: str
    dim: int


def cut(size: int, parts: int, part: int) -> tuple[int, int]:
    """Begin and end of `part` of `size` things cut as `torch.chunk` and DTensor cut: equal parts, the last ones shorter."""
    length = -(-size // parts)
    return min(size, part * length), min(size, (part + 1) * length)


def box(shape: Sequence[int], splits: Sequence[Split], layout: Layout, rank: int) -> Box:
    """The part of a tensor of `shape` that `rank` holds; empty (begin = end somewhere) where nothing is left for it."""
    place = layout.at(rank)
    begin, end = [0] * len(shape), list(shape)
    for split in splits:
        first, last = cut(end[split.dim] - begin[split.dim], getattr(layout, split.axis), place[split.axis])
        begin[split.dim], end[split.dim] = begin[split.dim] + first, begin[split.dim] + last
    return tuple(begin), tuple(end)


def copies(splits: Sequence[Split], layout: Layout, rank: int, fixed: Sequence[str] = ()) -> tuple[int, int]:
    """How many ranks hold the box of `rank`, and which of them `rank` is. Axes in `fixed` hold no copies."""
    named = {split.axis for split in splits} | set(fixed)
    place, count, index = layout.at(rank), 1, 0
    for axis in AXES:
        if axis not in named:
            degree = int(getattr(layout, axis))
            count, index = count * degree, index * degree + place[axis]
    return count, index


def extent(held: Box) -> tuple[int, ...]:
    """The shape of a box."""
    return tuple(end - begin for begin, end in zip(*held, strict=True))


def volume(held: Box) -> int:
    """How many elements a box has."""
    return prod(extent(held))


def overlap(first: Box, second: Box) -> Box | None:
    """The common part of two boxes of one tensor, None where there is none."""
    begin = tuple(max(pair) for pair in zip(first[0], second[0], strict=True))
    end = tuple(min(pair) for pair in zip(first[1], second[1], strict=True))
    return (begin, end) if all(b < e for b, e in zip(begin, end, strict=True)) else None


def inside(part: Box, whole: Box) -> tuple[slice, ...]:
    """The index of `part` in an array that holds `whole`."""
    return tuple(slice(b - w, e - w) for b, e, w in zip(part[0], part[1], whole[0], strict=True))
