"""The probe as others start it: a program that prints JSON."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from argosy.device import probe


def test_prints_what_this_machine_does() -> None:
    command = [sys.executable, "-m", "argosy.device.probe", "--device", "cpu", "--shapes", "64,32,16", "32,32,32"]
    done = subprocess.run([*command, "--seconds", "0.01"], capture_output=True, text=True, timeout=240, check=True)
    found = json.loads(done.stdout)
    assert set(found["gemm"]) == {"float64", "float32", "bfloat16"} and all(rate > 0 for rate in found["gemm"].values())
    assert found["bandwidth"] > 0 and found["threads"] >= 1 and found["torch"]
    assert isinstance(found["compile"], bool) and (found["compiler"] is not None or not found["compile"])


def test_a_shape_that_is_none_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["probe", "--shapes", "64,32"])
    with pytest.raises(SystemExit) as ended:
        probe.main()
    assert ended.value.code == 2
