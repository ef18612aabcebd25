from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from argosy.cluster import accelerators, here
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
    both, missing = accelerators.listed(rows, None)
    assert [one.memory_bytes for one in both] == [143771 << 20] * 2
    assert missing == ()
    assert accelerators.listed(rows, ["1"]) == (both[1:], ())
    assert accelerators.listed(rows, ["GPU-bb"]) == (both[1:], ())
    assert accelerators.listed(rows, ["0", "7"]) == (both[:1], ("7",))
    assert accelerators.listed(["0, GPU-x, Odd, [N/A]"], None)[0][0].memory_bytes == 0


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


def test_devices_that_nobody_can_name_are_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(accelerators, "DEVICES", tmp_path)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'cannot talk to the driver' >&2\nexit 9\n", encoding="utf-8")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert here.machine().devices == ()  # the program alone is no device
    (tmp_path / "nvidia0").touch()
    with pytest.raises(Refused, match="there are GPUs here") as caught:
        here.machine()
    assert caught.value.found == "cannot talk to the driver"
    assert caught.value.code == 4
    found, refused = here.looked()  # all the rest is known
    assert (found.devices, found.cores, str(refused)) == ((), here.cores(), str(caught.value))
    here.learn({"rows": 8}, "float32", 0.5, tmp_path)
    assert here.tried({"rows": 8}, tmp_path)["seen"] == {"float32": 0.5}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert here.machine().devices == ()


@pytest.mark.parametrize("end", ["exit 0", "exit 9"])
def test_a_process_asks_for_the_devices_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """That takes long where they sleep, and whatever is kept about a machine is kept by their names."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    program = tmp_path / "nvidia-smi"
    row = "0, GPU-aa11, NVIDIA H200, 143771"
    program.write_text(f"#!/bin/sh\necho asked >> '{tmp_path}/count'\necho '{row}'\n{end}\n", encoding="utf-8")
    program.chmod(0o755)
    for _ in range(2):
        here.looked()
        here.learn({"rows": 8}, "float32", 0.5, tmp_path)
        assert here.tried({"rows": 8}, tmp_path)["seen"] == {"float32": 0.5}
    assert (tmp_path / "count").read_text() == "asked\n"


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


def trial_program(count: Path, answer: str) -> str:
    """What stands for Python: counts its starts, reads the question, prints `answer`."""
    return f"""
import json, sys
open({str(count)!r}, "a").write("x")
asked = json.loads(sys.stdin.readline())
print({answer})
"""


def starts(count: Path) -> int:
    return len(count.read_text()) if count.exists() else 0


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the machine's clock be `seconds` further."""
    now = time.time() + seconds
    monkeypatch.setattr(here.time, "time", lambda: now)


def test_a_trial_is_kept_by_its_question_and_for_an_hour_only_where_the_machine_was_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, cache = tmp_path / "count", tmp_path / "cache"
    script = trial_program(count, 'json.dumps({"pieces": {}, "steady": asked["steady"], "request": asked})')
    monkeypatch.setattr(sys, "executable", probing(tmp_path / "python", script))
    steady, noisy = {"steady": True}, {"steady": False}
    assert here.tried(steady, cache) == {}
    first = here.Trial(cache).ask(steady)
    assert first["request"] == steady
    assert here.Trial(cache).ask(steady) == here.tried(steady, cache) == first
    assert starts(count) == 1
    busy = here.Trial(cache).ask(noisy)
    assert here.Trial(cache).ask(noisy) == here.tried(noisy, cache) == busy
    assert starts(count) == 2
    for seconds, more in ((0.9 * here.AGAIN, 0), (1.1 * here.AGAIN, 1), (-here.AGAIN, 1)):
        before = starts(count)
        later(monkeypatch, seconds)
        here.Trial(cache).ask(noisy)
        here.Trial(cache).ask(steady)
        assert starts(count) - before == more, seconds


def test_what_a_run_took_is_kept_beside_its_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = trial_program(tmp_path / "count", 'json.dumps({"pieces": {}, "steady": False})')
    monkeypatch.setattr(sys, "executable", probing(tmp_path / "python", script))
    cache, asked = tmp_path / "cache", {"rows": 8}
    here.learn(asked, "float32 compiled", 0.25, cache)
    here.learn(asked, "float32 eager", 0.5, cache)
    seen = {"float32 compiled": 0.25, "float32 eager": 0.5}
    assert here.tried(asked, cache) == {"seen": seen}
    assert here.Trial(cache).ask(asked)["seen"] == seen  # nothing else was known: it is timed, and loses nothing
    assert here.tried(asked, cache)["seen"] == seen


