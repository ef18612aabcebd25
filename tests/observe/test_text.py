"""Lines of text about a run: harmless, at most 100 columns, keys that programs rely on."""

from __future__ import annotations

import io
import math

from hypothesis import given
from hypothesis import strategies as st

from argosy.observe.text import WIDTH, block, clock, harmless, live, pairs, shown

ROW = {
    "step": 198,
    "loss": 4.2131,
    "bits_per_byte": 1.8872,
    "lr": 9.78e-3,
    "gradient_norm": 0.44,
    "tokens_per_second": 8610.2,
    "time": 1795229054.4,
}


@given(st.text())
def test_nothing_that_moves_the_cursor_is_left(text: str) -> None:
    for lines in (False, True):
        shown = harmless(text, lines=lines)
        assert shown.replace("\n", "").isprintable()
        assert lines or "\n" not in shown


def test_control_and_direction_signs_are_spelled_out() -> None:
    assert harmless("a\x1b[2Jb\u202ec\x07\r\n") == "a\\x1b[2Jb\\x202ec\\x07\\r\\n"
    assert harmless("def f():\n\treturn 'é 你'\n", lines=True) == "def f():\n    return 'é 你'\n"


@given(
    st.integers(1, 10**7),
    st.integers(1, 10**7),
    st.one_of(st.none(), st.floats(0, 1e9, allow_subnormal=False)),
    st.integers(20, WIDTH),
)
def test_the_live_line_never_wraps(step: int, steps: int, left: float | None, width: int) -> None:
    row = {**ROW, "step": step, "loss": 1e9, "tokens_per_second": 1e9}
    assert len(live(row, steps, left, width)) <= width


def test_the_live_line_says_what_one_wants_to_know() -> None:
    line = live(ROW, 320, 64.0)
    for word in ("62%", "198/320", "loss 4.21", "1.89 b/B", "8,610 tok/s", "1:04 left"):
        assert word in line
    assert "not finite" in live({**ROW, "loss": None}, 320, None)


def test_plain_lines_are_key_value() -> None:
    line = pairs(ROW, 320, 64.2)
    assert line == (
        "2026-11-21T02:44:14Z step=198/320 loss=4.2131 bpb=1.8872 lr=9.780e-03 gnorm=0.44 tok/s=8610 eta=64s"
    )
    assert "tok/s=8610 gemm=0.79 mfu=0.41" in pairs({**ROW, "gemm_share": 0.791, "mfu": 0.409}, 320, None)
    assert all("=" in word for word in pairs({"step": 1, "loss": None}, 2, None).replace(" finite", "_").split()[1:])


def test_blocks_are_wrapped_and_aligned() -> None:
    lines = block([("Run", "x " * 80), ("Model", "a\nb")])
    assert all(len(line) <= WIDTH for line in lines)
    assert lines[-2:] == ["  Model    a", "           b"]
    assert all(len(line) <= WIDTH for line in block([("Data", "y" * 300)]))


def test_times() -> None:
    assert [clock(s) for s in (4, 64, 3723, 200_000)] == ["0:04", "1:04", "1:02:03", "2 d 7 h"]
    assert not math.isnan(float(ROW["loss"]))


def test_only_on_a_terminal_is_text_changed() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    text = "\x1b]52;c;aGE=\x07red\nnext"
    assert shown(text, io.StringIO()) == text
    assert shown(text, Terminal()) == "\\x1b]52;c;aGE=\\x07red\nnext"
