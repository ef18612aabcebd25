"""A layout as text and JSON: the grid of ranks, the groups of one rank, what each is for. Arithmetic only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from argosy.layout.layout import AXES, GROUPS, Layout

MOST = 3  # rows and columns that are drawn at either end of a long line
RUN = 4  # from so many on, neighbouring ranks are written as 0-7
SHORT = {"pp": "pp", "dp_replicate": "replicate", "dp_shard": "dp", "cp": "cp", "tp": "tp"}
# What the members of a group tell each other in a step.
TALK: Mapping[str, str] = {
    "tp": "activations: all-gather and reduce-scatter in every layer",
    "cp": "keys and values of every layer",
    "shard": "weights: all-gather; gradients: reduce-scatter",
    "replicate": "gradients: all-reduce once a step",
    "data": "gradients of norms that stay whole: all-reduce once a step",
    "pp": "activations and their gradients: send and receive between neighbours",
    "stage": "Muon's updates: each rank makes some of them, all-gather once a step",
    "all": "the vote: twelve numbers a step",
}
NAMES = {"shard": "dp"}  # of groups, where people write another word


@dataclass(frozen=True)
class Group:
    """One group of a rank: its name as people write it, the ranks, and what they tell each other, a sentence each."""

    name: str
    ranks: list[int]
    talk: tuple[str, ...]


def groups(layout: Layout, rank: int) -> list[Group]:
    """The groups that `rank` is in: along one axis, the innermost first; along several; of all ranks.

    What a group along several axes tells is said of another one that has the same ranks, where there is one.
    """
    one = {axes[0]: name for name, axes in GROUPS.items() if len(axes) == 1}
    found = {one[axis]: layout.line(rank, axis) for axis in reversed(layout.order) if getattr(layout, axis) > 1}
    alone, everyone = list(found), list(range(layout.world))
    talk = {name: [TALK[name]] for name in [*alone, "all"]}
    for name in (name for name, axes in GROUPS.items() if len(axes) > 1):
        ranks = layout.group(rank, *GROUPS[name])
        same = next((other for other in alone if sorted(found[other]) == ranks), "all" if ranks == everyone else None)
        if same is None and len(ranks) > 1:
            found[name], talk[name] = ranks, [TALK[name]]
        elif same is not None and not (name == "data" and same in alone):  # those say what they do with gradients
            talk[same].append(TALK[name])
    found |= {"all": everyone} if layout.world > 1 else {}
    return [Group(NAMES.get(name, name), ranks, tuple(talk[name])) for name, ranks in found.items()]


def grid(
    layout: Layout, stages: Sequence[int] | None = None, places: Sequence[int] | None = None
) -> list[list[list[int]]]:
    """[pp][data-parallel place][ranks of a cell: those that share sequences and stages]; all of them, or those named."""
    cells = []
    for stage in range(layout.pp) if stages is None else stages:
        row = []
        for place in range(layout.data) if places is None else places:
            replicate, shard = divmod(place, layout.dp_shard)
            row.append(layout.line(layout.rank(pp=stage, dp_replicate=replicate, dp_shard=shard), "cp", "tp"))
        cells.append(row)
    return cells


def drawing(layout: Layout, stages: Sequence[str] = ()) -> list[str]:
    """The grid as text: a row for each pp coordinate, a column for each data-parallel place, in a cell the ranks of cp and tp.

    `stages`: what each row holds, where there is something to say.
    """
    if layout.world == 1:
        return ["[ 0 ]"]
    width = len(str(layout.world - 1))
    rows, shown = _ends(layout.pp), _ends(layout.data)
    columns = [_column(layout, place) for place in shown]
    texts = [[_cell(cell, width) for cell in row] for row in grid(layout, rows, shown)]
    wide = [max(len(name), *(len(row[at]) for row in texts)) for at, name in enumerate(columns)]
    names = [f"pp {number}" if layout.pp > 1 else "" for number in rows]
    left = max(map(len, names))
    lines = [_joined(" " * left, columns, wide, shown)] if any(columns) else []
    before = -1
    for name, row, number in zip(names, texts, rows, strict=True):
        if number != before + 1:
            lines.append(f"{'...':<{left}}")
        said = f"   {stages[number]}" if stages else ""
        lines.append(_joined(f"{name:<{left}}", row, wide, shown) + said)
        before = number
    return [line.rstrip() for line in lines]


def _column(layout: Layout, place: int) -> str:
    replicate, shard = divmod(place, layout.dp_shard)
    words = [f"replicate {replicate}"] * (layout.dp_replicate > 1) + [f"dp {shard}"] * (layout.dp_shard > 1)
    return " ".join(words)


def _joined(left: str, cells: Sequence[str], wide: Sequence[int], shown: Sequence[int]) -> str:
    text, before = left, -1
    for cell, width, place in zip(cells, wide, shown, strict=True):
        text += ("  " if place == before + 1 else "  ...  ") + f"{cell:<{width}}"
        before = place
    return text


def _cell(ranks: Sequence[int], width: int) -> str:
    return f"[ {listed(ranks, width)} ]"


def listed(ranks: Sequence[int], width: int = 1) -> str:
    """Ranks as text: "0 2", "0-7" where they are neighbours, and those in the middle of a long list left out."""
    if len(ranks) >= RUN and list(ranks) == list(range(ranks[0], ranks[-1] + 1)):
        return f"{ranks[0]:>{width}}-{ranks[-1]:<{width}}"
    shown, text, before = _ends(len(ranks), RUN), [], -1
    for at in shown:
        text += ["..."] * (at != before + 1) + [f"{ranks[at]:>{width}}"]
        before = at
    return " ".join(text)


def _ends(count: int, most: int = MOST) -> Sequence[int]:
    """0 to count - 1, without the middle where that is long."""
    return range(count) if count <= 2 * most else [*range(most), *range(count - most, count)]


def facts(layout: Layout, rank: int) -> dict[str, Any]:
    """The layout, its grid and the groups of `rank`, for JSON."""
    return {
        "shape": layout.text(),
        "ranks": layout.world,
        "degrees": {SHORT[axis]: getattr(layout, axis) for axis in AXES},
        "order": [SHORT[axis] for axis in layout.order],
        "stages": layout.stages,
        "grid": grid(layout),
        "rank": {"rank": rank, "at": {SHORT[axis]: place for axis, place in layout.at(rank).items()},
                 "stages": list(layout.stages_of(rank)), "data": layout.data_index(rank)},
    }  # fmt: skip
