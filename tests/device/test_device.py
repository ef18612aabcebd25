"""Devices, types, memory, threads, timing: what can be shown on any machine."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from argosy.device import capability, memory, threads, timing, torch_versions
from argosy.device.device import Device, counts
from argosy.device.precision import dtype
from argosy.errors import Refused


def test_a_device_that_is_not_there_is_refused() -> None:
    assert Device.open("cpu").torch == torch.device("cpu") and Device.open("cpu").backend == "gloo"
    with pytest.raises(Refused, match=r"no device cpu:1 here.*1 x cpu"):
        Device.open("cpu", 1)
    with pytest.raises(Refused, match="no device cuda"):
        Device.open("cuda", counts()["cuda"])
    with pytest.raises(Refused, match="no device abacus"):
        Device.open("abacus")


def test_types_by_name() -> None:
    names = ("bfloat16", "float32", "float64")
    assert [dtype(name) for name in names] == [torch.bfloat16, torch.float32, torch.float64]
    with pytest.raises(Refused, match="float8 is no type"):
        dtype("float8")


def test_running_out_of_memory_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert memory.ran_out(caught.value)
    wrapped = ValueError("a step failed")
    wrapped.__cause__ = caught.value
    assert memory.ran_out(wrapped) and memory.ran_out(MemoryError()) and memory.ran_out(OSError(errno.ENOMEM, "no"))
    for other in (RuntimeError("shapes do not match"), OSError(errno.ENOSPC, "full"), KeyError("memory")):
        assert not memory.ran_out(other)


def test_peak_memory_sees_what_was_held() -> None:
    before = memory.peak()
    held = torch.ones(64 << 20, dtype=torch.uint8)
    assert memory.peak() >= before and memory.peak() >= held.numel()
    assert memory.device_peak(Device("cpu")) == 0


KEEPING = """
import resource, torch
from argosy.device import memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(4 << 20)  # 16 MiB, 4,096 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

asked = memory.keep_freed()
faults()
kept = faults()
memory.keep_freed(wanted=False)
print(asked, kept, faults(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    """Counted in page faults, in a process of its own: taking as much again meets few where it was kept."""
    answer = subprocess.run([sys.executable, "-c", KEEPING], capture_output=True, text=True, check=True)
    asked, kept, given_back, whole = answer.stdout.split()
    if asked == "False":
        pytest.skip("this malloc is not glibc's, and cannot be asked to keep what is freed")
    if int(whole) == 0:
        pytest.skip("this kernel counts no page faults: nothing tells whether memory was kept")
    assert 3 * int(kept) < int(given_back)  # one of the eight may still find another place


def test_limited_threads_are_in_force_until_all_is_restored() -> None:
    def state() -> tuple[int, bool, object, object]:
        told = torch_versions.compile_settings()
        flushes = (torch.tensor([1e-40]) * 1.0).item() == 0.0
        return torch.get_num_threads(), flushes, told["recompile_limit"], told["compile_threads"]

    found = state()
    with threads.restored():
        torch.set_num_threads(3)
        torch.set_flush_denormal(False)
        torch_versions.compile_threads(7)
        before = state()
        with threads.restored():
            threads.limit(1)
            torch_versions.compile_strictly()
            assert state() == (1, True, 64, 1)
        assert state() == before == (3, False, found[2], 7)
    assert state() == found


def test_timing_gives_seconds() -> None:
    calls: list[int] = []
    assert timing.best(lambda: calls.append(1), Device("cpu"), 0.0) >= 0
    assert len(calls) == 4


def test_every_capability_names_a_file_that_exists() -> None:
    root = Path(capability.__file__).parent.parent
    for one in capability.CAPABILITIES:
        assert (root / one.where).is_file(), one
    rows = capability.table().splitlines()
    assert len(rows) == 2 + len(capability.CAPABILITIES) and "never" in rows[-1]
