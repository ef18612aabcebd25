"""What a run shows while it goes: one live line on a terminal, key=value lines elsewhere, JSON for programs, or nothing.

In come the rows of the record (`run/archive.py`), the driver's sentences and the texts of `observe/words.py`. Whatever is
shown also goes, plain, to the run's log. Text that others wrote (samples, names) is made harmless first: nothing in it moves
the cursor or changes what is already on the screen. Control characters come from here only, and only on a terminal.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from argosy.observe.text import WIDTH, block, harmless, live, pairs
from argosy.quantities import bytes_text, seconds_text
from argosy.run.archive import Line

Mode = Literal["terminal", "plain", "json", "quiet"]
VERSION = 1  # of the JSON lines

_ERASE = "\r\x1b[K"
_BOLD, _RED, _GREEN, _DIM, _OFF = "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[2m", "\x1b[0m"


@dataclass(frozen=True)
class StartFacts:
    """The block before the first step: (label, text) in order, then notes."""

    lines: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()
    steps: int = 0


@dataclass(frozen=True)
class EndFacts:
    """The block after the last step: a sentence, (label, text) in order, a sample, commands as (label, text)."""

    sentence: str
    lines: tuple[tuple[str, str], ...] = ()
    sample: str = ""
    commands: tuple[tuple[str, str], ...] = ()


def mode(out: TextIO, *, quiet: bool = False, json: bool = False) -> Mode:
    """How to show a run on `out`: what was asked, else a live line where `out` is a terminal that can move its cursor."""
    if json:
        return "json"
    if quiet:
        return "quiet"
    terminal = getattr(out, "isatty", None)  # what stands in for a stream may have none
    return "terminal" if terminal is not None and terminal() and os.environ.get("TERM", "dumb") != "dumb" else "plain"


def screen(mode: Mode, out: TextIO | None = None, *, log: Path | None = None, log_every: float = 10.0) -> Screen:
    """The screen for `mode`, writing to `out` (stdout when left out) and to the file `log`."""
    kind = {"terminal": Terminal, "plain": Plain, "json": Json, "quiet": Quiet}[mode]
    return kind(out or sys.stdout, log=log, log_every=log_every)


class Screen:
    """The base: writes everything to the log, plain; what is shown is the subclass's matter."""

    def __init__(self, out: TextIO, *, log: Path | None = None, log_every: float = 10.0):
        self.out, self.log_every = out, log_every
        self._log: TextIO | None = None
        self._early: list[str] = []  # before there was a folder to log to
        self._pace = Pace()
        self._best: float | None = None
        self._deaf = False  # `out` takes no more
        self._told = time.monotonic()
        self._compiling_since = 0.0
        self._shown = (-1.0e9, -1)  # time and step of the last plain line
        if log is not None:
            self.log_to(log)

    def log_to(self, path: Path) -> None:
        """From now on also write to the file `path`; what was said before comes first."""
        self._log = path.open("a", encoding="utf-8", errors="backslashreplace")
        for text in self._early:
            self._log.write(text + "\n")
        self._early.clear()
        self._log.flush()

    def title(self, text: str) -> None:
        """The first line: versions and machine."""
        self._both(text + "\n", "title", {"text": text})

    def preparing(self, what: str, done: int, total: int) -> None:
        """Preparation of the data goes on: `done` of `total`."""
        self._live(f"  {harmless(what)} … {done:,} of {total:,}" if total else f"  {harmless(what)} …", "preparing",
                   {"what": what, "done": done, "total": total})  # fmt: skip

    def start(self, facts: StartFacts) -> None:
        """The block before the first step."""
        text = "\n".join(block(facts.lines) + [f"  note: {harmless(note)}" for note in facts.notes]) + "\n"
        self._both(text, "start", {"facts": dict(facts.lines), "notes": list(facts.notes), "steps": facts.steps})

    def compiling(self) -> None:
        """The blocks are being compiled."""
        self._live("  compiling the blocks …", "compiling", {})

    def compiled(self, seconds: float) -> None:
        """The blocks are compiled."""
        self._both(f"  compiled in {seconds_text(seconds)}", "compiled", {"seconds": seconds})

    def step(self, row: Mapping[str, Any], steps: int) -> None:
        """A step is done: a row of metrics.jsonl, of `steps` in all."""
        left = self._pace.left(int(row["step"]), steps, row.get("incarnation"))
        self._progress(row, steps, left)

    def held_out(self, row: Mapping[str, Any]) -> None:
        """An evaluation is done: a row of evaluations.jsonl."""
        value = row.get("bits_per_byte") if row.get("bits_per_byte") is not None else row.get("loss")
        unit = "bits/byte" if row.get("bits_per_byte") is not None else "nats/token"
        best = value is not None and (self._best is None or value <= self._best)
        if best:
            self._best = value
        told = "not finite" if value is None else f"{value:.3f} {unit}"
        for name, other in (row.get("sets") or {}).items():
            figure = other.get("bits_per_byte") if other.get("bits_per_byte") is not None else other.get("loss")
            told += f", {harmless(str(name))} {'not finite' if figure is None else f'{figure:.3f}'}"
        by = f" by {harmless(str(row['by']))}" if row.get("sets") and row.get("by") else ""
        best = bool(row["best"]) if "best" in row else best
        text = f"  step {row['step']:>5,}   held out {told}{f'   best so far{by}' if best else ''}"
        self._both(text, "held_out", dict(row))

    def sample(self, row: Mapping[str, Any]) -> None:
        """The model continued a prompt: a row of samples.jsonl."""
        head = f"  step {row['step']:>5,}   "
        shown = harmless(str(row.get("prompt", "")) + str(row["text"]), lines=True).rstrip()
        lines = [line[: WIDTH - len(head)] for line in shown.split("\n")[:8]]
        self._both(head + f"\n{' ' * len(head)}".join(lines), "sample", dict(row))

    def saved(self, row: Mapping[str, Any]) -> None:
        """A checkpoint was committed, or could not be: a row of the writer."""
        if row.get("ok", True):
            waited = f", training waited {row['waited']:.2f} s" if row.get("waited") is not None else ""
            text = f"  saved step {row['step']:,} ({bytes_text(float(row.get('bytes', 0)))}, verified{waited})"
        else:
            text = (
                f"  ! step {row['step']:,} was not saved: {harmless(str(row.get('sentence') or row.get('error', '')))}"
            )
        self._both(text, "saved", dict(row))

    def fault(self, sentence: str, followup: str = "") -> None:
        """Something broke: what, and what is done about it."""
        text = f"  ! {harmless(sentence)}" + (f"\n    {harmless(followup)}" if followup else "")
        self._both(text, "fault", {"sentence": sentence, "followup": followup}, loud=True)

    def note(self, text: str) -> None:
        """A remark."""
        self._both(f"  note: {harmless(text)}", "note", {"text": text})

    def stopping(self, reason: str) -> None:
        """The run ends before its last step, after a save, because of `reason` ("SIGINT", "argosy stop")."""
        name = {"SIGINT": "Ctrl-C"}.get(reason, reason)
        again = "; Ctrl-C again leaves WITHOUT saving" if reason == "SIGINT" else ""
        self._both(f"  stopping ({harmless(name)}): saving first{again}", "stopping", {"reason": reason}, loud=True)

    def done(self, facts: EndFacts) -> None:
        """The block after the last step."""
        parts = [harmless(facts.sentence), ""]
        if facts.lines:
            parts += [*block(facts.lines), ""]
        if facts.sample:
            shown = harmless(facts.sample, lines=True).rstrip().split("\n")[:10]
            parts += [*(f"  {line[: WIDTH - 2]}" for line in shown), ""]
        if facts.commands:
            parts += block(facts.commands)
        self._both("\n" + "\n".join(parts).rstrip() + "\n", "done", asdict(facts))

    def news(self, line: Line, steps: int) -> None:
        """Show what `Archive.poll` found."""
        if line.kind == "step":
            self.step(line.row, steps)
        elif line.kind == "held_out":
            self.held_out(line.row)
        elif line.kind == "sample":
            self.sample(line.row)
        elif line.row.get("name") == "compiling":
            self._compiling_since = float(line.row["time"])
            self.compiling()
        elif line.row.get("name") == "compiled":
            self.compiled(float(line.row["time"]) - (self._compiling_since or float(line.row["time"])))

    def tick(self) -> None:
        """Time passed without news."""

    def close(self) -> None:
        """Leave the terminal as it was, and close the log."""
        if self._log is not None:
            with suppress(OSError):
                self._log.close()
            self._log = None

    def _progress(self, row: Mapping[str, Any], steps: int, left: float | None) -> None:
        if self._due(row, steps):
            self._keep(pairs(row, steps, left))

    def _due(self, row: Mapping[str, Any], steps: int) -> bool:
        """Whether a plain line is due: every `log_every` seconds, or each hundredth of the run, and the last step."""
        now, step = time.monotonic(), int(row["step"])
        since, before = self._shown
        share = max(1, steps // 100)
        if step < steps and now - since < self.log_every and step // share == before // share:
            return False
        self._shown = (now, step)
        return True

    def _live(self, text: str, event: str, facts: dict[str, Any]) -> None:
        """Something that the next line replaces; only a terminal can show it."""

    def _both(self, text: str, event: str, facts: dict[str, Any], *, loud: bool = False) -> None:
        self._keep(text)
        self._show(text, event, facts, loud)

    def _keep(self, text: str) -> None:
        if self._log is None:
            self._early.append(text)
            return
        with suppress(OSError):  # a full disk: the terminal still tells, and what is full is named by who needs it
            self._log.write(text + "\n")
            self._log.flush()

    def _show(self, text: str, event: str, facts: dict[str, Any], loud: bool) -> None:
        """Show `text`, or the event's facts, in the subclass's own way. loud: also where only trouble is wanted."""
        self._write(text + "\n")

    def _write(self, text: str) -> None:
        """Write to `out`; signs that its encoding lacks are spelled out, a reader that left is no reason to stop."""
        if self._deaf:
            return
        encoding = getattr(self.out, "encoding", None) or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            text = text.translate(_ASCII).encode(encoding, "backslashreplace").decode(encoding)
        try:
            self.out.write(text)
            self.out.flush()
        except (OSError, ValueError):
            self._let_go()

    def _let_go(self) -> None:
        """Write no more: who read is gone, or what it goes to is full. Training goes on, and the log goes on telling."""
        self._deaf = True
        with suppress(OSError, ValueError):  # what is still buffered must not fail again when the process ends
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.out.fileno())
            os.close(nowhere)


