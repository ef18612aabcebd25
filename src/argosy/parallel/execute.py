"""Forward and backward of a rank's micro-batches: the Executor that a step calls, and the plain one without a pipeline.

In: micro-batches on the rank's device. Out: the loss summed over their counted labels, and gradients in the parameters.
Everything that uses the model's weights passes through `Whole`, the outermost module: its call is where sharded weights are
gathered, so that loss, evaluation and sampling work alike under every layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from argosy.parallel.data import DataParallel

Loss = Callable[[Any, Any], Tensor]  # (module, micro-batch) -> loss summed over counted labels


class Executor(Protocol):
    """Forward and backward of this rank's micro-batches, in whatever order. A pipeline is one of these."""

    def __call__(self, micro: Sequence[Any], *, scale: float, backward: bool = True) -> Tensor:
        """The loss [scalar] summed over counted labels; gradients are those of the loss times `scale`."""
        ...


class Whole(nn.Module):
    """The root of a model: whatever is called with it sees whole weights."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """`call(model, *arguments)`, with the root's weights gathered."""
        return call(self.model, *arguments)


class Plain:
    """One micro-batch after the other, each forward followed by its backward."""

    def __init__(self, whole: Whole, loss: Loss, data: DataParallel):
        self.whole, self.loss, self.data = whole, loss, data

    def __call__(self, micro: Sequence[Any], *, scale: float, backward: bool = True) -> Tensor:
        """See Executor. Without `backward` the same graph runs forward and is dropped: no second compilation."""
        total: Tensor | None = None
        if backward:
            self.data.begin()
        for number, batch in enumerate(micro):
            if backward:
                self.data.micro(last=number == len(micro) - 1)
            loss = self.whole(self.loss, batch)
            if backward:
                (loss * scale).backward()
            mine = loss.detach().to(torch.float64)
            total = mine if total is None else total + mine
        if backward:
            self.data.finish()
        else:
            self.data.settle()
        return total if total is not None else torch.zeros((), dtype=torch.float64)
