from __future__ import annotations

import pytest

from argosy.errors import Refused
from argosy.job import presets
from argosy.job.leaves import fields
from argosy.job.schema import BlockSection, ModelSection, layers


@pytest.mark.parametrize("name", presets.presets())
def test_a_preset_fills_the_model(name: str) -> None:
    model = presets.filled(ModelSection(preset=name))
    assert model.preset == name
    assert set(presets.shape(name)) <= set(fields())
    left_out = {key for key, value in model if value is None}
    plain = {"class", "rope_scaling", "softcap", "z_loss", "scaling", "base_width"}  # left out, there are none
    assert left_out <= {"vocabulary", "context" if model.positions == "rotary" else "rope_theta", *plain}
    assert len(layers(model)) == model.layers


def test_what_is_said_beside_a_preset_wins() -> None:
    model = presets.filled(ModelSection(preset="gpt2-124m", layers=3, block=BlockSection(heads=4)))
    assert (model.layers, model.block.heads, model.width, model.block.norm) == (3, 4, 768, "layer")


def test_without_a_preset_it_is_tiny() -> None:
    assert presets.filled(ModelSection(width=96)).block.heads == 6


def test_patterns_repeat_over_the_layers() -> None:
    model = presets.filled(ModelSection(layers=4, pattern=(BlockSection(window=8), BlockSection())))
    assert [block.window for block in layers(model)] == [8, 0, 8, 0]
    assert {block.heads for block in layers(model)} == {6}


def test_unknown_presets_name_the_nearest() -> None:
    with pytest.raises(Refused, match="Did you mean llama3-8b"):
        presets.shape("llama-8b")
