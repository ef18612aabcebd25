"""Attention on a CPU one document at a time: torch's flash kernel over documents of equal length, all at once.

Arguments and results as in `kernels.py`. Nothing outside a document is computed, so this is linear in its neighbours' number
where the dense kernel is quadratic. Lengths are rounded up to `TILE`: oneDNN keeps one generated kernel per shape for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from argosy.device import torch_versions

TILE = 32  # sides of what the flash kernel sees are multiples of this
BAND = 256  # query rows of a tile under a sliding window


@dataclass(frozen=True)
class Tile:
    """Queries [begin, end) of row `row` and the keys from `first` on that they may see; `end` ends both."""

    row: int
    first: int
    begin: int
    end: int


@dataclass(frozen=True)
class Group:
    """`count` documents that are `length` tokens long when rounded up.

    places [count x length]: of their tokens in the batch laid end to end; beyond its end a document's last token is
    repeated, and `kept` names what is not such a repetition (None: all). whole: these are the batch itself, in its order.
    """

    count: int
    length: int
    places: Tensor
    kept: Tensor | None
    whole: bool

    def taken(self, x: Tensor, heads: int) -> Tensor:
        """The documents of x [B, S, G, K] as [count, heads, length, K]; a view where the group is the batch itself."""
        if not self.whole:
            x = x.flatten(0, 1).index_select(0, self.places).view(self.count, self.length, *x.shape[2:])
        if x.shape[2] != heads:
            x = x.repeat_interleave(heads // x.shape[2], 2)
        return x.transpose(1, 2)

    def put(self, part: Tensor, target: Tensor) -> None:
        """Write part [count, length, ...] to its places in target [B, S, ...]."""
        values = part.flatten(0, 1)
        places = self.places
        if self.kept is not None:
            places, values = places[self.kept], values[self.kept]
        target.view(-1, *target.shape[2:]).index_copy_(0, places, values)


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


def groups(documents: list[Tile], shape: torch.Size) -> Iterator[Group]:
    """Whole documents of segments of `shape` [B, S], by their length rounded up to TILE."""
    by_length: dict[int, list[Tile]] = {}
    for tile in documents:
        by_length.setdefault(-(-(tile.end - tile.begin) // TILE) * TILE, []).append(tile)
    for length, alike in by_length.items():
        begins = torch.tensor([tile.row * shape[1] + tile.begin for tile in alike])[:, None]
        lengths = torch.tensor([tile.end - tile.begin for tile in alike])[:, None]
        offsets = torch.arange(length)[None]
        kept = None if bool((lengths == length).all()) else (offsets < lengths).flatten().nonzero().flatten()
        places = (begins + torch.minimum(offsets, lengths - 1)).flatten()
        yield Group(len(alike), length, places, kept, kept is None and (len(alike), length) == tuple(shape))


class _Packing:
    """What to compute for the last segments seen: every layer of a step asks for the same, and reading them costs a copy."""

    segments: Tensor | None = None
    groups: list[Group]
    bands: list[Tile]

    def of(self, segments: Tensor, window: int) -> _Packing:
        """Itself, holding the groups and bands of `segments`; compared by content: a buffer may be filled in place."""
        known = self.segments
        if known is None or known.shape != segments.shape or not torch.equal(known, segments):
            self.segments = segments.clone()
            found = tiles(segments.tolist(), window)
            self.bands = [
                tile for tile in found if window and (tile.begin != tile.first or tile.end - tile.begin > window)
            ]
            banded = set(self.bands)
            self.groups = list(groups([tile for tile in found if tile not in banded], segments.shape))
        return self


_packings: dict[int, _Packing] = {}  # by window


def _packed(segments: Tensor, window: int) -> _Packing:
    return _packings.setdefault(window, _Packing()).of(segments, window)


def _cut(x: Tensor, row: int, begin: int, end: int, heads: int) -> Tensor:
    """Rows [begin, end) of sequence `row` as [1, heads, rounded up to TILE, K]; what is beyond is zero."""
    piece = x[row, begin:end].transpose(0, 1)
    if piece.shape[0] != heads:
        piece = piece.repeat_interleave(heads // piece.shape[0], 0)
    out = piece.new_zeros((1, heads, -(-(end - begin) // TILE) * TILE, x.shape[-1]))
    out[0, :, : end - begin] = piece
    return out


def _band_mask(tile: Tile, window: int, queries: int, keys: int, like: Tensor) -> Tensor:
    """What is added to a band's scores."""
    q = torch.arange(tile.begin, tile.begin + queries, device=like.device)[:, None]
    k = torch.arange(tile.first, tile.first + keys, device=like.device)[None, :]
    # Rows and keys beyond the tile's end are thrown away; rows there see themselves at least, so that none is empty.
    seen = (q - k >= 0) & (q - k < window) & ((k < tile.end) | (q >= tile.end))
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(~seen, float("-inf"))[None, None]


