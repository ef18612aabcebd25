"""The matrix products of a model by themselves: what its device could do at most with the model's own shapes.

In: the shapes of its weights as (inner, outer). Out: something to run and to time. Knows no model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from argosy.device.device import Device
from argosy.device.timing import best

Weights = Sequence[Sequence[int]]  # (inner, outer): a product of [rows, inner] with a weight [outer, inner]


class Products:
    """One pass over `weights` with `rows` tokens of type `kind`: each weight's forward product and backward's two."""

    def __init__(self, weights: Weights, rows: int, kind: torch.dtype, device: Device):
        self.flops = 6.0 * rows * sum(inner * outer for inner, outer in weights)
        self.held = [
            tuple(
                torch.full(shape, 0.5, dtype=kind, device=device.torch)
                for shape in ((rows, inner), (outer, inner), (rows, outer))
            )
            for inner, outer in weights
        ]

    def __call__(self) -> None:
        """Run them."""
        for x, weight, gradient in self.held:
            torch.mm(x, weight.t())
            torch.mm(gradient, weight)
            torch.mm(gradient.t(), x)


class Pass(Protocol):
    """Something to run whose FLOP are known; `Products` is one."""

    flops: float

    def __call__(self) -> None:
        """Run it."""
        ...


def rate(
    parts: Sequence[tuple[Callable[[], Pass], float]],
    device: Device,
    seconds: float = 0.05,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """FLOP/s when every part runs as often as a step runs it: (what makes the products, how often).

    One part is held at a time. Each runs once uncounted and once counted, and again while its share of `seconds` lasts.
    """
    done = spent = 0.0
    for make, times in parts:
        products = make()
        spent += times * best(products, device, seconds / len(parts), fewest=1, clock=clock)
        done += times * products.flops
        del products  # before the next is made
    return done / spent
