"""The proof from outside: from the same weights and batches, transformers and Argosy have the same first 100 losses."""

from __future__ import annotations

import ast
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exchange_models import LLAMA, YARN, made, tokenizer

STEPS = 100
ROWS, SEQUENCE = 4, 24
SMALL = {**LLAMA, "num_hidden_layers": 2, "num_key_value_heads": 2, "max_position_embeddings": 32}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**SMALL, "attention_bias": True, "tie_word_embeddings": False},
    "mistral": {**SMALL, "sliding_window": 6, "tie_word_embeddings": False},
    "qwen2": {
        **SMALL,
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
    "qwen3": {**SMALL, "head_dim": 8, "tie_word_embeddings": True},
    "olmo2": {**SMALL, "rope_parameters": YARN, "tie_word_embeddings": False},
    "gpt2": {"vocab_size": 307, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 32},
}
PLAIN = {"lr": 3e-3, "decay": 0.0, "clip": 0.0, "warmup": 0, "schedule": "constant", "final": 0.0, "epsilon": 1e-8}
WHOLE = {"lr": 1e-2, "decay": 0.3, "clip": 0.7, "warmup": 9, "schedule": "cosine", "final": 0.1, "epsilon": 1e-8}
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
OWN = Path(__file__).with_name("outside.py")


def test_the_other_side_imports_nothing_of_ours_and_shares_no_line_with_the_data_room() -> None:
    text = OWN.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        assert not any(name.startswith("argosy") for name in names)
    lines = {line.strip() for line in text.splitlines() if len(line.strip()) > 24 and "import" not in line}
    for path in (Path(__file__).parents[2] / "src" / "argosy" / "data").rglob("*.py"):
        shared = lines & {line.strip() for line in path.read_text(encoding="utf-8").splitlines()}
        assert not shared, (path.name, shared)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text files of many lengths, some longer than a sequence; and chats."""
    home, chance = tmp_path_factory.mktemp("texts"), random.Random(4)
    words = ["sea", "calm", "and", "a", "few", "ships", "lay", "still", "in", "bay", "while", "men", "sang", "of", "it"]
    (home / "text").mkdir()
    for number in range(60):
        text = " ".join(chance.choice(words) for _ in range(chance.randint(4, 60)))
        (home / "text" / f"{number:03d}.txt").write_text(text + ".\n", encoding="utf-8")
    rows = []
    for _ in range(60):
        said = [" ".join(chance.choice(words) for _ in range(chance.randint(2, 9))) for _ in range(4)]
        roles = ["user", "assistant"] * 2
        rows.append({"messages": [{"role": role, "content": one} for role, one in zip(roles, said, strict=True)]})
    (home / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    home = tmp_path_factory.mktemp("weights")

    def folder(family: str) -> Path:
        place = home / family
        if not place.exists():
            made(family, FAMILIES[family], place)
            tokenizer(place)
        return place

    return folder


def ours(folder: Path, source: Path, place: Path, kind: str, recipe: dict[str, Any]) -> Any:
    """The run that Argosy makes of it, inside this process."""
    import argosy

    job = {
        "name": place.name, "model": {"init": str(folder)}, "data": {"source": str(source), "held_out": "5%"},
        "batch": {"sequence": SEQUENCE, "tokens": ROWS * SEQUENCE, "micro": 3},
        "train": {"steps": STEPS, "precision": kind, "compile": False, "seed": 3},
        "optim": {"name": "adamw", "lr": recipe["lr"], "weight_decay": recipe["decay"], "clip": recipe["clip"] or "none",
                  "warmup": recipe["warmup"] * ROWS * SEQUENCE, "schedule": recipe["schedule"]},
        "checkpoint": {"every": "never"}, "observe": {"sample_every": "never"}, "evaluate": {"every": "never"},
    }  # fmt: skip
    if recipe["schedule"] == "cosine":
        job["optim"]["final"] = recipe["final"]  # type: ignore[index]
    return argosy.train(job, workers=0, quiet=True, run=place)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("recipe, kind, source", [
    (PLAIN, "float64", "text"), (PLAIN, "float32", "text"),
    (WHOLE, "float64", "chats.jsonl"), (WHOLE, "float32", "chats.jsonl"),
], ids=["plain float64", "plain float32", "whole float64", "whole float32"])  # fmt: skip
@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_hundred_losses_are_those_of_transformers(
    family: str, recipe: dict[str, Any], kind: str, source: str, weights: Callable[[str], Path], texts: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import outside
    import torch

    from argosy.cluster.here import Trial
    from argosy.commands.data import show

    monkeypatch.setenv("ARGOSY_CACHE", str(texts / "cache"))
    monkeypatch.setattr(Trial, "begin", lambda self: None)  # what is timed decides nothing here
    monkeypatch.setattr(Trial, "ask", lambda self, request: {"gemm": {"float32": 50.0}, "compile": False})
    folder = weights(family)
    run = ours(folder, texts / source, tmp_path / "run", kind, recipe)
    told = [json.loads(show(run.path, step, as_json=True)) for step in range(1, STEPS + 1)]
    assert all(sum(one["end"] - one["begin"] for one in rows) == ROWS * SEQUENCE for rows in told)
    theirs = outside.losses(folder, told, outside.library(run.prepared()), getattr(torch, kind), recipe)
    found = run.metrics().column("loss").to_pylist()
    assert len(found) == STEPS and found[-1] < 0.9 * found[0], "nothing was learned"
    assert any(len(rows) > ROWS for rows in told), "nothing was packed"
    off = [abs(one - other) / other for one, other in zip(found, theirs, strict=True)]
    assert max(off) <= TOLERANCE[kind] and not any(map(math.isnan, off)), (off.index(max(off)) + 1, max(off))
