"""Who gets which update, AdamW against torch's own, state under stable names, going on from a state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from argosy.device.shards import local
from argosy.errors import Refused
from argosy.job.schema import OptimSection
from argosy.optim.build import Optimizer, build
from argosy.prove.pool import Pool

HERE = str(Path(__file__))
SHAPES = {
    "embedding.weight": (11, 6),
    "positions.weight": (9, 6),
    "blocks.0.attention_norm.weight": (6,),
    "blocks.0.attention.query.weight": (6, 6),
    "blocks.0.attention.query.bias": (6,),
    "blocks.0.mlp.up.weight": (10, 6),
    "head.weight": (11, 6),
}


def parameters(kind: torch.dtype = torch.float64) -> dict[str, torch.nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=draw, dtype=torch.float64).to(kind))
        for name, shape in SHAPES.items()
    }


def section(**said: Any) -> OptimSection:
    return OptimSection(**{"lr": 0.01, "warmup": 0, "momentum": 0.95, "newton_schulz": 5, **said})


def give_gradients(to: dict[str, torch.nn.Parameter], step: int) -> None:
    draw = torch.Generator().manual_seed(100 + step)
    for parameter in to.values():
        parameter.grad = torch.randn(parameter.shape, generator=draw, dtype=torch.float64).to(parameter.dtype)


def test_who_gets_what() -> None:
    words = build(parameters().items(), section()).describe()
    assert words == {
        "embedding.weight": "adamw",
        "positions.weight": "adamw",
        "blocks.0.attention_norm.weight": "adamw",
        "blocks.0.attention.query.weight": "muon, decay",
        "blocks.0.attention.query.bias": "adamw",
        "blocks.0.mlp.up.weight": "muon, decay",
        "head.weight": "adamw, decay",
    }
    all_adamw = build(parameters().items(), section(name="adamw")).describe()
    assert all_adamw["blocks.0.mlp.up.weight"] == "adamw, decay" and "muon" not in str(all_adamw)


def test_adamw_is_the_formula() -> None:
    """Loshchilov and Hutter, 2019, algorithm 2, written out."""
    ours = parameters()
    optimizer = build(ours.items(), section(name="adamw", beta1=0.8, beta2=0.9, epsilon=1e-6, weight_decay=0.3))
    theirs = {name: p.detach().clone() for name, p in ours.items()}
    first = {name: torch.zeros_like(p) for name, p in theirs.items()}
    second = {name: torch.zeros_like(p) for name, p in theirs.items()}
    for step, rate in enumerate((0.5, 1.0, 0.25), 1):
        give_gradients(ours, step)
        for name, p in theirs.items():
            gradient = ours[name].grad * 0.7
            first[name] = 0.8 * first[name] + 0.2 * gradient
            second[name] = 0.9 * second[name] + 0.1 * gradient**2
            if p.ndim == 2 and not name.startswith(("embedding", "positions")):
                p -= 0.01 * rate * 0.3 * p
            root = (second[name] / (1 - 0.9**step)).sqrt()
            p -= 0.01 * rate * first[name] / (1 - 0.8**step) / (root + 1e-6)
        optimizer.step(rate, 0.7)
    for name, p in theirs.items():
        torch.testing.assert_close(ours[name].detach(), p, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(optimizer.named_state()[f"optim.{name}.second"], second[name])


def test_equals_torchs_adamw() -> None:
    ours, theirs = parameters(torch.float32), parameters(torch.float32)
    optimizer = build(ours.items(), section(name="adamw", weight_decay=0.0))
    judge = torch.optim.AdamW(theirs.values(), lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, foreach=False)
    for step in range(4):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        optimizer.step(1.0)
        judge.step()
    for name in SHAPES:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


def test_state_is_there_from_the_start_and_holds_everything() -> None:
    """A second optimizer that takes over tensors and scalars goes on as the first would have, bit for bit."""

    def run(steps: range, made: dict[str, torch.nn.Parameter], optimizer: Optimizer) -> None:
        for step in steps:
            give_gradients(made, step)
            optimizer.step(1.0)

    straight = parameters()
    run(range(6), straight, build(straight.items(), section()))

    before = parameters()
    half = build(before.items(), section())
    names = set(half.named_state())
    run(range(3), before, half)
    assert set(half.named_state()) == names >= {"optim.head.weight.first", "optim.blocks.0.mlp.up.weight.momentum"}

    after = parameters()
    rest = build(after.items(), section())
    with torch.no_grad():
        for name, parameter in after.items():
            parameter.copy_(before[name])
        for name, tensor in rest.named_state().items():
            tensor.copy_(half.named_state()[name])
    rest.load_scalars(half.scalars())
    run(range(3, 6), after, rest)
    assert rest.scalars() == {"updates": 6}
    assert all(torch.equal(after[name], straight[name]) for name in SHAPES)


def test_frozen_parameters_are_left() -> None:
    made = parameters()
    made["head.weight"].requires_grad_(False)
    optimizer = build(made.items(), section())
    assert "head.weight" not in optimizer.describe()
    give_gradients({n: p for n, p in made.items() if p.requires_grad}, 0)
    before = {name: parameter.detach().clone() for name, parameter in made.items()}
    optimizer.step(1.0)
    assert [name for name in made if torch.equal(made[name], before[name])] == ["head.weight"]


def test_a_rate_that_nobody_derived_is_refused() -> None:
    with pytest.raises(Refused, match=r"optim\.lr has no value"):
        build(parameters().items(), OptimSection())


def test_a_missing_gradient_of_muon_is_an_error() -> None:
    made = parameters()
    optimizer = build(made.items(), section())
    give_gradients(made, 0)
    made["blocks.0.mlp.up.weight"].grad = None
    with pytest.raises(RuntimeError, match=r"blocks\.0\.mlp\.up\.weight has no gradient"):
        optimizer.step(1.0)


def test_a_parameter_whose_memory_moves_is_still_the_one_that_is_updated() -> None:
    """A layout may pad shards when it first uses them."""
    still, moving = parameters(), parameters()
    optimizers = [build(made.items(), section(name="adamw")) for made in (still, moving)]
    for step in range(3):
        for made, optimizer in zip((still, moving), optimizers, strict=True):
            give_gradients(made, step)
            optimizer.step(1.0)
        for parameter in moving.values():
            parameter.data = parameter.data.clone()
    assert all(torch.equal(moving[name], still[name]) for name in SHAPES)


def on_two_meshes(rank: int, ranks: int, board: str, payload: Any) -> dict[str, Any]:
    """AdamW over parameters of two meshes, some of whose shards are empty, beside that of one process."""
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{board}", rank=rank, world_size=ranks)
    line, square = init_device_mesh("cpu", (ranks,)), init_device_mesh("cpu", (2, ranks // 2))
    ways = {
        "embedding.weight": (line, [Shard(0)]),
        "blocks.0.attention.query.weight": (square, [Replicate(), Shard(0)]),
        "blocks.0.mlp.up.weight": (square, [Shard(0), Shard(1)]),
        "head.weight": (line, [Shard(1)]),  # 6 columns over 4 ranks: the last one has none
    }

    def laid(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return distribute_tensor(tensor, *ways[name]) if name in ways else tensor.clone()

    alone = parameters()
    sharded = {name: torch.nn.Parameter(laid(name, parameter.detach())) for name, parameter in alone.items()}
    ours, theirs = (build(made.items(), section(name="adamw")) for made in (sharded, alone))
    for step in range(3):
        give_gradients(alone, step)
        for name, parameter in sharded.items():
            gradient = alone[name].grad
            assert gradient is not None
            parameter.grad = laid(name, gradient)
        if step == 1:  # one that is no update: of nothing, on no mesh
            before = [tensor.clone() for tensor in (*ours.own.values(), *map(local, ours.named_state().values()))]
            ours.step(0.5, 0.7, good=torch.tensor(False))
            ours.uncount()
            after = [*ours.own.values(), *map(local, ours.named_state().values())]
            assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
            continue
        ours.step(0.5, 0.7)
        theirs.step(0.5, 0.7)

    def off(one: torch.Tensor, other: torch.Tensor) -> float:
        return float(((one.full_tensor() if isinstance(one, DTensor) else one) - other).detach().abs().max())

    assert ours.inner is not None
    taken = [tensor for group in ours.inner.param_groups for tensor in group["params"]]
    found = {
        "weights": max(off(sharded[name], alone[name]) for name in SHAPES),
        "state": max(off(ours.named_state()[name], tensor) for name, tensor in theirs.named_state().items()),
        "sharded": [isinstance(tensor, DTensor) for tensor in taken].count(True),
        "kept": [tensor.grad is not None for tensor in taken].count(True),
    }
    dist.destroy_process_group()
    return found


def test_ranks_update_their_own_shards_and_nothing_is_said_of_sharded_tensors(pool: Pool) -> None:
    for found in pool.call(f"{HERE}:on_two_meshes", ranks=4):
        assert max(found["weights"], found["state"]) < 1e-12, found
        assert found["sharded"] == found["kept"] == 0
