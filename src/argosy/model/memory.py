"""Keys and values of the tokens before, kept while a text grows: what lets a model read each token once.

`Attention.memory` is None while training. In: queries, keys and values of new tokens, and the slots that they take. Out: what
`attention.attention` would give for these tokens, had it been given the whole row. One row is one document.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Place:
    """Where the new tokens of all rows stand; shared by the memories of all layers.

    slots [B, T] int64: a row's first token has slot 0; `room` means that a token is padding. reach: slots that are looked at.
    """

    room: int
    slots: Tensor
    reach: int = 0


class Memory:
    """The keys and values [B, G, room + 1, K] of one layer; the last slot takes what is padding and is never looked at."""

    def __init__(self, place: Place):
        self.place = place
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, window: int, softcap: float) -> Tensor:
        """Keep k, v [B, T, G, K]; give [B, T, H, K], where each of q [B, T, H, K] sees its row up to itself.

        window and softcap as `attention.attention` has them.
        """
        (B, T, H, K), G, slots = q.shape, k.shape[2], self.place.slots
        if self.keys is None or self.values is None:
            self.keys = k.new_zeros((B, G, self.place.room + 1, K))
            self.values = torch.zeros_like(self.keys)
        rows = torch.arange(B, device=q.device)[:, None]
        self.keys[rows, :, slots], self.values[rows, :, slots] = k, v
        keys, values = self.keys[:, :, : self.place.reach], self.values[:, :, : self.place.reach]
        asked = q.unflatten(2, (G, H // G)).permute(0, 2, 3, 1, 4).reshape(B, G, -1, K)
        wide = (asked @ keys.mT).to(torch.promote_types(q.dtype, torch.float32)) * K**-0.5
        if softcap:
            wide = softcap * torch.tanh(wide / softcap)
        distance = slots[:, :, None] - torch.arange(self.place.reach, device=q.device)
        seen = (distance >= 0) & (distance < window) if window else distance >= 0
        grouped = wide.view(B, G, H // G, T, -1).masked_fill(~seen[:, None, None], float("-inf"))
        shares = torch.softmax(grouped, -1).to(q.dtype).view(B, G, -1, self.place.reach)
        return (shares @ values).view(B, G, H // G, T, K).permute(0, 3, 1, 2, 4).reshape(B, T, H, K)
