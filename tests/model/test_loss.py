"""The loss in chunks against torch's own, whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from argosy.model.loss import loss_sum


@pytest.mark.parametrize("chunk", [1, 7, 24, 1000])
@pytest.mark.parametrize("kind, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equals_the_whole_for_any_chunk(chunk: int, kind: torch.dtype, tolerance: float) -> None:
    draw = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 12, 8, generator=draw, dtype=kind).requires_grad_()
    weight = torch.randn(19, 8, generator=draw, dtype=kind).requires_grad_()
    labels = torch.randint(0, 19, (2, 12), generator=draw, dtype=torch.int32)
    weights = torch.rand(2, 12, generator=draw)
    weights[0, 3:5] = 0
    labels[0, 3], labels[0, 4] = -1, 4000  # of weight zero: may be anything
    found = loss_sum(hidden, weight, labels, weights, chunk)
    safe = labels.long().clamp(0, 18)
    each = F.cross_entropy((hidden @ weight.t()).flatten(0, 1), safe.flatten(), reduction="none")
    wanted = (each.double() * weights.flatten()).sum()
    assert found.dtype == torch.float64 and found.item() == pytest.approx(wanted.item(), rel=tolerance)
    ours = torch.autograd.grad(found / 3, (hidden, weight))
    theirs = torch.autograd.grad(wanted / 3, (hidden, weight))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_cap_and_a_z_loss_equal_autograd_of_the_formula(compiled: bool) -> None:
    draw = torch.Generator().manual_seed(3)
    hidden = torch.randn(24, 8, generator=draw, dtype=torch.float64).requires_grad_()
    weight = torch.randn(19, 8, generator=draw, dtype=torch.float64).requires_grad_()
    labels, weights = torch.randint(0, 19, (24,), generator=draw), torch.rand(24, generator=draw)
    found = loss_sum(hidden, weight, labels, weights, 7, compiled=compiled, softcap=2.5, z=0.1)
    capped = 2.5 * torch.tanh(hidden @ weight.t() / 2.5)
    likelihood = (weights * F.cross_entropy(capped, labels, reduction="none")).sum()
    assert found.item() == pytest.approx(likelihood.item(), rel=1e-12)
    ours = torch.autograd.grad(found, (hidden, weight))
    theirs = torch.autograd.grad(likelihood + 0.1 * (weights * capped.logsumexp(1).square()).sum(), (hidden, weight))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_without_gradients_none_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    from argosy.model import loss

    def refuse(*_: object) -> None:
        raise AssertionError("gradients were computed")

    monkeypatch.setattr(loss, "_loss_and_gradients", refuse)
    hidden, weight = torch.randn(6, 4), torch.randn(5, 4, requires_grad=True)
    with torch.no_grad():
        assert loss_sum(hidden, weight, torch.arange(6) % 5, torch.ones(6), 4) > 0
    with pytest.raises(AssertionError):
        loss_sum(hidden, weight, torch.arange(6) % 5, torch.ones(6), 4)


def test_all_chunks_are_of_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    from argosy.model import loss

    shapes, compute = [], loss._loss_and_gradients

    def watched(hidden: torch.Tensor, *rest: torch.Tensor) -> object:
        shapes.append(tuple(hidden.shape))
        return compute(hidden, *rest)

    monkeypatch.setattr(loss, "_loss_and_gradients", watched)
    hidden, weight = torch.randn(20, 4), torch.randn(5, 4, requires_grad=True)
    loss_sum(hidden, weight, torch.arange(20) % 5, torch.ones(20), 7)
    assert shapes == [(7, 4)] * 3


def test_logits_are_never_whole() -> None:
    """The largest tensor that the loss makes: a chunk of logits, not all."""
    from torch.utils._python_dispatch import TorchDispatchMode  # allowed: only this sees every tensor that is made

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    hidden, weight = torch.randn(512, 4, requires_grad=True), torch.randn(1000, 4, requires_grad=True)
    with Watch():
        loss_sum(hidden, weight, torch.zeros(512, dtype=torch.long), torch.ones(512), 32).backward()
    assert largest == 32 * 1000


def test_a_loss_that_is_not_finite_shows() -> None:
    hidden = torch.full((4, 2), float("nan"))
    assert loss_sum(hidden, torch.ones(3, 2), torch.zeros(4, dtype=torch.long), torch.ones(4)).isnan()


def test_a_bfloat16_weight_gets_the_gradient_of_its_wide_copy() -> None:
    """Sharded parallelism hands the head out in bfloat16, replicas keep it in float32: both sum their chunks alike."""
    draw = torch.Generator().manual_seed(2)
    hidden = torch.randn(256, 16, generator=draw).bfloat16()
    near = torch.randn(40, 16, generator=draw).bfloat16().requires_grad_()
    wide = near.detach().float().requires_grad_()
    labels, weights = torch.randint(0, 40, (256,), generator=draw), torch.ones(256)
    (one,) = torch.autograd.grad(loss_sum(hidden, near, labels, weights, 8), near)
    (other,) = torch.autograd.grad(loss_sum(hidden, wide, labels, weights, 8), wide)
    assert one.dtype == torch.bfloat16
    assert torch.equal(one, other.bfloat16())
