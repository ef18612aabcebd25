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
Backward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int, float], tuple[Tensor, Tensor, Tensor]]

TILE = 32  # sides of loop tiles are multiples of this: oneDNN keeps one generated kernel per shape for ever
BAND = 256  # query rows of a tile under a sliding window


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


def _dense_forward(
    q: Tensor, k: Tensor, v: Tensor, segments: Tensor, window: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Holds the whole square of scores: the fastest for short sequences, quadratic in memory."""
    B, S, H, _ = q.shape
    G = k.shape[2]
    scores = torch.bmm(_grouped(q, G), _grouped(k, G).mT).view(B, H, S, S)
    p, lse = _probabilities(scores, segments, window, scale)
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the scores anew from what was kept, the log-sum-exp."""
    B, S, H, _ = q.shape
    G = k.shape[2]
    grad = grad * (segments != 0)[:, :, None, None]
    delta = (grad.to(lse.dtype) * out.to(lse.dtype)).sum(-1).transpose(1, 2)
    q_, k_, v_, grad_ = _grouped(q, G), _grouped(k, G), _grouped(v, G), _grouped(grad, G)
    scores = torch.bmm(q_, k_.mT).view(B, H, S, S)
    dp = torch.bmm(grad_, v_.mT).view(B, H, S, S)
    p, ds = _score_gradient(scores, dp, lse, delta, segments, window, scale)
    p, ds = p.view(B * G, -1, S), ds.view(B * G, -1, S)
    dq = _ungrouped(torch.bmm(ds, k_), q.shape, G)
    dk = _ungrouped(torch.bmm(ds.mT, q_), k.shape, G)
    dv = _ungrouped(torch.bmm(p.mT, grad_), v.shape, G)
    return dq, dk, dv


@dataclass(frozen=True)
class Tile:
    """Queries [begin, end) of row `row` and the keys from `first` on that they may see; `end` ends both."""

    row: int
    first: int
    begin: int
    end: int


def tiles(segments: list[list[int]], window: int) -> list[Tile]:
    """The squares and bands that hold everything that is allowed; padding is in none."""
    found = []
    for row, numbers in enumerate(segments):
        begin = 0
        for place in range(1, len(numbers) + 1):
            if place < len(numbers) and numbers[place] == numbers[begin]:
                continue
            if numbers[begin]:
                found += _bands(row, begin, place, window)
            begin = place
    return found


def _bands(row: int, begin: int, end: int, window: int) -> list[Tile]:
    """One document's tiles: itself, or under a window shorter than it bands of queries with the keys they reach."""
    if not window or window >= end - begin:
        return [Tile(row, begin, begin, end)]
    starts = range(begin, end, BAND)
    return [Tile(row, max(begin, start - window + 1), start, min(start + BAND, end)) for start in starts]


class _Packing:
    """The tiles of the last segments seen: every layer of a step asks for the same, and reading them costs a copy."""

    segments: Tensor | None = None
    window = -1
    found: list[Tile]

    def tiles(self, segments: Tensor, window: int) -> list[Tile]:
        """The tiles of `segments`; compared by content, because a buffer may be filled again in place."""
        known = self.segments
        if known is None or self.window != window or known.shape != segments.shape or not torch.equal(known, segments):
            self.segments, self.window = segments.clone(), window
            self.found = tiles(segments.tolist(), window)
        return self.found


_packings: dict[int, _Packing] = {}  # by window


def _packed(segments: Tensor, window: int) -> list[Tile]:
    return _packings.setdefault(window, _Packing()).tiles(segments, window)


def _cut(x: Tensor, row: int, begin: int, end: int, heads: int) -> Tensor:
    """Rows [begin, end) of sequence `row` as [1, heads, rounded up to TILE, K]; what is beyond is zero."""
    piece = x[row, begin:end].transpose(0, 1)
    if piece.shape[0] != heads:
        piece = piece.repeat_interleave(heads // piece.shape[0], 0)
    out = piece.new_zeros((1, heads, -(-(end - begin) // TILE) * TILE, x.shape[-1]))
    out[0, :, : end - begin] = piece
    return out


def _band_mask(tile: Tile, window: int, queries: int, keys: int, like: Tensor) -> Tensor | None:
    """What is added to a band's scores; None where the tile is plainly causal."""
    if tile.first == tile.begin and not (window and window < tile.end - tile.begin):
        return None
    q = torch.arange(tile.begin, tile.begin + queries, device=like.device)[:, None]
    k = torch.arange(tile.first, tile.first + keys, device=like.device)[None, :]
    # Rows and keys beyond the tile's end are thrown away; rows there see themselves at least, so that none is empty.
    seen = (q - k >= 0) & (q - k < window) & ((k < tile.end) | (q >= tile.end))
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(~seen, float("-inf"))[None, None]


def _loop_forward(
    q: Tensor, k: Tensor, v: Tensor, segments: Tensor, window: int, scale: float
) -> tuple[Tensor, Tensor]:
    B, S, H, _ = q.shape
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    lse = torch.zeros((B, H, S), dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
    for tile in _packed(segments, window):
        row, first, begin, end = tile.row, tile.first, tile.begin, tile.end
        tile_q = _cut(q, row, begin, end, H)
        tile_k, tile_v = _cut(k, row, first, end, H), _cut(v, row, first, end, H)
        mask = _band_mask(tile, window, tile_q.shape[2], tile_k.shape[2], q)
        found, found_lse = torch_versions.flash_forward_cpu(tile_q, tile_k, tile_v, mask, scale)
        out[row, begin:end] = found[0, :, : end - begin].transpose(0, 1)
        lse[row, :, begin:end] = found_lse[0, :, : end - begin]
    return out, lse


def _loop_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    segments: Tensor, window: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    H, G = q.shape[2], k.shape[2]
    dq = torch.zeros_like(q, memory_format=torch.contiguous_format)
    dk = torch.zeros_like(k, memory_format=torch.contiguous_format)
    dv = torch.zeros_like(v, memory_format=torch.contiguous_format)
    for tile in _packed(segments, window):
        row, first, begin, end = tile.row, tile.first, tile.begin, tile.end
        tile_q, tile_out, tile_grad = (_cut(x, row, begin, end, H) for x in (q, out, grad))
        tile_k, tile_v = _cut(k, row, first, end, H), _cut(v, row, first, end, H)
        tile_lse = lse.new_zeros((1, H, tile_q.shape[2]))
        tile_lse[0, :, : end - begin] = lse[row, :, begin:end]
        mask = _band_mask(tile, window, tile_q.shape[2], tile_k.shape[2], q)
        found = torch_versions.flash_backward_cpu(tile_grad, tile_q, tile_k, tile_v, tile_out, tile_lse, mask, scale)
        dq[row, begin:end] = found[0][0, :, : end - begin].transpose(0, 1)
        for target, part in ((dk, found[1]), (dv, found[2])):
            heads = part[0, :, : end - first].view(G, H // G, end - first, -1).sum(1)
            target[row, first:end] += heads.transpose(0, 1)
    return dq, dk, dv


def _offsets(segments: Tensor) -> Tensor:
    """Where a document begins in the batch laid end to end, and its end: int32 [documents + 1]. Padding is a document."""
    borders = torch.ones_like(segments, dtype=torch.bool)
    borders[:, 1:] = segments[:, 1:] != segments[:, :-1]
    begins = borders.flatten().nonzero().flatten()
    return torch.cat((begins, begins.new_tensor([segments.numel()]))).int()


def _documents_forward(
    q: Tensor, k: Tensor, v: Tensor, segments: Tensor, window: int, scale: float
) -> tuple[Tensor, Tensor]:
    """The GPU's flash kernel for documents of any length laid end to end. Sees `device/capability.py` for where it ran."""
    out, lse, _, _ = torch_versions.flash_forward_cuda(
        q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), _offsets(segments), q.shape[1], window, scale
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
        flat_grad, flat_q, flat_k, flat_v, flat_out, rows, _offsets(segments), q.shape[1], window, scale, state, unused
    )
    dq, dk, dv = (part.view(like.shape) for part, like in zip(parts, (q, k, v), strict=True))
    return dq, dk, dv


DENSE_LIMIT = 512  # sequences up to here hold their scores whole: twice as fast as flash there, and still small


def choose(device: str, sequence: int, compiled: bool, kind: torch.dtype) -> str:
    """The name of the kernel for sequences of `sequence` tokens of type `kind` on "cpu", "cuda" or "mps": of KERNELS."""
    if device == "cuda" and kind == torch.bfloat16 and torch.backends.cuda.is_flash_attention_available():
        return "documents"
    if device != "cpu":
        return "dense compiled" if compiled else "dense"
    if sequence <= DENSE_LIMIT:
        return "dense compiled" if compiled else "dense"
    return "loop"


KERNELS: dict[str, tuple[Forward, Backward]] = {
    "dense": (_dense_forward, _dense_backward),
    "dense compiled": (
        torch.compile(_dense_forward, dynamic=False, fullgraph=True),
        torch.compile(_dense_backward, dynamic=False, fullgraph=True),
    ),
    "loop": (_loop_forward, _loop_backward),
    "documents": (_documents_forward, _documents_backward),
}
