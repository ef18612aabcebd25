"""The screen: one live line on a terminal, key=value lines elsewhere, JSON, or nothing; everything in the log."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from argosy.observe import progress
from argosy.observe.progress import EndFacts, Mode, StartFacts
from argosy.run.archive import Line

HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\u202etxt"


class Terminal(io.StringIO):
    """Says that it is a terminal, and shows what would stand on it."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """The lines as a terminal would show them; only the signs that the screen may use are understood."""
        shown = [""]
        for piece in re.split(r"(\r\x1b\[K|\n|\x1b\[[0-9]*m)", self.getvalue()):
            if piece == "\n":
                shown.append("")
            elif piece == "\r\x1b[K":
                shown[-1] = ""
            elif not piece.startswith("\x1b"):
                assert piece.isprintable(), repr(piece)
                shown[-1] += piece
        return shown


def row(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "loss": 4.0,
        "bits_per_byte": 1.5,
        "tokens_per_second": 9.0,
        "incarnation": 1,
        "time": 1e9 + step,
    } | more


def play(screen: progress.Screen, steps: int = 200) -> None:
    """All that can happen to a run, hostile names included."""
    screen.title("argosy 0.1.0")
    screen.preparing("reading " + HOSTILE, 1, 2)
    screen.start(StartFacts((("Run", "runs/" + HOSTILE), ("Model", "tiny")), ("a note" + HOSTILE,), steps))
    screen.news(Line("mark", {"name": "compiling", "time": 1.0, "step": 0}), steps)
    screen.news(Line("mark", {"name": "compiled", "time": 10.0, "step": 0}), steps)
    for step in range(1, steps + 1):
        screen.news(Line("step", row(step)), steps)
        if step == 100:
            screen.news(Line("held_out", row(step, loss=3.5)), steps)
            screen.news(Line("sample", {"step": step, "prompt": "def ", "text": "f():\n\tx\n" + HOSTILE}), steps)
            screen.saved({"step": step, "bytes": 26_000_000, "waited": 0.0, "ok": True})
            screen.saved({"step": step, "ok": False, "sentence": "the disk is full" + HOSTILE})
            screen.fault("worker 1 was killed" + HOSTILE, "all start again")
    screen.note("a remark" + HOSTILE)
    screen.stopping("SIGINT")
    screen.done(
        EndFacts("Done: 200 steps." + HOSTILE, (("Held out", "1.5"),), "a\nsample" + HOSTILE, (("Try", "argosy"),))
    )
    screen.close()


def test_a_terminal_keeps_one_live_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    screen = progress.screen("terminal", out, log=tmp_path / "log.txt")
    screen._columns = lambda: 100  # type: ignore[method-assign]  # whatever this test's own terminal is
    play(screen)
    lines = out.lines()
    assert all(len(line) <= 100 for line in lines)
    assert not any("200/200" in line for line in lines), "the live line went when the screen closed"
    text = "\n".join(lines)
    for word in (
        "held out 1.500 bits/byte",
        "best so far",
        "saved step 100",
        "was not saved",
        "worker 1 was killed",
        "Done:",
    ):
        assert word in text
    assert text.count("saved step 100") == 1
    assert "\x1b[31m" in out.getvalue()


def test_the_live_line_is_redrawn_below_what_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    screen = progress.screen("terminal", out)
    screen.step(row(1), 100)
    live = out.lines()[-1]
    assert "1/100" in live
    screen.note("news")
    assert out.lines()[-2:] == ["  note: news", live]


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    play(progress.screen("terminal", out))
    assert not re.search(r"\x1b\[[0-9;]*m", out.getvalue())


@pytest.mark.parametrize("mode", ["plain", "quiet"])
def test_no_control_character_elsewhere(mode: Mode, tmp_path: Path) -> None:
    out = io.StringIO()
    play(progress.screen(mode, out, log=tmp_path / "log.txt"))
    for text in (out.getvalue(), (tmp_path / "log.txt").read_text()):
        assert text.replace("\n", "").isprintable()


def test_plain_lines_come_each_hundredth(tmp_path: Path) -> None:
    out = io.StringIO()
    play(progress.screen("plain", out, log=tmp_path / "log.txt", log_every=3600))
    told = [line for line in out.getvalue().splitlines() if " step=" in line]
    assert [re.search(r"step=(\d+)/", line)[1] for line in told] == [str(n) for n in (1, *range(2, 201, 2))]  # type: ignore[index]
    assert (tmp_path / "log.txt").read_text().count(" step=") == len(told)


def test_plain_lines_come_by_the_clock() -> None:
    out = io.StringIO()
    screen = progress.screen("plain", out, log_every=0.0)
    for step in range(1, 6):
        screen.step(row(step), 10**6)
    assert out.getvalue().count("step=") == 5


def test_quiet_says_only_trouble(tmp_path: Path) -> None:
    out = io.StringIO()
    play(progress.screen("quiet", out, log=tmp_path / "log.txt"))
    lines = out.getvalue().splitlines()
    assert len(lines) == 3 and "killed" in lines[0]
    assert lines[2] == "  stopping (Ctrl-C): saving first; Ctrl-C again leaves WITHOUT saving"
    assert "Done: 200 steps." in (tmp_path / "log.txt").read_text()


def test_json_is_one_object_a_line() -> None:
    out = io.StringIO()
    play(progress.screen("json", out))
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert all(isinstance(event["event"], str) and isinstance(event["time"], float) for event in events)
    assert [event["event"] for event in events if event["event"] != "step"] == [
        "title", "preparing", "start", "compiling", "compiled", "held_out", "sample", "saved", "saved", "fault", "note",
        "stopping", "done",
    ]  # fmt: skip
    steps = [event for event in events if event["event"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, 201))
    assert steps[0] | {"time": 0, "seconds_left": 0} == {
        "event": "step",
        **row(1),
        "steps": 200,
        "seconds_left": 0,
        "time": 0,
    }
    assert events[0]["version"] == progress.VERSION
    assert events[-1]["lines"] == {"Held out": "1.5"}


def test_the_mode_follows_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert progress.mode(Terminal()) == "terminal"
    assert progress.mode(io.StringIO()) == "plain"
    assert progress.mode(Terminal(), quiet=True) == "quiet"
    assert progress.mode(Terminal(), quiet=True, json=True) == "json"
    monkeypatch.setenv("TERM", "dumb")
    assert progress.mode(Terminal()) == "plain"
    monkeypatch.delenv("TERM")
    assert progress.mode(Terminal()) == "plain"


def test_a_poor_encoding_and_a_reader_that_left_do_no_harm() -> None:
    plain = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    play(progress.screen("plain", plain))
    plain.flush()
    here, there = os.pipe()
    os.close(here)
    with os.fdopen(there, "w") as gone:
        play(progress.screen("plain", gone))
        os.dup2(os.open(os.devnull, os.O_WRONLY), gone.fileno())


def test_what_was_said_before_there_was_a_log_comes_first(tmp_path: Path) -> None:
    screen = progress.screen("quiet", io.StringIO())
    screen.title("argosy 0.1.0")
    screen.log_to(tmp_path / "log.txt")
    screen.note("later")
    screen.close()
    assert (tmp_path / "log.txt").read_text().split() == ["argosy", "0.1.0", "note:", "later"]


def test_time_left() -> None:
    pace = progress.Pace()
    assert pace.left(1, 10, 1) is None
    later = pace.left(2, 10, 1)
    assert later is not None and later >= 0
    assert pace.left(10, 10, 1) == 0


@pytest.mark.parametrize("mode", ["terminal", "plain", "json"])
def test_a_terminal_that_is_gone_stops_nothing(mode: Mode, tmp_path: Path) -> None:
    """As after `& disown` and closing the window: every write to it fails, not with a broken pipe."""
    terminal = os.open(tmp_path / "terminal", os.O_RDONLY | os.O_CREAT)
    with os.fdopen(terminal, "w", encoding="utf-8") as out:
        screen = progress.screen(mode, out, log=tmp_path / "log.txt")
        with pytest.raises(OSError):
            os.write(terminal, b"!")
        screen.note("early")
        screen.note("late")
        screen.fault("nobody sees this")
        screen.close()
    assert (tmp_path / "log.txt").read_text().count("note: ") == 2  # and closing `out` has raised nothing


def test_named_sets_and_which_of_them_says_what_is_best() -> None:
    out = io.StringIO()
    screen = progress.screen("plain", out)
    sets = {"code": {"loss": 2.0, "bits_per_byte": 0.75}, "odd": {"loss": None, "bits_per_byte": None}}
    screen.held_out(row(5, loss=3.0, sets=sets, best=True, by="code"))
    screen.held_out(row(6, loss=2.0, sets=sets, best=False, by="code"))
    screen.held_out(row(7, loss=1.0, bits_per_byte=None, best=True, by="held-out"))
    first, second, third = out.getvalue().splitlines()
    assert "1.500 bits/byte, code 0.750, odd not finite" in first and first.endswith("best so far by code")
    assert "best so far" not in second
    assert third.endswith("held out 1.000 nats/token   best so far")
