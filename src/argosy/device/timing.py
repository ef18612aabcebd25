"""Seconds on a device without stopping it: on a GPU two events in the queue, elsewhere the clock."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from argosy.device.device import Device


def begin(device: Device) -> Callable[[], Callable[[], float]]:
    """Start timing; the result ends it when called, and what that gives tells the seconds, waiting for the device if need be.

    `end = begin(device); ...; seconds = end(); ...; print(seconds())`: only the last call can wait.
    """
    if device.kind != "cuda":
        started = time.perf_counter()

        def end() -> Callable[[], float]:
            device.synchronize()
            lasted = time.perf_counter() - started
            return lambda: lasted

        return end
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()

    def end_event() -> Callable[[], float]:
        last.record()

        def seconds() -> float:
            last.synchronize()
            return float(first.elapsed_time(last)) / 1000

        return seconds

    return end_event


def best(action: Callable[[], object], device: Device, seconds: float) -> float:
    """The shortest of repeated runs of `action` within `seconds`, at least three, the first not counted; in seconds."""
    action()
    device.synchronize()
    found: list[float] = []
    until = time.perf_counter() + seconds
    while len(found) < 3 or time.perf_counter() < until:
        started = time.perf_counter()
        action()
        device.synchronize()
        found.append(time.perf_counter() - started)
    return min(found)
