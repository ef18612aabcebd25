"""The types of a run: of the matrix products, of the weights that are updated, of the sums over ranks."""

from __future__ import annotations

import torch

from argosy.errors import Refused

TYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


def dtype(name: str) -> torch.dtype:
    """Torch's type of that name; Refused for a name that is none."""
    if name not in TYPES:
        raise Refused(f"{name} is no type to train in.", do=f"Choose one of {', '.join(TYPES)}.")
    return TYPES[name]
