"""The table of cuts: every weight is named or whole on purpose, and heads find their keys."""

from __future__ import annotations

from typing import Any

import pytest

from argosy.job.schema import ModelSection, layers
from argosy.model.decoder import Decoder
from argosy.model.placements import CUTS, GROUPED, PER_HEAD, PER_TOKEN, cut, matches, repeated

FULL: dict[str, Any] = {
    "layers": 1, "width": 24, "vocabulary": 29, "positions": "learned", "context": 12, "tied": False,
    "block": {
        "heads": 4, "kv_heads": 2, "head_size": 6, "hidden": 40, "activation": "swiglu", "parallel": False, "norm": "layer",
        "norm_epsilon": 1e-5, "norm_bias": True, "qk_norm": "full", "qkv_bias": True, "attention_bias": True, "mlp_bias": True,
        "window": 0, "dropout": 0.0, "norm_placement": "peri",
    },
}  # fmt: skip


def cuts(ranks: int, **block: Any) -> dict[str, int | None]:
    """Parameter name -> dimension cut, for a model that has every kind of parameter."""
    section = ModelSection.model_validate({**FULL, "block": {**FULL["block"], **block}})
    shape = layers(section)[0]
    names = dict(Decoder(section).named_parameters())
    return {name: cut(name, shape if name.startswith("blocks.") else None, ranks) for name in names}


def test_every_parameter_of_a_full_model() -> None:
    whole = {"positions.weight", "norm.weight", "norm.bias", "blocks.0.attention.output.bias", "blocks.0.mlp.down.bias"}
    places = [f"{part}{place}" for part in ("attention", "mlp") for place in ("", "_post")]
    whole |= {f"blocks.0.{place}_norm.{word}" for place in places for word in ("weight", "bias")}
    found = cuts(2)
    assert {name for name, dim in found.items() if dim is None} == whole
    assert {name for name, dim in found.items() if dim == 1} == {
        "blocks.0.attention.output.weight",
        "blocks.0.mlp.down.weight",
    }


def test_keys_and_values_are_whole_where_their_heads_do_not_divide() -> None:
    two, four = cuts(2), cuts(4)
    changed = {name for name in two if two[name] != four[name]}
    parts = [f"{part}.{word}" for part in ("key", "value") for word in ("weight", "bias")]
    assert changed == {f"blocks.0.attention.{part}" for part in (*parts, "key_norm.weight")}
    assert all(four[name] is None for name in changed)


def test_norms_of_single_heads_are_whole() -> None:
    found = cuts(2, qk_norm="head")
    assert found["blocks.0.attention.query_norm.weight"] is found["blocks.0.attention.key_norm.weight"] is None


def test_every_pattern_of_the_table_matches_a_parameter() -> None:
    names = list(cuts(2))
    for pattern in [*(pattern for pattern, _ in CUTS), *GROUPED, *PER_HEAD, *PER_TOKEN]:
        assert any(matches(name, (pattern,)) for name in names), pattern


@pytest.mark.parametrize(
    "heads, groups, ranks, expected",
    [
        (4, 1, 2, [(0,), (0,)]),
        (8, 2, 4, [(0,), (0,), (1,), (1,)]),
        (6, 3, 2, [(0, 0, 1), (1, 2, 2)]),  # runs of unequal length: one for each query head
        (12, 6, 4, [(0, 0, 1), (1, 2, 2), (3, 3, 4), (4, 5, 5)]),
        (8, 4, 1, [(0, 1, 2, 3)]),
    ],
)
def test_query_heads_find_their_keys(heads: int, groups: int, ranks: int, expected: list[tuple[int, ...]]) -> None:
    assert [repeated(heads, groups, ranks, rank) for rank in range(ranks)] == expected
