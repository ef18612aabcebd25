"""Each token computed once gives what computing all of the text anew for each one gives: every ingredient of a block."""

from __future__ import annotations

from typing import Any

import pytest

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped heads, norms of queries and keys": {"kv_heads": 2, "qk_norm": "head", "qkv_bias": True},
    "window": {"window": 5},
    "capped, peri": {"softcap": 2.0, "norm_placement": "peri"},
    "post, full norm": {"norm_placement": "post", "qk_norm": "full"},
    "parallel, gelu": {"parallel": True, "activation": "gelu", "norm": "layer", "norm_bias": True},
    "learned positions, a head": {"positions": "learned", "tied": False},
    "one key-value head, scaled rotation": {
        "kv_heads": 1,
        "rope_scaling": {"kind": "llama3", "factor": 4.0, "original": 16},
    },
}
VOCABULARY = 37


def made(kind: dict[str, Any], precision: str = "float64") -> Any:
    """A small decoder with random weights, biases and gains."""
    import torch

    from argosy.job.schema import BlockSection, ModelSection, RopeScaling
    from argosy.model.decoder import Decoder
    from argosy.model.weights import initialise

    block = {
        "heads": 4, "kv_heads": 4, "head_size": 8, "hidden": 24, "activation": "swiglu", "parallel": False, "norm": "rms",
        "norm_placement": "pre", "norm_epsilon": 1e-5, "norm_bias": False, "qk_norm": "none", "qkv_bias": False,
        "attention_bias": False, "mlp_bias": False, "window": 0, "softcap": 0.0, "dropout": 0.3,
    }  # fmt: skip
    model: dict[str, Any] = {
        "layers": 3, "width": 32, "vocabulary": VOCABULARY, "positions": "rotary", "context": 40, "rope_theta": 100.0,
        "tied": True, "rope_scaling": "none", "softcap": 0.0, "z_loss": 0.0,
    }  # fmt: skip
    said = {name: value for name, value in kind.items() if name in block}
    shape = {**model, **{name: value for name, value in kind.items() if name not in block}}
    if isinstance(shape["rope_scaling"], dict):
        shape["rope_scaling"] = RopeScaling(**shape["rope_scaling"])
    section = ModelSection(**shape, block=BlockSection(**{**block, **said}))
    number = getattr(torch, precision)
    decoder = Decoder(section, compute=number, master=number)
    decoder.to_empty(device="cpu")
    initialise(decoder, 1)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw).to(number), alpha=0.3)
    decoder.prepare("cpu", 40, compiled=False)
    return decoder.eval()


def both(decoder: Any, prompts: list[list[int]], context: int, **options: Any) -> tuple[list[Any], list[Any]]:
    """What follows the prompts, computed anew each time, and token by token."""
    from functools import partial

    import torch

    from argosy.evaluate.cached import Cached
    from argosy.evaluate.generate import Again, continuations, logits, stream_of

    streams = [stream_of(7, number) for number in range(len(prompts))]
    again = Again(partial(logits, decoder), context=context)
    longest = min(context, max(map(len, prompts)) + options["tokens"])
    cached = Cached(decoder, len(prompts), longest, torch.device("cpu"))
    found = [
        list(continuations(read, prompts, context=context, streams=streams, **options)) for read in (again, cached)
    ]
    return found[0], found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_tokens_as_without(kind: str) -> None:
    decoder = made(KINDS[kind])
    prompts = [[3, 4, 5], [9], list(range(1, 36)), [2, 2, 8, 30, 11, 7]]
    for temperature, top_p in ((0.0, 1.0), (1.0, 1.0), (1.3, 0.7)):
        # 35 tokens and 30 more are beyond the context of 40: what is looked at moves on, and is read anew.
        again, cached = both(
            decoder, prompts, 40, tokens=30, temperature=temperature, top_p=top_p, ends=[0], vocabulary=VOCABULARY
        )
        assert again == cached
        assert len({tuple(step) for step in again}) > 3, "a model that says one thing proves nothing"
    assert all(decoder.blocks[index].attention.memory is None for index in decoder.held)
    assert decoder.reach == 0


def test_what_was_read_is_compared_and_read_anew_where_it_differs() -> None:
    import torch

    from argosy.evaluate.cached import Cached
    from argosy.evaluate.generate import Again, logits

    decoder = made({"window": 9})
    cached = Cached(decoder, 2, 400, torch.device("cpu"))
    again = Again(lambda *given: logits(decoder, *given), context=400)
    draw = torch.Generator().manual_seed(2)
    long = torch.randint(0, VOCABULARY, (300,), generator=draw).tolist()  # more than is read at once
    for texts in ([long, [5]], [[*long, 3], [5]], [[*long, 3], [5, 6, 7]], [long[7:], [5, 6, 7]], [long[7:], [1]]):
        torch.testing.assert_close(cached(texts), again(texts), rtol=1e-9, atol=1e-9)


def test_each_token_goes_through_the_model_once() -> None:
    import torch

    from argosy.evaluate.cached import Cached

    decoder, widths = made({}), []
    decoder.blocks[0].register_forward_pre_hook(lambda module, given: widths.append(given[0].shape[1]))
    cached = Cached(decoder, 1, 64, torch.device("cpu"))
    for length in (3, 4, 5, 6):
        cached([[1] * length])
    assert widths == [32, 1, 1, 1]  # the prompt, padded to a tile, then one token each
    with pytest.raises(ValueError, match="no text"):
        Cached(decoder, 1, 64, torch.device("cpu"))([[]])


def test_float32_chooses_the_same_tokens_too() -> None:
    decoder = made(KINDS["grouped heads, norms of queries and keys"], "float32")
    again, cached = both(decoder, [[3, 4, 5], [20] * 12], 64, tokens=40, temperature=0.9, ends=[], vocabulary=None)
    assert again == cached
