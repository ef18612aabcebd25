"""Which layers each stage of a pipeline holds. Arithmetic only; knows no job and no torch.

A stage's cost is its number of layers, plus the embedding's share on the first and the head's on the last stage, both counted
in layers. The slowest stage sets the pace of all, so that one is made as fast as can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from argosy.errors import Refused


def assign(
    layers: int, stages: int, given: Sequence[int] = (), ends: tuple[float, float] = (0.0, 0.0)
) -> tuple[range, ...]:
    """The layers of each of `stages`, first to last; every layer is in one of them.

    `given` is a list of layers per stage that somebody wrote, () where it is to be balanced: the slowest stage as fast as can
    be, then the others as even as can be, the larger ones late (early stages keep more micro-batches in memory). `ends` is
    the cost of embedding and head, in layers. Refused where there are more stages than layers, or the list does not fit.
    """
    counts = list(given) if given else _balanced(layers, stages, ends)
    if len(counts) != stages or sum(counts) != layers:
        raise Refused(f"layout.stages = {counts} must name {stages} stages of {layers} layers in all.")
    found, begin = [], 0
    for count in counts:
        found.append(range(begin, begin + count))
        begin += count
    return tuple(found)


def _balanced(layers: int, stages: int, ends: tuple[float, float]) -> list[int]:
    if stages > layers:
        raise Refused(f"{stages} pipeline stages of {layers} layers: each needs one.", do=f"Nearest: {layers} stages.")
    extra = [0.0] * stages
    extra[0] += ends[0]
    extra[-1] += ends[1]
    most = _slowest(layers, extra)
    # best[n]: the least sum of squared costs with n layers in the stages seen so far, and their counts, last stage first.
    nothing: tuple[float, tuple[int, ...]] = (inf, ())
    best = [nothing] * (layers + 1)
    best[0] = (0.0, ())
    for more in extra:
        following = [nothing] * (layers + 1)
        for before, (cost, counts) in enumerate(best):
            if cost == inf:
                continue
            for count in range(1, layers - before + 1):
                if count > 1 and count + more > most + 1e-9:
                    break
                # Of two that are as good, the one whose last stages hold more.
                way = (cost + (count + more) ** 2, (-count, *counts))
                following[before + count] = min(following[before + count], way)
        best = following
    return [-count for count in reversed(best[layers][1])]


def _slowest(layers: int, extra: Sequence[float]) -> float:
    """The least cost that the slowest stage can have, a layer in each at least."""
    for most in sorted({count + more for more in extra for count in range(1, layers + 1)}):
        room = [max(1, int(most - more + 1e-9)) for more in extra]
        if sum(room) >= layers:
            return max(most, *(1 + more for more in extra))
    raise AssertionError("some cost holds all layers")
