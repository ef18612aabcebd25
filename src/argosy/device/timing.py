"""Seconds that something takes on a device."""

from __future__ import annotations

import time
from collections.abc import Callable

from argosy.device.device import Device


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
