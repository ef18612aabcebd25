"""Which class of parameters a weight belongs to, and so in which type it computes: the table of precision, as data.

It lies beside the model as the placements do; `parallel/apply.py` applies it in every layout. What the table does not name is
a matrix of a block or its bias, and computes in the type of the matrix products. The type of each class comes from the job
(`train.precision_of`, plan/classes.py). It is one of *computing*: weights are kept, updated and saved in the master type
whatever their class. Knows names and torch's types.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from argosy.model.placements import matches

# Class -> patterns of names. A router of experts will be one more row.
CLASSES: Mapping[str, tuple[str, ...]] = {
    "norm": ("norm.*", "*_norm.*"),
    "embedding": ("embedding.weight", "positions.weight"),
    "head": ("head.weight",),
}

Kinds = Mapping[str, torch.dtype]  # class -> type


def usual(compute: torch.dtype) -> dict[str, torch.dtype]:
    """The types where nothing is said: `compute`, and for norms float32 at least."""
    return {**dict.fromkeys(CLASSES, compute), "norm": torch.promote_types(compute, torch.float32)}


def class_of(name: str) -> str:
    """The class of the parameter `name`; "matrix" for what the table does not name."""
    return next((found for found, patterns in CLASSES.items() if matches(name, patterns)), "matrix")
