"""Recomputation keeps less and changes nothing: the same loss and gradients, bit for bit, eager and compiled."""

from __future__ import annotations

from typing import Any

import pytest

WHAT = [("block",), ("attention",), ("mlp",), ("norm",), ("attention", "norm")]


def decoder(what: tuple[str, ...], compiled: bool = False) -> Any:
    import torch

    from argosy.model.decoder import Decoder
    from argosy.model.weights import initialise
    from argosy.parallel import recompute
    from argosy.parallel.apply import compile_units
    from argosy.prove.options import job_of, plain

    job = job_of({**plain(), "layers": 2, "norm": "layer", "biases": True, "dropout": 0.2, "qk_norm": "head"})
    made = Decoder(job.model, seed=5, compute=torch.float64, master=torch.float64)
    made.prepare("cpu", 12, compiled)
    done = recompute.apply(made.blocks, what)
    assert done == 2 * sum({"block": 1, "attention": 1, "mlp": 1, "norm": 2}[part] for part in what)
    if compiled:
        compile_units(list(made.blocks))
    made.to_empty(device="cpu")
    initialise(made, 5)
    return made


def step(made: Any) -> tuple[Any, dict[str, Any], int]:
    """Loss, gradients, and the bytes that the forward pass kept for the backward pass."""
    import torch

    from argosy.prove.sample import batch_of
    from argosy.train.feed import tensors

    batch = tensors(batch_of(1, 4, 12, 32, packed=True), torch.device("cpu"))
    known = {parameter.untyped_storage().data_ptr() for parameter in made.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    made.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = made.loss(batch, 1024, torch.tensor(3))
    bytes_kept = sum(kept.values())
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in made.named_parameters()}, bytes_kept


@pytest.mark.parametrize("what", WHAT, ids="+".join)
def test_it_keeps_less_and_gives_the_same_bits(what: tuple[str, ...]) -> None:
    import torch

    loss, gradients, kept = step(decoder(()))
    again, others, less = step(decoder(what))
    assert torch.equal(loss, again)
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)
    assert less < kept * (0.5 if what == ("block",) else 1.0)


@pytest.mark.long
@pytest.mark.parametrize("what", [("block",), ("attention", "norm")], ids="+".join)
def test_compiled_it_gives_the_same_to_rounding(what: tuple[str, ...]) -> None:
    import torch

    loss, gradients, _ = step(decoder(what))
    again, others, _ = step(decoder(what, compiled=True))
    assert torch.allclose(loss, again, rtol=1e-12)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, others[name], rtol=1e-9, atol=1e-12), name


def test_names_stay() -> None:
    assert [name for name, _ in decoder(("block",)).named_parameters()] == [
        name for name, _ in decoder(()).named_parameters()
    ]
