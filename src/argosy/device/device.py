"""What a device is to the rest of the engine: a kind by name, torch's object, the backend that its collectives use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import dtype

from argosy.errors import Refused

BACKENDS = {"cpu": "gloo", "cuda": "nccl", "mps": "gloo"}


@dataclass(frozen=True)
class Device:
    """One device of this machine. ROCm's devices are "cuda" to torch, and so they are here."""

    kind: str  # "cpu", "cuda" or "mps"
    index: int = 0

    @staticmethod
    def open(kind: str, index: int = 0) -> Device:
        """The device, made this process's current one; Refused where it is not there."""
        there = counts()
        if kind not in BACKENDS or index >= there.get(kind, 0):
            found = ", ".join(f"{number} x {name}" for name, number in there.items() if number)
            raise Refused(f"there is no device {kind}:{index} here.", found=found, do="Use one that is there.")
        if kind == "cuda":
            torch.cuda.set_device(index)
        return Device(kind, index)

    @property
    def torch(self) -> torch.device:
        """Torch's object for it."""
        return torch.device(self.kind) if self.kind == "cpu" else torch.device(self.kind, self.index)

    @property
    def backend(self) -> str:
        """The backend of its process groups."""
        return BACKENDS[self.kind]

    @property
    def name(self) -> str:
        """What the device calls itself; "cpu" and "mps" have no better name."""
        return torch.cuda.get_device_name(self.index) if self.kind == "cuda" else self.kind

    @property
    def wide(self) -> dtype:
        """The widest floating type that it computes in."""
        return torch.float32 if self.kind == "mps" else torch.float64

    def synchronize(self) -> None:
        """Wait until everything given to the device is done; nothing to wait for on a CPU."""
        if self.kind == "cuda":
            torch.cuda.synchronize(self.index)
        elif self.kind == "mps":
            torch.mps.synchronize()


def counts() -> dict[str, int]:
    """How many devices of each kind are here."""
    return {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
