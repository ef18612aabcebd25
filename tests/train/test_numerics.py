"""Figures of every layer: what they are, and that they are the same under every layout."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from argosy.run.folder import Run
from argosy.train.numerics import QUERIES, Read, drawn

EVERY = {"observe.numerics_every": 2, "checkpoint.every": "never", "train.steps": 4}
FIGURES = {
    "gradient_norm": 3,
    "update_ratio": 3,
    "activation_rms": 2,
    "attention_logit": 2,
}  # numbers of each, 2 layers
# Groups of heads, norms of queries and keys, a window that every other layer has.
ODD = {"model.block.kv_heads": 1, "model.block.qk_norm": "head", "model.pattern": [{"window": 7}, {}]}


def layers(run: Run, losses_of: Any) -> dict[int, dict[str, list[float]]]:
    """The figures of each step that has some."""
    losses_of(run)
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["layers"] for row in rows if "layers" in row}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("numerics") / "run"


@pytest.fixture
def alone(place: Path, make_run: Any, work: Any, losses_of: Any) -> dict[int, dict[str, list[float]]]:
    """Those of one rank, trained once."""
    if not place.exists():
        assert work(make_run(place, **EVERY, **ODD)) == 0
    return layers(Run(place), losses_of)


def test_they_stand_beside_the_steps_that_were_asked_for(alone: dict[int, dict[str, list[float]]]) -> None:
    assert set(alone) == {2, 4}
    for figures in alone.values():
        assert {name: len(values) for name, values in figures.items()} == FIGURES
        assert all(isinstance(value, float) and math.isfinite(value) for values in figures.values() for value in values)
        assert all(0 < ratio < 0.5 for ratio in figures["update_ratio"])


def test_the_gradients_of_all_layers_are_the_gradient(alone: Any, place: Path) -> None:
    """Before it is clipped: their squares add up to that of the norm beside them."""
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    for step, figures in alone.items():
        norm = math.sqrt(sum(value**2 for value in figures["gradient_norm"]))
        assert norm == pytest.approx(rows[step - 1]["gradient_norm"], rel=1e-5)


@pytest.mark.parametrize(
    "shape, ranks, more",
    [("replicate2", 2, {"batch.micro": 3}), ("dp2", 2, {"layout.zero": 3}), ("tp2", 2, {}), ("pp2", 2, {}),
     ("tp2", 2, {"layout.sequence": False, "memory.recompute": "block", "batch.micro": 1})],
    ids=str,
)  # fmt: skip
def test_every_layout_gives_the_same(
    alone: Any,
    make_run: Any,
    workers: Any,
    losses_of: Any,
    tmp_path: Path,
    shape: str,
    ranks: int,
    more: dict[str, Any],
) -> None:
    run = make_run(tmp_path / "run", ranks, **{**EVERY, **ODD, "layout.shape": shape, **more})
    assert workers(run, shape, ranks) == [0] * ranks
    found = layers(run, losses_of)
    assert set(found) == set(alone)
    for step, figures in found.items():
        for name, values in figures.items():
            assert values == pytest.approx(alone[step][name], rel=2e-4), (step, name)


def test_never_is_never(make_run: Any, work: Any, losses_of: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", **{**EVERY, "observe.numerics_every": "never"})
    assert work(run) == 0
    assert layers(run, losses_of) == {}


def model() -> Any:
    """A decoder of two layers with a window and a batch of two packed documents and padding, in float64."""
    import torch

    from argosy.data.batch import Batch
    from argosy.model.decoder import Decoder
    from argosy.model.weights import initialise
    from argosy.prove.options import job_of, plain

    case = {**plain(), "layers": 2, "window": "all", "heads": "4/2", "tied": True, "qk_norm": "head", "length": 12}
    decoder = Decoder(job_of(case).model, compute=torch.float64, master=torch.float64).to_empty(device="cpu")
    initialise(decoder, 1)
    decoder.prepare("cpu", 12, False)
    draw = torch.Generator().manual_seed(3)
    segments = torch.tensor([[1] * 7 + [2] * 5, [1] * 9 + [0] * 3, [1] * 12], dtype=torch.int32)
    positions = torch.tensor([[*range(7), *range(5)], list(range(12)), list(range(12))])
    tokens = torch.randint(32, (3, 12), generator=draw)
    weights = (segments != 0).double()
    weights[2] = 0  # a row that only fills up
    numbers = torch.tensor([40, 41, -1])
    return decoder, Batch(tokens, tokens.roll(-1, 1), segments, positions, tokens * 0, weights, numbers)


def test_they_are_what_their_names_say() -> None:
    """Against autograd and whole score matrices."""
    import torch

    from argosy.job.schema import OptimSection
    from argosy.model import attention
    from argosy.optim.build import build
    from argosy.quantities import interval
    from argosy.train.numerics import Numerics

    decoder, batch = model()
    named, told = dict(decoder.named_parameters()), {}
    recorder: Any = SimpleNamespace(scalar=lambda name, step, value, layer: told.update({(name, layer): value}))
    read = Read(40, 2, 12)
    numerics = Numerics(decoder, named, recorder, interval(3), steps=9, seed=5, read=lambda step: read)
    numerics.begin(3, [batch])
    outputs: list[torch.Tensor] = []
    scores: list[torch.Tensor] = []
    for block in decoder.blocks:
        block.register_forward_hook(lambda _, __, made: outputs.append(made.detach()))
    seen = attention.observers
    seen.append(lambda q, k, window, scale: scores.append(whole(q, k, batch.segments, window, scale)))
    try:
        (decoder.loss(batch) / 20).backward()
    finally:
        del seen[-1]
    gradients = {name: parameter.grad.clone() for name, parameter in named.items()}
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    optimizer = build(named.items(), OptimSection(name="adamw", lr=0.01))
    with numerics.around():
        optimizer.step(1.0, 0.1)
    assert numerics._scores not in attention.observers
    moved = {name: parameter.detach() - before[name] for name, parameter in named.items()}
    asked = [(number - 40, place) for number, places in drawn(5, 3, read).items() for place in places]
    text = (batch.segments != 0) & (batch.sequence >= 0)[:, None]
    for layer in range(3):
        own = [name for name in named if name.startswith(f"blocks.{layer}.") or (layer == 2 and "blocks" not in name)]
        length = lambda of, own=own: math.sqrt(sum(float(of[name].square().sum()) for name in own))  # noqa: E731
        assert told["layer_gradient_norm", layer] == pytest.approx(length(gradients), rel=1e-12)
        assert told["layer_update_ratio", layer] == pytest.approx(length(moved) / length(before), rel=1e-12)
        if layer < 2:
            rms = outputs[layer][text].square().mean().sqrt()
            assert told["layer_activation_rms", layer] == pytest.approx(float(rms), rel=1e-12)
            most = max(float(scores[layer][row, :, place].max()) for row, place in asked if text[row, place])
            assert told["layer_attention_logit", layer] == pytest.approx(most, rel=1e-12)
    assert len(told) == sum(FIGURES.values())


def whole(q: Any, k: Any, segments: Any, window: int, scale: float) -> Any:
    """Scores [B, H, S, S], minus infinity where a token is not seen."""
    import torch

    near = torch.arange(12)[:, None] - torch.arange(12)[None]
    seen = (near >= 0) & (near < (window or 12)) & (segments[:, :, None] == segments[:, None])
    grouped = k.repeat_interleave(q.shape[2] // k.shape[2], 2)
    return torch.einsum("bqhk,bshk->bhqs", q, grouped).mul(scale).masked_fill(~seen[:, None], -torch.inf)


def test_rows_are_drawn_from_the_whole_step_whoever_has_them() -> None:
    found = drawn(1, 7, Read(1000, 500, 64))
    assert found == drawn(1, 7, Read(1000, 500, 64)) != drawn(1, 8, Read(1000, 500, 64))
    assert all(1000 <= number < 1500 and 0 <= place < 64 for number, places in found.items() for place in places)
    assert QUERIES - 3 < sum(map(len, found.values())) <= QUERIES
    spread = np.array(sorted(found)) - 1000
    assert spread.min() < 100 < 400 < spread.max()
    assert drawn(1, 1, Read(0, 1, 1)) == {0: [0]}
