"""Memory of a process and its device: peak, and how running out of it looks. Bytes throughout."""

from __future__ import annotations

import ctypes
import errno
import resource
import sys
from pathlib import Path

import torch

from argosy.device.device import Device

_SIGNS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc")


def peak() -> int:
    """The most memory this process ever held, in bytes."""
    try:
        rows = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(row.split()[1]) for row in rows if row.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):
        # The kernel counts in KiB, macOS in bytes.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device_peak(device: Device) -> int:
    """The most memory that tensors ever held on the device; 0 on a CPU, where `peak` tells."""
    return int(torch.cuda.max_memory_allocated(device.index)) if device.kind == "cuda" else 0


# glibc's malloc.h: what mallopt may change, how a process is born, and how a worker wants it.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_BORN = {_MMAP_MAX: 65536, _TOP_PAD: 128 * 1024, _TRIM_THRESHOLD: 128 * 1024}
_KEEPING = {_MMAP_MAX: 0, _TOP_PAD: 64 * 2**20, _TRIM_THRESHOLD: 2**31 - 1}


def keep_freed(*, wanted: bool = True) -> bool:
    """Let malloc keep the memory that tensors on the CPU free instead of giving it back; whether it can be asked to.

    A step frees what the next one takes again. Given back in between, each page is faulted in and zeroed anew: a tenth
    of a small model's step (`benchmarks/cpu_training.py`, beside its bare loop). False where malloc is not glibc's.
    """
    program = ctypes.CDLL(None)
    if not hasattr(program, "mallopt") or not hasattr(program, "gnu_get_libc_version"):
        return False
    done = [program.mallopt(which, number) for which, number in (_KEEPING if wanted else _BORN).items()]
    if not wanted:
        program.malloc_trim(0)
    return all(done)


def ran_out(error: BaseException) -> bool:
    """Whether `error`, or what caused it, says that memory ran out: torch's own kinds, Python's, the kernel's."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(current, OSError) and current.errno == errno.ENOMEM:
            return True
        if isinstance(current, RuntimeError) and any(sign in str(current).lower() for sign in _SIGNS):
            return True
        current = current.__cause__ or current.__context__
    return False
