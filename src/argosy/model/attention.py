"""Attention as one operator with explicit segments and its own backward, opaque to torch.compile and to fake tensors.

Which kernel computes it is a word chosen by `kernels.choose` and passed in, so that it can be printed and tested.
Knows the kernels' table, nothing of modules or batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from argosy.model.kernels import KERNELS

# Called with q, k, window and scale in every forward pass, compiled or not, by whoever wants to see them (train/numerics.py).
observers: list[Callable[[Tensor, Tensor, int, float], None]] = []


def _more(softcap: float) -> tuple[float, ...]:
    """What a kernel is told of the cap: nothing where there is none, since most kernels know of none."""
    return (softcap,) if softcap else ()


@torch.library.custom_op("argosy::attention", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, segments: Tensor, window: int, scale: float, kernel: str, softcap: float = 0.0
) -> tuple[Tensor, Tensor]:
    for observe in observers:
        observe(q, k, window, scale)
    return KERNELS[kernel][0](q, k, v, segments, window, scale, *_more(softcap))


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, segments: Tensor, window: int, scale: float, kernel: str, softcap: float = 0.0
) -> tuple[Tensor, Tensor]:
    B, S, H, _ = q.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(q.shape), q.new_empty((B, H, S), dtype=wide)


@torch.library.custom_op("argosy::attention_backward", mutates_args=())
def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    segments: Tensor, window: int, scale: float, kernel: str, softcap: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return KERNELS[kernel][1](grad, q, k, v, out, lse, segments, window, scale, *_more(softcap))


@_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    segments: Tensor, window: int, scale: float, kernel: str, softcap: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, segments, ctx.window, ctx.scale, ctx.kernel, ctx.softcap = inputs
    ctx.save_for_backward(q, k, v, *output, segments)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, segments = ctx.saved_tensors
    dq, dk, dv = _backward(grad, q, k, v, out, lse, segments, ctx.window, ctx.scale, ctx.kernel, ctx.softcap)
    return dq, dk, dv, None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_remember)


def attention(
    q: Tensor, k: Tensor, v: Tensor, segments: Tensor, window: int = 0, kernel: str = "dense", softcap: float = 0.0
) -> Tensor:
    """Causal attention in which documents never see each other.

    q [B, S, H, K]; k, v [B, S, G, K] with G dividing H; segments [B, S] int32, 0 = padding, whose rows give zeros and take
    no gradient; window: a token sees itself and window - 1 before it, 0 = all. Scores are scaled by 1/sqrt(K), then
    held below `softcap` by its tanh, 0 = not (dense kernels only). Gives [B, S, H, K].
    """
    out: Tensor = _forward(q, k, v, segments, window, q.shape[-1] ** -0.5, kernel, softcap)[0]
    return out
