"""Memory of a process and its device: free, peak, and how running out of it looks. Bytes throughout."""

from __future__ import annotations

import errno
import resource
import sys
from pathlib import Path

import psutil
import torch

from argosy.device.device import Device

_SIGNS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc")


def free(device: Device) -> int:
    """Bytes that could be taken now: of the device, or of the machine (control groups are `cluster.here`'s affair)."""
    if device.kind == "cuda":
        return int(torch.cuda.mem_get_info(device.index)[0])
    return int(psutil.virtual_memory().available)


def peak() -> int:
    """The most memory this process ever held, in bytes."""
    try:
        rows = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(row.split()[1]) for row in rows if row.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):
        # The kernel counts in KiB, macOS in bytes.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device_peak(device: Device) -> int:
    """The most memory that tensors held on the device since `forget_device_peak`; 0 on a CPU, where `peak` tells."""
    return int(torch.cuda.max_memory_allocated(device.index)) if device.kind == "cuda" else 0


def forget_device_peak(device: Device) -> None:
    """Begin counting `device_peak` anew."""
    if device.kind == "cuda":
        torch.cuda.reset_peak_memory_stats(device.index)


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
