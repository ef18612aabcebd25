"""Which kernel computes attention here. Each kernel is a forward and a backward over the same arguments.

In: q [B, S, H, K], k and v [B, S, G, K] (G divides H), segments [B, S] int32 (0 = padding), a window (0 = none). Out of a
forward: out [B, S, H, K] and the log-sum-exp of each row [B, H, S]. A token sees the tokens of its own segment that are
not after it, at most `window` of them. Rows of padding give zeros and take no gradient. Knows no model and no module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from argosy.device import torch_versions

Forward = Callable[[Tensor, Tensor, Tensor, Tensor, int, float], tuple[Tensor, Tensor]]
Backward = Callable[
    [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int, float], tuple[Tensor, Tensor, Tensor]
]

TILE = 32  # sides of loop tiles are multiples of this: oneDNN keeps one generated kernel per shape for ever
BAND = 256  # query rows of a tile under a sliding window


def allowed(segments: Tensor, window: int) -> Tensor:
    """Which key each query sees: bool [B, S, S]. Padding sees padding, so that no row is empty."""
    place = torch.arange(segments.shape[1], device=segments.device)
    distance = place[:, None] - place[None, :]
    near = distance >= 0
    if window:
        near = near & (distance < window)
    return (segments[:, :, None] == segments[:, None, :]) & near


def _grouped(x: Tensor, groups: int) -> Tensor:
    """[B, S, H, K] to [B x G, H/G x S, K]: the heads of one key-value group beneath each other."""
    B, S, H, K = x.shape
    return x.view(B, S, groups, H // groups, K).permute(0, 2, 3, 1, 4).reshape(B * groups, -1, K)


def _ungrouped(x: Tensor, shape: torch.Size, groups: int) -> Tensor:
    """The inverse of `_grouped`, as a view."""
    B, S, H, K = shape
    return x.view(B, groups, H // groups, S, K).permute(0, 3, 1, 2, 4).reshape(B, S, H, K)


def _probabilities(scores: Tensor, segments: Tensor, window: int, scale: float) -> tuple[Tensor, Tensor]:
    """Softmax of scores [B, H, S, S] over what is allowed, in at least float32: probabilities, log-sum-exp [B, H, S]."""
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scale
    wide = torch.where(allowed(segments, window)[:, None], wide, float("-inf"))
    highest = wide.amax(-1, keepdim=True)
    raised = torch.exp(wide - highest)
    total = raised.sum(-1, keepdim=True)
    return (raised / total).to(scores.dtype), (highest + torch.log(total)).squeeze(-1)


def _score_gradient(
    scores: Tensor, dp: Tensor, lse: Tensor, delta: Tensor, segments: Tensor, window: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Probabilities anew from the log-sum-exp, and the gradient of the scores, both in the type of `scores`."""
    wide = scores.to(lse.dtype) * scale
    seen = allowed(segments, window)[:, None]
    p = torch.where(seen, torch.exp(wide - lse[..., None]), 0.0)
    ds = p * (dp.to(lse.dtype) - delta[..., None]) * scale
    return p.to(scores.dtype), ds.to(scores.dtype)


def _dense(probabilities: Callable[..., tuple[Tensor, Tensor]], gradient: Callable[..., tuple[Tensor, Tensor]]) -> tuple[Forward, Backward]:
    """The kernel that holds the whole square of scores: the fastest for short sequences, quadratic in memory."""

    def forward(q: Tensor, k: Tensor, v: Tensor, segments: Tensor, window: int, scale: float) -> tuple[Tensor, Tensor]:
        B, S, H, _ = q.shape
        G = k.shape[2]
        scores = torch.bmm(_grouped(q, G), _grouped(k, G).mT).view(B, H, S, S)
        p, lse = probabilities(scores, segments, window, scale)
        out = _ungrouped(torch.bmm(p.view(B * G, -1, S), _grouped(v, G)), q.shape, G)
        return out.mul_((segments != 0)[:, :, None, None]), lse

    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        segments: Tensor, window: int, scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        B, S, H, _ = q.shape
        G = k.shape[2]
        grad = grad * (segments != 0)[:, :, None, None]
        delta = (grad.to(lse.dtype) * out.to(lse.dtype)).sum(-1).transpose(1, 2)
        q_, k_, v_, grad_ = _grouped(q, G), _grouped(k, G), _grouped(v, G), _grouped(grad, G)
        scores = torch.bmm(q_, k_.mT).view(B, H, S, S)
        dp = torch.bmm(grad_, v_.mT).view(B, H, S, S)
        p, ds = gradient(scores, dp, lse, delta, segments, window, scale)
        p, ds = p.view(B * G, -1, S), ds.view(B * G, -1, S)
        dq = _ungrouped(torch.bmm(ds, k_), q.shape, G)
        dk = _ungrouped(torch.bmm(ds.mT, q_), k.shape, G)
        dv = _ungrouped(torch.bmm(p.mT, grad_), v.shape, G)
        return dq, dk, dv

    return forward, backward
