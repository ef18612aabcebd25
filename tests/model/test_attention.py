"""The operator: every kernel against the formula in float64, padding, grouped heads, windows, and what compile sees."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from argosy.device import torch_versions
from argosy.model.attention import attention
from argosy.model.documents import BAND

EAGER = ("dense", "loop")


def by_formula(q: Tensor, k: Tensor, v: Tensor, segments: Tensor, window: int) -> Tensor:
    """Attention of one query at a time."""
    out = torch.zeros_like(q)
    share = q.shape[2] // k.shape[2]
    for row, place in itertools.product(range(q.shape[0]), range(q.shape[1])):
        if segments[row, place] == 0:
            continue
        first = max(0, place - window + 1) if window else 0
        seen = [o for o in range(first, place + 1) if segments[row, o] == segments[row, place]]
        for head in range(q.shape[2]):
            keys, values = k[row, seen, head // share], v[row, seen, head // share]
            weights = torch.softmax(keys @ q[row, place, head] / q.shape[-1] ** 0.5, 0)
            out[row, place, head] = weights @ values
    return out


def given(length: int, heads: int, groups: int, size: int = 8, rows: int = 2) -> tuple[list[Tensor], Tensor, Tensor]:
    draw = torch.Generator().manual_seed(length + heads)
    qkv = [
        torch.randn(rows, length, n, size, generator=draw, dtype=torch.float64).requires_grad_()
        for n in (heads, groups, groups)
    ]
    borders = torch.rand(rows, length, generator=draw) < 3 / length
    segments = (borders.cumsum(1) + 1).int()
    segments[0, -3:] = 0
    return qkv, segments, torch.randn(rows, length, heads, size, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize(
    "length, heads, groups, window", [(21, 4, 4, 0), (33, 4, 2, 0), (40, 4, 1, 5), (BAND + 40, 1, 1, 30)]
)
def test_kernels_equal_the_formula(length: int, heads: int, groups: int, window: int) -> None:
    qkv, segments, grad = given(length, heads, groups, rows=2 if length < BAND else 1)
    wanted = by_formula(*qkv, segments, window)
    wanted_gradients = torch.autograd.grad(wanted, qkv, grad)
    for kernel in EAGER:
        found = attention(*qkv, segments, window, kernel)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
        for ours, theirs in zip(torch.autograd.grad(found, qkv, grad), wanted_gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_capped_scores_equal_autograd_of_the_formula() -> None:
    qkv, segments, grad = given(24, 4, 2)
    scores = torch.einsum("bqhk,bshk->bhqs", qkv[0], qkv[1].repeat_interleave(2, 2)) / 8**0.5
    near = torch.ones(24, 24, dtype=torch.bool).tril().triu(-4)
    seen = near & (segments[:, None, :, None] == segments[:, None, None, :])
    chances = torch.where(seen, 1.5 * torch.tanh(scores / 1.5), float("-inf")).softmax(-1)
    wanted = torch.einsum("bhqs,bshk->bqhk", chances, qkv[2].repeat_interleave(2, 2)) * (segments != 0)[..., None, None]
    found = attention(*qkv, segments, 5, "dense", 1.5)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(found, qkv, grad), torch.autograd.grad(wanted, qkv, grad), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)
    assert not torch.allclose(found, attention(*qkv, segments, 5, "dense"))


@pytest.mark.parametrize("kernel", EAGER)
def test_padding_gives_zeros_and_takes_no_gradient(kernel: str) -> None:
    qkv, segments, grad = given(24, 2, 2)
    segments[1] = 0  # a whole row
    empty = segments == 0
    found = attention(*qkv, segments, 0, kernel)
    assert torch.equal(found[empty], torch.zeros_like(found[empty]))
    for part in torch.autograd.grad(found, qkv, grad):
        assert torch.equal(part[empty], torch.zeros_like(part[empty]))
        assert part[~empty].abs().min() > 0 or part[~empty].abs().sum() > 0


@pytest.mark.parametrize("kernel", EAGER)
@pytest.mark.parametrize("kind, tolerance", [(torch.float32, 2e-5), (torch.bfloat16, 6e-2)])
def test_narrow_types_stay_near_float64(kernel: str, kind: torch.dtype, tolerance: float) -> None:
    qkv, segments, grad = given(70, 4, 2, size=16)
    wide = attention(*qkv, segments, 0, "dense")
    narrow = [x.detach().to(kind).requires_grad_() for x in qkv]
    found = attention(*narrow, segments, 0, kernel)
    assert found.dtype == kind
    torch.testing.assert_close(found.double(), wide, rtol=0, atol=tolerance)
    pairs = zip(torch.autograd.grad(found, narrow, grad.to(kind)), torch.autograd.grad(wide, qkv, grad), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=2 * tolerance)


def test_segments_filled_again_in_place_are_read_again() -> None:
    qkv, segments, _ = given(24, 2, 2)
    before = attention(*qkv, segments, 0, "loop")
    segments.fill_(1)
    assert not torch.equal(attention(*qkv, segments, 0, "loop"), before)
    torch.testing.assert_close(
        attention(*qkv, segments, 0, "loop"), attention(*qkv, segments, 0, "dense"), rtol=0, atol=1e-12
    )


@pytest.mark.long
def test_the_operator_is_registered_rightly() -> None:
    (q, k, v), segments, _ = given(16, 4, 2)
    for name in EAGER:
        torch.library.opcheck(torch.ops.argosy.attention.default, (q, k, v, segments, 3, 0.4, name))


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kernel, frames", [("dense compiled", 5), ("loop", 2)])
def test_compiled_once_for_two_hundred_packings(kernel: str, frames: int, section, decoder, batch) -> None:
    """A frame per shape of block, and none after the first step; to run eager would be an error.

    Under "dense compiled" the loss has one, the kernel's backward one and its forward up to two: the tensors of the
    first call, straight from compiling, may carry another set of dispatch keys (the second is a hit in the cache).
    """
    torch_versions.forget_compiled()
    torch_versions.compile_strictly()
    pattern = [] if kernel == "dense compiled" else [{}, {"window": 5}]
    ours = decoder(section(layers=4, pattern=pattern), torch.float32)
    for block in ours.blocks:
        block.attention.kernel = kernel
        block.forward = torch.compile(block.forward, dynamic=False, fullgraph=True)
    ours.compile_loss = kernel == "dense compiled"
    counts = []
    for seed in range(200):
        ours.loss(batch(2, 24, seed=seed), 48).backward()
        counts.append(torch_versions.compiled_frames())
    assert counts[0] == counts[-1] <= frames
    assert counts[0] >= 2
    torch_versions.forget_compiled()


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kernel", ["dense compiled"])
def test_compiled_equals_eager(kernel: str, section, decoder, batch) -> None:
    torch_versions.forget_compiled()
    given_batch = batch(2, 24)
    eager, compiled = (decoder(section(kv_heads=2, qk_norm="head", dropout=0.3)) for _ in range(2))
    for block in compiled.blocks:
        block.attention.kernel = kernel
        block.forward = torch.compile(block.forward, dynamic=False, fullgraph=True)
    compiled.compile_loss = True
    losses = [model.loss(given_batch, 16, torch.tensor(3)) for model in (eager, compiled)]
    for loss in losses:
        loss.backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-12)
    for one, other in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-12)
    torch_versions.forget_compiled()
