"""How a worker's process computes: its threads, what it compiles with, the memory it keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from argosy.device import torch_versions
from argosy.device.memory import keep_freed


def limit(threads: int) -> None:
    """Give this process `threads` threads for tensors, and compile in it; call before the first tensor is computed.

    Numbers too small for their type become zero at once: AdamW's averages of rows that are never read fade into them,
    and a processor takes a hundred times longer over each. Memory that tensors free stays with the process.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    torch_versions.compile_threads(1)
    keep_freed()


@contextmanager
def restored() -> Iterator[None]:
    """Afterwards this process computes and compiles as before: whoever trains in a notebook does not find it changed."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    flushing = (torch.tensor([1e-40]) * 1.0).item() == 0.0  # torch can set it, but not tell it
    try:
        with torch_versions.compile_settings_restored():
            yield
    finally:
        torch.set_flush_denormal(flushing)
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(threads)
        keep_freed(wanted=False)
