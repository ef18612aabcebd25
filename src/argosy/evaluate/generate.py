"""Lets a model continue a text, token by token.

Each new token recomputes the whole context, eager and padded to a multiple of 32 positions: no cache to keep in step with the
model, and fast enough for the short texts that samples are (the cost grows with the square of their length). The choice is
drawn from the counter generator, so the same (seed, name, position) gives the same text under every layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from argosy.random import bits, key, unit

TILE = 32  # attention keeps a kernel for each length it has seen; few lengths, few kernels

Scores = Callable[[Tensor, Tensor, Tensor], Tensor]  # tokens, positions, segments [B, S] -> logits [B, S, V]
Agree = Callable[[list[int]], list[int]]  # what this rank would choose, one id a prompt -> what all ranks take


def choose(logits: Tensor, temperature: float, stream: int, position: int) -> int:
    """One token id drawn from `logits` [V]; temperature 0 takes the likeliest. Pure."""
    if temperature == 0:
        return int(logits.argmax())
    shares = torch.softmax(logits.detach().to("cpu", torch.float64) / temperature, dim=0).cumsum(0)
    draw = unit(bits(stream, torch.tensor([position], dtype=torch.int64))) * shares[-1]
    return min(int(torch.searchsorted(shares, draw)), len(shares) - 1)


def continuation(
    scores: Scores,
    prompt: Sequence[int],
    *,
    tokens: int,
    temperature: float,
    context: int,
    stream: int,
    end: int | None = None,
    vocabulary: int | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[int]:
    """`continuations` of one prompt: its ids as they come."""
    for [chosen] in continuations(
        scores,
        [prompt],
        tokens=tokens,
        temperature=temperature,
        context=context,
        streams=[stream],
        end=end,
        vocabulary=vocabulary,
        device=device,
    ):
        if chosen is not None:
            yield chosen


def continuations(
    scores: Scores,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    temperature: float,
    context: int,
    streams: Sequence[int],
    end: int | None = None,
    vocabulary: int | None = None,
    device: torch.device | str = "cpu",
    agree: Agree | None = None,
) -> Iterator[list[int | None]]:
    """Up to `tokens` times the next id of each of `prompts`, none of which is empty; None for one that met the id `end`.

    At most the last `context` tokens are looked at. Ids from `vocabulary` on (rows the tokenizer does not know) are never
    chosen. `streams` key the choices, one a prompt. `agree`: where ranks need each other for `scores`, they must also end
    together, though their logits may differ in a bit.
    """
    known = [list(prompt) for prompt in prompts]
    ended = [False] * len(known)
    for number in range(tokens):
        seen = [ids[-context:] for ids in known]
        longest = max(map(len, seen), default=0)
        length = min(-(-longest // TILE) * TILE, max(context, longest))
        padded = torch.zeros((len(seen), length), dtype=torch.int64)
        for row, ids in enumerate(seen):
            padded[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        # Padding comes after the text, where causal attention never looks; it belongs to the document like the text.
        segments = torch.ones(padded.shape, dtype=torch.int32, device=device)
        positions = torch.arange(length, device=device).expand(padded.shape)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            logits = scores(padded.to(device), positions, segments)
        drawn = [
            choose(logits[row, len(ids) - 1, :vocabulary], temperature, streams[row], number)
            for row, ids in enumerate(seen)
        ]
        chosen: list[int | None] = []
        for row, new in enumerate(drawn if agree is None else agree(drawn)):
            ended[row] = ended[row] or new == end
            chosen.append(None if ended[row] else new)
            if not ended[row]:
                known[row].append(new)
        if all(ended):
            return
        yield chosen


def stream_of(seed: int, *name: object) -> int:
    """The key of the choices of one text."""
    return key(seed, "sample", *name)


def logits(model: Any, tokens: Tensor, positions: Tensor, segments: Tensor) -> Tensor:
    """Logits [B, S, V] of a decoder."""
    return model.logits(model(tokens, positions, segments))  # type: ignore[no-any-return]


def following(tokenizer: Any, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """The text of `ids` where they follow `prompt`: a tokenizer may write a token differently at the start of a text."""
    before, whole = tokenizer.decode(list(prompt)), tokenizer.decode([*prompt, *ids])
    return str(whole[len(before) :] if whole.startswith(before) else tokenizer.decode(list(ids)))


def pieces(tokenizer: Any, ids: Iterator[int], prompt: Sequence[int]) -> Iterator[str]:
    """The text of `ids` as it grows, in whole characters; `prompt` is what they follow.

    A token may hold part of a character, and a tokenizer may join neighbours: so the text of all ids is compared with what
    was given out already.
    """
    shown = tokenizer.decode(list(prompt)) if prompt else ""
    known = list(prompt)
    for new in ids:
        known.append(new)
        text = tokenizer.decode(known)
        if text.endswith("\ufffd") or not text.startswith(shown):
            continue
        yield text[len(shown) :]
        shown = text
    text = tokenizer.decode(known)
    if len(text) > len(shown) and text.startswith(shown):
        yield text[len(shown) :]  # what stayed half a character to the end
