from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from argosy.job.schema import PrecisionSection
from argosy.model import precisions
from argosy.model.decoder import Decoder
from argosy.model.layers import Norm

LOUD = {"norm": "layer", "norm_bias": True, "qk_norm": "head", "tied": False, "qkv_bias": True, "mlp_bias": True}


def test_every_parameter_has_its_class(section: Any) -> None:
    named = dict(Decoder(section(**LOUD, positions="learned")).named_parameters())
    found: dict[str, set[str]] = {}
    for name in named:
        short = name.split(".", 2)[-1] if name.startswith("blocks.") else name
        found.setdefault(precisions.class_of(name), set()).add(short)
    assert set(found) == {*precisions.CLASSES, "matrix"}
    assert set(precisions.CLASSES) == set(PrecisionSection.model_fields)
    assert found["norm"] == {
        *(f"attention.{which}_norm.weight" for which in ("query", "key")),
        *(f"{which}_norm.{what}" for which in ("attention", "mlp") for what in ("weight", "bias")),
        "norm.weight",
        "norm.bias",
    }
    assert found["embedding"] == {"embedding.weight", "positions.weight"}
    assert found["head"] == {"head.weight"}


def in_types(decoder: Any, section: Any, compute: torch.dtype, **kinds: torch.dtype) -> Decoder:
    """A decoder with float32 weights that are not all alike, which computes in these types."""
    like = decoder(section, kind=torch.float32)
    made = Decoder(section, compute=compute, master=torch.float32, kinds=kinds)
    made.to_empty(device="cpu")
    made.load_state_dict(like.state_dict())
    return made


def test_embeddings_compute_in_their_type(section: Any, decoder: Any, batch: Any) -> None:
    given = batch(2, 12)
    model = section(positions="learned")
    found = in_types(decoder, model, torch.float32, embedding=torch.bfloat16)
    with torch.no_grad():
        x = found.embed(given.tokens, given.positions)
    tables = [table.weight.detach().bfloat16() for table in (found.embedding, found.positions) if table is not None]
    rounded = tables[0][given.tokens.long()] + tables[1][given.positions.long()]
    assert x.dtype == torch.float32
    assert torch.equal(x, rounded.float())
    wide = in_types(decoder, model, torch.float32)
    assert not torch.equal(x, wide.embed(given.tokens, given.positions))


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_computes_in_its_type(section: Any, decoder: Any, batch: Any, tied: bool) -> None:
    given, model = batch(2, 12), section(tied=tied)
    found = in_types(decoder, model, torch.bfloat16, head=torch.float32)
    with torch.no_grad():
        hidden = found(given.tokens, given.positions, given.segments)
        logits = found.logits(hidden)
        assert (hidden.dtype, logits.dtype) == (torch.bfloat16, torch.float32)
        assert torch.equal(logits, functional.linear(hidden.float(), found.head_weight))
        flat = functional.cross_entropy(logits.flatten(0, 1).double(), given.labels.flatten().long(), reduction="none")
        expected = (flat * given.weights.flatten()).sum()
        assert float(found.hidden_loss(hidden, given, 1024)) == pytest.approx(float(expected), rel=1e-6)
        rough = in_types(decoder, model, torch.bfloat16).hidden_loss(hidden, given, 1024)
        assert abs(float(rough) - float(expected)) > 1e-6 * float(expected)


def test_norms_compute_in_their_type() -> None:
    norm = Norm(4, "layer", 1e-5, True)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 1.001, 1.002, 1.003]))  # bfloat16 knows none of them but the first
        assert norm.bias is not None
        norm.bias.fill_(0.001)
    x = torch.tensor([[1.0, 2.0, 3.0, 5.0]])
    exact = functional.layer_norm(x.double(), (4,), norm.weight.double(), norm.bias.double(), 1e-5)
    for kind, close in ((torch.float64, 1e-8), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        norm.kind = kind
        made = norm(x.to(torch.float64 if kind == torch.float64 else torch.float32)).double()
        off = float((made - exact).abs().max().detach())
        assert off < close
        assert kind != torch.bfloat16 or off > 1e-3
    norm.kind = None
    assert float((norm(x).double() - exact).abs().max().detach()) < 1e-6


def test_gradients_reach_the_weights_in_their_own_type(section: Any, decoder: Any, batch: Any) -> None:
    found = in_types(decoder, section(**LOUD), torch.bfloat16, head=torch.float32, norm=torch.float32)
    found.loss(batch(2, 12)).backward()
    assert {parameter.grad.dtype for parameter in found.parameters() if parameter.grad is not None} == {torch.float32}
    assert all(parameter.grad is not None for parameter in found.parameters())
