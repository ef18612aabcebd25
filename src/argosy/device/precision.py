"""The types of a run: of the matrix products, of the weights that are updated, of the sums over ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from argosy.errors import Refused

TYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


def dtype(name: str) -> torch.dtype:
    """Torch's type of that name; Refused for a name that is none."""
    if name not in TYPES:
        raise Refused(f"{name} is no type to train in.", do=f"Choose one of {', '.join(TYPES)}.")
    return TYPES[name]


@dataclass(frozen=True)
class Precision:
    """compute: products and activations. master: weights and optimizer state. reduce: gradients summed over ranks."""

    compute: torch.dtype
    master: torch.dtype
    reduce: torch.dtype

    @staticmethod
    def of(precision: str, master: str, reduce: str) -> Precision:
        """From the names in force (train.precision, train.master, train.reduce)."""
        return Precision(dtype(precision), dtype(master), dtype(reduce))
