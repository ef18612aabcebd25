"""Which parameter gets which update, and the one object that applies them.

In: named parameters (plain or DTensor), the optim section in force. Out: an Optimizer whose whole state exists from the
start under stable names. Knows names and shapes, no model and no layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import sqrt

import torch
import torch.distributed as dist
from torch import Tensor

from argosy.device.shards import local, zeros
from argosy.device.torch_versions import multiply_all
from argosy.errors import Refused
from argosy.job.schema import OptimSection
from argosy.optim.lamb import Lamb
from argosy.optim.muon import Muon

TABLES = frozenset(("embedding", "embeddings", "embed", "embed_tokens", "positions", "wte", "wpe"))
HEADS = frozenset(("head", "lm_head"))


def orthogonalised(name: str, parameter: Tensor) -> bool:
    """Whether Muon takes `parameter`: a matrix inside the network. Tables and the head, whose rows are entries, go to AdamW."""
    return parameter.ndim == 2 and not (TABLES | HEADS) & set(name.split("."))


def adapted(name: str, parameter: Tensor) -> bool:
    """Whether LAMB takes `parameter`: tables and matrices.

    Norms and biases go to AdamW without decay, which is LAMB without its trust ratio: You et al. leave them out too.
    """
    return parameter.ndim >= 2


def decayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay acts: on matrices. Not on norms and biases, nor on tables, whose rows would fade unread."""
    return parameter.ndim >= 2 and not TABLES & set(name.split("."))


def width_rate(update: str, name: str, parameter: Tensor, growth: float) -> float:
    """The share of the learning rate that `parameter` takes in a model `growth` times as wide as the one the rate is for.

    Of matrices that read the stream, so that what a step changes in their output is as large at any width. AdamW moves each
    element by the rate, and a product with the stream adds up as many of them as it is wide: 1 / growth (Yang et al.,
    "Tensor Programs V", 2022, table 8). Muon's and LAMB's updates are as long as matrices of independent elements, and only
    what of them lies along the stream adds up so: 1 / sqrt(growth), and nothing less for LAMB's head, whose first weights
    shrink with the width already. Tables, norms and biases add up nothing: all of it.
    """
    parts = set(name.split("."))
    if parameter.ndim < 2 or TABLES & parts or (update == "lamb" and HEADS & parts):
        return 1.0
    return 1.0 / growth if update == "adamw" else 1.0 / sqrt(growth)


