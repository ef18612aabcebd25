from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest

from argosy.cluster import here
from argosy.errors import Refused


def test_this_machine_is_plausible() -> None:
    machine = here.machine()
    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    assert 0 < machine.memory_available <= machine.memory_bytes <= psutil.virtual_memory().total
    assert machine.python == ".".join(str(part) for part in sys.version_info[:3])
    assert machine.platform
    assert machine.processor


def test_free_disk_of_a_folder_that_is_yet_to_be_made(tmp_path: Path) -> None:
    assert here.disk_free(tmp_path / "a" / "b") > 0


def test_devices_are_read_from_the_driver_s_rows() -> None:
    rows = ["0, GPU-aa11, NVIDIA H200, 143771", "1, GPU-bb22, NVIDIA H200, 143771"]
    both, missing = here._listed(rows, None)
    assert [one.memory_bytes for one in both] == [143771 << 20] * 2
    assert missing == ()
    assert here._listed(rows, ["1"]) == (both[1:], ())
    assert here._listed(rows, ["GPU-bb"]) == (both[1:], ())
    assert here._listed(rows, ["0", "7"]) == (both[:1], ("7",))
    assert here._listed(["0, GPU-x, Odd, [N/A]"], None)[0][0].memory_bytes == 0


def test_hidden_devices_are_not_there_and_unknown_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert (here.machine().devices, here.machine().missing) == ((), ())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,7")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (here.machine().devices, here.machine().missing) == ((), ("0", "7"))
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho '0, GPU-aa11, NVIDIA H200, 143771'\n", encoding="utf-8")
    (tmp_path / "nvidia-smi").chmod(0o755)
    found = here.machine()
    assert ([one.name for one in found.devices], found.missing) == (["NVIDIA H200"], ("7",))


def test_control_groups_limit_memory_and_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "memory.max").write_text("1000000000\n")
    (tmp_path / "memory.current").write_text("400000000\n")
    (tmp_path / "memory.stat").write_text("anon 300000000\ninactive_file 50000000\n")
    (inner / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (inner / "cpu.max").write_text("max 100000\n")
    monkeypatch.setattr(here, "_groups", lambda controller: [inner, tmp_path])
    assert here._memory() == (1_000_000_000, 650_000_000)
    assert here.cores() == 1


def test_older_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "memory.limit_in_bytes": "500000000",
        "memory.usage_in_bytes": "100000000",
        "memory.stat": "total_inactive_file 7",
        "cpu.cfs_quota_us": "50000",
        "cpu.cfs_period_us": "100000",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(here, "_groups", lambda controller: [tmp_path])
    assert here._memory() == (500_000_000, 400_000_007)
    assert here._cpu_quota() == (50000, 100000)
    (tmp_path / "cpu.cfs_quota_us").write_text("-1\n")
    assert here._cpu_quota() is None


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_CACHE", "/c")
    assert here.cache_folder() == Path("/c")
    monkeypatch.delenv("ARGOSY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert here.cache_folder() == Path("/x/argosy")


def probing(path: Path, script: str) -> str:
    path.write_text(f"#!{sys.executable}\n{script}", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_a_probe_is_kept_per_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = tmp_path / "count"
    script = f"""
import sys, json
open({str(count)!r}, "a").write("x")
print(json.dumps({{"gemm": {{}}, "said": sys.argv[4:]}}))
"""
    monkeypatch.setattr(sys, "executable", probing(tmp_path / "python", script))
    shapes = [(4096, 192, 576), (4096, 192, 512)]
    assert here.probed(tmp_path, shapes) == {}
    first = here.probe(tmp_path, shapes)
    assert first["said"] == ["--shapes", "4096,192,576", "4096,192,512"]
    assert here.probe(tmp_path, shapes) == here.probed(tmp_path, shapes) == first
    assert count.read_text() == "x"
    assert here.probe(tmp_path)["said"] == []
    here.probe(tmp_path, shapes, fresh=True)
    assert count.read_text() == "xxx"
    for kept in (tmp_path / "probe").iterdir():
        kept.write_text("torn {", encoding="utf-8")
    assert here.probe(tmp_path, shapes) == first


def test_a_file_of_the_working_folder_is_not_taken_for_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert here.probe(tmp_path / "cache", [(8, 8, 8)])["gemm"]


def test_a_probe_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", probing(tmp_path / "python", "raise SystemExit('no torch here')\n"))
    with pytest.raises(Refused, match="no torch here") as caught:
        here.probe(tmp_path)
    assert caught.value.code == 1
