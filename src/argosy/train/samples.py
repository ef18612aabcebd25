"""Samples during training: the model continues the prompts, and rank 0 appends what it wrote to `samples.jsonl`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from argosy.evaluate.generate import Again, continuations, following, logits, stream_of
from argosy.parallel.execute import Whole
from argosy.run.folder import append_line, write_whole
from argosy.run.lines import whole

FILE = "samples.jsonl"


class Samples:
    """Continues each of `prompts`. Every rank of a sharded model must call it, since weights are gathered for it.

    A prompt without text begins a document: the model sees the end mark of the one before. `scores` gives logits where `whole`
    is not the whole model, since stages of a pipeline share it. `group`: all ranks that call it; rank 0 chooses for them,
    since logits that differ in a bit would end a text on one rank, and leave the others waiting for its part of the weights.
    """

    def __init__(
        self,
        whole: Whole,
        tokenizer: Any,
        prompts: Sequence[str],
        *,
        tokens: int,
        temperature: float,
        context: int,
        seed: int,
        device: torch.device | str = "cpu",
        scores: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
        group: dist.ProcessGroup | None = None,
    ):
        self.scores, self.group = scores or self.from_whole, group
        self.whole, self.tokenizer, self.prompts = whole, tokenizer, tuple(prompts)
        self.tokens, self.temperature, self.context, self.seed, self.device = tokens, temperature, context, seed, device

    def __call__(self, step: int) -> list[tuple[str, str]]:
        """(prompt, continuation) of each prompt, the same on every rank that asks."""
        begins = [self.tokenizer.encode(prompt) or [self.tokenizer.end] for prompt in self.prompts]
        written: list[list[int]] = [[] for _ in begins]
        was = self.whole.training
        self.whole.eval()
        try:
            for chosen in continuations(
                Again(self.scores, context=self.context, device=self.device),
                begins,
                tokens=self.tokens,
                temperature=self.temperature,
                context=self.context,
                streams=[stream_of(self.seed, step, number) for number in range(len(begins))],
                ends=[self.tokenizer.end],
                vocabulary=self.tokenizer.vocabulary,
                agree=None if self.group is None else self.agree,
            ):
                for ids, new in zip(written, chosen, strict=True):
                    ids += [] if new is None else [new]
        finally:
            self.whole.train(was)
        texts = [following(self.tokenizer, begin, ids) for begin, ids in zip(begins, written, strict=True)]
        return list(zip(self.prompts, texts, strict=True))

    def agree(self, drawn: list[int]) -> list[int]:
        """What rank 0 of the group has drawn, one id a prompt. A collective."""
        ids = torch.tensor(drawn, dtype=torch.int64, device=self.device)
        dist.broadcast(ids, group_src=0, group=self.group)
        return [int(one) for one in ids.tolist()]

    def from_whole(self, tokens: Tensor, positions: Tensor, segments: Tensor) -> Tensor:
        """Logits [B, S, V]."""
        return self.whole(logits, tokens, positions, segments)  # type: ignore[no-any-return]


def append(folder: Path, step: int, incarnation: int, texts: Sequence[tuple[str, str]]) -> None:
    """Write one line a prompt."""
    for prompt, text in texts:
        row = {"step": step, "prompt": prompt, "text": text, "incarnation": incarnation, "time": time.time()}
        append_line(folder / FILE, row)


def cut(folder: Path, step: int) -> None:
    """Leave out samples of later steps than `step`: they will be written again."""
    path = folder / FILE
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if (row := whole(line)) is not None and row["step"] <= step]
    if kept != lines:
        write_whole(path, b"".join(kept).decode())
