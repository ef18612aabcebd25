"""The judge is judged: against transformers' Llama and GPT-2 in float64, and it stands alone."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "argosy" / "prove" / "reference.py"


def test_imports_nothing_of_ours_and_is_short() -> None:
    text = SOURCE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module))
    assert imported == {"__future__", "math", "collections.abc", "typing", "torch"}


def test_shares_no_line_with_the_model() -> None:
    """Lines that say something: no imports, no text, no bare brackets."""

    def lines(path: Path) -> set[str]:
        found = {line.strip() for line in path.read_text(encoding="utf-8").splitlines()}
        return {line for line in found if len(line) > 20 and "import" not in line}

    ours = lines(SOURCE)
    for path in (SOURCE.parents[1] / "model").glob("*.py"):
        assert not ours & lines(path), path.name


def batch(rows: int, length: int, vocabulary: int) -> dict[str, Any]:
    import torch

    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, vocabulary, (rows, length), generator=draw)
    return {
        "tokens": tokens,
        "labels": tokens.roll(-1, 1),
        "segments": torch.ones_like(tokens),
        "positions": torch.arange(length).expand(rows, length),
        "weights": torch.rand((rows, length), generator=draw, dtype=torch.float64),
    }


def theirs(model: Any, given: dict[str, Any]) -> Any:
    import torch.nn.functional as F

    logits = model(given["tokens"]).logits
    each = F.cross_entropy(logits.flatten(0, 1), given["labels"].flatten(), reduction="none")
    return (each * given["weights"].flatten()).sum()


def agree(
    model: Any, rename: dict[str, tuple[str, Any]], shape: dict[str, Any], given: dict[str, Any], tolerance: float
) -> None:
    """Loss and every gradient. rename: our name -> (their name, what makes our tensor of theirs)."""
    import torch

    from argosy.prove import reference

    known = dict(model.named_parameters())
    weights = {ours: convert(known[name]) for ours, (name, convert) in rename.items()}
    wanted = theirs(model, given)
    gradients = torch.autograd.grad(wanted, list(known.values()), retain_graph=True)
    found = reference.loss(weights, shape, given)
    assert found.item() == pytest.approx(wanted.item(), rel=tolerance)
    ours = torch.autograd.grad(found, list(known.values()))
    for name, one, other in zip(known, ours, gradients, strict=True):
        assert (one - other).norm() <= 100 * tolerance * (other.norm() + 1e-3), name


@pytest.mark.long
def test_equals_transformers_llama() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-5, rope_theta=500.0, tie_word_embeddings=False,
        attention_bias=True, mlp_bias=True, initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config).double().eval()

    def same(tensor: Any) -> Any:
        return tensor * 1.0

    rename = {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    rename["head.weight"] = "lm_head.weight"
    parts = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
    for n in range(2):
        ours, other = f"blocks.{n}", f"model.layers.{n}"
        rename[f"{ours}.attention_norm.weight"] = f"{other}.input_layernorm.weight"
        rename[f"{ours}.mlp_norm.weight"] = f"{other}.post_attention_layernorm.weight"
        for kind in ("weight", "bias"):
            rename |= {f"{ours}.attention.{a}.{kind}": f"{other}.self_attn.{b}.{kind}" for a, b in parts.items()}
            rename |= {f"{ours}.mlp.{a}.{kind}": f"{other}.mlp.{a}_proj.{kind}" for a in ("gate", "up", "down")}
    shape = {
        "layers": 2, "positions": "rotary", "rope_theta": 500.0, "tied": False, "pattern": (),
        "block": {"heads": 4, "kv_heads": 2, "head_size": 8, "norm": "rms", "norm_epsilon": 1e-5, "qk_norm": "none",
                  "window": 0, "activation": "swiglu", "parallel": False},
    }  # fmt: skip
    # Their norms and angles are computed in float32 whatever the model's type.
    agree(model, {ours: (name, same) for ours, name in rename.items()}, shape, batch(2, 11, 31), 1e-7)


@pytest.mark.long
def test_equals_transformers_gpt2() -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=31, n_positions=16, n_embd=24, n_layer=2, n_head=3, n_inner=50, attn_pdrop=0.0, embd_pdrop=0.0,
        resid_pdrop=0.0, initializer_range=0.3,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)

    def same(tensor: Any) -> Any:
        return tensor * 1.0

    rename: dict[str, tuple[str, Any]] = {
        "embedding.weight": ("transformer.wte.weight", same),
        "positions.weight": ("transformer.wpe.weight", same),
    }
    for kind in ("weight", "bias"):
        rename[f"norm.{kind}"] = (f"transformer.ln_f.{kind}", same)
        for n in range(2):
            ours, other = f"blocks.{n}", f"transformer.h.{n}"
            rename[f"{ours}.attention_norm.{kind}"] = (f"{other}.ln_1.{kind}", same)
            rename[f"{ours}.mlp_norm.{kind}"] = (f"{other}.ln_2.{kind}", same)
            for place, part in enumerate(("query", "key", "value")):  # theirs: one matrix [in, 3 x out]

                def third(tensor: Any, place: int = place) -> Any:
                    return tensor.t().chunk(3)[place] if tensor.ndim == 2 else tensor.chunk(3)[place]

                rename[f"{ours}.attention.{part}.{kind}"] = (f"{other}.attn.c_attn.{kind}", third)
            for mine, their in (
                ("attention.output", "attn.c_proj"),
                ("mlp.up", "mlp.c_fc"),
                ("mlp.down", "mlp.c_proj"),
            ):
                rename[f"{ours}.{mine}.{kind}"] = (f"{other}.{their}.{kind}", lambda t: t.t() if t.ndim == 2 else t * 1)
    shape = {
        "layers": 2, "positions": "learned", "tied": True, "pattern": (),
        "block": {"heads": 3, "kv_heads": 3, "head_size": 8, "norm": "layer", "norm_epsilon": 1e-5, "qk_norm": "none",
                  "window": 0, "activation": "gelu_tanh", "parallel": False},
    }  # fmt: skip
    agree(model, rename, shape, batch(2, 11, 31), 1e-12)
