"""The one generator: SplitMix64 over int64, NumPy and torch alike, so that any slice is computed alone and equals the whole.

A number is a pure function of (seed, name, global element index). Initial weights, dropout and data order use it; torch's
own generators are not used where a result must not depend on the layout. Knows neither jobs nor tensors' meaning; torch is
never imported here: the operations below are those that NumPy arrays and torch tensors of int64 share.

Source: SplitMix64's output function, Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, TypeVar

Array = TypeVar("Array")  # a NumPy array or a torch tensor of int64

_GAMMA = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def _signed(value: int) -> int:
    """The int64 with the same 64 bits as `value`."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def key(seed: int, *name: object) -> int:
    """The 64-bit key of one stream: the first 8 bytes of BLAKE2b over seed and name, as a signed int64."""
    words = "\0".join(str(word) for word in (seed, *name))
    return _signed(int.from_bytes(blake2b(words.encode(), digest_size=8).digest(), "little"))


def bits(stream: int | Array, index: Array) -> Array:
    """64 random bits for each global element index [any shape] of `stream` (see `key`), as wrapping int64.

    The stream may itself be an array that broadcasts against `index`: bits of bits make a tree of streams.
    """
    value: Any = index
    value = value * _signed(_GAMMA) + stream
    value = (value ^ _shift(value, 30)) * _signed(_FIRST)
    value = (value ^ _shift(value, 27)) * _signed(_SECOND)
    mixed: Array = value ^ _shift(value, 31)
    return mixed


def _shift(value: Any, by: int) -> Any:
    """Logical right shift: int64's own shift copies the sign, the mask takes the copies away."""
    return (value >> by) & ((1 << (64 - by)) - 1)


def unit(random: Array) -> Array:
    """Bits [int64] to float64 in the open interval (0, 1): the upper 52 bits, centred, so that neither end occurs.

    52, not 53: the half that is added must fit beside them, or the largest would round up to 1.
    """
    value: Any = _shift(random, 12)
    # torch turns integer + Python number into float32, NumPy into float64: say float64 to both.
    wide = value.double() if hasattr(value, "double") else value.astype("float64")
    fraction: Array = (wide + 0.5) * 2.0**-52
    return fraction
