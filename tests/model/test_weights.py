"""First weights: any slice alone equals the whole; the spread is what the docstring says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from argosy.model.weights import normals, spread
from argosy.prove.pool import Pool
from argosy.random import key

HERE = str(Path(__file__))


def test_slices_equal_the_whole_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("argosy.model.weights.PIECE", 7)
    shape = torch.Size((5, 6, 7))
    stream = key(1, "weights", "a")
    whole = normals(stream, [range(5), range(6), range(7)], shape)
    for held in ([range(2, 4), range(6), range(7)], [range(5), range(5, 6), range(1, 3)], [range(3, 3)] * 3):
        index = tuple(slice(r.start, r.stop) for r in held)
        assert torch.equal(normals(stream, held, shape), whole[index])


def test_normals_are_normal() -> None:
    drawn = normals(key(3, "weights", "b"), [range(300), range(400)], torch.Size((300, 400)))
    assert abs(drawn.mean()) < 0.02 and abs(drawn.std() - 1) < 0.01
    assert drawn.isfinite().all() and abs((drawn.abs() < 1).double().mean() - 0.6827) < 0.01


def test_spreads(section, decoder) -> None:
    from argosy.model.decoder import Decoder
    from argosy.model.weights import initialise

    ours = Decoder(section(width=64, vocabulary=300, norm="layer", norm_bias=True, mlp_bias=True, tied=False))
    ours.to_empty(device="cpu")
    initialise(ours, 1)
    small = math.sqrt(2 / (5 * 64))
    wanted = {"embedding": 0.02, "query": small, "gate": small, "output": small / 2, "down": small / 2, "head": small}
    for name, parameter in ours.named_parameters():
        if name.endswith(".bias") or "norm." in name:
            assert spread(ours, name) is None
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith(".weight"))))
        else:
            expected = next((w for part, w in wanted.items() if part in name), small)
            assert spread(ours, name) == pytest.approx(expected)
            assert parameter.std().item() == pytest.approx(expected, rel=0.1), name


def test_another_seed_and_another_name_are_other_numbers(section) -> None:
    from argosy.model.decoder import Decoder
    from argosy.model.weights import initialise

    made = []
    for seed in (1, 1, 2):
        ours = Decoder(section())
        ours.to_empty(device="cpu")
        initialise(ours, seed)
        made.append(dict(ours.named_parameters()))
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert not torch.equal(made[0]["embedding.weight"], made[2]["embedding.weight"])
    assert not torch.equal(made[0]["blocks.0.mlp.up.weight"], made[0]["blocks.1.mlp.up.weight"])


def on_a_rank(rank: int, ranks: int, board: str, payload: Any) -> list[bool]:
    """Whether each parameter's shard equals its box of the whole, on a mesh of `ranks`, in several placements."""
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

    from argosy.device.shards import box, local, slices
    from argosy.job.schema import BlockSection, ModelSection
    from argosy.model.decoder import Decoder
    from argosy.model.weights import initialise

    dist.init_process_group("gloo", init_method=f"file://{board}", rank=rank, world_size=ranks)
    section = ModelSection(**{**payload, "block": BlockSection(**payload["block"])})
    whole, sharded = Decoder(section), Decoder(section)
    whole.to_empty(device="cpu")
    sharded.to_empty(device="cpu")
    initialise(whole, 4)
    line = init_device_mesh("cpu", (ranks,), mesh_dim_names=("dp_shard",))
    square = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("dp_replicate", "dp_shard"))
    choices = [(line, [Shard(0)]), (square, [Replicate(), Shard(0)]), (square, [Shard(0), Shard(0)])]
    for module in sharded.modules():
        for number, (name, parameter) in enumerate(list(module.named_parameters(recurse=False))):
            mesh, placements = choices[(number + len(parameter.shape)) % 3]
            if parameter.ndim == 2 and parameter.shape[0] % 3 == 0:
                mesh, placements = square, [Shard(1), Shard(0)]
            made = distribute_tensor(parameter.detach(), mesh, placements)
            module.register_parameter(name, nn.Parameter(made))
    initialise(sharded, 4)
    pairs = zip(whole.named_parameters(), sharded.parameters(), strict=True)
    found = [torch.equal(local(part.detach()), p.detach()[slices(box(part))]) for (_, p), part in pairs]
    dist.destroy_process_group()
    return found


def test_shards_equal_the_whole(pool: Pool, section) -> None:
    """37 rows over four ranks and 24 over two by two: even and uneven."""
    for found in pool.call(f"{HERE}:on_a_rank", section().model_dump(), ranks=4):
        assert found and all(found)
