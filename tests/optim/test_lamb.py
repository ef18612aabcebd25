"""LAMB against its formula; its trust ratios over whole tensors, however ranks share them; under real layouts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from argosy.job.schema import OptimSection
from argosy.optim.build import Optimizer, build
from argosy.optim.lamb import Lamb
from argosy.prove.options import Case, job_of, legal, plain, ranks_of
from argosy.prove.parity import Bench, Trial
from argosy.prove.pool import Pool

HERE = str(Path(__file__))
SHAPES = {
    "embedding.weight": (11, 6),
    "blocks.0.attention_norm.weight": (6,),
    "blocks.0.attention.query.weight": (6, 6),
    "blocks.0.attention.query.bias": (6,),
    "blocks.0.mlp.up.weight": (10, 6),
    "head.weight": (11, 6),
}
LAYERED = [name for name, shape in SHAPES.items() if len(shape) == 2]
DECAYED = [name for name in LAYERED if name != "embedding.weight"]


def numbers(seed: int, kind: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw, dtype=torch.float64).to(kind) for name, shape in SHAPES.items()}


def made(kind: torch.dtype = torch.float64) -> tuple[dict[str, torch.nn.Parameter], Optimizer]:
    parameters = {name: torch.nn.Parameter(value) for name, value in numbers(0, kind).items()}
    section = OptimSection(name="lamb", lr=0.01, weight_decay=0.3, beta1=0.8, beta2=0.9, epsilon=1e-6)
    return parameters, build(parameters.items(), section)


def descend(parameters: dict[str, torch.nn.Parameter], optimizer: Optimizer, steps: range, scale: float = 1.0) -> None:
    for step in steps:
        for name, gradient in numbers(100 + step).items():
            parameters[name].grad = gradient.to(parameters[name].dtype)
        optimizer.step(1.0, scale)


def test_who_gets_what() -> None:
    assert made()[1].describe() == {
        "embedding.weight": "lamb",
        "blocks.0.attention_norm.weight": "adamw",
        "blocks.0.attention.query.weight": "lamb, decay",
        "blocks.0.attention.query.bias": "adamw",
        "blocks.0.mlp.up.weight": "lamb, decay",
        "head.weight": "lamb, decay",
    }


def test_it_is_the_formula() -> None:
    """You et al., 2020, algorithm 2, written out; norms and biases without decay and without the ratio."""
    ours, optimizer = made()
    theirs = numbers(0)
    first = {name: torch.zeros_like(p) for name, p in theirs.items()}
    second = {name: torch.zeros_like(p) for name, p in theirs.items()}
    for step, rate in enumerate((0.5, 1.0, 0.25), 1):
        for name, gradient in numbers(100 + step).items():
            ours[name].grad = gradient.clone()
            gradient = gradient * 0.7
            first[name] = 0.8 * first[name] + 0.2 * gradient
            second[name] = 0.9 * second[name] + 0.1 * gradient**2
            change = first[name] / (1 - 0.8**step) / ((second[name] / (1 - 0.9**step)).sqrt() + 1e-6)
            change = change + (0.3 * theirs[name] if name in DECAYED else 0.0)
            ratio = theirs[name].norm() / change.norm() if name in LAYERED else 1.0
            theirs[name] = theirs[name] - 0.01 * rate * ratio * change
        optimizer.step(rate, 0.7)
    for name, wanted in theirs.items():
        torch.testing.assert_close(ours[name].detach(), wanted, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(optimizer.named_state()[f"optim.{name}.second"], second[name])


def test_a_step_is_a_share_of_every_weights_length() -> None:
    """Whatever its gradient: that is what LAMB is for."""
    parameters, optimizer = made()
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for number, (name, gradient) in enumerate(numbers(7).items()):
        parameters[name].grad = gradient * 10.0 ** (number - 3)
    optimizer.step(1.0)
    for name in LAYERED:
        moved = (parameters[name] - before[name]).norm() / before[name].norm()
        assert moved.item() == pytest.approx(0.01, rel=1e-9), name


def test_nothing_has_no_length_and_gets_the_plain_step() -> None:
    weights = {"zero": torch.nn.Parameter(torch.zeros(3, 2)), "still": torch.nn.Parameter(torch.ones(3, 2))}
    lamb = Lamb(
        weights, beta1=0.9, beta2=0.9, epsilon=1e-8, decay=dict.fromkeys(weights, 0.0), rates=dict.fromkeys(weights, 1.0)
    )  # fmt: skip
    weights["zero"].grad, weights["still"].grad = torch.ones(3, 2), torch.zeros(3, 2)
    lamb.step(0.1)
    torch.testing.assert_close(weights["zero"].detach(), torch.full((3, 2), -0.1))
    assert torch.equal(weights["still"].detach(), torch.ones(3, 2))


def test_a_step_that_is_not_good_changes_nothing() -> None:
    parameters, optimizer = made(torch.float32)
    descend(parameters, optimizer, range(2))
    straight = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    state = {name: tensor.clone() for name, tensor in optimizer.named_state().items()}
    for parameter in parameters.values():
        parameter.grad = torch.full_like(parameter, torch.nan)
    optimizer.step(1.0, 1.0, torch.tensor(False))
    optimizer.uncount()
    assert all(torch.equal(parameters[name], straight[name]) for name in SHAPES)
    assert all(torch.equal(tensor, state[name]) for name, tensor in optimizer.named_state().items())
    other, twin = made(torch.float32)  # and the one after it is what it would have been
    descend(other, twin, range(3))
    for name, gradient in numbers(102).items():
        parameters[name].grad = gradient.float()
    optimizer.step(1.0, 1.0, torch.tensor(True))
    for name in SHAPES:
        torch.testing.assert_close(parameters[name], other[name], rtol=1e-6, atol=1e-7)


def test_state_holds_everything() -> None:
    """A second optimizer that takes over tensors and scalars goes on as the first would have, bit for bit."""
    straight, whole = made()
    descend(straight, whole, range(6))
    before, half = made()
    names = set(half.named_state())
    descend(before, half, range(3))
    assert (
        set(half.named_state()) == names == {f"optim.{name}.{slot}" for name in SHAPES for slot in ("first", "second")}
    )
    after, rest = made()
    with torch.no_grad():
        for name, parameter in after.items():
            parameter.copy_(before[name])
        for name, tensor in rest.named_state().items():
            tensor.copy_(half.named_state()[name])
    rest.load_scalars(half.scalars())
    descend(after, rest, range(3, 6))
    assert all(torch.equal(after[name], straight[name]) for name in SHAPES)


def test_the_steps_of_all_weights_need_no_room_beside_the_gradients() -> None:
    parameters, optimizer = made()
    for name, gradient in numbers(100).items():
        parameters[name].grad = gradient
    lamb = optimizer.matrices
    assert isinstance(lamb, Lamb)
    lamb.count += 1
    for name, parameter in lamb.parameters.items():
        assert parameter.grad is not None
        assert lamb._update(name, None).data_ptr() == parameter.grad.data_ptr()


def test_a_missing_gradient_is_an_error() -> None:
    parameters, optimizer = made()
    descend(parameters, optimizer, range(1))
    parameters["head.weight"].grad = None
    with pytest.raises(RuntimeError, match=r"head\.weight has no gradient"):
        optimizer.step(1.0)


def on_a_rank(rank: int, ranks: int, board: str, payload: Any) -> dict[str, float]:
    """The largest difference of any parameter from one process's, by way of sharing."""
    import torch.distributed as dist
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{board}", rank=rank, world_size=ranks)
    group = dist.group.WORLD
    line, square = init_device_mesh("cpu", (ranks,)), init_device_mesh("cpu", (2, ranks // 2))
    ways: dict[str, Any] = {
        "replicated": lambda t: t,
        "sharded": lambda t: distribute_tensor(t, line, [Shard(0)]),
        "by columns": lambda t: distribute_tensor(t, line, [Shard(t.ndim - 1)]),
        "hybrid": lambda t: distribute_tensor(t, square, [Replicate(), Shard(0)]),
        "both ways": lambda t: distribute_tensor(t, square, [Shard(0), Shard(t.ndim - 1)]),
    }
    wanted, found = trained(None, lambda t: t), {}
    for way, wrap in ways.items():
        parameters = trained(group, wrap)
        whole = {n: p if way == "replicated" else p.full_tensor() for n, p in parameters.items()}
        found[way] = max(float((whole[name] - wanted[name]).detach().abs().max()) for name in LAYERED)
    with pytest.raises(ValueError, match="no group to sum their lengths over"):
        trained(None, ways["sharded"])
    dist.destroy_process_group()
    return found


def trained(group: Any, wrap: Any) -> dict[str, Any]:
    """All matrices after three updates of a bare Lamb."""
    start = numbers(0)
    parameters = {name: torch.nn.Parameter(wrap(start[name])) for name in LAYERED}
    decay = {name: 0.3 if name in DECAYED else 0.0 for name in LAYERED}
    rates = dict.fromkeys(LAYERED, 1.0)
    lamb = Lamb(parameters, beta1=0.8, beta2=0.9, epsilon=1e-6, decay=decay, rates=rates, group=group)
    for step in range(3):
        for name, gradient in numbers(100 + step).items():
            if name in LAYERED:
                parameters[name].grad = wrap(gradient)
        lamb.step(0.02)
    return parameters


def test_lengths_are_those_of_whole_tensors_on_any_mesh(pool: Pool) -> None:
    """Eleven rows and six columns over four ranks, or two by two: uneven in every way."""
    for found in pool.call(f"{HERE}:on_a_rank", ranks=4):
        assert len(found) == 5 and all(difference < 1e-12 for difference in found.values()), found


@pytest.fixture
def bench(pool: Pool) -> Iterator[Bench]:
    made = Bench(pool)
    yield made
    made.close()


@pytest.mark.parametrize(
    "more",
    [
        {"replicate": 2, "biases": True, "norm": "layer"},
        {"shard": 2, "zero": 3, "tied": True},
        {"tp": 2, "sequence": True, "qk_norm": "full", "positions": "learned"},
        {"pp": 2, "schedule": "1f1b", "tied": True},
        {"shard": 2, "zero": 2, "tp": 2, "mup": True},
    ],
    ids=str,
)
def test_three_steps_under_a_layout_are_those_of_the_reference(bench: Bench, more: Case) -> None:
    """The judge's LAMB shares no line with this one. A tied embedding has one length, though two stages hold it."""
    case = {**plain(), "layers": 2, "micros": 2, "packed": True, "clip": 0.05, "update": "lamb", **more}
    assert legal(case), more
    found = bench.try_(Trial(job_of(case), case["update"], case["packed"], ranks_of(case)))
    assert found.ok, found.wrong
