"""Any optimizer of torch as an Update: its states under stable names, room for them before its first step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class AnyOptimizer:
    """`optimizer` over the parameters `named`. Its groups' learning rates when it is wrapped are the peaks."""

    def __init__(self, optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]):
        self.optimizer, self.named = optimizer, dict(named)
        self.peaks = [float(group["lr"]) for group in optimizer.param_groups]
        self.lr = self.peaks[0]

    @torch.no_grad()
    def step(self, rate: float, scale: float | Tensor = 1.0, good: Tensor | None = None) -> None:
        """Apply the gradients times `scale`; each group's learning rate is `rate` times its peak.

        Nothing unless `good`: an optimizer that knows no such thing cannot leave that to the device, so the host waits.
        """
        if good is not None and not good.item():
            return
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * rate
            for parameter in group["params"]:
                if (isinstance(scale, Tensor) or scale != 1.0) and parameter.grad is not None:
                    parameter.grad.mul_(scale)
        self.optimizer.step()

    def uncount(self) -> None:
        """Nothing was counted."""

    def named_state(self) -> dict[str, Tensor]:
        """The tensors of its state: "optim.<parameter>.<key>"."""
        return {f"optim.{name}.{key}": value for name, key, value in self._states() if isinstance(value, Tensor)}

    def scalars(self) -> dict[str, Any]:
        """The numbers of its state: "<parameter>.<key>"."""
        return {f"{name}.{key}": value for name, key, value in self._states() if not isinstance(value, Tensor)}

    def load_scalars(self, scalars: Mapping[str, Any]) -> None:
        """Take over `scalars` from a checkpoint."""
        for full, value in scalars.items():
            name, _, key = full.rpartition(".")
            self.optimizer.state[self.named[name]][key] = value

    def make_room(self, stored: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
        """Make the states named in `stored` (name -> shape, type), filled with zeros, where there are none yet.

        Most optimizers have no state before their first step; a checkpoint's names say what they will have.
        """
        for name, parameter in self.named.items():
            for full, (shape, dtype) in stored.items():
                key = full.removeprefix(f"optim.{name}.")
                if key != full and "." not in key and key not in self.optimizer.state[parameter]:
                    # A step counter lives on the CPU, like those that torch's own optimizers make.
                    device = parameter.device if shape else torch.device("cpu")
                    self.optimizer.state[parameter][key] = torch.zeros(shape, dtype=dtype, device=device)

    def _states(self) -> list[tuple[str, str, Any]]:
        """(parameter name, key, value), in the parameters' order."""
        return [
            (name, str(key), value)
            for name, parameter in self.named.items()
            for key, value in sorted(self.optimizer.state.get(parameter, {}).items())
        ]
