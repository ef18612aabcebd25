"""The threads of a worker."""

from __future__ import annotations

import torch

from argosy.device import torch_versions


def limit(threads: int) -> None:
    """Give this process `threads` threads for tensors, and compile in it; call before the first tensor is computed.

    Numbers too small for their type become zero at once: AdamW's averages of rows that are never read fade into them,
    and a processor takes a hundred times longer over each.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    torch_versions.compile_threads(1)
