"""Paths that need hardware or a launcher which not everybody has: what they need, and when and on what each last ran.

`docs/limits.md` is made from this table: "never" is allowed, a path that is missing here is not. Plain data.
"""

from __future__ import annotations

from dataclasses import dataclass

NEVER = "never"


@dataclass(frozen=True)
class Capability:
    """One path of the program that some machines cannot take."""

    name: str
    where: str  # file of the package
    needs: str
    ran: str = NEVER  # date, device, torch: "2026-11-21, Xeon with AMX, torch 2.13.0+cpu"


HERE = "2026-11-21, x86-64 processor with AVX-512 and AMX, torch 2.13.0+cpu"

SINCE = "2026-11-22, the same processor"

CAPABILITIES = (
    Capability("attention on a CPU (dense, loop)", "model/kernels.py", "any CPU", HERE),
    Capability("bfloat16 products on a CPU", "model/layers.py", "a CPU; fast with AMX or AVX-512-BF16", HERE),
    Capability("ranks started by torchrun", "commands/launched.py", "one node", f"{SINCE}: a test"),
    Capability("ranks started by mpiexec of MPICH 5.0", "commands/launched.py", "one node", f"{SINCE}: a test"),
    Capability("ranks started by mpirun of Open MPI 5.0", "commands/launched.py", "one node", SINCE),
    Capability(
        "ranks started by srun of Slurm 22.05; USR1, exit code 75, requeued", "commands/launched.py", "one node", SINCE
    ),
    Capability(
        "ranks started by srun on two nodes, also unequal ones",
        "commands/launched.py",
        "Slurm",
        f"{SINCE}: both nodes were this machine",
    ),
    Capability("ranks of a launcher on several machines", "commands/launched.py", "machines and a folder they share"),
    Capability("attention by documents (flash)", "model/kernels.py", "an NVIDIA GPU from Ampere on, bfloat16"),
    Capability("attention, dense, on a GPU", "model/kernels.py", "CUDA"),
    Capability("fused AdamW, Muon and LAMB on a GPU", "optim/build.py", "CUDA"),
    Capability("collectives over NCCL", "device/device.py", "CUDA"),
    Capability("ZeRO and replicas over NCCL", "parallel/data.py", "two NVIDIA GPUs"),
    Capability("tensor parallelism over NCCL", "parallel/tensor.py", "two NVIDIA GPUs"),
    Capability("pipelines over NCCL", "parallel/links.py", "two NVIDIA GPUs"),
)


def table() -> str:
    """The table in Markdown, paths that never ran last."""
    rows = sorted(CAPABILITIES, key=lambda c: c.ran == NEVER)
    lines = [f"| {c.name} | `{c.where}` | {c.needs} | {c.ran} |" for c in rows]
    return "\n".join(("| path | file | needs | last ran |", "|---|---|---|---|", *lines)) + "\n"
