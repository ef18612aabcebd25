"""Reads texts on where it stood: each token goes through the model once, its keys and values are kept.

A `generate.Reader` for a decoder that is whole on one device. The same ids as `generate.Again` gives: where a text is longer
than the context, both forget its oldest quarter at once, and this one reads what is left anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from argosy.evaluate.generate import TILE
from argosy.model.decoder import Attention, Decoder
from argosy.model.memory import Memory, Place

CHUNK = 256  # tokens of a row that are read at once: bounds the scores that are held


class Cached:
    """`rows` texts side by side. `longest`: tokens that any of them may have at once; `positions`: those the model knows."""

    def __init__(self, decoder: Decoder, rows: int, longest: int, device: torch.device):
        self.decoder, self.device = decoder, device
        room = -(-longest // TILE) * TILE
        self.place = Place(room, torch.zeros((rows, 1), dtype=torch.int64, device=device))
        self.positions = longest
        self.memories = {index: Memory(self.place) for index in decoder.held}
        self.known: list[list[int]] = [[] for _ in range(rows)]
        self.last: Tensor | None = None  # logits [rows, V] after each text

    def __call__(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """See generate.Reader."""
        fresh = []
        for row, text in enumerate(texts):
            known = self.known[row]
            if list(text[: len(known)]) != known:
                known.clear()  # the oldest were forgotten: every token has another position now
            fresh.append(list(text[len(known) :]))
        while any(fresh):
            self._read([ids[:CHUNK] for ids in fresh], ended=[len(ids) <= CHUNK for ids in fresh])
            fresh = [ids[CHUNK:] for ids in fresh]
        if self.last is None:
            raise ValueError("there is no text to read")
        return self.last

    def _read(self, new: Sequence[Sequence[int]], ended: Sequence[bool]) -> None:
        """Read `new` ids of each row; those that `ended` are read to the end of their text with them."""
        count = max(map(len, new))
        width = 1 if count == 1 else -(-count // TILE) * TILE
        tokens = torch.zeros((len(new), width), dtype=torch.int64)
        slots = torch.full((len(new), width), self.place.room, dtype=torch.int64)
        for row, ids in enumerate(new):
            begin = len(self.known[row])
            tokens[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
            slots[row, : len(ids)] = torch.arange(begin, begin + len(ids))
            self.known[row] += ids
        self.place.slots = slots.to(self.device)
        self.place.reach = min(self.place.room, -(-max(map(len, self.known)) // TILE) * TILE)
        positions = self.place.slots.clamp(max=self.positions - 1)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), self._remembering():
            hidden = self.decoder(tokens.to(self.device), positions, torch.ones_like(positions, dtype=torch.int32))
            ends = torch.tensor([max(0, len(ids) - 1) for ids in new], device=self.device)
            logits = self.decoder.logits(hidden[torch.arange(len(new), device=self.device), ends][:, None])[:, 0]
        chosen = [row for row, ids in enumerate(new) if ids and ended[row]]
        if self.last is None:
            self.last = torch.zeros_like(logits)
        self.last[chosen] = logits[chosen]

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        """Inside, the decoder's attention looks at what is kept."""
        layers = {index: self.decoder.blocks[index].attention for index in self.memories}
        before = self.decoder.reach
        try:
            self.decoder.reach = self.place.room
            for index, layer in layers.items():
                assert isinstance(layer, Attention)
                layer.memory = self.memories[index]
            yield
        finally:
            self.decoder.reach = before
            for layer in layers.values():
                layer.memory = None  # type: ignore[union-attr]
