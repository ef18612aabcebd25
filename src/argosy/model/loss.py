"""Cross-entropy as a sum over counted tokens, a chunk of logits at a time; also where ranks share the vocabulary out.

Knows tensors only.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from argosy.device.shards import box
from argosy.device.torch_versions import gather_into

# One chunk of tokens c: hidden [c, D], weight [V, D], labels [c], weights [c]. Where ranks share the vocabulary out, V is this
# rank's part of it, labels are counted from its first entry, and those outside belong to other ranks. Two numbers go with
# them: `softcap`, below which logits are held by its tanh, and `z`, the weight of the squared log of the softmax's sum in what
# is minimised (Chowdhery et al., "PaLM", 2022, section 5); 0 = not. The loss that is given is the likelihood's alone.


def _logits(hidden: Tensor, weight: Tensor, softcap: float) -> Tensor:
    """Logits [c, V] in at least float32."""
    logits = torch.mm(hidden, weight.t())
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def _seen(hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
    """Logits [c, V], and beside each other [2, c] the log of the sum of their exponentials and the label's own."""
    logits = _logits(hidden, weight, softcap)
    return logits, torch.stack((torch.logsumexp(logits, 1), (logits * _here(logits, labels)).sum(1)))


def _here(logits: Tensor, labels: Tensor) -> Tensor:
    """Where the label stands [c, V], as a number; nowhere in a row whose label belongs to another rank."""
    entries = torch.arange(logits.shape[1], device=logits.device)
    return (entries[None, :] == labels[:, None]).to(logits.dtype)


def _only_loss(hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor, softcap: float) -> Tensor:
    logits = _logits(hidden, weight, softcap)
    chosen = logits.gather(1, labels[:, None]).squeeze(1)
    return (weights * (torch.logsumexp(logits, 1) - chosen)).sum()


