"""An invented machine and data for tests of planning."""

from __future__ import annotations

from argosy.cluster.accelerators import DeviceKind
from argosy.cluster.here import Machine
from argosy.job.setting import Setting
from argosy.plan.prepared import PreparedFacts
from argosy.plan.settle import Settled

FACTS = PreparedFacts(vocabulary=2048, tokens=2_900_000, documents=469, held_out_documents=9, bytes_per_token=3.2)
SLOW_HALF = {"gemm": {"float32": 140.0, "bfloat16": 32.0}, "compile": True}


class Ample(Machine):
    """A machine whose disk is as large as the test says."""

    disk = 1 << 40

    def disk_free(self, path: object) -> int:
        return self.disk


def a_machine(memory: int = 16 << 30, devices: int = 0, compiler: str | None = "g++") -> Ample:
    kinds = tuple(DeviceKind("cuda", "NVIDIA H200", 141 * 10**9) for _ in range(devices))
    return Ample(cores=2, memory_bytes=memory, memory_available=memory, devices=kinds, compiler=compiler)


def setting(found: Settled, key: str) -> Setting:
    return next(one for one in found.settings if one.key == key)
