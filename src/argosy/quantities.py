"""Quantities as people write them: "80 GiB", "200 Gb/s", "15B", "10 min", "2%"; and back to text. Knows nothing of the rest.

Each reader takes what a TOML value can be and returns a number in the base unit (counts, bytes, bytes/s, seconds, fraction),
or raises ValueError with one sentence: what was found and what may be written.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_AMOUNT = r"(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_NUMBER = re.compile(rf"\s*([+-]?{_AMOUNT})\s*(.*?)\s*")
_PART = re.compile(rf"\s*({_AMOUNT})\s*([a-z]+)\s*")
AGES = 100 * 365 * 86400.0  # seconds; no run is meant to be longer
_COUNTS = {"": 1.0, "K": 1e3, "k": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
_BYTES = {"B": 1.0} | {
    f"{letter}{binary}B": float(base) ** power
    for power, letter in enumerate("KMGTP", 1)
    for binary, base in (("i", 1024), ("", 1000))
}
_BYTES["kB"] = 1e3
_SECONDS = {
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "sec": 1.0,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
    "hour": 3600.0,
    "hours": 3600.0,
}
_SECONDS |= {"day": 86400.0, "days": 86400.0}


def _split(value: object, what: str, example: str) -> tuple[float, str]:
    match = _NUMBER.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is no {what}; write {example}")
    number = float(match[1].replace("_", ""))
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not finite; write {example}")
    return number, match[2]


def count(value: object) -> int:
    """A number of things: 320, "1.3M", "15B", "3e9"."""
    if isinstance(value, bool):
        raise ValueError(f'{value} is no count; write 4096 or "1.3M"')
    if isinstance(value, int | float):
        number = value
    else:
        amount, unit = _split(value, "count", '4096 or "1.3M"')
        if unit not in _COUNTS:
            raise ValueError(f'{value!r} is no count; write it whole, or with K, M, B or T: 4096 or "1.3M"')
        number = amount * _COUNTS[unit]
    if not math.isfinite(number):
        raise ValueError(f'{value!r} is not finite; write 4096 or "1.3M"')
    rounded = round(number)
    if abs(number - rounded) > 1e-6 * max(1.0, abs(number)):
        raise ValueError(f"{value!r} is no whole number")
    return rounded


def size(value: object) -> int:
    """Bytes: "80 GiB", "26 MB"."""
    amount, unit = _split(value, "size in bytes", '"80 GiB" or "26 MB"')
    if unit not in _BYTES:
        raise ValueError(f'{value!r}: write a size with its unit, as "80 GiB" or "26 MB"')
    return round(amount * _BYTES[unit])


def bandwidth(value: object) -> float:
    """Bytes per second: "200 Gb/s" (bits) or "25 GB/s" (bytes)."""
    amount, unit = _split(value, "bandwidth", '"200 Gb/s" (bits) or "25 GB/s" (bytes)')
    match = re.fullmatch(r"([kKMGT]?)(i?)([bB])(?:/s|ps)", unit)
    if match is None:
        raise ValueError(f'{value!r} is no bandwidth; write "200 Gb/s" (bits) or "25 GB/s" (bytes)')
    factor = (1024.0 if match[2] else 1000.0) ** " KMGT".index(match[1].upper() or " ")
    return amount * factor / (8.0 if match[3] == "b" else 1.0)


def seconds(value: object) -> float:
    """Seconds: "90 s", "10 min", "1 h 30 min", "30 us"."""
    text = value if isinstance(value, str) else ""
    parts = _PART.findall(text)
    if not parts or _PART.sub("", text) or any(unit not in _SECONDS for _, unit in parts):
        raise ValueError(f'{value!r}: write a duration with its unit, as "90 s" or "1 h 30 min"')
    return sum(float(amount.replace("_", "")) * _SECONDS[unit] for amount, unit in parts)


def fraction(value: object) -> float:
    """A share of the whole, in [0, 1]: "2%" or 0.02."""
    if isinstance(value, str):
        amount, unit = _split(value, "share", '"2%" or 0.02')
        if unit not in ("%", ""):
            raise ValueError(f'{value!r} is no share; write "2%" or 0.02')
        amount /= 100.0 if unit else 1.0
    elif isinstance(value, int | float) and not isinstance(value, bool):
        amount = float(value)
    else:
        raise ValueError(f'{value!r} is no share; write "2%" or 0.02')
    if not 0 <= amount <= 1:
        raise ValueError(f"{value!r} is not between 0% and 100%")
    return amount


@dataclass(frozen=True)
class Interval:
    """How often: every so many steps, seconds, or shares of the run; exactly one is set, none = never."""

    steps: int | None = None
    seconds: float | None = None
    share: float | None = None

    def due(self, steps: int) -> int | None:
        """The interval in steps of a run of `steps`, where it does not depend on the clock; None = never or by clock."""
        if self.share is not None:
            return max(1, round(self.share * steps))
        return self.steps


def interval(value: object) -> Interval:
    """How often: 200 (steps), "60 s", "25%" (of the run), "never"."""
    if value == "never":
        return Interval()
    if isinstance(value, str) and value.strip().endswith("%"):
        share = fraction(value)
        if share == 0:
            raise ValueError('"0%" is no interval; write "never"')
        return Interval(share=share)
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise ValueError(f'{value} is no interval in steps; write at least 1, or "never"')
        return Interval(steps=value)
    try:
        found = seconds(value)
    except ValueError:
        raise ValueError(
            f'{value!r} is no interval; write 200 (steps), "60 s", "25%" (of the run) or "never"'
        ) from None
    if not 0.01 <= found <= AGES:
        raise ValueError(f'{value!r} is no interval; write at least "0.01 s" and less than 100 years, or "never"')
    return Interval(seconds=found)


def bytes_text(number: float) -> str:
    """ "80 GiB", "359 KiB": three digits at most before the unit."""
    value, unit = float(number), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(value) < 1000 or unit == "PiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or abs(value) >= 10 else f"{value:.1f} {unit}"


def count_text(number: float) -> str:
    """ "1.31M", "15B", "478": three digits that count."""
    for limit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "K")):
        if abs(number) >= limit:
            scaled = number / (1e3 if letter == "K" else limit)
            return (
                f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}".rstrip("0").rstrip(".") + letter
                if (scaled < 100)
                else f"{scaled:.0f}{letter}"
            )
    return f"{number:,.0f}"


def seconds_text(number: float) -> str:
    """ "0.72 s", "2 min 58 s", "1 h 4 min", "3 days 2 h"."""
    if number < 10:
        return f"{number:.2f} s" if number < 1 else f"{number:.1f} s"
    whole = round(number)
    for unit, length, smaller, part in (("day", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= length:
            first, rest = divmod(whole, length)
            name = unit + ("s" if unit == "day" and first > 1 else "")
            return f"{first} {name} {rest // part} {smaller}" if rest // part else f"{first} {name}"
    return f"{whole} s"
