"""Lines of text about a run: pure functions of its rows. Nothing here writes anything.

Text that others wrote passes through `harmless`: nothing in it moves the cursor or changes what is already on a screen.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

WIDTH = 100  # columns at most


def harmless(text: str, *, lines: bool = False) -> str:
    """`text` with everything that is not printed as itself spelled out; `lines` keeps line ends, and tabs as spaces."""
    found = []
    for letter in text.expandtabs(4) if lines else text:
        kind = unicodedata.category(letter)
        if (letter == "\n" and lines) or kind[0] not in "CZ" or letter == " ":
            found.append(letter)
        elif kind == "Zs":
            found.append(" ")
        else:  # control, format (also what turns the direction of writing), surrogate, unassigned, line separators
            found.append({"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(letter, f"\\x{ord(letter):02x}"))
    return "".join(found)


def shown(text: str, out: TextIO) -> str:
    """`text` as it may be written to `out`: harmless on a terminal, untouched for a file or another program."""
    return harmless(text, lines=True) if out.isatty() else text


def live(row: Mapping[str, Any], steps: int, left: float | None, width: int = WIDTH) -> str:
    """The live line, `width` columns at most: share, bar, step, loss, bits per byte, speed, time left."""
    step = int(row["step"])
    share = min(1.0, step / steps) if steps else 1.0
    words = [f"{step:,}/{steps:,}", f"loss {_number(row.get('loss'), '.2f')}"]
    if row.get("bits_per_byte") is not None:
        words.append(f"{row['bits_per_byte']:.2f} b/B")
    if row.get("tokens_per_second"):
        words.append(f"{row['tokens_per_second']:,.0f} tok/s")
    if left is not None:
        words.append(f"{clock(left)} left")
    text = "  ".join(words)
    room = min(26, width - len(text) - 10)
    if room < 6:
        return f"  {share:4.0%}  {text}"[:width]
    full = int(share * room)
    bar = "━" * full + ("╸" if full < room else "") + " " * max(0, room - full - 1)
    return f"  {share:4.0%} {bar}  {text}"[:width]


def pairs(row: Mapping[str, Any], steps: int, left: float | None) -> str:
    """The plain line of a step: time in UTC, then key=value."""
    at = datetime.fromtimestamp(float(row.get("time") or time.time()), UTC)
    words = [f"{at:%Y-%m-%dT%H:%M:%SZ}", f"step={row['step']}/{steps}", f"loss={_number(row.get('loss'), '.4f')}"]
    for key, name, form in (
        ("bits_per_byte", "bpb", ".4f"),
        ("lr", "lr", ".3e"),
        ("gradient_norm", "gnorm", ".3g"),
        ("tokens_per_second", "tok/s", ".0f"),
        ("gemm_share", "gemm", ".2f"),
        ("mfu", "mfu", ".2f"),
    ):
        if row.get(key) is not None:
            words.append(f"{name}={row[key]:{form}}")
    if left is not None:
        words.append(f"eta={left:.0f}s")
    return " ".join(words)


def block(lines: Sequence[tuple[str, str]]) -> list[str]:
    """(label, text) as two columns, wrapped at WIDTH; a text's own line ends stay."""
    wide = max([8, *(len(label) for label, _ in lines)])
    found = []
    for label, text in lines:
        first = f"  {label:<{wide}} "
        for part in harmless(text, lines=True).split("\n"):
            for piece in wrapped(part, WIDTH - len(first)):
                found.append((first + piece).rstrip())
                first = " " * len(first)
    return found


def clock(seconds: float) -> str:
    """ "1:04", "2:03:04", "3 d 2 h"."""
    whole = round(seconds)
    if whole >= 2 * 86400:
        return f"{whole // 86400} d {whole % 86400 // 3600} h"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def _number(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)


def wrapped(text: str, width: int) -> list[str]:
    """`text` in lines of `width` columns, cut at spaces; runs of spaces inside a line stay."""
    found = []
    while len(text) > width:
        cut = text.rfind(" ", 1, width + 1)
        cut = cut if cut > 0 else width
        found.append(text[:cut].rstrip())
        text = text[cut:].lstrip()
    return [*found, text]
