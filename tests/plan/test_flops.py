from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy.job import presets
from argosy.job.schema import BlockSection, ModelSection
from argosy.plan import flops

# Published, or counted from published weights.
PUBLISHED = {
    "gpt2-124m": 124_439_808, "gpt2-355m": 354_823_168, "gpt2-774m": 774_030_080, "gpt2-1.5b": 1_557_611_200,
    "llama3-8b": 8_030_261_248, "llama3-70b": 70_553_706_496, "llama3-405b": 405_853_388_800,
}  # fmt: skip
ROUNDED = {"gpt3-175b": 175e9, "megascale-175b": 175e9, "megascale-530b": 530e9}


def shape(name: str) -> ModelSection:
    return presets.filled(ModelSection(preset=name))


@pytest.mark.parametrize("name", [*PUBLISHED, *ROUNDED])
def test_parameters_are_the_published_ones(name: str) -> None:
    count = flops.parameters(shape(name))
    if name in PUBLISHED:
        assert count == PUBLISHED[name]
    else:
        assert count == pytest.approx(ROUNDED[name], rel=0.004)


@pytest.mark.parametrize(("layers", "width", "heads"), [(96, 12288, 128), (105, 20480, 160)])
def test_megascale_s_table(layers: int, width: int, heads: int) -> None:
    model = shape("megascale-175b" if layers == 96 else "megascale-530b")
    assert (model.layers, model.width, model.block.heads, model.vocabulary, model.context) == (
        layers,
        width,
        heads,
        64000,
        2048,
    )
    assert model.block.parallel
    assert model.block.window


@given(st.integers(1, 200), st.integers(0, 250))
def test_tokens_seen_by_counting(sequence: int, window: int) -> None:
    counted = sum(min(position + 1, window or sequence) for position in range(sequence)) / sequence
    assert flops.seen(sequence, window) == pytest.approx(counted)


def test_flops_are_six_per_matrix_parameter_and_attention() -> None:
    model = shape("llama3-8b")
    attention = 12 * 32 * 32 * 128 * (8192 + 1) / 2  # 3 x 4 x layers x heads x head size x tokens seen
    head = 128256 * 4096
    expected = 6 * (flops.matrix_parameters(model) + head) + attention
    assert flops.flops_per_token(model, 8192) == pytest.approx(expected)


def test_every_switch_changes_the_count_by_its_tensors() -> None:
    base = shape("tiny").model_copy(update={"vocabulary": 100})
    block = BlockSection(**{**base.block.model_dump(), "kv_heads": 6, "head_size": 32, "hidden": 512})

    def more(**changes: object) -> int:
        changed = base.model_copy(update={"block": block.model_copy(update=changes)})
        return flops.parameters(changed) - flops.parameters(base.model_copy(update={"block": block}))

    assert more(kv_heads=2) == -4 * 192 * 32 * 2 * 4
    assert more(qkv_bias=True) == 4 * 3 * 192
    assert more(attention_bias=True) == 4 * 192
    assert more(mlp_bias=True) == 4 * (2 * 512 + 192)
    assert more(qk_norm="head") == 4 * 2 * 32
    assert more(qk_norm="full") == 4 * 2 * 192
    assert more(activation="gelu") == -4 * 192 * 512
    assert more(parallel=True) == -4 * 192
    assert more(norm="layer", norm_bias=True) == 9 * 192
    assert more(norm_placement="post") == 0
    assert more(norm_placement="peri") == 4 * 2 * 192
    assert flops.parameters(base.model_copy(update={"tied": False})) - flops.parameters(base) == 100 * 192
    learned = base.model_copy(update={"positions": "learned", "context": 64})
    assert flops.parameters(learned) - flops.parameters(base) == 64 * 192
