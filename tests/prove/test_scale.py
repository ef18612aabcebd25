"""A job of any size in small: the same layout and kinds of layers, always legal, never larger."""

from __future__ import annotations

import pytest

from argosy.errors import Refused
from argosy.job.load import load
from argosy.job.schema import layers
from argosy.layout.layout import Layout
from argosy.prove.options import RANKS
from argosy.prove.scale import fewer, trials


@pytest.mark.parametrize(
    "overrides",
    [
        ["layout.shape=tp2 dp2", "layout.zero=3"],
        ["layout.shape=pp2 tp2 dp2", "layout.schedule=interleaved", "layout.virtual=2", "model.layers=8"],
        ["layout.shape=pp4 dp2", "layout.stages=[1,1,1,1]"],
        ["layout.shape=tp8 pp8 dp192", "model.preset=gpt3-175b"],
        ["layout.shape=replicate2", "model.preset=gpt2-124m", "optim.clip=none", "optim.name=adamw"],
        [
            "layout.shape=tp2",
            "model.layers=4",
            "model.pattern=[{window = 64}, {}]",
            "model.block.kv_heads=2",
            "memory.recompute=block",
        ],
        ["layout.shape=dp3", "model.block.dropout=0.1", "model.tied=true", "model.block.parallel=true"],
    ],
    ids=lambda overrides: overrides[0].split("=")[1],
)
def test_the_layout_and_the_kinds_of_layers_stay(overrides: list[str]) -> None:
    job = load("laptop", overrides).job
    found = list(trials(job))
    assert len(found) == 16
    for _, trial in found:
        small, asked = trial.job, Layout.parse(job.layout.shape)
        layout = Layout.parse(small.layout.shape, trial.ranks)
        assert layout.world == trial.ranks <= RANKS
        assert [degree > 1 for degree in layout.degrees] == [degree > 1 for degree in asked.degrees]
        assert (small.layout.zero, small.layout.schedule, small.layout.virtual) == (
            job.layout.zero, job.layout.schedule, job.layout.virtual,
        )  # fmt: skip
        assert small.memory.recompute == job.memory.recompute and small.optim.clip == job.optim.clip
        assert (small.model.width or 0) <= 24 and (small.model.vocabulary or 0) <= 31
        for block in layers(small.model):
            assert (block.heads or 0) % layout.tp == 0 and (block.heads or 0) % (block.kv_heads or 1) == 0
    assert {trial.update for _, trial in found} == {"sgd", job.optim.name}
    assert {trial.packed for _, trial in found} == {False, True}


def test_a_pattern_of_layers_stays_a_pattern() -> None:
    job = load("laptop", ["layout.shape=tp2", "model.layers=4", "model.pattern=[{window = 64}, {}]"]).job
    _, trial = next(iter(trials(job)))
    assert [block.window for block in layers(trial.job.model)] == [5, 0] * ((trial.job.model.layers or 0) // 2)


def test_what_else_the_model_does_is_compared_too() -> None:
    scaling = "{ kind = 'linear', factor = 4.0 }"
    words = ["layout.shape=tp2", "model.softcap=3.0", "model.z_loss=1e-4", f"model.rope_scaling={scaling}"]
    words += ["model.scaling=mup", "model.base_width=96", "model.tied=false"]
    for _, trial in trials(load("laptop", words).job):
        small = trial.job.model
        assert (small.softcap, small.z_loss, small.scaling) == (3.0, 1e-4, "mup")
        assert getattr(small.rope_scaling, "factor", None) == 4.0
        assert small.base_width and small.width and small.width / small.base_width == 2, "as the laptop's 192 to 96"


def test_grouped_heads_stay_groups() -> None:
    _, trial = next(iter(trials(load("laptop", ["layout.shape=tp4", "model.preset=llama3-8b"]).job)))
    block = trial.job.model.block
    assert (block.heads or 0) > (block.kv_heads or 0) >= 1 and (block.heads or 0) % 4 == 0


def test_many_ranks_become_few() -> None:
    assert fewer(Layout(pp=8, dp_shard=192, tp=8)).degrees == (2, 1, 2, 1, 2)
    assert fewer(Layout(dp_shard=3)).degrees == (1, 1, 3, 1, 1)
    with pytest.raises(Refused, match="splits in more ways than 8 ranks can show"):
        fewer(Layout(pp=2, dp_replicate=2, dp_shard=2, tp=2))


@pytest.mark.parametrize(
    ("shape", "secondary", "small"),
    [
        ("pp4 dp8", 4, ("pp2 dp4", 2)),
        ("dp64", 8, ("dp4", 2)),
        ("replicate2 dp10", 5, ("replicate2 dp4", 2)),
        ("dp8", 4, ("dp8", 4)),
        ("pp2 dp6", 3, ("pp2 dp4", 2)),
    ],
)
def test_a_second_shard_stays_one(shape: str, secondary: int, small: tuple[str, int]) -> None:
    words = [f"layout.shape={shape}", "layout.zero=3", f"layout.secondary={secondary}", "model.layers=4"]
    _, trial = next(iter(trials(load("laptop", words).job)))
    assert (trial.job.layout.shape, trial.job.layout.secondary) == small


def test_a_second_shard_that_is_wrong_is_refused_and_not_made_right() -> None:
    words = ["layout.shape=dp8", "layout.zero=3", "layout.secondary=3"]
    with pytest.raises(Refused, match="must divide dp8 and be less"):
        list(trials(load("laptop", words).job))


def test_a_layout_that_nobody_named_or_that_is_wrong_is_refused() -> None:
    with pytest.raises(Refused, match="chosen by the machine"):
        list(trials(load("laptop").job))
    with pytest.raises(Refused, match="at least two stages a rank"):
        list(trials(load("laptop", ["layout.shape=pp2", "layout.schedule=interleaved"]).job))
