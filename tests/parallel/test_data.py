"""Real gloo ranks against one process, in float64: every gradient within 1e-10, for every way to share the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from argosy.prove.pool import Pool

HERE = str(Path(__file__))


def model() -> Any:
    import torch
    from torch import nn

    torch.manual_seed(3)
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 6)) for _ in range(3))
    made = nn.ModuleDict({"embedding": nn.Embedding(7, 6), "blocks": blocks, "head": nn.Linear(6, 7)})
    return made.double()


def loss(made: Any, batch: Any) -> Any:
    import torch
    from torch.nn import functional

    tokens, labels, weights = batch
    hidden = made["embedding"](tokens)
    for block in made["blocks"]:
        hidden = hidden + block(hidden)
    each = functional.cross_entropy(made["head"](hidden).flatten(0, 1), labels.flatten(), reduction="none")
    return torch.sum(each * weights.flatten())


def rows(count: int) -> Any:
    import torch

    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, 7, (count, 5), generator=generator)
    labels = torch.randint(0, 7, (count, 5), generator=generator)
    weights = (torch.rand((count, 5), generator=generator) > 0.2).double()
    return tokens, labels, weights


def whole_gradients(count: int) -> tuple[float, dict[str, Any]]:
    made, batch = model(), rows(count)
    total = loss(made, batch)
    (total / batch[2].sum()).backward()
    return float(total), {name: parameter.grad for name, parameter in made.named_parameters()}


def gradients(rank: int, ranks: int, board: str, asked: dict[str, Any]) -> dict[str, Any]:
    """One step's gradients on this layout against one process: the largest difference, the norm both ways, the loss."""
    import torch
    from torch.distributed.tensor import DTensor

    from argosy.layout.layout import Layout, share
    from argosy.parallel import apply
    from argosy.parallel.execute import Plain
    from argosy.parallel.mesh import Meeting, joined
    from argosy.parallel.norm import norm2
    from argosy.train.vote import Agree

    layout = Layout.parse(asked["shape"], ranks)
    count = asked["rows"]
    expected_loss, expected = whole_gradients(count)
    with joined(layout, rank, Meeting("test/1", Path(board))) as mesh:
        made = model()
        applied = apply.shard(made, list(made["blocks"]), mesh, zero=asked.get("zero", 2))
        apply.materialise(applied, torch.device("cpu"))
        batch = rows(count)
        mine = share(count, layout.data, layout.data_index(rank))
        most = max(len(share(count, layout.data, part)) for part in range(layout.data))
        micro = [tuple(field[row : row + 1] for field in batch) for row in mine]
        while len(micro) < most:  # a filler of weight zero
            micro.append((batch[0][:1], batch[1][:1], torch.zeros_like(batch[2][:1])))
        execute = Plain(applied.whole, loss, applied.data)
        for _ in range(2):  # the second time shows that nothing is left over from the first
            if asked.get("forward_between"):
                execute(micro, scale=1.0, backward=False)
            summed = execute(micro, scale=1 / float(batch[2].sum()))
        vote = Agree(mesh.world)(summed, norm2(applied.data.gradients(), layout.world))
        worst = 0.0
        for name, parameter in applied.named().items():
            assert parameter.grad is not None
            found = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
            worst = max(worst, float((found - expected[name]).abs().max()))
        applied.check_gradients()
        held = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in applied.named().values())
    norm = float(torch.stack([gradient.norm() for gradient in expected.values()]).norm())
    return {
        "worst": worst,
        "loss": abs(vote.loss - expected_loss),
        "norm": abs(vote.norm - norm),
        "share": held / sum(gradient.numel() for gradient in expected.values()),
    }


CASES = [
    ("dp1", 1, {}),
    ("replicate2", 2, {}),
    ("replicate3", 3, {}),  # 8 rows on 3 ranks: 2, 3 and 3
    ("dp2", 2, {"zero": 1}),
    ("dp2", 2, {"zero": 2, "forward_between": True}),
    ("dp3", 3, {"zero": 3}),
    ("dp3", 3, {"zero": 1, "forward_between": True}),
    ("dp4", 4, {"zero": 2}),
    ("replicate2 dp2", 4, {"zero": 2}),
    ("replicate2 dp2", 4, {"zero": 3, "forward_between": True}),
]


@pytest.mark.parametrize("shape, ranks, more", CASES, ids=lambda value: str(value))
def test_every_gradient_equals_that_of_one_process(pool: Pool, shape: str, ranks: int, more: dict[str, Any]) -> None:
    found = pool.call(f"{HERE}:gradients", {"shape": shape, "rows": 8, **more}, ranks=ranks)
    for answer in found:
        assert answer["worst"] < 1e-10
        assert answer["loss"] < 1e-10
        assert answer["norm"] < 1e-10
    if (
        shape.startswith("dp") and ranks > 1
    ):  # weights at rest are sharded, also after a forward pass without a backward one
        assert max(answer["share"] for answer in found) < 1.6 / ranks


def left_out(rank: int, ranks: int, board: str, zero: int) -> str:
    """The message when a parameter takes no part."""
    import torch

    from argosy.errors import Refused
    from argosy.layout.layout import Layout
    from argosy.parallel import apply
    from argosy.parallel.execute import Plain
    from argosy.parallel.mesh import Meeting, joined

    layout = Layout(dp_shard=ranks) if zero else Layout(dp_replicate=ranks)
    with joined(layout, rank, Meeting("test/1", Path(board))) as mesh:
        made = model()
        made["unused"] = torch.nn.Linear(2, 2).double()
        applied = apply.shard(made, list(made["blocks"]), mesh, zero=zero or 2)
        apply.materialise(applied, torch.device("cpu"))
        Plain(applied.whole, loss, applied.data)([rows(1)], scale=1.0)
        try:
            applied.check_gradients()
        except Refused as refused:
            return refused.text
    return ""


@pytest.mark.parametrize("zero", [0, 2])
def test_a_parameter_without_gradient_is_named(pool: Pool, zero: int) -> None:
    for text in pool.call(f"{HERE}:left_out", zero, ranks=2):
        assert "2 of 17 trainable parameters got no gradient" in text
        assert "unused.weight, unused.bias" in text