@pytest.mark.parametrize(
    ("script", "why"), [("raise SystemExit('no torch here')\n", "no torch here"), ("", "the program said nothing")]
)
def test_a_trial_that_fails_says_why_and_refuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str
) -> None:
    monkeypatch.setattr(sys, "executable", probing(tmp_path / "python", script))
    found = here.Trial(tmp_path / "cache", 300.0).ask({"rows": 8})
    assert found == {"failed": why}
    assert here.tried({"rows": 8}, tmp_path / "cache") == {}  # it may be mended: the next start asks again


def test_a_trial_that_takes_too_long_is_ended_and_not_repeated_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, cache, asked = tmp_path / "count", tmp_path / "cache", {"rows": 8}
    script = trial_program(count, "''") + "import time\ntime.sleep(600)\n"
    monkeypatch.setattr(sys, "executable", probing(tmp_path / "python", script))
    found = here.Trial(cache, 0.01).ask(asked)
    assert (found["failed"], found["steady"]) == ("this machine is so busy that it took longer than 0 s", False)
    told = starts(count)
    assert here.Trial(cache, 0.01).ask(asked) == found
    assert starts(count) == told, "nothing was started"
    later(monkeypatch, 1.1 * here.AGAIN)
    assert here.Trial(cache, 0.01).ask(asked)["at"] > found["at"]


def test_a_trial_that_was_ended_gives_the_best_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, cache = {"rows": 8}, tmp_path / "cache"
    script = f"""
import json, sys, time
asked, until = json.loads(sys.stdin.readline()), float(sys.stdin.readline())
for number in (1, 2):
    print(json.dumps({{"pieces": {{"number": number, "left": until - time.monotonic()}}, "steady": False}}), flush=True)
print('{{"pieces": {{"num', end="", flush=True)
open({str(tmp_path / "said")!r}, "w").close()
time.sleep(600)
"""
    monkeypatch.setattr(sys, "executable", probing(tmp_path / "python", script))
    trial = here.Trial(cache, 30.0)

    def communicate(child: Any, *given: Any, timeout: float | None = None) -> tuple[str, str]:
        if timeout is None:
            return whole(child, *given)
        assert timeout == 30.0
        with pytest.raises(subprocess.TimeoutExpired):
            whole(child, *given, timeout=0.01)
        while not (tmp_path / "said").exists():  # as if just then the time were up
            with pytest.raises(subprocess.TimeoutExpired):
                whole(child, timeout=0.05)
        raise subprocess.TimeoutExpired("trial", timeout)

    whole = subprocess.Popen.communicate
    monkeypatch.setattr(subprocess.Popen, "communicate", communicate)
    found = trial.ask(asked)
    assert found["pieces"]["number"] == 2
    assert found["pieces"]["left"] <= 30.0 - here.LAST
    assert here.tried(asked, cache) == found
    later(monkeypatch, 1.1 * here.AGAIN)
    monkeypatch.setattr(sys, "executable", probing(tmp_path / "python", "raise SystemExit('no torch here')\n"))
    monkeypatch.setattr(subprocess.Popen, "communicate", whole)
    assert here.Trial(cache).ask(asked)["pieces"]["number"] == 2, "an old answer is better than none"


def test_a_machine_that_was_never_measured_loads_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count, cache = tmp_path / "count", tmp_path / "cache"
    script = trial_program(count, 'json.dumps({"pieces": {}, "steady": True, "request": asked})')
    monkeypatch.setattr(sys, "executable", probing(tmp_path / "python", script))
    ahead = here.Trial(cache)
    ahead.begin()
    assert ahead.ask({"rows": 8})["request"] == {"rows": 8}
    assert starts(count) == 1  # the one that began
    known = here.Trial(cache)
    known.begin()
    known.close()
    assert starts(count) == 1
    unasked = here.Trial(tmp_path / "other")
    unasked.begin()
    unasked.close()  # no child is left; nothing was kept
    assert not (tmp_path / "other").exists()


def test_threads_are_equal_shares_unless_somebody_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    shares = replace(here.machine(), cores=8)
    assert [shares.threads(workers) for workers in (0, 1, 2, 3, 100)] == [8, 8, 4, 2, 1]
    for word, told in (("1", 1), ("3,2", 3), ("", None), ("0", None), ("many", None)):
        monkeypatch.setenv("OMP_NUM_THREADS", word)
        assert here.machine().told == told
    assert [replace(shares, told=3).threads(workers) for workers in (0, 1, 100)] == [3, 3, 3]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun's own 1
    assert here.machine().told is None
