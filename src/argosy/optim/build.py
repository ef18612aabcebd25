"""Which parameter gets which update, and the one object that applies them.

In: named parameters (plain or DTensor), the optim section in force. Out: an Optimizer whose whole state exists from the
start under stable names. Knows names and shapes, no model and no layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from argosy.device.shards import local, zeros
from argosy.device.torch_versions import multiply_all
from argosy.errors import Refused
from argosy.job.schema import OptimSection
from argosy.optim.muon import Muon

TABLES = frozenset(("embedding", "embeddings", "embed", "embed_tokens", "positions", "wte", "wpe"))
HEADS = frozenset(("head", "lm_head"))


def orthogonalised(name: str, parameter: Tensor) -> bool:
    """Whether Muon takes `parameter`: a matrix inside the network. Tables and the head, whose rows are entries, go to AdamW."""
    return parameter.ndim == 2 and not (TABLES | HEADS) & set(name.split("."))


def decayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay acts: on matrices. Not on norms and biases, nor on tables, whose rows would fade unread."""
    return parameter.ndim >= 2 and not TABLES & set(name.split("."))


class Optimizer:
    """AdamW for some parameters, Muon for others, one learning rate."""

    def __init__(self, section: OptimSection, adamw: Mapping[str, Tensor], muon: Muon | None, fused: bool):
        if section.lr is None:
            raise Refused("optim.lr has no value.", do="Set it, or let the plan derive it.")
        self.lr, self.muon, self.adamw, self.updates = section.lr, muon, dict(adamw), 0
        # Every rank updates its own shards, element by element. Of sharded tensors torch would take those of one mesh only at
        # once, and work out anew in every step what becomes of them: as long as the update of a small model itself.
        self.own = {name: local(parameter.detach()) for name, parameter in self.adamw.items()}
        alike: dict[bool, list[Tensor]] = {}
        for name, parameter in self.adamw.items():
            alike.setdefault(decayed(name, parameter), []).append(self.own[name])
        groups = [
            {"params": members, "weight_decay": section.weight_decay if decay else 0.0}
            for decay, members in alike.items()
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
        must call. RuntimeError where a parameter of Muon has no gradient.
        """
        gradients = {name: local(p.grad) for name, p in self._named() if p.grad is not None}
        if isinstance(scale, Tensor) or scale != 1.0:
            multiply_all(list(gradients.values()), scale)
        if self.inner is not None:
            for group in self.inner.param_groups:
                group["lr"] = self.lr * rate
            for name, parameter in self.adamw.items():
                # Its memory may have become another one since the last step: a layout may lay shards out when first used.
                self.own[name].data = local(parameter)
                self.own[name].grad = gradients.get(name)
            self._update(self.inner, good)
            for shard in self.own.values():
                shard.grad = None  # or it would stay when the parameter's is dropped
        if self.muon is not None:
            self.muon.step(self.lr * rate, good)
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
        return [*self.adamw.items(), *(self.muon.parameters.items() if self.muon else ())]

    def named_state(self) -> dict[str, Tensor]:
        """The state tensors themselves, sharded as their parameters: "optim.<parameter>.<slot>".

        Slots: "first" and "second" moment (AdamW), "momentum" (Muon).
        """
        found: dict[str, Tensor] = {}
        for name, (first, second) in self.moments.items():
            found[f"optim.{name}.first"], found[f"optim.{name}.second"] = first, second
        if self.muon is not None:
            found |= {f"optim.{name}.momentum": momentum for name, momentum in self.muon.state.items()}
        return found

    def scalars(self) -> dict[str, int]:
        """What else a checkpoint must hold: the number of updates so far."""
        return {"updates": self.updates}

    def load_scalars(self, scalars: Mapping[str, int]) -> None:
        """Take over `scalars` from a checkpoint."""
        self.updates = int(scalars["updates"])
        for shard in self.own.values():
            assert self.inner is not None
            self.inner.state[shard]["step"].fill_(float(self.updates))

    def describe(self) -> dict[str, str]:
        """What happens to each parameter: "muon, decay", "adamw, decay" or "adamw"."""
        words = dict.fromkeys(self.muon.parameters if self.muon else (), "muon, decay")
        return words | {name: "adamw, decay" if decayed(name, p) else "adamw" for name, p in self.adamw.items()}


def build(
    named_parameters: Iterable[tuple[str, Tensor]], section: OptimSection, device: str = "cpu",
    group: dist.ProcessGroup | None = None, kind: torch.dtype = torch.float32,
) -> Optimizer:  # fmt: skip
    """The optimizer of `section` for parameters that require gradients.

    device: "cpu", "cuda" or "mps". group: the ranks that hold the same model and share out Newton-Schulz. kind: the type
    of those iterations, the one of the matrix products (train.precision in force).
    """
    named = {name: parameter for name, parameter in named_parameters if parameter.requires_grad}
    chosen = {n: p for n, p in named.items() if section.name == "muon" and orthogonalised(n, p)}
    muon = None
    if chosen:
        muon = Muon(
            chosen, momentum=0.95 if section.momentum is None else section.momentum,
            iterations=section.newton_schulz or 5, weight_decay=section.weight_decay, kind=kind, group=group,
        )  # fmt: skip
    rest = {name: parameter for name, parameter in named.items() if name not in chosen}
    return Optimizer(section, rest, muon, fused=device in ("cpu", "cuda", "mps"))
