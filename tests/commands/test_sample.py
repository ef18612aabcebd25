"""What `argosy sample` continues: what is piped in, however slowly it comes. What it writes: tests/evaluate."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from argosy.commands import sample
from argosy.errors import Refused

PIPED = "from argosy.commands.sample import piped; print(repr(piped()))"


def begin(source: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PIPED], stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_slow_writer_is_waited_for_and_that_is_told() -> None:
    process = begin(subprocess.PIPE)
    assert process.stdin and process.stderr
    assert b"waiting for the text to continue" in process.stderr.readline()  # and only now it is written
    process.stdin.write("def größer(\n".encode())
    assert process.communicate()[0].decode().strip() == repr("def größer(")


def test_a_file_and_what_ends_at_once_are_read_and_a_device_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("to be\n")
    with (tmp_path / "text").open("rb") as file:
        assert begin(file).communicate()[0].strip() == b"'to be'"
    assert begin(subprocess.PIPE).communicate()[0].strip() == b"None"
    assert begin(subprocess.DEVNULL).communicate()[0].strip() == b"None"


@pytest.mark.parametrize("heat", [math.nan, math.inf])
def test_a_temperature_is_a_number(heat: float) -> None:
    with pytest.raises(Refused, match=f"temperature 0 or more. Found: .* temperature = {heat}"):
        sample.continued(cast(Any, None), [""], 5, heat)  # before the model is asked anything
