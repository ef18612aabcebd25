"""Random models, odd in every shape: as `transformers` writes them, and as runs of our own."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argosy.run.folder import Run

# Each is the configuration of one model: sizes that divide nothing they need not, and one thing or another switched on.
LLAMA = {"vocab_size": 307, "hidden_size": 24, "intermediate_size": 52, "num_hidden_layers": 3, "num_attention_heads": 4,
         "max_position_embeddings": 64}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
WINDOWS = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {**LLAMA, "num_key_value_heads": 2, "head_dim": 10, "attention_bias": True, "mlp_bias": True,
              "rope_parameters": LLAMA3, "tie_word_embeddings": False},
    "smollm": {**LLAMA, "num_key_value_heads": 1, "rope_parameters": LINEAR, "tie_word_embeddings": True},
    "mistral": {**LLAMA, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8, "sliding_window": 7,
                "tie_word_embeddings": False},
    "mistral whole": {**LLAMA, "num_key_value_heads": 2, "sliding_window": None, "tie_word_embeddings": True},
    "qwen2": {**LLAMA, **WINDOWS, "num_hidden_layers": 4, "num_key_value_heads": 2, "rope_parameters": YARN,
              "tie_word_embeddings": True},
    "qwen3": {**LLAMA, "hidden_size": 20, "num_key_value_heads": 2, "head_dim": 12, "attention_bias": True,
              "tie_word_embeddings": False},
    "qwen3 windows": {**LLAMA, **WINDOWS, "max_window_layers": 1, "num_key_value_heads": 4, "head_dim": 6,
                      "tie_word_embeddings": True},
    "olmo2": {**LLAMA, "num_key_value_heads": 2, "tie_word_embeddings": False, "rope_parameters": YARN},
    "gpt2": {"vocab_size": 307, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 48, "n_inner": 50},
    "gpt2 untied": {"vocab_size": 307, "n_embd": 20, "n_layer": 2, "n_head": 5, "n_positions": 48,
                    "activation_function": "gelu", "tie_word_embeddings": False},
}  # fmt: skip
TYPES = {"smollm": "bfloat16"}  # stored so; the others in float32
SHARDED = ("llama", "gpt2")
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def made(
    kind: str, config: dict[str, Any], folder: Path, *, seed: int = 0, dtype: str = "float32", sharded: bool = False
) -> Path:
    """A model of transformers' class `kind` with every number random, saved into `folder`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if "norm" in name or "ln_" in name else 0.0))
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(str(folder), max_shard_size="40KB" if sharded else "1GB")
    return folder


def tokenizer(folder: Path) -> None:
    """A tokenizer of 280 entries with all that lies beside one."""
    from argosy.data.tokenizer import train_bpe

    text = "the sea was calm and a few ships lay still in every bay while men sang of the sea"
    (folder / "tokenizer.json").write_text(train_bpe(iter([text] * 20), 280), encoding="utf-8")
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(words), encoding="utf-8")


def own_run(path: Path, model: dict[str, Any], tokenizer: str = "") -> Run:
    """A finished run with a random model of ours, and the tokenizer of bytes where no other is given."""
    import torch

    from argosy.data.tokenizer import BYTES
    from argosy.exchange.config import complete
    from argosy.exchange.huggingface import _checkpoint
    from argosy.job import leaves
    from argosy.job.load import job_from
    from argosy.job.setting import Setting
    from argosy.model.decoder import Decoder
    from argosy.model.weights import initialise
    from argosy.run import folder
    from argosy.run.ledger import Ledger

    shape = {"layers": 2, "width": 16, "vocabulary": 300, "positions": "rotary", "rope_theta": 100.0, "tied": False,
             "block": {"heads": 2, "hidden": 40}, **model}  # fmt: skip
    known = complete(flat(shape))
    loaded = job_from({
        "batch": {"sequence": 32, "tokens": 64, "micro": 1}, "layout": {"shape": "dp1"}, "optim": {"lr": 0.01},
        "train": {"steps": 1, "precision": "float32", "master": "float32", "reduce": "float32", "compile": False},
    })  # fmt: skip
    job = loaded.job.model_copy(update={"model": known})
    run = folder.create(path, asked=job, text="", origin={}, state="finished")
    settings = [Setting(key, None, leaves.plain(value), "default") for key, value in leaves.leaves(job).items()]
    folder.settle(run, job, {}, settings, Path(), "")
    (path / "tokenizer.json").write_text(tokenizer or BYTES, encoding="utf-8")
    Ledger.start(batch__sequence=32, batch__tokens=64, train__seed=1).write(path / "ledger.jsonl")
    decoder = Decoder(known).to_empty(device="cpu")
    initialise(decoder, 3)
    held = {name: parameter.detach() for name, parameter in decoder.named_parameters()}
    weights = SimpleNamespace(
        tensors=SimpleNamespace(shapes={name: tuple(one.shape) for name, one in held.items()}),
        rows=lambda name, begin, end: held[name][begin:end],
        forget=lambda: None,
    )
    _checkpoint(run, weights, torch.float32)  # type: ignore[arg-type]
    return run


def flat(shape: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a table of tables."""
    found: dict[str, Any] = {}
    for key, value in shape.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and key == "block" else {prefix + key: value}
    return found