def _gradients(
    logits: Tensor, total: Tensor, hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor,
    softcap: float, z: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Of hidden [c, D] and weight [V, D], given the log of the sum `total` [c] over the whole vocabulary."""
    chances = torch.exp(logits - total[:, None])
    wrong = chances - _here(logits, labels)
    if z:
        wrong = wrong + chances * (2 * z * total[:, None])
    if softcap:
        wrong = wrong * (1 - (logits / softcap).square())
    wrong = (wrong * weights[:, None]).to(hidden.dtype)
    return torch.mm(wrong, weight), torch.mm(wrong.t(), hidden)


def _loss_and_gradients(
    hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor, softcap: float, z: float
) -> tuple[Tensor, Tensor, Tensor]:
    logits = _logits(hidden, weight, softcap)
    total = torch.logsumexp(logits, 1)
    chosen = logits.gather(1, labels[:, None]).squeeze(1)
    return (weights * (total - chosen)).sum(), *_gradients(logits, total, hidden, weight, labels, weights, softcap, z)


class _Alone:
    """Computes a chunk where the rank has the whole vocabulary."""

    def __init__(self, compiled: bool, softcap: float, z: float):
        self.softcap, self.z = softcap, z
        self.only, self.both = (_compiled_loss, _compiled_both) if compiled else (_only_loss, _loss_and_gradients)

    def loss(self, hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """The loss of one chunk."""
        return self.only(hidden, weight, labels, weights, self.softcap)

    def loss_and_gradients(
        self, hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of one chunk and the gradients of hidden and weight."""
        return self.both(hidden, weight, labels, weights, self.softcap, self.z)


class _Shared:
    """Computes a chunk where the ranks of `group` share the vocabulary: one all-gather of two numbers a token and rank."""

    def __init__(self, group: dist.ProcessGroup, compiled: bool, softcap: float, z: float):
        self.group, self.ranks, self.softcap, self.z = group, dist.get_world_size(group), softcap, z
        self.seen, self.both = (_compiled_seen, _compiled_gradients) if compiled else (_seen, _gradients)

    def loss(self, hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """The loss of one chunk: the same on every rank."""
        return self._all(self.seen(hidden, weight, labels, self.softcap)[1], weights)[0]

    def loss_and_gradients(
        self, hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Also this rank's share of the gradient of hidden, and the gradient of its own entries."""
        logits, own = self.seen(hidden, weight, labels, self.softcap)
        loss, total = self._all(own, weights)
        return loss, *self.both(logits, total, hidden, weight, labels, weights, self.softcap, self.z)

    def _all(self, own: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the log of the sum of exponentials [c] over the vocabulary of all ranks."""
        parts = own.new_empty(self.ranks * 2, own.shape[1])
        gather_into(parts, own.contiguous(), self.group)
        sums, chosen = parts.view(self.ranks, 2, -1).unbind(1)
        total = torch.logsumexp(sums, 0)
        return (weights * (total - chosen.sum(0))).sum(), total


def _filled(rows: Tensor, count: int) -> Tensor:
    """`rows` with zeros after them, `count` rows in all."""
    return torch.cat([rows, rows.new_zeros(count - rows.shape[0], *rows.shape[1:])])


_compiled_loss = torch.compile(_only_loss, dynamic=False, fullgraph=True)
_compiled_both = torch.compile(_loss_and_gradients, dynamic=False, fullgraph=True)
_compiled_seen = torch.compile(_seen, dynamic=False, fullgraph=True)
_compiled_gradients = torch.compile(_gradients, dynamic=False, fullgraph=True)


class _Summed(torch.autograd.Function):
    """Computes the gradients along with the loss, so that no logits are kept and none is computed twice."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        weights: Tensor,
        chunk: int,
        compute: _Alone | _Shared,
        wanted: bool,
    ) -> Tensor:
        """The sum over all labels, chunk by chunk; gradients are kept where `wanted`."""
        near = weight.to(hidden.dtype)  # once, not once a chunk
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=torch.float32 if hidden.device.type == "mps" else torch.float64)
        total = total.to(hidden.device)
        d_hidden = torch.empty_like(hidden) if wanted else None
        # The sum over chunks is kept wide even where the weight comes in bfloat16, as sharded parallelism hands it out.
        wide_weight = torch.promote_types(weight.dtype, torch.float32)
        d_weight = torch.zeros(weight.shape, dtype=wide_weight, device=weight.device) if wanted else None
        for begin in range(0, hidden.shape[0], chunk):
            part = slice(begin, begin + chunk)
            size = min(chunk, hidden.shape[0] - begin)
            rows = (hidden[part], labels[part], weights[part].to(wide))
            if begin and size < chunk:  # filled up with tokens of weight zero: another shape would be compiled anew
                rows = (_filled(rows[0], chunk), _filled(rows[1], chunk), _filled(rows[2], chunk))
            given = (rows[0], near, rows[1], rows[2])
            if d_hidden is None or d_weight is None:
                total += compute.loss(*given)
                continue
            loss, d_part, d_near = compute.loss_and_gradients(*given)
            d_hidden[part] = d_part[:size]
            total += loss
            d_weight += d_near
        if wanted:
            ctx.save_for_backward(d_hidden, d_weight)
            ctx.weight_type = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients that `forward` kept, times that of the sum."""
        d_hidden, d_weight = ctx.saved_tensors
        d_near = (d_weight * grad.to(d_weight.dtype)).to(ctx.weight_type)
        return d_hidden * grad.to(d_hidden.dtype), d_near, None, None, None, None, None


def loss_sum(
    hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor, chunk: int = 1024, *, compiled: bool = False,
    softcap: float = 0.0, z: float = 0.0,
) -> Tensor:  # fmt: skip
    """Sum over tokens of weights x negative log-likelihood of labels, in nats, as a float64 scalar (float32 on MPS).

    hidden [B, S, D] or [N, D]; weight [V, D], cast to hidden's type; labels and weights [B, S] or [N]; labels of weight
    zero may be anything. Logits of `chunk` tokens are held at once. The softmax is in at least float32.
    A weight that ranks share out by rows (a DTensor): each holds the logits of its own rows, and the loss is that of all of
    them; the gradient of hidden is each rank's share, to be summed. softcap, z: see above; z acts on gradients alone.
    """
    width = hidden.shape[-1]
    flat = labels.reshape(-1).long().clamp(0, weight.shape[0] - 1)
    wanted = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    compute: _Alone | _Shared = _Alone(compiled, softcap, z)
    if isinstance(weight, DTensor):
        flat = flat - box(weight)[0][0]
        compute = _Shared(weight.device_mesh.get_group(), compiled, softcap, z)
        weight = weight.to_local()
    found: Tensor = _Summed.apply(  # type: ignore[no-untyped-call]
        hidden.reshape(-1, width), weight, flat, weights.reshape(-1), chunk, compute, wanted
    )
    return found
