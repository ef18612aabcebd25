"""config.json both ways, and what of it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exchange_models import LLAMA, LLAMA3, MODELS, WINDOWS

from argosy.errors import Refused
from argosy.exchange.config import complete, described, shape, written
from argosy.exchange.mapping import families
from argosy.exchange.source import Source
from argosy.job.schema import RopeScaling, layers

QWEN = {**LLAMA, "model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 6}


def model(family: str, config: dict[str, Any]) -> Any:
    return complete(shape(families()[family], config, "config.json"))


@pytest.mark.parametrize("name", MODELS)
def test_what_transformers_writes_is_read_and_written_unchanged(folders: Callable[[str], Path], name: str) -> None:
    folder = folders(name)
    rules, found, config = described(Source(folder, ""))
    kind = config["dtype"]
    assert written(rules, complete(found), config, context=1, kind=kind, where="") == config
    alone = written(rules, complete(found), {}, context=48, kind=kind, where="")
    assert complete(shape(rules, alone, "")) == complete(found)


def test_both_forms_of_rotary_angles_say_the_same() -> None:
    new = model("llama", {**LLAMA, "rope_parameters": LLAMA3})
    old = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    assert model("llama", {**LLAMA, "rope_theta": 500.0, "rope_scaling": old}) == new
    assert model("llama", {**LLAMA, "rope_theta": 500.0, "rope_scaling": {"type": "llama3", **old}}) == new
    assert new.rope_theta == 500.0
    assert new.rope_scaling == RopeScaling(kind="llama3", factor=4.0, original=16, low=1.0, high=4.0)
    assert model("llama", {**LLAMA, "rope_theta": 500.0, "rope_parameters": LLAMA3, "rope_scaling": old}) == new
    plain = model("llama", {**LLAMA, "rope_scaling": None})
    assert (plain.rope_theta, plain.rope_scaling) == (10000.0, "none")


@pytest.mark.parametrize(
    "more, sizes",
    [
        ({}, [0, 0, 0]),
        ({"sliding_window": 5}, [0, 0, 0]),
        ({**WINDOWS, "max_window_layers": 2}, [0, 0, 5]),
        ({**WINDOWS, "max_window_layers": 0}, [5, 5, 5]),
        ({**WINDOWS, "max_window_layers": 9}, [0, 0, 0]),
        ({**WINDOWS, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}, [5, 0, 5]),
    ],
)
def test_windows_layer_by_layer(more: dict[str, Any], sizes: list[int]) -> None:
    found = model("qwen3", {**QWEN, **more})
    assert [block.window for block in layers(found)] == sizes
    again = written(families()["qwen3"], found, {}, context=8, kind="float32", where="")
    assert [block.window for block in layers(model("qwen3", again))] == sizes


def test_a_key_has_one_value_under_all_its_names() -> None:
    plain = {"vocab_size": 9, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 4}
    names = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
             "n_positions": "max_position_embeddings"}  # fmt: skip
    other = {names.get(key, key): value for key, value in plain.items()}
    found = model("gpt2", other)
    assert found == model("gpt2", plain) == model("gpt2", {**plain, **other})
    wider = found.model_copy(update={"vocabulary": 12})
    again = written(families()["gpt2"], wider, {**other, "model_type": "gpt2"}, context=4, kind="float32", where="")
    assert not set(names.values()) & set(again) and model("gpt2", again) == wider


def test_a_longer_sequence_leaves_the_angles_as_they_were() -> None:
    """Where a scaling does not tell the length of the earlier training, it is the longest sequence of the file."""
    rules = families()["llama"]
    for form in ("rope_parameters", "rope_scaling"):
        base = {**LLAMA, "model_type": "llama", form: {"rope_type": "yarn", "factor": 4.0}}
        found = complete(shape(rules, base, ""))
        longer = written(rules, found, base, context=640, kind="float32", where="")
        assert longer["max_position_embeddings"] == 640 and complete(shape(rules, longer, "")) == found
    base = {**LLAMA, "model_type": "llama", "original_max_position_embeddings": 8, "rope_scaling": {"type": "yarn"}}
    found = complete(shape(rules, base, ""))
    assert isinstance(found.rope_scaling, RopeScaling) and found.rope_scaling.original == 8
    other = found.model_copy(update={"rope_scaling": RopeScaling(kind="yarn", factor=2.0, original=16)})
    again = written(rules, other, base, context=64, kind="float32", where="")
    assert complete(shape(rules, again, "")).rope_scaling == other.rope_scaling


def test_a_missing_key_means_what_it_means_to_transformers() -> None:
    plain = {key: value for key, value in QWEN.items() if key not in ("head_dim", "num_key_value_heads")}
    found = model("qwen3", {**plain, "num_attention_heads": 32})
    assert (found.block.head_size, found.block.kv_heads, found.block.norm_epsilon) == (128, 32, 1e-6)
    assert model("llama", LLAMA).block.kv_heads == 4
    assert model("llama", LLAMA).block.head_size == 6
    assert model("gpt2", {"vocab_size": 9, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 4}).block.hidden == 32


@pytest.mark.parametrize(
    "family, more, expected",
    [
        ("llama", {"hidden_size": None}, "hidden_size is missing"),
        ("llama", {"hidden_size": "24"}, "model.width"),
        ("llama", {"hidden_size": [24]}, "hidden_size is no plain value"),
        ("llama", {"hidden_size": True}, "model.width"),
        ("llama", {"hidden_size": -24}, "model.width = -24"),
        ("llama", {"num_hidden_layers": 10**9}, "model.layers"),
        ("llama", {"num_attention_heads": 0}, "model.block.heads"),
        ("llama", {"num_key_value_heads": 3}, "does not divide model.block.heads = 4"),
        ("llama", {"hidden_act": "relu"}, "hidden_act = 'relu' is not known here; silu, swish are"),
        ("llama", {"rms_norm_eps": "tiny"}, "norm_epsilon"),
        ("llama", {"rms_norm_eps": float("inf")}, "norm_epsilon"),
        ("llama", {"head_dim": 5}, "even head size"),
        ("llama", {"rope_theta": "x"}, "rope_theta is no number"),
        ("llama", {"rope_theta": 10**400}, "rope_theta is no number"),
        ("llama", {"hidden_size": 10**400}, "model.width"),
        ("llama", {"rms_norm_eps": 10**400}, "norm_epsilon"),
        (
            "llama",
            {"max_position_embeddings": 10**400, "rope_scaling": {"rope_type": "yarn"}},
            "rope_type = yarn has no factor",
        ),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type = 'dynamic' is not known here"),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "has no factor"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": -1.0}}, "rope_scaling"),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7}}, "mscale of rope_type = yarn"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "differ from layer to layer"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": None}},
            "truncate of rope_type = yarn",
        ),
        (
            "llama",
            {"rope_parameters": LLAMA3, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "rope_parameters and rope_scaling are one thing, and differ",
        ),
        ("llama", {"is_causal": False}, "is_causal = False is not known here; true is"),
        ("qwen3", {"is_causal": None}, "is_causal = None is not known here"),
        ("mistral", {"per_layer_config": {"1": {"sliding_window": 3}}}, "per_layer_config = "),
        ("gpt2", {"num_attention_heads": 4}, "num_attention_heads and n_head are one thing, and differ"),
        ("qwen3", {"use_sliding_window": 1}, "use_sliding_window is neither true nor false"),
        ("llama", {"partial_rotary_factor": 0.5}, "only whole heads"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantised"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True is not known"),
        ("qwen3", {**WINDOWS, "layer_types": ["full_attention"]}, "layer_types is no list of 3 times"),
        ("qwen3", {**WINDOWS, "sliding_window": -4}, "sliding_window is no number"),
        ("qwen3", {**WINDOWS, "max_window_layers": "x"}, "max_window_layers is no number"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 3}, "gives them no size"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(family: str, more: dict[str, Any], expected: str) -> None:
    base = {"gpt2": {"vocab_size": 9, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 4}, "qwen3": QWEN}
    with pytest.raises(Refused) as caught:
        shape(families()[family], {**base.get(family, LLAMA), **more}, "there/config.json")
    assert expected in caught.value.text and caught.value.where == "there/config.json" and caught.value.code == 2


def test_code_of_its_own_is_never_run(tmp_path: Path) -> None:
    config = {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "modeling_mine.py").write_text("raise SystemExit('it ran')", encoding="utf-8")
    with pytest.raises(Refused, match="code of its own"):
        described(Source(tmp_path, "mine"))
