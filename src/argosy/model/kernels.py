"""Which kernel computes attention here. Each kernel is a forward and a backward over the same arguments.

In: q [B, S, H, K], k and v [B, S, G, K] (G divides H), segments [B, S] int32 (0 = padding), a window (0 = none). Out of a
forward: out [B, S, H, K] and the log-sum-exp of each row [B, H, S]. A token sees the tokens of its own segment that are
not after it, at most `window` of them. Rows of padding give zeros and take no gradient. Knows no model and no module.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from argosy.device import torch_versions
from argosy.model import documents
from argosy.plan.bytes import DENSE

# Of q, k, v, segments, window, scale, and where it can cap scores, the cap; the backward one of these after grad, and out, lse.
Forward = Callable[..., tuple[Tensor, Tensor]]
Backward = Callable[..., tuple[Tensor, Tensor, Tensor]]


def allowed(segments: Tensor, window: int) -> Tensor:
    """Which key each query sees: bool [B, S, S]. Padding sees padding, so that no row is empty."""
    place = torch.arange(segments.shape[1], device=segments.device)
    distance = place[:, None] - place[None, :]
    near = distance >= 0
    if window:
        near = near & (distance < window)
    same = torch.eq(segments[:, :, None], segments[:, None, :])
    return torch.logical_and(same, near)


def _grouped(x: Tensor, groups: int) -> Tensor:
    """[B, S, H, K] to [B x G, H/G x S, K]: the heads of one key-value group beneath each other."""
    B, _, H, K = x.shape
    split: Tensor = x.unflatten(2, (groups, H // groups))
    return split.permute(0, 2, 3, 1, 4).reshape(B * groups, -1, K)


def _ungrouped(x: Tensor, shape: torch.Size, groups: int) -> Tensor:
    """The inverse of `_grouped`, contiguous."""
    B, S, H, K = shape
    return x.view(B, groups, H // groups, S, K).permute(0, 3, 1, 2, 4).contiguous().view(B, S, H, K)


def _capped(scores: Tensor, softcap: float) -> Tensor:
    """Scores held between -softcap and softcap (Gemma team, "Gemma 2", 2024, section 2); 0 = as they are."""
    return softcap * torch.tanh(scores / softcap) if softcap else scores


def _probabilities(
    scores: Tensor, segments: Tensor, window: int, scale: float, softcap: float
) -> tuple[Tensor, Tensor]:
    """Softmax of scores [B, H, S, S] over what is allowed, in at least float32: probabilities, log-sum-exp [B, H, S]."""
    wide = _capped(scores.to(torch.promote_types(scores.dtype, torch.float32)) * scale, softcap)
    wide = torch.where(allowed(segments, window)[:, None], wide, float("-inf"))
    highest = wide.amax(-1, keepdim=True)
    raised = torch.exp(wide - highest)
    total = raised.sum(-1, keepdim=True)
    return (raised / total).to(scores.dtype), (highest + torch.log(total)).squeeze(-1)


def _score_gradient(
    scores: Tensor, dp: Tensor, lse: Tensor, delta: Tensor, segments: Tensor, window: int, scale: float, softcap: float
) -> tuple[Tensor, Tensor]:
    """Probabilities anew from the log-sum-exp, and the gradient of the scores, both in the type of `scores`."""
    wide = _capped(scores.to(lse.dtype) * scale, softcap)
    seen = allowed(segments, window)[:, None]
    p = torch.where(seen, torch.exp(wide - lse[..., None]), 0.0)
    ds = p * (dp.to(lse.dtype) - delta[..., None]) * scale
    if softcap:
        ds = ds * (1 - (wide / softcap).square())
    return p.to(scores.dtype), ds.to(scores.dtype)


def _dense_forward(
    q: Tensor, k: Tensor, v: Tensor, segments: Tensor, window: int, scale: float, softcap: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Holds the whole square of scores: the fastest for short sequences, quadratic in memory."""
    B, S, H, _ = q.shape
    G = k.shape[2]
    # In bfloat16 the scores are rounded before the softmax; flash keeps them in float32. Here that would take products of
    # float32 copies, for torch has none of bfloat16 into float32 on a CPU, at a third of the kernel's time ("copies" of
    # benchmarks/attention.py bounds it): more than a tenth of a step of the laptop job, for an error of 0.3% made 0.2%.
    scores = torch.bmm(_grouped(q, G), _grouped(k, G).mT).view(B, H, S, S)
    p, lse = _probabilities(scores, segments, window, scale, softcap)
    out = _ungrouped(torch.bmm(p.view(B * G, -1, S), _grouped(v, G)), q.shape, G)
    return out * (segments != 0)[:, :, None, None], lse


