"""Muon against torch's own and against what it promises; shared out over ranks, plain and sharded."""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch

from argosy.optim.muon import Muon, orthogonalise, owners
from argosy.prove.pool import Pool

HERE = str(Path(__file__))
SHAPES = {"a": (8, 8), "b": (8, 8), "c": (12, 5), "d": (5, 12), "e": (7, 3)}


def matrices(seed: int, kind: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw, dtype=torch.float64).to(kind) for name, shape in SHAPES.items()}


def trained(steps: int, group: Any = None, wrap: Any = None) -> tuple[Muon, dict[str, torch.Tensor]]:
    """A Muon after `steps` seeded gradients; `wrap` shards a tensor."""
    wrap = wrap or (lambda name, tensor: tensor)
    parameters = {name: torch.nn.Parameter(wrap(name, tensor)) for name, tensor in matrices(0).items()}
    muon = Muon(parameters, momentum=0.9, iterations=5, weight_decay=0.1, kind=torch.float64, group=group)
    for step in range(steps):
        for name, gradient in matrices(step + 1).items():
            parameters[name].grad = wrap(name, gradient)
        muon.step(0.02)
    return muon, parameters


@pytest.mark.parametrize("shape", [(3, 6, 6), (1, 4, 9), (2, 9, 4)])
def test_singular_values_end_near_one(shape: tuple[int, int, int]) -> None:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    singular = torch.linalg.svdvals(orthogonalise(made, 8))
    assert singular.shape[-1] == min(shape[1:]) and (singular > 0.6).all() and (singular < 1.3).all()
    # The directions stay: U' X V is diagonal and positive.
    u, _, vh = torch.linalg.svd(made, full_matrices=False)
    turned = u.mT @ orthogonalise(made, 8) @ vh.mT
    off = turned - torch.diag_embed(turned.diagonal(dim1=1, dim2=2))
    assert off.abs().max() < 1e-9 and (turned.diagonal(dim1=1, dim2=2) > 0).all()


def test_a_batch_equals_its_matrices_and_zero_stays_zero() -> None:
    made = torch.randn((3, 5, 7), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    together = orthogonalise(made, 5)
    for one, matrix in zip(together, made, strict=True):
        torch.testing.assert_close(one, orthogonalise(matrix[None], 5)[0], rtol=1e-12, atol=1e-14)
    assert torch.equal(orthogonalise(torch.zeros(1, 4, 4), 5), torch.zeros(1, 4, 4))


def test_equals_torchs_muon() -> None:
    """In bfloat16, as torch's iterations are; its updates differ from ours by roundings only."""
    ours = {name: torch.nn.Parameter(m.float()) for name, m in matrices(0).items()}
    theirs = {name: torch.nn.Parameter(m.float()) for name, m in matrices(0).items()}
    muon = Muon(ours, momentum=0.9, iterations=5, weight_decay=0.1, kind=torch.bfloat16)
    judge = torch.optim.Muon(
        theirs.values(), lr=0.02, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw", ns_steps=5
    )
    for step in range(3):
        for name, gradient in matrices(step + 1, torch.float32).items():
            ours[name].grad, theirs[name].grad = gradient, gradient.clone()
        muon.step(0.02)
        judge.step()
        for name, momentum in muon.state.items():
            torch.testing.assert_close(momentum, judge.state[theirs[name]]["momentum_buffer"])
    start = matrices(0, torch.float32)
    for name in SHAPES:
        moved = (theirs[name] - start[name]).norm()
        assert (ours[name] - theirs[name]).norm() < 0.03 * moved, name


def test_one_step_is_the_formula() -> None:
    muon, parameters = trained(1)
    gradient = matrices(1)["c"]
    momentum = 0.1 * gradient
    look_ahead = 0.1 * gradient + 0.9 * momentum
    wanted = matrices(0)["c"] * (1 - 0.02 * 0.1)
    wanted -= 0.02 * 0.2 * sqrt(12) * orthogonalise(look_ahead[None], 5)[0]
    torch.testing.assert_close(parameters["c"].detach(), wanted, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(muon.state["c"], momentum, rtol=1e-12, atol=1e-14)


def test_a_missing_gradient_is_an_error() -> None:
    muon, parameters = trained(1)
    parameters["d"].grad = None
    with pytest.raises(RuntimeError, match="d has no gradient"):
        muon.step(0.1)


def test_the_work_is_shared_evenly() -> None:
    shapes = [torch.Size((64, 64))] * 7 + [torch.Size((64, 192))] * 4 + [torch.Size((192, 64))] * 2
    found = owners(shapes, 3)
    cost = [0, 0, 0]
    for shape, owner in zip(shapes, found, strict=True):
        cost[owner] += 2 * min(shape) ** 2 * max(shape) + min(shape) ** 3
    assert max(cost) < 1.35 * min(cost)
    assert owners(shapes, 1) == [0] * len(shapes)


def on_a_rank(rank: int, ranks: int, board: str, payload: Any) -> dict[str, float]:
    """The largest difference of any parameter from one process's, by way of sharing."""
    import torch.distributed as dist
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{board}", rank=rank, world_size=ranks)
    group = dist.group.WORLD
    line = init_device_mesh("cpu", (ranks,))
    square = init_device_mesh("cpu", (2, ranks // 2))
    ways: dict[str, tuple[Any, Any]] = {
        "replicated": (group, None),
        "sharded": (group, lambda name, t: distribute_tensor(t, line, [Shard(0)])),
        "sharded alone": (None, lambda name, t: distribute_tensor(t, line, [Shard(0)])),
        "hybrid": (group, lambda name, t: distribute_tensor(t, square, [Replicate(), Shard(0)])),
    }
    _, wanted = trained(3)
    found = {}
    for way, (over, wrap) in ways.items():
        muon, parameters = trained(3, over, wrap)
        whole = {name: p.full_tensor() if wrap else p for name, p in parameters.items()}
        found[way] = max(float((whole[name] - wanted[name]).detach().abs().max()) for name in SHAPES)
        state = muon.state["e"]
        assert state.shape == (7, 3) and (not wrap or state.to_local().shape == parameters["e"].to_local().shape)
    dist.destroy_process_group()
    return found


def test_ranks_that_share_the_work_equal_one(pool: Pool) -> None:
    """Five matrices over four ranks, 7 and 5 rows over four shards: uneven in every way."""
    for found in pool.call(f"{HERE}:on_a_rank", ranks=4):
        assert set(found) == {"replicated", "sharded", "sharded alone", "hybrid"}
        assert all(difference < 1e-12 for difference in found.values()), found
