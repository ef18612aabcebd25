"""Every key that a config.json has: what changes the logits of transformers' model changes ours alike, or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from argosy.errors import Refused
from argosy.exchange.check import compare, logits_of, tokens_for
from argosy.exchange.config import complete, shape
from argosy.exchange.huggingface import Known
from argosy.exchange.mapping import family_of
from argosy.exchange.source import Source
from argosy.exchange.weights import fill
from argosy.model.decoder import Decoder

# Keys that the files do not have, and that somebody may write there.
MORE: dict[str, list[Any]] = {
    "is_causal": [False, None],
    "per_layer_config": [{"1": {"rms_norm_eps": 0.5}}],
    "rope_theta": [77.0],
    "rope_scaling": [{"rope_type": "linear", "factor": 3.0}, {"rope_type": "yarn", "factor": 2.0, "truncate": None},
                     {"rope_type": "dynamic", "factor": 2.0}, {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0,
                      "high_freq_factor": 4.0, "original_max_position_embeddings": 20}],
    "partial_rotary_factor": [0.5], "original_max_position_embeddings": [24], "head_dim": [4, 6],
    "sliding_window": [3], "use_sliding_window": [True], "layer_types": [["sliding_attention"] * 3],
    "attention_bias": [True], "mlp_bias": [True], "num_attention_heads": [2], "hidden_size": [24],
    "pretraining_tp": [2], "attention_multiplier": [0.1], "logits_scaling": [3.0], "residual_multiplier": [0.2],
    "final_logit_softcapping": [1.0], "attn_logit_softcapping": [1.0], "rope_interleaved": [True], "clip_qkv": [0.1],
}  # fmt: skip


def others(value: object) -> list[Any]:
    """What might stand in the place of `value`."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [1, value + 1, 2 * value]
    if isinstance(value, float):
        return [3 * value + 0.01]
    if isinstance(value, str):
        return ["gelu", "relu", "gelu_new"]
    if isinstance(value, list):
        return [value[::-1], ["sliding_attention", "full_attention"] * 2]
    return [2, 0.5, True] if value is None else []


def changed(config: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(key, value, the file with it), one key at a time; and every number of the rotary angles."""
    for key in {**config, **MORE}:
        if key in ("model_type", "architectures", "transformers_version", "dtype"):
            continue
        for value in [*others(config.get(key)), *MORE.get(key, [])] if key in config else MORE[key]:
            yield key, value, {**config, key: value}
        if key in config and config[key] is not None:
            yield key, "nothing", {name: value for name, value in config.items() if name != key}
    for key, now in (config.get("rope_parameters") or {}).items():
        for value in [None, *others(now)]:
            yield (
                f"rope_parameters.{key}",
                value,
                {**config, "rope_parameters": {**config["rope_parameters"], key: value}},
            )


def theirs(config: dict[str, Any], stored: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor | None:
    """What transformers' model of this config gives; None where it takes neither the config nor the weights."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    try:
        asked = CONFIG_MAPPING[config["model_type"]].from_dict(json.loads(json.dumps(config)))
        model: Any = AutoModelForCausalLM.from_config(asked, dtype=torch.float32, attn_implementation="eager").eval()
        absent = model.load_state_dict(stored, strict=False)
        if absent.unexpected_keys or (absent.missing_keys and absent.missing_keys != ["lm_head.weight"]):
            return None
        with torch.no_grad():
            found: torch.Tensor = model(input_ids=ids, use_cache=False).logits
            return found
    except Exception:  # whatever it is, such a config is none of theirs
        return None


def ours(folder: Path, config: dict[str, Any], ids: torch.Tensor) -> torch.Tensor | None:
    """What ours gives; None where it is refused."""
    try:
        rules = family_of(config["model_type"], "")
        known = Known(Source(folder, ""), rules, complete(shape(rules, config, "")), config)
        weights = known.weights()
    except Refused:
        return None
    decoder = Decoder(known.model).to_empty(device="cpu").eval()
    decoder.prepare("cpu", ids.shape[1], compiled=False)
    fill(dict(decoder.named_parameters()), weights)
    return logits_of(decoder, ids)


LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("llama", "mistral", "qwen2", "olmo2")]


@pytest.mark.parametrize("name", ["qwen3 windows", "gpt2", *LONG])
def test_no_key_that_changes_the_logits_is_passed_over(folders: Callable[[str], Path], name: str) -> None:
    from safetensors.torch import load_file

    folder = folders(name)
    config = json.loads((folder / "config.json").read_text())
    stored: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        stored |= load_file(path)
    plain = ours(
        folder, config, ids := tokens_for(complete(shape(family_of(config["model_type"], ""), config, "")), 40)
    )
    assert plain is not None
    wrong, read, refused = [], set(), set()
    for key, value, one in changed(config):
        found = ours(folder, one, ids)
        if found is None:
            refused.add(key)
            continue
        wanted = theirs(one, stored, ids)
        if wanted is None:
            continue
        if compare(wanted, found).difference > 1e-4 or not compare(wanted, found).same:
            wrong.append((key, value))
        elif compare(wanted, plain).difference > 1e-3:
            read.add(key)
    assert not wrong, wrong
    # Of those there are, that were changed, and whose change was seen: else nothing was compared.
    assert {"gpt2": {"layer_norm_epsilon", "n_head"}}.get(name, {"rms_norm_eps"}) <= read, read
    assert {"is_causal", "per_layer_config"} <= refused, refused
