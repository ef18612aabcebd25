"""Learning rates by width: which parameter takes which share, and that decay does not change with it."""

from __future__ import annotations

import pytest
import torch

from argosy.job.schema import OptimSection
from argosy.optim.build import build

SHAPES = {
    "embedding.weight": (11, 6),
    "blocks.0.attention_norm.weight": (6,),
    "blocks.0.mlp.up.weight": (10, 6),
    "blocks.0.mlp.up.bias": (10,),
    "head.weight": (11, 6),
}


def parameters() -> dict[str, torch.nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    return {n: torch.nn.Parameter(torch.randn(s, generator=draw, dtype=torch.float64)) for n, s in SHAPES.items()}


def section(name: str, decay: float = 0.0) -> OptimSection:
    return OptimSection(name=name, lr=0.01, weight_decay=decay)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name, inside, head",
    [("adamw", "adamw, decay, x 0.25 of the rate", "adamw, decay, x 0.25 of the rate"),
     ("muon", "muon, decay, x 0.5 of the rate", "adamw, decay, x 0.25 of the rate"),
     ("lamb", "lamb, decay, x 0.5 of the rate", "lamb, decay")],
)  # fmt: skip
def test_who_takes_which_share_at_four_times_the_width(name: str, inside: str, head: str) -> None:
    words = build(parameters().items(), section(name), growth=4.0).describe()
    assert (words["blocks.0.mlp.up.weight"], words["head.weight"]) == (inside, head)
    others = {words[one] for one in ("embedding.weight", "blocks.0.attention_norm.weight", "blocks.0.mlp.up.bias")}
    assert others <= {"adamw", "lamb"}
    assert "rate" not in str(build(parameters().items(), section(name)).describe())


@pytest.mark.parametrize("name", ["adamw", "muon", "lamb"])
def test_a_step_is_the_share_and_decay_is_whole(name: str) -> None:
    moved: dict[tuple[float, float], dict[str, torch.Tensor]] = {}
    for growth in (1.0, 4.0):
        for decay in (0.0, 0.5):
            made = parameters()
            optimizer = build(made.items(), section(name, decay), growth=growth)
            for parameter in made.values():
                parameter.grad = torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64
                )
            optimizer.step(1.0)
            moved[growth, decay] = {n: made[n].detach() - p.detach() for n, p in parameters().items()}
    shares = {"adamw": (0.25, 0.25), "muon": (0.5, 0.25), "lamb": (0.5, 1.0)}[name]
    for word, share in zip(("blocks.0.mlp.up.weight", "head.weight"), shares, strict=True):
        torch.testing.assert_close(moved[4.0, 0.0][word], share * moved[1.0, 0.0][word])
        if name != "lamb":  # whose decay is part of the step
            lost = [moved[growth, 0.5][word] - moved[growth, 0.0][word] for growth in (1.0, 4.0)]
            torch.testing.assert_close(lost[0], -0.01 * 0.5 * parameters()[word].detach())
            torch.testing.assert_close(lost[1], lost[0])
