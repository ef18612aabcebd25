"""A family by rules alone: Phi-3, whose queries, keys and values are one matrix, and whose gate and up are another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from exchange_models import LLAMA, made
from safetensors.torch import load_file

from argosy.commands.exchange import bring, send
from argosy.exchange.mapping import FAMILIES

RULES = """
family = "phi3"
about = "Phi-3 mini"
model_type = "phi3"
architecture = "Phi3ForCausalLM"
context = "max_position_embeddings"
rotary = 10000.0

[keys]
vocab_size = "vocabulary"
hidden_size = "width"
num_hidden_layers = "layers"
num_attention_heads = "block.heads"
num_key_value_heads = { ours = "block.kv_heads", optional = true }
intermediate_size = "block.hidden"
hidden_act = { ours = "block.activation", absent = "silu", values = { silu = "swiglu" } }
rms_norm_eps = { ours = "block.norm_epsilon", absent = 1e-5 }
tie_word_embeddings = { ours = "tied", absent = false }

[fixed]
positions = "rotary"
softcap = 0.0
"block.norm" = "rms"
"block.norm_placement" = "pre"
"block.parallel" = false
"block.qk_norm" = "none"
"block.qkv_bias" = false
"block.attention_bias" = false
"block.mlp_bias" = false
"block.softcap" = 0.0

[windows]
size = "sliding_window"

[[tensor]]
theirs = "model.embed_tokens.weight"
ours = "embedding.weight"
[[tensor]]
theirs = "model.layers.*.input_layernorm.weight"
ours = "blocks.*.attention_norm.weight"
[[tensor]]
theirs = "model.layers.*.self_attn.qkv_proj.weight"
ours = ["blocks.*.attention.query.weight", "blocks.*.attention.key.weight", "blocks.*.attention.value.weight"]
[[tensor]]
theirs = "model.layers.*.self_attn.o_proj.weight"
ours = "blocks.*.attention.output.weight"
[[tensor]]
theirs = "model.layers.*.post_attention_layernorm.weight"
ours = "blocks.*.mlp_norm.weight"
[[tensor]]
theirs = "model.layers.*.mlp.gate_up_proj.weight"
ours = ["blocks.*.mlp.gate.weight", "blocks.*.mlp.up.weight"]
[[tensor]]
theirs = "model.layers.*.mlp.down_proj.weight"
ours = "blocks.*.mlp.down.weight"
[[tensor]]
theirs = "model.norm.weight"
ours = "norm.weight"
[[tensor]]
theirs = "lm_head.weight"
ours = "head.weight"
tie = "embedding.weight"
"""


def test_a_seventh_family_by_rules_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "phi3.toml").write_text(RULES, encoding="utf-8")
    monkeypatch.setenv(FAMILIES, str(tmp_path / "rules"))
    config = {**LLAMA, "num_key_value_heads": 2, "sliding_window": 9, "pad_token_id": 0, "tie_word_embeddings": False}
    folder = made("phi3", config, tmp_path / "phi3")
    said: list[str] = []
    bring(str(folder), tmp_path / "run", say=said.append)
    send(tmp_path / "run", tmp_path / "out", say=said.append)
    assert sum(line.startswith("logits check against transformers: the same") for line in said) == 2, said
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "out"))
    assert set(before) == set(after) and all(torch.equal(before[name], after[name]) for name in before)
    assert "model.layers.0.self_attn.qkv_proj.weight" in before
