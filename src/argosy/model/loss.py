"""Cross-entropy as a sum over counted tokens, a chunk of logits at a time. Knows tensors only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# One chunk of tokens c: hidden [c, D], weight [V, D], labels [c], weights [c].


def _only_loss(hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    logits = torch.mm(hidden, weight.t())
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    chosen = logits.gather(1, labels[:, None]).squeeze(1)
    return (weights * (torch.logsumexp(logits, 1) - chosen)).sum()


def _loss_and_gradients(
    hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    logits = torch.mm(hidden, weight.t())
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = torch.logsumexp(logits, 1)
    chosen = logits.gather(1, labels[:, None]).squeeze(1)
    here = torch.arange(logits.shape[1], device=logits.device)[None, :] == labels[:, None]
    wrong = torch.exp(logits - total[:, None]) - here.to(logits.dtype)
    wrong = (wrong * weights[:, None]).to(hidden.dtype)
    return (weights * (total - chosen)).sum(), torch.mm(wrong, weight), torch.mm(wrong.t(), hidden)


def _filled(rows: Tensor, count: int) -> Tensor:
    """`rows` with zeros after them, `count` rows in all."""
    return torch.cat([rows, rows.new_zeros(count - rows.shape[0], *rows.shape[1:])])


_compiled_loss = torch.compile(_only_loss, dynamic=False, fullgraph=True)
_compiled_both = torch.compile(_loss_and_gradients, dynamic=False, fullgraph=True)


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
        compiled: bool,
        wanted: bool,
    ) -> Tensor:
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
                total += (_compiled_loss if compiled else _only_loss)(*given)
                continue
            loss, d_part, d_near = (_compiled_both if compiled else _loss_and_gradients)(*given)
            d_hidden[part] = d_part[:size]
            total += loss
            d_weight += d_near
        if wanted:
            ctx.save_for_backward(d_hidden, d_weight)
            ctx.weight_type = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        d_near = (d_weight * grad.to(d_weight.dtype)).to(ctx.weight_type)
        return d_hidden * grad.to(d_hidden.dtype), d_near, None, None, None, None, None


def loss_sum(
    hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor, chunk: int = 1024, *, compiled: bool = False
) -> Tensor:
    """Sum over tokens of weights x negative log-likelihood of labels, in nats, as a float64 scalar (float32 on MPS).

    hidden [B, S, D] or [N, D]; weight [V, D], cast to hidden's type; labels and weights [B, S] or [N]; labels of weight
    zero may be anything. Logits of `chunk` tokens are held at once. The softmax is in at least float32.
    """
    width = hidden.shape[-1]
    flat = labels.reshape(-1).long().clamp(0, weight.shape[0] - 1)
    wanted = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    found: Tensor = _Summed.apply(  # type: ignore[no-untyped-call]
        hidden.reshape(-1, width), weight, flat, weights.reshape(-1), chunk, compiled, wanted
    )
    return found
