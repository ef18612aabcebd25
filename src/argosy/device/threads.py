"""Cores and threads of a worker: as many threads as its share of the cores, or what OMP_NUM_THREADS says."""

from __future__ import annotations

import os

import torch

from argosy.device import torch_versions


def share(cores: int, workers: int) -> int:
    """Threads for each of `workers` on `cores`; $OMP_NUM_THREADS wins where it is set to a positive number."""
    said = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if said.isdigit() and int(said) > 0:
        return int(said)
    return max(1, cores // max(1, workers))


def limit(threads: int) -> None:
    """Give this process `threads` threads for tensors, and compile in it; call before the first tensor is computed.

    Numbers too small for their type become zero at once: AdamW's averages of rows that are never read fade into them,
    and a processor takes a hundred times longer over each.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    torch_versions.compile_threads(1)