def _dense_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    segments: Tensor,
    window: int,
    scale: float,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the scores anew from what was kept, the log-sum-exp."""
    B, S, H, _ = q.shape
    G = k.shape[2]
    grad = grad * (segments != 0)[:, :, None, None]
    delta = (grad.to(lse.dtype) * out.to(lse.dtype)).sum(-1).transpose(1, 2)
    q_, k_, v_, grad_ = _grouped(q, G), _grouped(k, G), _grouped(v, G), _grouped(grad, G)
    scores = torch.bmm(q_, k_.mT).view(B, H, S, S)
    dp = torch.bmm(grad_, v_.mT).view(B, H, S, S)
    p, ds = _score_gradient(scores, dp, lse, delta, segments, window, scale, softcap)
    p, ds = p.view(B * G, -1, S), ds.view(B * G, -1, S)
    dq = _ungrouped(torch.bmm(ds, k_), q.shape, G)
    dk = _ungrouped(torch.bmm(ds.mT, q_), k.shape, G)
    dv = _ungrouped(torch.bmm(p.mT, grad_), v.shape, G)
    return dq, dk, dv


def borders(segments: Tensor) -> Tensor:
    """Where a document begins in the batch laid end to end, and its end: int32 [documents + 1]. Padding is a document."""
    first = torch.ones_like(segments, dtype=torch.bool)
    first[:, 1:] = segments[:, 1:] != segments[:, :-1]
    begins = first.flatten().nonzero().flatten()
    return torch.cat((begins, begins.new_tensor([segments.numel()]))).int()


_known = WeakTensorKeyDictionary()  # segments -> (their version when they were looked at, their borders)


def remember(segments: Tensor, offsets: Tensor) -> None:
    """Keep the borders of `segments`, both on one device: how many documents there are need not be asked of a GPU then."""
    _known[segments] = (torch_versions.version(segments), offsets)


def offsets(segments: Tensor) -> Tensor:
    """`borders`, found once for all layers, forward and backward: on a GPU the host waits for them, unless told before."""
    known: tuple[int, Tensor] | None = _known.get(segments)
    if known is not None and known[0] == torch_versions.version(segments):
        return known[1]
    found = borders(segments)  # never seen, or filled again in place
    remember(segments, found)
    return found


def _documents_forward(
    q: Tensor, k: Tensor, v: Tensor, segments: Tensor, window: int, scale: float
) -> tuple[Tensor, Tensor]:
    """The GPU's flash kernel for documents of any length laid end to end. Sees `device/capability.py` for where it ran."""
    out, lse, _, _ = torch_versions.flash_forward_cuda(
        q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), offsets(segments), q.shape[1], window, scale
    )
    out = out.view(q.shape) * (segments != 0)[:, :, None, None]
    return out, lse.view(q.shape[2], *q.shape[:2]).transpose(0, 1).contiguous()


def _documents_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    segments: Tensor, window: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grad = grad * (segments != 0)[:, :, None, None]
    flat_grad, flat_q, flat_k, flat_v, flat_out = (x.flatten(0, 1).contiguous() for x in (grad, q, k, v, out))
    rows = lse.transpose(0, 1).flatten(1).contiguous()
    state = torch.zeros(2, dtype=torch.uint64, device=q.device)  # the generator's: there is no dropout
    unused = torch.empty(0, dtype=torch.uint64, device=q.device)
    parts = torch_versions.flash_backward_cuda(
        flat_grad, flat_q, flat_k, flat_v, flat_out, rows, offsets(segments), q.shape[1], window, scale, state, unused
    )
    dq, dk, dv = (part.view(like.shape) for part, like in zip(parts, (q, k, v), strict=True))
    return dq, dk, dv


def choose(device: str, sequence: int, compiled: bool, kind: torch.dtype, capped: bool = False, size: int = 64) -> str:
    """The name of the kernel for sequences of `sequence` tokens of type `kind` on "cpu", "cuda" or "mps": of KERNELS.

    capped: scores are capped, which flash kernels cannot. size: of a head; the GPU's kernel takes multiples of 8 up to 256.
    """
    if capped:
        return "dense compiled" if compiled else "dense"
    fits = kind == torch.bfloat16 and size % 8 == 0 and size <= 256
    if device == "cuda" and fits and torch.backends.cuda.is_flash_attention_available():
        return "documents"
    if device != "cpu":
        return "dense compiled" if compiled else "dense"
    if sequence <= DENSE[str(kind).removeprefix("torch.")]:
        return "dense compiled" if compiled else "dense"
    return "loop"


KERNELS: dict[str, tuple[Forward, Backward]] = {
    "dense": (_dense_forward, _dense_backward),
    "dense compiled": (
        torch.compile(_dense_forward, dynamic=False, fullgraph=True),
        torch.compile(_dense_backward, dynamic=False, fullgraph=True),
    ),
    "loop": (documents.forward, documents.backward),
    "documents": (_documents_forward, _documents_backward),
}
