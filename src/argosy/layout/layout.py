"""The one description of who does which part: all ranks as one grid. Arithmetic only; `parallel/mesh.py` makes the groups."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import prod

from argosy.errors import Refused

AXES = ("pp", "dp_replicate", "dp_shard", "cp", "tp")  # outermost first

_SPELLINGS = {"pp": "pp", "replicate": "dp_replicate", "dp": "dp_shard", "cp": "cp", "tp": "tp", "ep": "ep"}
_WORD = re.compile(r"([a-z]+)([0-9]+)")


@dataclass(frozen=True)
class Layout:
    """All ranks as one grid with AXES, outermost first: rank = index of the coordinates in row-major order."""

    pp: int = 1
    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1
    ep: int = 1  # cuts dp_shard x cp; no factor of the ranks

    def __post_init__(self) -> None:
        for axis in (*AXES, "ep"):
            if getattr(self, axis) < 1:
                raise Refused(f"layout: {axis} = {getattr(self, axis)} must be at least 1.")
        if (self.dp_shard * self.cp) % self.ep:
            raise Refused(
                f"layout: ep {self.ep} must divide dp_shard x cp = {self.dp_shard} x {self.cp}.",
                do=f"Nearest below: ep {_divisor_below(self.dp_shard * self.cp, self.ep)}.",
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

    def at(self, rank: int) -> dict[str, int]:
        """Coordinates of `rank` by axis."""
        if not 0 <= rank < self.world:
            raise IndexError(f"rank {rank} of {self.world}")
        place: dict[str, int] = {}
        for axis, degree in zip(reversed(AXES), reversed(self.degrees), strict=True):
            rank, place[axis] = divmod(rank, degree)
        return {axis: place[axis] for axis in AXES}

    def rank(self, **place: int) -> int:
        """The rank at the given coordinates; axes not named are 0."""
        found = 0
        for axis, degree in zip(AXES, self.degrees, strict=True):
            if not 0 <= place.get(axis, 0) < degree:
                raise IndexError(f"{axis} {place[axis]} of {degree}")
            found = found * degree + place.get(axis, 0)
        return found

    def group(self, rank: int, *axes: str) -> list[int]:
        """The ranks, ascending, that differ from `rank` along `axes` only; `rank` itself is one of them."""
        here = self.at(rank)
        places = [here]
        for axis in axes:
            places = [{**place, axis: i} for place in places for i in range(getattr(self, axis))]
        return sorted(self.rank(**place) for place in places)

    def data_index(self, rank: int) -> int:
        """Which of the `data` shares of the global batch `rank` reads."""
        place = self.at(rank)
        return place["dp_replicate"] * self.dp_shard + place["dp_shard"]

    def text(self) -> str:
        """How people write it: "pp2 replicate2 dp2 tp2"; degrees of one are left out, "dp1" for a single rank."""
        words = [f"{spelling}{getattr(self, axis)}" for spelling, axis in _SPELLINGS.items() if getattr(self, axis) > 1]
        return " ".join(words) or "dp1"

    @staticmethod
    def degrees_named(shape: str) -> dict[str, int]:
        """The degrees that `shape` ("tp2 pp2 dp4") names, by axis. Refused for what is none."""
        named: dict[str, int] = {}
        for word in shape.split():
            match = _WORD.fullmatch(word)
            axis = _SPELLINGS.get(match[1]) if match else None
            if match is None or axis is None or int(match[2]) < 1:
                raise Refused(
                    f'layout.shape = "{shape}": {word} is no degree.',
                    do='Write ppN, tpN, cpN, epN, dpN (sharded data parallel) or replicateN, as in "tp2 pp2 dp4".',
                )
            if axis in named:
                raise Refused(f'layout.shape = "{shape}": {match[1]} is named twice.', do="Name it once.")
            named[axis] = int(match[2])
        return named

    @staticmethod
    def parse(shape: str, world: int | None = None) -> Layout:
        """The layout of `shape` over `world` ranks; ranks not named go to dp_shard. Refused when it does not divide."""
        named = Layout.degrees_named(shape)
        product = prod(degree for axis, degree in named.items() if axis != "ep")
        if world is None or world == product:
            return Layout(**named)
        if world % product or "dp_shard" in named:
            raise Refused(
                f'layout.shape = "{shape}" makes {product} ranks, there are {world} workers.',
                do=f"Start {product} workers (--workers {product}), or name degrees whose product divides {world}.",
            )
        return replace(Layout(**{**named, "ep": 1}), dp_shard=world // product, ep=named.get("ep", 1))


def _divisor_below(number: int, limit: int) -> int:
    """The largest divisor of `number` not above `limit`."""
    return max(divisor for divisor in range(1, min(number, limit) + 1) if number % divisor == 0)


def share(total: int, parts: int, part: int) -> range:
    """The indices of `total` things that `part` of `parts` holds, contiguous, sizes differing by one at most."""
    begin = total * part // parts
    return range(begin, total * (part + 1) // parts)
