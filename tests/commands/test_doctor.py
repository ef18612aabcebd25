"""`argosy doctor`: what works here, what does not, how to mend it; a broken part is a line and no crash."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from argosy.__main__ import main
from argosy.cluster import accelerators, here
from argosy.commands import doctor
from argosy.errors import Refused
from argosy.points import POINTS

PROBED = {
    "torch": "2.13.0",
    "devices": [],
    "gemm": {"float32": 140.0, "bfloat16": 32.0},
    "compiler": "g++",
    "compile": True,
}


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A machine that was measured already: asking torch itself takes seconds and is tried by the long test."""
    found = dict(PROBED)
    monkeypatch.setattr(here, "probe", lambda **options: found)
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ARGOSY_RUNS", str(tmp_path / "runs"))
    return found


def state(name: str) -> tuple[str, str]:
    check = next(check for check in doctor.doctor() if check.name == name)
    return check.state, check.found + check.do


def test_about_ten_lines_and_a_verdict(probed: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert 10 <= len(lines) <= 20 and lines[-1] == "Training works here: argosy train"
    assert any(
        "float32 140, bfloat16 32; a job decides by its own layers, these suggest float32" in line for line in lines
    )


def test_json(probed: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)
    assert all(set(check) == {"name", "state", "found", "do"} for check in checks)
    assert {check["name"] for check in checks} >= {"torch", "compiler", "cache", "runs", "processes"}


def test_a_broken_torch_is_a_line_and_code_3(
    probed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(**options: object) -> dict[str, Any]:
        raise Refused("measuring this machine failed.", found="ModuleNotFoundError: No module named 'torch'", code=1)

    monkeypatch.setattr(here, "probe", broken)
    assert main(["doctor"]) == 3
    out = capsys.readouterr().out
    assert "No module named 'torch'" in out and "pip install torch" in out and "does not work yet: torch" in out


def test_devices_that_nobody_can_name_are_a_line(
    probed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(accelerators, "DEVICES", tmp_path)
    (tmp_path / "nvidia0").touch()
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'cannot talk to the driver' >&2\nexit 9\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    assert main(["doctor"]) == 3
    out = capsys.readouterr().out
    assert "nvidia-smi does not tell what they are: cannot talk to the driver" in out
    assert "CUDA_VISIBLE_DEVICES= before the command trains on the CPU" in out
    assert "does not work yet: devices" in out and "matrix products" in out


def test_no_compiler_is_a_note(probed: dict[str, Any]) -> None:
    probed["compile"] = False
    found = state("compiler")
    assert found[0] == "note" and "g++" in found[1]


def test_places_that_cannot_be_used_are_named(
    probed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("ARGOSY_RUNS", str(tmp_path / "file"))
    assert state("cache")[0] == "broken" and "ARGOSY_CACHE" in state("cache")[1]
    assert state("runs")[0] == "broken" and "ARGOSY_RUNS" in state("runs")[1]


def test_points_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--points"]) == 0
    told = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert told == list(POINTS)


@pytest.mark.long
def test_the_real_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch is asked in a child process, which must answer here, where the tests run."""
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path))
    checks = {check.name: check for check in doctor.doctor()}
    assert checks["torch"].state == "ok" and checks["numbers"].state == "ok"
    assert os.listdir(tmp_path)
