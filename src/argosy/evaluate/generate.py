"""Lets a model continue texts, token by token.

Who reads the texts is a `Reader`: `Again` computes all of a text for each new token (any layout, the reference of the other),
`cached.Cached` computes the new token alone. The choice is drawn from the counter generator, so the same (seed, name, position)
gives the same text under every layout. Source of top-p: Holtzman et al., "The curious case of neural text degeneration", 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from argosy.random import bits, key, unit

TILE = 32  # attention keeps a kernel for each length it has seen; few lengths, few kernels

Scores = Callable[[Tensor, Tensor, Tensor], Tensor]  # tokens, positions, segments [B, S] -> logits [B, S, V]
Agree = Callable[[list[int]], list[int]]  # what this rank would choose, one id a prompt -> what all ranks take


class Reader(Protocol):
    """Tells what could follow. It is called with the same texts again and again, each grown by an id or left as it was."""

    def __call__(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Logits [rows, V] of the id that follows each of `texts`, none of which is empty."""
        ...


class Again:
    """Reads every text from its beginning each time, eager and padded to a multiple of 32 positions, at most `context`."""

    def __init__(self, scores: Scores, *, context: int, device: torch.device | str = "cpu"):
        self.scores, self.context, self.device = scores, context, device

    def __call__(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """See Reader."""
        longest = max(map(len, texts), default=0)
        length = min(-(-longest // TILE) * TILE, max(self.context, longest))
        padded = torch.zeros((len(texts), length), dtype=torch.int64)
        for row, ids in enumerate(texts):
            padded[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        # Padding comes after the text, where causal attention never looks; it belongs to the document like the text.
        segments = torch.ones(padded.shape, dtype=torch.int32, device=self.device)
        positions = torch.arange(length, device=self.device).expand(padded.shape)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            logits = self.scores(padded.to(self.device), positions, segments)
        return logits[torch.arange(len(texts)), torch.tensor([len(ids) - 1 for ids in texts])]


def choose(logits: Tensor, temperature: float, stream: int, position: int, top_p: float = 1.0) -> int:
    """One token id drawn from `logits` [V]; temperature 0 takes the likeliest. Pure.

    top_p: only the fewest likeliest ids whose shares add up to so much are drawn from.
    """
    if temperature == 0:
        return int(logits.argmax())
    shares = torch.softmax(logits.detach().to("cpu", torch.float64) / temperature, dim=0)
    sums = (shares if top_p >= 1 else nucleus(shares, top_p)).cumsum(0)
    draw = unit(bits(stream, torch.tensor([position], dtype=torch.int64))) * sums[-1]
    return min(int(torch.searchsorted(sums, draw)), len(sums) - 1)


def nucleus(shares: Tensor, top_p: float) -> Tensor:
    """`shares` [V] with all zero but the fewest largest ones that add up to `top_p`; of equal ones the first is larger."""
    ordered, ids = shares.sort(descending=True, stable=True)
    kept = ids[ordered.cumsum(0) - ordered < top_p]
    return torch.zeros_like(shares).index_copy_(0, kept, shares[kept])


def seen(ids: Sequence[int], context: int) -> Sequence[int]:
    """What of a text is looked at: all of it up to `context` ids. Then its oldest quarter is forgotten at once, time and again.

    To forget one id for each new one would give every id another position in every step, and nothing could be kept.
    """
    if len(ids) <= context:
        return ids
    quarter = max(1, context // 4)
    return ids[-(-(len(ids) - context) // quarter) * quarter :]


def continuations(
    read: Reader,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    temperature: float,
    context: int,
    streams: Sequence[int],
    top_p: float = 1.0,
    ends: Sequence[int] = (),
    vocabulary: int | None = None,
    done: set[int] | None = None,
    agree: Agree | None = None,
) -> Iterator[list[int | None]]:
    """Up to `tokens` times the next id of each of `prompts`, none of which is empty; None for one that has ended.

    A text ends with one of the ids `ends`, or where its number is in `done`, to which the caller may add. At most `context`
    tokens are looked at (see `seen`). Ids from `vocabulary` on (rows the tokenizer does not know) are never chosen. `streams`
    key the choices, one a prompt. `agree`: where ranks need each other to read, they must also end together, though their
    logits may differ in a bit.
    """
    known = [list(prompt) for prompt in prompts]
    done = set() if done is None else done
    for number in range(tokens):
        logits = read([seen(ids, context) for ids in known])
        drawn = [
            0 if row in done else choose(logits[row, :vocabulary], temperature, streams[row], number, top_p)
            for row in range(len(known))
        ]
        chosen: list[int | None] = [None] * len(known)
        for row, new in enumerate(drawn if agree is None else agree(drawn)):
            if row in done:
                continue
            if new in ends:
                done.add(row)
            else:
                chosen[row] = new
                known[row].append(new)
        if any(new is not None for new in chosen):
            yield chosen
        if len(done) == len(known):
            return


def continuation(read: Reader, prompt: Sequence[int], *, stream: int, **options: Any) -> Iterator[int]:
    """`continuations` of one prompt: its ids as they come."""
    for [chosen] in continuations(read, [prompt], streams=[stream], **options):
        if chosen is not None:
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


class Written:
    """The text that follows a prompt, as it grows: in whole characters, and up to the first of some stop texts.

    A token may hold part of a character, and a tokenizer may join neighbours: so the text of all ids is compared with what
    was given out already. What may be the beginning of a stop text is held back until it is known.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stops: Sequence[str] = ()):
        self.tokenizer, self.prompt, self.stops = tokenizer, list(prompt), tuple(stop for stop in stops if stop)
        self.ids: list[int] = []
        self.text = ""  # given out so far
        self.stopped = False  # a stop text came

    def add(self, new: int) -> str:
        """Take the next id; the text that is certain by now and was not given out."""
        self.ids.append(new)
        return self._grown()

    def rest(self) -> str:
        """What was held back, for no id follows."""
        return "" if self.stopped else self._grown(last=True)

    def _grown(self, last: bool = False) -> str:
        text = following(self.tokenizer, self.prompt, self.ids)
        places = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, text = True, text[: min(places)]
        elif not last:
            if text.endswith("\ufffd"):
                return ""
            text = text[: len(text) - self._begun(text)]
        if not text.startswith(self.text):
            return ""
        piece, self.text = text[len(self.text) :], text
        return piece

    def _begun(self, text: str) -> int:
        """How many characters at the end of `text` may be the beginning of a stop text."""
        sizes = [size for stop in self.stops for size in range(1, len(stop)) if text.endswith(stop[:size])]
        return max(sizes, default=0)


def pieces(tokenizer: Any, ids: Iterator[int], prompt: Sequence[int], stops: Sequence[str] = ()) -> Iterator[str]:
    """The text of `ids`, which follow `prompt`, as it grows; see Written."""
    written = Written(tokenizer, prompt, stops)
    for new in ids:
        piece = written.add(new)
        if piece:
            yield piece
        if written.stopped:
            return
    rest = written.rest()
    if rest:
        yield rest
