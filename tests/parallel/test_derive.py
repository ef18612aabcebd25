"""A tensor plan by two rules: three architectures that are not ours, on real ranks, every gradient as on one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from argosy.errors import Refused
from argosy.parallel.derive import INPUTS, OUTPUTS, derive
from argosy.prove.pool import Failed, Pool

HERE = str(Path(__file__))


def foreign(name: str) -> Any:
    """A small model of `name`, built from its configuration, in float64 and without dropout."""
    import torch

    torch.manual_seed(1)
    if name == "plain":
        return plain().double()
    import transformers

    common = {"attn_implementation": "eager", "vocab_size": 63}  # odd: the vocabulary need not divide
    if name == "t5":
        config: Any = transformers.T5Config(
            d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4, dropout_rate=0.0,
            feed_forward_proj="gated-gelu", decoder_start_token_id=0, **common,
        )  # fmt: skip
        return transformers.T5ForConditionalGeneration(config).double().eval()
    if name == "gptj":
        config = transformers.GPTJConfig(
            n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=32, bos_token_id=1, eos_token_id=1, **common
        )
        return transformers.GPTJForCausalLM(config).double().eval()
    config = transformers.Qwen3Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        **common,
    )  # fmt: skip
    return transformers.Qwen3ForCausalLM(config).double().eval()


def plain() -> Any:
    """Two blocks of plain torch with tied ends, called as the others are."""
    import types

    import torch
    from torch import nn

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.back, self.up = nn.Linear(10, 6), nn.Linear(6, 10)  # the last to run is made first

        def forward(self, x: Any) -> Any:
            return x + self.back(torch.tanh(self.up(x)))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.blocks = nn.Embedding(63, 6), nn.Sequential(Mixer(), Mixer())
            self.head = nn.Linear(6, 63, bias=False)
            self.head.weight = self.table.weight

        def forward(self, input_ids: Any, labels: Any, use_cache: bool = False) -> Any:
            logits = self.head(self.blocks(self.table(input_ids)))
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
            return types.SimpleNamespace(loss=loss)

    return Model()


def call(model: Any) -> Any:
    """One forward pass on fixed tokens."""
    import torch

    ids = torch.arange(24).view(2, 12) * 5 % 63
    return model(input_ids=ids, labels=ids, use_cache=False)


def compared(rank: int, ranks: int, board: str, name: str) -> dict[str, Any]:
    """Differences of loss and gradients from one process, bytes, and how many linear maps are cut."""
    from torch import nn
    from torch.distributed.tensor import DTensor

    from argosy.device.shards import whole
    from argosy.layout.layout import Layout
    from argosy.parallel.derive import derive, share
    from argosy.parallel.mesh import Meeting, joined

    alone, model = foreign(name), foreign(name)
    expected = call(alone).loss
    expected.backward()
    with joined(Layout(tp=ranks), rank, Meeting("derive/1", Path(board))) as mesh:
        grid = mesh.tensor()
        assert grid is not None
        shared = share(model, derive(model, call), grid)
        loss = call(model).loss
        shared.backward(loss)
        off = {}
        for (key, parameter), other in zip(model.named_parameters(), alone.parameters(), strict=True):
            assert parameter.grad is not None
            assert other.grad is not None
            off[key] = float((whole(parameter.grad) - other.grad).abs().max())
        linears = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
        cut = [weight for weight in linears if isinstance(weight, DTensor) and weight.placements[0].is_shard()]
    worst = max(off, key=lambda key: off[key])
    return {
        "loss": abs(float(loss.detach() - expected.detach())), "gradient": off[worst], "worst": worst,
        "whole": [len(linears), len(cut)], "bytes": [shared.bytes, shared.own],
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["plain", *(pytest.param(name, marks=pytest.mark.long) for name in ("t5", "gptj", "qwen3"))]
)
def test_every_linear_map_is_cut_and_every_gradient_equal(pool: Pool, name: str) -> None:
    for found in pool.call(f"{HERE}:compared", name, ranks=2, limit=600):
        assert max(found["loss"], found["gradient"]) < 1e-10, found
        assert found["whole"][0] == found["whole"][1] > 0
        assert found["bytes"][1] < 0.6 * found["bytes"][0]


def test_the_order_of_running_decides_not_names_nor_the_order_of_making() -> None:
    plan = derive(plain(), call)
    assert plan.parts["blocks.0"] == {"blocks.0.up": OUTPUTS, "blocks.0.back": INPUTS}
    assert plan.parts["head"] == {"head": OUTPUTS}
    assert plan.tables == ("table",)
    assert plan.lines()[-2:] == ["head: outputs", "table: rows"]


def test_a_model_without_linear_maps_is_refused() -> None:
    import torch

    with pytest.raises(Refused, match="no linear map"):
        derive(torch.nn.Embedding(3, 4), lambda model: model(torch.tensor([1])))


def too_many(rank: int, ranks: int, board: str, name: str) -> None:
    """Share over a number of ranks that does not divide the hidden units."""
    from argosy.layout.layout import Layout
    from argosy.parallel.derive import derive, share
    from argosy.parallel.mesh import Meeting, joined

    model = foreign(name)
    with joined(Layout(tp=ranks), rank, Meeting("derive/2", Path(board))) as mesh:
        grid = mesh.tensor()
        assert grid is not None
        share(model, derive(model, call), grid)


def test_sizes_that_do_not_divide_are_refused(pool: Pool) -> None:
    with pytest.raises(Failed, match=r"blocks\.0\.up: its 10 outputs do not divide by 3 ranks"):
        pool.call(f"{HERE}:too_many", "plain", ranks=3)
