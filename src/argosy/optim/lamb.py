"""LAMB: Adam's step, made as long as a share of the weights themselves, tensor by tensor, so that large batches train well.

In: named weights with gradients, plain or sharded (DTensor), and the group of ranks that hold the same model. Each rank keeps
both moments of its own shard. A tensor's length is that of all its parts, wherever they lie: each rank adds the squares of what
it holds, divided by the ranks that hold the same, and one all-reduce sums them for all tensors together.
Sources: You et al., "Large batch optimization for deep learning", 2020, algorithm 2, with phi the identity; Adam's moments:
Kingma and Ba, 2015. MegaScale (Jiang et al., 2024, section 3.1) trains with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from argosy.device.shards import copies, cuts, local, zeros


class Lamb:
    """The update of a set of weights. State: two moments per weight, there from the start, and the number of updates.

    What should not be measured by its own length, norms and biases, is none of its weights: AdamW moves them.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], *, beta1: float, beta2: float, epsilon: float,
        decay: Mapping[str, float], rates: Mapping[str, float], group: dist.ProcessGroup | None = None,
    ):  # fmt: skip
        """By name: `decay`, the weight decay, and `rates`, the share of the learning rate that a weight takes."""
        self.parameters = dict(parameters)
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.decay, self.rates = dict(decay), dict(rates)
        self.first = {name: zeros(parameter) for name, parameter in self.parameters.items()}
        self.second = {name: zeros(parameter) for name, parameter in self.parameters.items()}
        self.group = group
        if group is None and any(cuts(parameter) for parameter in self.parameters.values()):
            raise ValueError("weights are shared out, and there is no group to sum their lengths over")
        ranks = 1 if group is None else dist.get_world_size(group)
        self.copies = [copies(parameter, ranks) for parameter in self.parameters.values()]
        device = local(next(iter(self.parameters.values()))).device
        self.count = torch.zeros(
            (), dtype=torch.float64, device=device
        )  # updates that were good, as only the device knows

    @torch.no_grad()
    def step(self, lr: float, good: Tensor | None = None) -> None:
        """Apply the gradients with learning rate `lr`; change nothing where `good`, a scalar on the device, is false.

        With a group: every rank of it must call. RuntimeError where a weight has no gradient.
        """
        self.count += 1 if good is None else good
        updates = [self._update(name, good) for name in self.parameters]
        named = zip(self.parameters.items(), updates, self.trust(updates).unbind(), strict=True)
        for (name, parameter), update, ratio in named:
            change = update * (ratio * (lr * self.rates[name]))
            local(parameter.detach()).sub_(change if good is None else torch.where(good, change, 0.0))

    def _update(self, name: str, good: Tensor | None) -> Tensor:
        """Adam's step of the weight `name`, corrected for moments that begin at zero, plus its decay; this rank's part.

        It takes the place of the gradient: all weights' steps stand until their lengths are known, and need no room so.
        """
        parameter = self.parameters[name]
        if parameter.grad is None:
            raise RuntimeError(f"{name} has no gradient")
        gradient, first, second = (local(one) for one in (parameter.grad, self.first[name], self.second[name]))
        for moment, seen, beta in ((first, gradient, self.beta1), (second, gradient.square(), self.beta2)):
            now = torch.lerp(moment, seen, 1 - beta)
            moment.copy_(now if good is None else torch.where(good, now, moment))
        mean = first / (1 - self.beta1**self.count)
        spread = (second / (1 - self.beta2**self.count)).sqrt_()
        step = torch.add(mean / spread.add_(self.epsilon), local(parameter.detach()), alpha=self.decay[name])
        return gradient.copy_(step)

    def trust(self, updates: Sequence[Tensor]) -> Tensor:
        """Length of each weight over the length of its update, of which `updates` are this rank's parts: [n] float64.

        1 where either has none.
        """
        parts = [*(local(parameter.detach()) for parameter in self.parameters.values()), *updates]
        squares = torch.stack(
            [
                torch.linalg.vector_norm(part, dtype=torch.float64).square() / shared
                for part, shared in zip(parts, self.copies * 2, strict=True)
            ]
        )
        if self.group is not None:
            dist.all_reduce(squares, group=self.group)
        weights, changes = squares.sqrt().chunk(2)
        return torch.where((weights > 0) & (changes > 0), weights / changes, 1.0)

    def named_state(self) -> dict[str, Tensor]:
        """Both moments: "optim.<weight>.first" and ".second"."""
        found = {f"optim.{name}.first": moment for name, moment in self.first.items()}
        return found | {f"optim.{name}.second": moment for name, moment in self.second.items()}

    def load_count(self, updates: int) -> None:
        """Go on after so many updates."""
        self.count.fill_(float(updates))
