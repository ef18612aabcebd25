"""Which type each class of parameters computes in: what "auto" stands for, and how weights that ranks shard reach it. Pure.

The classes are the keys of `train.precision_of`; `model/precisions.py` says which parameters belong to each, and
`parallel/apply.py` applies both. What belongs to none, the matrices of blocks and their biases, has `train.precision`.
"""

from __future__ import annotations

from dataclasses import dataclass

from argosy.job.schema import TrainSection

DIGITS = {"bfloat16": 0, "float32": 1, "float64": 2}  # ascending
LEAST = {"norm": "float32"}  # classes to which "auto" gives this type at least; the others get that of the matrices


def of_classes(train: TrainSection) -> dict[str, str]:
    """The type of each class; `train.precision` is concrete."""
    own = str(train.precision)
    return {
        name: max(own, LEAST.get(name, own), key=DIGITS.__getitem__) if kind == "auto" else kind
        for name, kind in train.precision_of
    }


@dataclass(frozen=True)
class Carried:
    """In which type weights are gathered from shards: those of the `blocks`, and of the `ends` of the model.

    What is gathered together has one type, the finest that a large class of it computes in. `norms` in blocks and the
    `last_norm` would lose digits on the way where they are to have finer ones: they are then whole on every rank, since a few
    vectors are cheaper kept than everything else gathered in their type.
    """

    blocks: str
    ends: str
    norms: bool
    last_norm: bool


def carried(train: TrainSection) -> Carried:
    """How the weights of a job in force are carried. No type is finer than the master's: there are no more digits to lose."""

    def least(kind: str) -> str:
        """The type with fewer digits: `kind`, or that of the weights."""
        return min(kind, str(train.master), key=DIGITS.__getitem__)

    own, kinds = str(train.precision), of_classes(train)
    ends = least(max(own, kinds["embedding"], kinds["head"], key=DIGITS.__getitem__))
    norm = DIGITS[least(kinds["norm"])]
    return Carried(own, ends, norm > DIGITS[own], norm > DIGITS[ends])