_ASCII = {ord("━"): "#", ord("╸"): "#", ord("…"): "...", ord("→"): "->", ord("·"): "-", ord("≈"): "~", ord("±"): "+-"}


class Plain(Screen):
    """Lines without control characters: a log file, a batch system, CI."""

    def _progress(self, row: Mapping[str, Any], steps: int, left: float | None) -> None:
        if self._due(row, steps):
            line = pairs(row, steps, left)
            self._keep(line)
            self._write(line + "\n")

    def _live(self, text: str, event: str, facts: dict[str, Any]) -> None:
        now = time.monotonic()
        if event == "compiling" or now - self._told >= self.log_every:
            self._told = now
            self._write(text + "\n")


class Quiet(Screen):
    """Nothing but faults and the reason of an early end."""

    def _show(self, text: str, event: str, facts: dict[str, Any], loud: bool) -> None:
        if loud:
            self._write(text + "\n")


class Json(Screen):
    """One object per line: `event`, `time`, and the event's own keys. docs/reference/screen.md lists them."""

    def _progress(self, row: Mapping[str, Any], steps: int, left: float | None) -> None:
        super()._progress(row, steps, left)
        self._show("", "step", {**row, "steps": steps, "seconds_left": left}, False)

    def _live(self, text: str, event: str, facts: dict[str, Any]) -> None:
        self._show(text, event, facts, False)

    def _show(self, text: str, event: str, facts: dict[str, Any], loud: bool) -> None:
        head: dict[str, Any] = {"event": event, "time": round(time.time(), 3)}
        if event == "title":
            head["version"] = VERSION
        facts = {key: None if value != value else value for key, value in facts.items()}
        if event == "done":
            facts = {**facts, "lines": dict(facts["lines"]), "commands": dict(facts["commands"])}
        rest = {key: value for key, value in facts.items() if key != "time"}
        self._write(json.dumps({**head, **rest}, default=str) + "\n")