def forward(q: Tensor, k: Tensor, v: Tensor, segments: Tensor, window: int, scale: float) -> tuple[Tensor, Tensor]:
    """Out [B, S, H, K] and log-sum-exp [B, H, S]."""
    B, S, H, _ = q.shape
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    lse = torch.zeros((B, S, H), dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
    packing = _packed(segments, window)
    for group in packing.groups:
        taken_q, taken_k, taken_v = (group.taken(x, H) for x in (q, k, v))
        found, found_lse = torch_versions.flash_forward_cpu(taken_q, taken_k, taken_v, None, scale)
        if group.whole:
            return found.transpose(1, 2).contiguous(), found_lse.contiguous()
        group.put(found.transpose(1, 2), out)
        group.put(found_lse.transpose(1, 2), lse)
    for tile in packing.bands:
        row, first, begin, end = tile.row, tile.first, tile.begin, tile.end
        tile_q = _cut(q, row, begin, end, H)
        tile_k, tile_v = _cut(k, row, first, end, H), _cut(v, row, first, end, H)
        mask = _band_mask(tile, window, tile_q.shape[2], tile_k.shape[2], q)
        found, found_lse = torch_versions.flash_forward_cpu(tile_q, tile_k, tile_v, mask, scale)
        out[row, begin:end] = found[0, :, : end - begin].transpose(0, 1)
        lse[row, begin:end] = found_lse[0, :, : end - begin].T
    return out, lse.transpose(1, 2).contiguous()


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    segments: Tensor, window: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v."""
    packing = _packed(segments, window)
    if len(packing.groups) == 1 and packing.groups[0].whole:
        dq, dk, dv = _found_backward(packing.groups[0], grad, q, k, v, out, lse, scale)
        return dq.contiguous(), dk.contiguous(), dv.contiguous()
    gradients = tuple(torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    for group in packing.groups:
        for target, part in zip(gradients, _found_backward(group, grad, q, k, v, out, lse, scale), strict=True):
            group.put(part, target)  # before any band adds to them
    for tile in packing.bands:
        _band_backward(tile, grad, q, k, v, out, lse, window, scale, gradients)
    dq, dk, dv = gradients
    return dq, dk, dv


def _found_backward(
    group: Group, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> list[Tensor]:
    """Gradients of q, k and v of a group's documents, each [count, length, its own heads, K]."""
    H = q.shape[2]
    taken_grad = group.taken(grad, H)
    if group.kept is not None:  # a repeated last token must give nothing
        real = torch.zeros(group.count * group.length, dtype=grad.dtype, device=grad.device)
        taken_grad = taken_grad * real.index_fill_(0, group.kept, 1).view(group.count, 1, group.length, 1)
    taken_q, taken_k, taken_v, taken_out = (group.taken(x, H) for x in (q, k, v, out))
    taken_lse = group.taken(lse.transpose(1, 2)[..., None], H).squeeze(-1).contiguous()
    found = torch_versions.flash_backward_cpu(taken_grad, taken_q, taken_k, taken_v, taken_out, taken_lse, None, scale)
    spread = [part.transpose(1, 2) for part in found]
    return [
        part if heads == H else part.unflatten(2, (heads, H // heads)).sum(3)
        for part, heads in zip(spread, (H, k.shape[2], v.shape[2]), strict=True)
    ]


def _band_backward(
    tile: Tile, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    window: int, scale: float, gradients: tuple[Tensor, ...],
) -> None:  # fmt: skip
    """Add the gradients of a band, whose keys other bands may also see."""
    H, G = q.shape[2], k.shape[2]
    dq, dk, dv = gradients
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
