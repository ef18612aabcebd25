"""What a layout is tried with: a table of options, a small set of cases that holds every pair of them, and the tolerances.

Pure, and without torch. A case is a plain mapping, so it can be printed, sent to ranks and made smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

Case = dict[str, Any]

# The first value of each is the plainest: what a failing case is reduced to where that keeps it failing.
OPTIONS: Mapping[str, Sequence[Any]] = {
    "layout": ("dp1", "replicate2", "dp2 zero1", "dp2 zero2", "dp2 zero3", "replicate3", "dp3 zero2", "replicate2 dp2 zero2",
               "replicate2 dp2 zero3", "dp4 zero1"),
    "rows": (4, 8, 7),  # sequences of the global batch; 7 and 8 do not divide by three ranks
    "micro": (1, 2, 3),  # sequences that a rank computes at once
    "norm": ("rms", "layer"),
    "parallel": (False, True),
    "kv_heads": (4, 2, 1),
    "qk_norm": ("none", "head", "full"),
    "activation": ("swiglu", "gelu", "gelu_tanh"),
    "positions": ("rotary", "learned"),
    "tied": (True, False),
    "window": (0, 5),
    "biases": (False, True),
    "dropout": (0.0, 0.2),
}  # fmt: skip

# Largest difference allowed, relative to the largest gradient of the model (loss: relative to itself), with the reason.
TOLERANCES: Mapping[str, tuple[float, str]] = {
    "float64": (1e-10, "only the order of additions differs: about 1e-15 each, over a few thousand of them"),
    "float32": (2e-5, "the same order of additions at 6e-8 each, through two layers and a softmax"),
    "bfloat16": (4e-2, "activations keep 8 bits: 4e-3 each, over the ten products of two layers"),
}


def ranks_of(layout: str) -> int:
    """How many ranks a layout of the table has: the product of its degrees."""
    ranks = 1
    for word in layout.split():
        if not word.startswith("zero"):
            ranks *= int(word.lstrip("abcdefghijklmnopqrstuvwxyz"))
    return ranks


def shape_of(layout: str) -> tuple[str, int]:
    """A layout of the table as (layout.shape, layout.zero)."""
    words = [word for word in layout.split() if not word.startswith("zero")]
    stage = next((int(word[4:]) for word in layout.split() if word.startswith("zero")), 2)
    return " ".join(words), stage


def plain(options: Mapping[str, Sequence[Any]] = OPTIONS) -> Case:
    """The case of all first values."""
    return {name: values[0] for name, values in options.items()}


def covering(options: Mapping[str, Sequence[Any]] = OPTIONS) -> list[Case]:
    """Cases in which every pair of values of two options occurs at least once. Greedy, always the same. Pure."""
    names = list(options)
    open_pairs = {
        (first, a, second, b)
        for first, second in combinations(range(len(names)), 2)
        for a in range(len(options[names[first]]))
        for b in range(len(options[names[second]]))
    }
    cases = []
    while open_pairs:
        chosen: dict[int, int] = {}
        first, a, second, b = min(open_pairs)
        chosen[first], chosen[second] = a, b
        for place in range(len(names)):
            if place not in chosen:
                chosen[place] = max(
                    range(len(options[names[place]])),
                    key=lambda value, place=place: (_gain(open_pairs, chosen, place, value), -value),  # type: ignore[misc]
                )
        open_pairs -= set(_pairs(chosen))
        cases.append({name: options[name][chosen[place]] for place, name in enumerate(names)})
    return cases


def smallest(case: Case, fails: Callable[[Case], bool], options: Mapping[str, Sequence[Any]] = OPTIONS) -> Case:
    """`case` with as many plain values as still fail, one option after the other until none changes any more."""
    changed = True
    while changed:
        changed = False
        for name, values in options.items():
            for value in values[: list(values).index(case[name])]:
                tried = {**case, name: value}
                if fails(tried):
                    case, changed = tried, True
                    break
    return case


def _pairs(chosen: Mapping[int, int]) -> Iterator[tuple[int, int, int, int]]:
    for first, second in combinations(sorted(chosen), 2):
        yield first, chosen[first], second, chosen[second]


def _gain(open_pairs: set[tuple[int, int, int, int]], chosen: Mapping[int, int], place: int, value: int) -> int:
    """How many open pairs `value` at `place` closes with what is chosen already."""
    return sum(
        ((place, value, other, has) if place < other else (other, has, place, value)) in open_pairs
        for other, has in chosen.items()
    )
