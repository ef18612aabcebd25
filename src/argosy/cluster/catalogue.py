"""Known devices: peaks, memory, bandwidths, from devices.toml beside this file. Knows no cluster."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files

from argosy import quantities


@dataclass(frozen=True)
class Device:
    """One kind. peaks in dense FLOP/s by type, memory in bytes, bandwidths in bytes per second and one direction."""

    kind: str
    vendor: str
    reports: tuple[str, ...]
    peaks: dict[str, float]
    memory: int
    memory_bandwidth: float
    link: float
    source: str


@cache
def devices() -> dict[str, Device]:
    """All known devices by kind."""
    table = tomllib.loads(files("argosy.cluster").joinpath("devices.toml").read_text(encoding="utf-8"))
    return {
        kind: Device(
            kind=kind,
            vendor=row["vendor"],
            reports=tuple(row["reports"]),
            peaks={name: rate * 1e12 for name, rate in row["peaks"].items()},
            memory=quantities.size(row["memory"]),
            memory_bandwidth=quantities.bandwidth(row["memory_bandwidth"]),
            link=quantities.bandwidth(row["link"]),
            source=row["source"],
        )
        for kind, row in table.items()
    }


def device(kind: str) -> Device:
    """The device `kind`. ValueError with the nearest name where there is none."""
    known = devices()
    if kind not in known:
        close = get_close_matches(kind, list(known), 1)
        raise ValueError(f"{kind} is no known device; " + (f"did you mean {close[0]}?" if close else ", ".join(known)))
    return known[kind]


def match(name: str) -> Device | None:
    """The device that a driver calls `name` ("NVIDIA H200"), or None."""
    return next((one for one in devices().values() if all(word in name for word in one.reports)), None)
