"""Seconds that something takes on a device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median

from argosy.device.device import Device

STEADY = 1.15  # median over shortest up to which a figure needs no more rounds
FEWEST = 2  # rounds, however long they take
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


def best(
    action: Callable[[], object],
    device: Device,
    seconds: float,
    fewest: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """The shortest of repeated runs of `action` within `seconds` by `clock`, the first not counted; in seconds.

    At least `fewest` are counted, however long they take.
    """
    once(action, device, clock)
    found = Timed()
    until = clock() + seconds
    while len(found.found) < fewest or clock() < until:
        found.found.append(once(action, device, clock))
    return found.best


def alternate(
    actions: Mapping[str, Callable[[], object]],
    device: Device,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    *,
    over: Callable[[], bool] = lambda: False,
    seen: Callable[[Mapping[str, Timed]], object] = lambda found: None,
) -> dict[str, Timed]:
    """What each of `actions` takes when they take turns: a disturbance meets all of them, not one.

    Every action runs once uncounted, then in rounds, forwards and backwards, until all are steady or `seconds` have passed;
    at least `FEWEST` rounds. clock: time.process_time where this process's one thread does all the work: the time that
    other programs take from it is then not counted. over: asked before each action, ends everything at once, also in the
    first round. seen: told what is known after each round.
    """
    until = time.perf_counter() + seconds
    for action in actions.values():
        if not over():
            once(action, device, clock)
    found = {name: Timed() for name in actions}
    order = list(actions)
    rounds = 0
    while rounds < FEWEST or time.perf_counter() < until:
        for name in order:
            if over():
                return found
            found[name].found.append(once(actions[name], device, clock))
        order.reverse()
        rounds += 1
        seen(found)
        if rounds >= ROUNDS and all(one.spread <= STEADY for one in found.values()):
            break
    return found


def once(action: Callable[[], object], device: Device, clock: Callable[[], float] = time.perf_counter) -> float:
    """The seconds of one run of `action`, until the device is done with it."""
    started = clock()
    action()
    device.synchronize()
    return clock() - started
