"""The charts of single layers: which lines they have, and that a stranger's folder cannot spoil them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from argosy.observe import curves, sections


def summary(*rows: Any) -> Any:
    return SimpleNamespace(metrics=[{"step": number + 1, "layers": row} for number, row in enumerate(rows)])


def taken(layers: int, value: float) -> dict[str, Any]:
    blocks = [value + layer for layer in range(layers)]
    return {
        "gradient_norm": [*blocks, 9.0], "update_ratio": [*blocks, 8.0], "activation_rms": blocks, "attention_logit": blocks
    }  # fmt: skip


def test_every_layer_of_a_small_model_has_its_line() -> None:
    found = dict(curves.layers(summary(taken(3, 1.0), taken(3, 2.0))))
    assert list(found) == ["gradient_norm", "update_ratio", "activation_rms", "attention_logit"]
    names = [series.name for series in found["gradient_norm"].series]
    assert names == ["layer 0", "layer 1", "layer 2", "embedding and head"]
    assert found["gradient_norm"].series[1].points == ((1.0, 2.0), (2.0, 3.0))
    assert [series.name for series in found["activation_rms"].series] == names[:3]


def test_of_many_layers_some_are_shown_the_first_and_the_last_among_them() -> None:
    found = dict(curves.layers(summary(taken(40, 1.0))))["attention_logit"]
    shown = [int(series.name.split()[1]) for series in found.series]
    assert len(shown) == curves.SHOWN and shown[0] == 0 and shown[-1] == 39


def test_the_page_has_them_and_says_what_they_are() -> None:
    page = sections.layers(summary(taken(2, 1.0), taken(2, 2.0)))
    assert page.count("<figure>") == 4 and "64 query rows" in page and "Largest attention score of each layer" in page
    assert sections.layers(SimpleNamespace(metrics=[{"step": 1}])) == ""  # type: ignore[arg-type]


def test_what_is_no_number_is_left_out() -> None:
    hostile = [
        "x", 3, [1.0], {"gradient_norm": "<script>"}, {"gradient_norm": {"0": 1}}, {"gradient_norm": [None, "1", [2], {}]},
        {"gradient_norm": [float("nan"), float("inf")]}, {"gradient_norm": [1.0] * 100_000},
    ]  # fmt: skip
    page = sections.layers(summary(*hostile))
    assert "script" not in page and len(page) < 200_000
    assert sections.layers(summary(*hostile[:-1])) == ""