class Optimizer:
    """AdamW for some parameters, Muon or LAMB for the `matrices`, one learning rate, and each one's share of it (`rates`)."""

    def __init__(
        self, section: OptimSection, adamw: Mapping[str, Tensor], matrices: Muon | Lamb | None, fused: bool,
        rates: Mapping[str, float],
    ):  # fmt: skip
        if section.lr is None:
            raise Refused("optim.lr has no value.", do="Set it, or let the plan derive it.")
        self.lr, self.matrices, self.adamw, self.updates = section.lr, matrices, dict(adamw), 0
        self.rates = dict(rates)
        # Every rank updates its own shards, element by element. Of sharded tensors torch would take those of one mesh only at
        # once, and work out anew in every step what becomes of them: as long as the update of a small model itself.
        self.own = {name: local(parameter.detach()) for name, parameter in self.adamw.items()}
        alike: dict[tuple[bool, float], list[Tensor]] = {}
        for name, parameter in self.adamw.items():
            alike.setdefault((decayed(name, parameter), rates[name]), []).append(self.own[name])
        groups = [  # torch decays by a share of the group's rate: of the whole rate, whatever share the update takes
            {"params": members, "weight_decay": section.weight_decay / share if decay else 0.0, "share": share}
            for (decay, share), members in alike.items()
        ]
        self.moments: dict[str, tuple[Tensor, Tensor]] = {}
        self.inner: torch.optim.AdamW | None = None
        if self.adamw:
            self.inner = torch.optim.AdamW(
                groups, lr=self.lr, betas=(section.beta1, section.beta2), eps=section.epsilon, fused=fused,
            )  # fmt: skip
            for name, parameter in self.adamw.items():  # from the start, as a checkpoint wants to fill it
                first, second = self.moments[name] = (zeros(parameter), zeros(parameter))
                self.inner.state[self.own[name]] = {
                    "step": torch.zeros((), dtype=torch.float32, device=self.own[name].device),
                    "exp_avg": local(first),
                    "exp_avg_sq": local(second),
                }

    @torch.no_grad()
    def step(self, rate: float, scale: float | Tensor = 1.0, good: Tensor | None = None) -> None:
        """Apply the gradients times `scale` (clipping) with `rate` (schedule.rate) times the peak learning rate.

        scale: a number, or a scalar on the device. good: a scalar (bool) on the device, without which nothing changes; the
        host need not know it, and says `uncount` when it learns that it was false. With a group or with shards, every rank
        must call. RuntimeError where a matrix of Muon or LAMB has no gradient.
        """
        gradients = {name: local(p.grad) for name, p in self._named() if p.grad is not None}
        if isinstance(scale, Tensor) or scale != 1.0:
            multiply_all(list(gradients.values()), scale)
        if self.inner is not None:
            for group in self.inner.param_groups:
                group["lr"] = self.lr * rate * group["share"]
            for name, parameter in self.adamw.items():
                # Its memory may have become another one since the last step: a layout may lay shards out when first used.
                self.own[name].data = local(parameter)
                self.own[name].grad = gradients.get(name)
            self._update(self.inner, good)
            for shard in self.own.values():
                shard.grad = None  # or it would stay when the parameter's is dropped
        if self.matrices is not None:
            self.matrices.step(self.lr * rate, good)
        self.updates += 1

    def uncount(self) -> None:
        """One of the last updates was not good, and thus none."""
        self.updates -= 1

    @staticmethod
    def _update(inner: torch.optim.AdamW, good: Tensor | None) -> None:
        """AdamW's own step. Its fused update reads `found_inf`, and changes nothing where that is 1."""
        if good is None:
            inner.step()
            return
        inner.found_inf = (~good).to(torch.float32)  # type: ignore[attr-defined]
        try:
            inner.step()
        finally:
            del inner.found_inf  # type: ignore[attr-defined]

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters, AdamW's first."""
        return [parameter for _, parameter in self._named()]

    def _named(self) -> list[tuple[str, Tensor]]:
        return [*self.adamw.items(), *(self.matrices.parameters.items() if self.matrices else ())]

    def named_state(self) -> dict[str, Tensor]:
        """The state tensors themselves, sharded as their parameters: "optim.<parameter>.<slot>".

        Slots: "first" and "second" moment (AdamW, LAMB), "momentum" (Muon).
        """
        found: dict[str, Tensor] = {}
        for name, (first, second) in self.moments.items():
            found[f"optim.{name}.first"], found[f"optim.{name}.second"] = first, second
        return found | (self.matrices.named_state() if self.matrices is not None else {})

    def scalars(self) -> dict[str, int]:
        """What else a checkpoint must hold: the number of updates so far."""
        return {"updates": self.updates}

    def load_scalars(self, scalars: Mapping[str, int]) -> None:
        """Take over `scalars` from a checkpoint."""
        self.updates = int(scalars["updates"])
        for shard in self.own.values():
            assert self.inner is not None
            self.inner.state[shard]["step"].fill_(float(self.updates))
        if self.matrices is not None:
            self.matrices.load_count(self.updates)

    def describe(self) -> dict[str, str]:
        """What happens to each parameter: "muon, decay", "lamb", "adamw, decay, x 0.25 of the rate" and so on."""
        taken = {name: ("adamw", parameter) for name, parameter in self.adamw.items()}
        if self.matrices is not None:
            update = "muon" if isinstance(self.matrices, Muon) else "lamb"
            taken |= {name: (update, parameter) for name, parameter in self.matrices.parameters.items()}
        words = {}
        for name, (update, parameter) in taken.items():
            share = "" if self.rates[name] == 1 else f", x {self.rates[name]:.3g} of the rate"
            words[name] = update + (", decay" if decayed(name, parameter) else "") + share
        return words


def build(
    named_parameters: Iterable[tuple[str, Tensor]], section: OptimSection, device: str = "cpu",
    group: dist.ProcessGroup | None = None, kind: torch.dtype = torch.float32, growth: float = 1.0,
) -> Optimizer:  # fmt: skip
    """The optimizer of `section` for parameters that require gradients.

    device: "cpu", "cuda" or "mps". group: the ranks that hold the same model, which share out Newton-Schulz and sum LAMB's
    norms. kind: the type of those iterations, the one of the matrix products (train.precision in force). growth: how many
    times as wide the model is as the one that section.lr is for.
    """
    named = {name: parameter for name, parameter in named_parameters if parameter.requires_grad}
    takes = {"muon": orthogonalised, "lamb": adapted}.get(section.name)
    chosen = {name: parameter for name, parameter in named.items() if takes is not None and takes(name, parameter)}
    rest = {name: parameter for name, parameter in named.items() if name not in chosen}
    rates = {name: width_rate(section.name, name, parameter, growth) for name, parameter in chosen.items()}
    matrices: Muon | Lamb | None = None
    if chosen and section.name == "muon":
        matrices = Muon(
            chosen, momentum=0.95 if section.momentum is None else section.momentum,
            iterations=section.newton_schulz or 5, weight_decay=section.weight_decay, kind=kind, group=group, rates=rates,
        )  # fmt: skip
    elif chosen:
        matrices = Lamb(
            chosen, beta1=section.beta1, beta2=section.beta2, epsilon=section.epsilon, rates=rates, group=group,
            decay={name: section.weight_decay if decayed(name, p) else 0.0 for name, p in chosen.items()},
        )  # fmt: skip
    rates |= {name: width_rate("adamw", name, parameter, growth) for name, parameter in rest.items()}
    return Optimizer(section, rest, matrices, fused=device in ("cpu", "cuda", "mps"), rates=rates)
