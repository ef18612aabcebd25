"""The likeliest continuation of an imported model, token by token with kept keys and values, is transformers' `generate`'s."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from argosy.evaluate.cached import Cached
from argosy.evaluate.generate import continuations
from argosy.evaluate.prompts import Prompt
from argosy.evaluate.trained import Trained
from argosy.exchange.huggingface import bring
from argosy.exchange.source import Source

TOKENS = 20
PROMPTS = ([3, 41, 7, 250, 9, 88, 6, 7, 8, 9, 10], [12], [5, 5, 5])


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "olmo2", "gpt2"])
def test_greedy_is_what_transformers_generates(folders: Callable[[str], Path], name: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    run, _ = bring(Source(folders(name), name), tmp_path / "run")
    model = Trained.open(run)
    theirs = AutoModelForCausalLM.from_pretrained(str(folders(name)), dtype=torch.float32)
    how = GenerationConfig(max_new_tokens=TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
    written: list[list[int]] = [[] for _ in PROMPTS]

    read = Cached(model.decoder, len(PROMPTS), 11 + TOKENS, model.device.torch)
    for chosen in continuations(read, PROMPTS, tokens=TOKENS, temperature=0.0, context=64, streams=[0] * len(PROMPTS)):
        for ids, new in zip(written, chosen, strict=True):
            assert new is not None
            ids.append(new)
    for prompt, ids in zip(PROMPTS, written, strict=True):
        wanted = theirs.generate(torch.tensor([prompt]), generation_config=how)[0, len(prompt) :].tolist()
        assert ids == wanted
    if name != "gpt2":  # a random model with tied weights says one thing over and over
        assert len({tuple(ids) for ids in written}) == len(PROMPTS)
    texts = model.continued([Prompt("", tuple(ids), "") for ids in PROMPTS], tokens=3, temperature=0.0)
    assert all(one.tokens <= 3 for one in texts)