class Terminal(Screen):
    """One live line at the bottom; what stays is written above it."""

    def __init__(self, out: TextIO, *, log: Path | None = None, log_every: float = 10.0):
        super().__init__(out, log=log, log_every=log_every)
        self._line = ""
        self._colour = not os.environ.get("NO_COLOR")
        self._waiting: tuple[float, str] | None = None  # what is waited for, since when
        self._drawn = 0.0

    def tick(self) -> None:
        """Show how long what is waited for has taken."""
        if self._waiting is not None and time.monotonic() - self._drawn > 0.5:
            since, text = self._waiting
            self._draw(f"{text} {time.monotonic() - since:.0f} s")

    def close(self) -> None:
        """Erase the live line and close the log."""
        self._draw("")
        super().close()

    def _progress(self, row: Mapping[str, Any], steps: int, left: float | None) -> None:
        super()._progress(row, steps, left)
        self._waiting = None
        if time.monotonic() - self._drawn >= 0.05 or int(row["step"]) >= steps:
            self._draw(live(row, steps, left, self._columns()))

    def _live(self, text: str, event: str, facts: dict[str, Any]) -> None:
        self._waiting = (time.monotonic(), text) if event == "compiling" else None
        self._draw(text)

    def _show(self, text: str, event: str, facts: dict[str, Any], loud: bool) -> None:
        self._waiting = None
        line = self._line
        self._write((_ERASE if line else "") + self._coloured(text, event) + "\n" + line)

    def _draw(self, line: str) -> None:
        line = line[: self._columns()]
        if line or self._line:
            self._write(_ERASE + line)
        self._line, self._drawn = line, time.monotonic()

    def _columns(self) -> int:
        return min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns - 1)

    def _coloured(self, text: str, event: str) -> str:
        code = {"title": _BOLD, "fault": _RED, "saved": _DIM, "held_out": _GREEN}.get(event)
        return f"{code}{text}{_OFF}" if code and self._colour else text


class Pace:
    """Seconds per step of late, and with them the seconds that are left."""

    def __init__(self) -> None:
        self._at: tuple[float, int] | None = None
        self._seconds: float | None = None
        self._incarnation: object = None

    def left(self, step: int, steps: int, incarnation: object = None) -> float | None:
        """Seconds left after `step` of `steps`, by an average that forgets; None before two steps were seen."""
        now = time.monotonic()
        if self._at is not None and incarnation == self._incarnation and step > self._at[1]:
            taken = (now - self._at[0]) / (step - self._at[1])
            weight = 1 - 0.95 ** (step - self._at[1])
            self._seconds = taken if self._seconds is None else self._seconds + weight * (taken - self._seconds)
        self._at, self._incarnation = (now, step), incarnation
        return None if self._seconds is None else self._seconds * max(0, steps - step)
