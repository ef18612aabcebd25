"""The one description of who does which part: all ranks as one grid. Arithmetic only; `parallel/mesh.py` makes the groups."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

from argosy.errors import Refused

AXES = ("pp", "dp_replicate", "dp_shard", "cp", "tp")  # outermost first
# The groups that a rank is in beside that of all ranks: what each is for, and the axes along which its members differ. Meshes
# make them in this order, drawings show them.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "tp": ("tp",),  # share every matrix of a layer
    "cp": ("cp",),  # share every sequence
    "shard": ("dp_shard",),  # share weights, gradients, optimizer state
    "replicate": ("dp_replicate",),  # hold copies of each other's shards
    "data": ("dp_replicate", "dp_shard"),  # read different sequences, have the same part of the model
    "pp": ("pp",),  # share the layers
    "stage": ("dp_replicate", "dp_shard", "cp", "tp"),  # hold the same stages of the pipeline
}

_SPELLINGS = {"pp": "pp", "replicate": "dp_replicate", "dp": "dp_shard", "cp": "cp", "tp": "tp", "ep": "ep"}
_WORDS = {axis: word for word, axis in _SPELLINGS.items()}
_WORD = re.compile(r"([a-z]+)([0-9]{1,9})")
LATER = {"cp": "context", "ep": "expert"}  # axes whose dimension is not built yet
MOST = 10_000_000  # ranks
NEAR = 12  # degrees of an axis that are tried for another shape, the nearest


@dataclass(frozen=True)
class Layout:
    """All ranks as one grid of axes, outermost first: rank = index of the coordinates in row-major order.

    A pipeline has pp x virtual stages; rank coordinate i holds the stages i, i + pp, i + 2 pp and so on.
    """

    pp: int = 1
    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1
    ep: int = 1  # cuts dp_shard x cp; no factor of the ranks
    virtual: int = 1  # pipeline stages that a rank holds
    micro: int = 1  # micro-batches of a step on every rank
    order: tuple[str, ...] = AXES  # outermost first: neighbours along the last one are neighbouring ranks

    def __post_init__(self) -> None:
        for name in (*AXES, "ep", "virtual", "micro"):
            if getattr(self, name) < 1:
                raise Refused(f"layout: {name} = {getattr(self, name)} must be at least 1.")
        if sorted(self.order) != sorted(AXES):
            raise Refused(
                f"layout: the order {' '.join(self.order)} must name each axis once.", do=f"Default: {' '.join(AXES)}."
            )
        if (self.dp_shard * self.cp) % self.ep:
            raise Refused(
                f"layout: ep {self.ep} must divide dp_shard x cp = {self.dp_shard} x {self.cp}.",
                do=f"Nearest: ep {nearest(self.ep, divisors(self.dp_shard * self.cp))}.",
            )

    @property
    def world(self) -> int:
        """Number of ranks."""
        return prod(self.degrees)

    @property
    def degrees(self) -> tuple[int, ...]:
        """The degree of each of AXES."""
        return tuple(int(getattr(self, axis)) for axis in AXES)

    @property
    def data(self) -> int:
        """Ranks that read different sequences: dp_replicate x dp_shard."""
        return self.dp_replicate * self.dp_shard

    @property
    def stages(self) -> int:
        """Stages of the pipeline: pp x virtual."""
        return self.pp * self.virtual

    def at(self, rank: int) -> dict[str, int]:
        """Coordinates of `rank` by axis."""
        if not 0 <= rank < self.world:
            raise IndexError(f"rank {rank} of {self.world}")
        place: dict[str, int] = {}
        for axis in reversed(self.order):
            rank, place[axis] = divmod(rank, int(getattr(self, axis)))
        return {axis: place[axis] for axis in AXES}

    def rank(self, **place: int) -> int:
        """The rank at the given coordinates; axes not named are 0."""
        found = 0
        for axis in self.order:
            degree = int(getattr(self, axis))
            if not 0 <= place.get(axis, 0) < degree:
                raise IndexError(f"{axis} {place[axis]} of {degree}")
            found = found * degree + place.get(axis, 0)
        return found

    def group(self, rank: int, *axes: str) -> list[int]:
        """The ranks, ascending, that differ from `rank` along `axes` only; `rank` itself is one of them."""
        return sorted(self._along(rank, axes))

    def line(self, rank: int, *axes: str) -> list[int]:
        """As `group`, in the order of the coordinates along `axes`, the first of them outermost."""
        return list(self._along(rank, axes))

    def _along(self, rank: int, axes: Sequence[str]) -> Iterator[int]:
        here = self.at(rank)
        for places in product(*(range(getattr(self, axis)) for axis in axes)):
            yield self.rank(**{**here, **dict(zip(axes, places, strict=True))})

    def groups(self, *axes: str) -> list[list[int]]:
        """Every group along `axes`, by its first rank."""
        first = {self.group(rank, *axes)[0] for rank in range(self.world)}
        return [self.group(rank, *axes) for rank in sorted(first)]

    def data_index(self, rank: int) -> int:
        """Which of the `data` shares of the global batch `rank` reads."""
        place = self.at(rank)
        return place["dp_replicate"] * self.dp_shard + place["dp_shard"]

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """The stages that `rank` holds, first to last."""
        return tuple(range(self.at(rank)["pp"], self.stages, self.pp))

    def holder(self, rank: int, stage: int) -> int:
        """The rank that holds `stage` in the pipeline of `rank`."""
        if not 0 <= stage < self.stages:
            raise IndexError(f"stage {stage} of {self.stages}")
        return self.rank(**{**self.at(rank), "pp": stage % self.pp})

    def text(self) -> str:
        """How people write it: "pp2 replicate2 dp2 tp2"; degrees of one are left out, "dp1" for a single rank."""
        words = [f"{word}{getattr(self, axis)}" for axis, word in _WORDS.items() if getattr(self, axis) > 1]
        return " ".join(words) or "dp1"

    @staticmethod
    def degrees_named(shape: str) -> dict[str, int]:
        """The degrees that `shape` ("tp2 pp2 dp4") names, by axis. Refused for what is none."""
        named: dict[str, int] = {}
        for word in shape.split():
            match = _WORD.fullmatch(word)
            axis = _SPELLINGS.get(match[1]) if match else None
            if match is None or axis is None or int(match[2]) < 1:
                raise Refused(f'layout.shape = "{shape}": {word} is no degree.', do=_meant(shape))
            if axis in named:
                raise Refused(f'layout.shape = "{shape}": {match[1]} is named twice.', do="Name it once.")
            named[axis] = int(match[2])
        return named

    @staticmethod
    def parse(
        shape: str, world: int | None = None, launched: bool = False, good: Callable[[Layout], bool] = lambda _: True
    ) -> Layout:
        """The layout of `shape` over `world` ranks; ranks not named go to dp_shard. Refused when it does not divide.

        launched: a launcher set how many ranks there are. Only what is `good` besides is offered instead.
        """
        if world is not None and world > MOST:
            raise Refused(f"{world:,} ranks are more than any fleet has.", do=f"At most {MOST:,}.")
        named = Layout.degrees_named(shape)
        ranks = prod(degree for axis, degree in named.items() if axis != "ep")
        if world is None or world == ranks:
            return _of(named)
        if world % ranks or "dp_shard" in named:
            other, shapes = _workers(named, ranks, world, good), fitting(named, world, good)
            offers = [f'layout.shape="{shapes}"'] if shapes else []
            offers += [f"start {other} ranks" if launched else f"--workers {other}"] if other else []
            raise Refused(
                f'layout.shape = "{shape}" makes {ranks} ranks, there {_are(world)}'
                + (": the product of the degrees must divide them." if "dp_shard" not in named else "."),
                do=f"Nearest: {', or '.join(offers)}." if offers else "",
            )
        return _of({**named, "dp_shard": world // ranks})


def _of(degrees: Mapping[str, int]) -> Layout:
    """The layout with these `degrees` by axis."""
    changes: dict[str, Any] = dict(degrees)
    return replace(Layout(), **changes)


def axes_of(words: str) -> tuple[str, ...]:
    """AXES in the order that people write, outermost first: "pp replicate dp cp tp". Refused where one is missing."""
    axes = tuple(_SPELLINGS.get(word, word) for word in words.split())
    if sorted(axes) != sorted(AXES):
        raise Refused(
            f'layout.order = "{words}" must name each axis once, outermost first.',
            do=f'The default is "{" ".join(_WORDS[axis] for axis in AXES)}".',
        )
    return axes


def fitting(named: Mapping[str, int], world: int, good: Callable[[Layout], bool] = lambda _: True) -> str:
    """The shape nearest to `named` that `world` ranks can take: as few ranks moved as possible, dp takes what is left.

    "" where none of those near is `good`.
    """
    axes = [axis for axis in named if axis not in ("dp_shard", "ep")]
    close = [sorted(divisors(world), key=lambda one: (abs(one - named[axis]), one))[:NEAR] for axis in axes]
    found: list[tuple[int, tuple[int, ...]]] = []
    for degrees in product(*({1, *near} for near in close)):
        if world % prod(degrees) == 0:
            off = sum(abs(degree - named[axis]) for axis, degree in zip(axes, degrees, strict=True))
            found.append((off, degrees))
    for _, degrees in sorted(found):
        shape = dict(zip(axes, degrees, strict=True))
        rest = world // prod(degrees)
        ep = nearest(named.get("ep", 1), divisors(rest * shape.get("cp", 1)))
        layout = _of({**shape, "dp_shard": rest, "ep": ep})
        if good(layout):
            return layout.text()
    return ""


def _workers(named: Mapping[str, int], ranks: int, world: int, good: Callable[[Layout], bool]) -> int:
    """The number of workers nearest to `world` that the degrees `named` fill; 0 where no such layout is `good`."""
    most = 1 if "dp_shard" in named else max(1, round(world / ranks))
    counts = [most, *(1 << power for power in reversed(range(most.bit_length())))]
    for times in counts:
        if good(_of({**named, "dp_shard": named.get("dp_shard", 1) * times})):
            return ranks * times
    return 0


def _are(workers: int) -> str:
    return "is 1 worker" if workers == 1 else f"are {workers} workers"


def _meant(shape: str) -> str:
    """What to write instead of a `shape` that cannot be read."""
    known = [word for word in _SPELLINGS if word not in LATER]
    found = re.findall(r"([a-z]+)[^a-z0-9]*([1-9][0-9]{0,5})(?![0-9])", shape.lower())
    words = [word for word, _ in found]
    if found and len(set(words)) == len(words) and all(word in known for word in words):
        return f'Did you mean layout.shape="{" ".join(word + degree for word, degree in found)}"?'
    return f'Write {", ".join(f"{word}N" for word in known)}, as in "tp2 pp2 dp4": dp shards, replicate copies.'


def divisors(number: int) -> list[int]:
    """All divisors of `number`, ascending."""
    small = [divisor for divisor in range(1, int(number**0.5) + 1) if number % divisor == 0]
    return small + [number // divisor for divisor in reversed(small) if divisor * divisor != number]


def nearest(wanted: int, allowed: Sequence[int]) -> int:
    """The value of `allowed` nearest to `wanted`; of two as near, the smaller."""
    return min(allowed, key=lambda value: (abs(value - wanted), value))


def share(total: int, parts: int, part: int) -> range:
    """The indices of `total` things that `part` of `parts` holds, contiguous, sizes differing by one at most."""
    begin = total * part // parts
    return range(begin, total * (part + 1) // parts)
