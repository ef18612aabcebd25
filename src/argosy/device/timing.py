"""Seconds that something takes on a device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median

from argosy.device.device import Device

STEADY = 1.15  # median over shortest up to which a figure needs no more rounds
ROUNDS = 5  # before which no figure is called steady


@dataclass
class Timed:
    """What repeated runs of one action took, in seconds."""

    found: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        """The shortest: what the action takes when nothing else runs."""
        return min(self.found)

    @property
    def usual(self) -> float:
        """The median."""
        return median(self.found)

    @property
    def spread(self) -> float:
        """The median over the shortest: 1 where nothing disturbed."""
        return self.usual / self.best


def best(action: Callable[[], object], device: Device, seconds: float) -> float:
    """The shortest of repeated runs of `action` within `seconds`, at least three, the first not counted; in seconds."""
    action()
    device.synchronize()
    found = Timed()
    until = time.perf_counter() + seconds
    while len(found.found) < 3 or time.perf_counter() < until:
        found.found.append(_once(action, device))
    return found.best


def alternate(
    actions: Mapping[str, Callable[[], object]],
    device: Device,
    seconds: float,
    fewest: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timed]:
    """What each of `actions` takes when they take turns: a disturbance meets all of them, not one.

    Every action runs once uncounted, then in rounds, forwards and backwards, until all are steady or `seconds` have passed;
    `fewest` rounds at least. clock: time.process_time where this process's one thread does all the work: the time that
    other programs take from it is then not counted.
    """
    until = time.perf_counter() + seconds
    for action in actions.values():
        _once(action, device, clock)
    found = {name: Timed() for name in actions}
    order = list(actions)
    rounds = 0
    while rounds < fewest or time.perf_counter() < until:
        for name in order:
            found[name].found.append(_once(actions[name], device, clock))
        order.reverse()
        rounds += 1
        if rounds >= max(ROUNDS, fewest) and all(one.spread <= STEADY for one in found.values()):
            break
    return found


def _once(action: Callable[[], object], device: Device, clock: Callable[[], float] = time.perf_counter) -> float:
    started = clock()
    action()
    device.synchronize()
    return clock() - started
