"""The accelerators of this machine, as the driver's own program tells them; without torch.

In: $CUDA_VISIBLE_DEVICES and nvidia-smi. Out: the devices that may be used, and what the variable names that is not there.
A process asks once: without the driver's persistence mode eight devices take longer than twenty seconds to wake, each time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from argosy.errors import MACHINE, Refused

DEVICES = Path("/dev")
PATIENCE = 120.0  # seconds that nvidia-smi may take


@dataclass(frozen=True)
class DeviceKind:
    """One accelerator of this machine."""

    kind: str  # "cuda"
    name: str  # "NVIDIA H200"
    memory_bytes: int


def visible() -> tuple[tuple[DeviceKind, ...], tuple[str, ...]]:
    """NVIDIA devices that CUDA_VISIBLE_DEVICES leaves, and what it names that is not there.

    Refused where there are some and nvidia-smi does not tell which.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    wanted = None if named is None else tuple(word.strip() for word in named.split(",") if word.strip())
    if wanted == () or (wanted and wanted[0] == "-1"):
        return (), ()
    program = shutil.which("nvidia-smi")
    if program is None:
        return (), wanted or ()
    rows, complaint, hung = _told(program)
    if not complaint:
        return listed(rows, wanted)
    if not hung and not any(DEVICES.glob("nvidia[0-9]*")):
        return (), wanted or ()  # a program left over on a machine that has no such device
    raise Refused(
        "there are GPUs here, and nvidia-smi does not tell what they are.",
        found=complaint,
        do="See what `nvidia-smi` says; CUDA_VISIBLE_DEVICES= before the command trains on the CPU.",
        code=MACHINE,
    )


@cache
def _told(program: str) -> tuple[tuple[str, ...], str, bool]:
    """Its rows; else what it complained of, and whether it was given up."""
    ask = [program, "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, timeout=PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        complaint = str(getattr(error, "stderr", "") or error).strip()[:200]
        return (), complaint or "nothing", isinstance(error, subprocess.TimeoutExpired)
    return tuple(done.stdout.splitlines()), "", False


def listed(rows: Iterable[str], wanted: Sequence[str] | None) -> tuple[tuple[DeviceKind, ...], tuple[str, ...]]:
    """The devices in nvidia-smi's rows "index, uuid, name, MiB", those in `wanted` only; and what of it is not there."""
    found: list[DeviceKind] = []
    matched: set[str] = set()
    for row in rows:
        index, uuid, name, mebibytes = (word.strip() for word in row.split(",", 3))
        named = [want for want in wanted or () if want == index or (not want.isdigit() and uuid.startswith(want))]
        matched.update(named)
        if wanted is None or named:
            found.append(DeviceKind("cuda", name, int(mebibytes) << 20 if mebibytes.isdigit() else 0))
    return tuple(found), tuple(want for want in wanted or () if want not in matched)
