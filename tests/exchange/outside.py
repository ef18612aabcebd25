"""Training by somebody else's code: `transformers` in a plain loop, on batches read from our files by a reader of its own.

Imports nothing of argosy. What a step reads is told by `argosy data show --json`; its tokens are taken from the shard files by
their published layout; the update is torch's AdamW; schedule, clipping and the mask of weight decay are written here anew.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode

SECTIONS = 8  # boundaries, documents, names, mask, kinds, pairs, tokens, checksums


@dataclass
class Text:
    """One document: its tokens, and which of them count as labels."""

    tokens: list[int]
    counted: list[bool]


def library(folder: Path) -> dict[tuple[str, int], Text]:
    """(file, first byte or row) -> document, of all shard files of a prepared folder."""
    found = {}
    for path in sorted(folder.glob("*.shard")):
        data = path.read_bytes()
        width, documents = struct.unpack_from("<I", data, 12)[0], struct.unpack_from("<Q", data, 16)[0]
        numbers = struct.unpack_from(f"<{2 * SECTIONS}Q", data, 40)
        places = [(numbers[2 * n], numbers[2 * n + 1]) for n in range(SECTIONS)]
        borders = struct.unpack_from(f"<{documents + 1}Q", data, places[0][0])
        names = json.loads(data[places[2][0] : sum(places[2])])
        for number in range(documents):
            file, _, _, begin, _, _ = struct.unpack_from("<IHHQQQ", data, places[1][0] + 32 * number)
            first, last = borders[number], borders[number + 1]
            letters = {2: "H", 4: "I"}[width]
            tokens = struct.unpack_from(f"<{last - first}{letters}", data, places[6][0] + first * width)
            mask = data[places[3][0] + first : places[3][0] + last] if places[3][1] else b"\1" * (last - first)
            found[names[file], begin] = Text(list(tokens), [one != 0 for one in mask])
    return found


def named(word: str) -> tuple[str, int]:
    """The key of a document as `data show` writes it."""
    name, _, begin = word.rpartition("@")
    return (name, int(begin)) if name and begin.isdigit() else (word, 0)


def batch(
    told: Sequence[dict[str, Any]], texts: dict[tuple[str, int], Text]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, labels and weights of the stretches of a step, a row each, filled up on the right."""
    longest = max(one["end"] - one["begin"] for one in told)
    tokens, labels = (torch.zeros(len(told), longest, dtype=torch.int64) for _ in range(2))
    weights = torch.zeros(len(told), longest, dtype=torch.float64)
    for row, one in enumerate(told):
        text = texts.get(named(one["document"])) or texts[one["document"], 0]
        for place in range(one["begin"], one["end"]):
            tokens[row, place - one["begin"]] = text.tokens[place]
            if place + 1 < len(text.tokens):
                labels[row, place - one["begin"]] = text.tokens[place + 1]
                weights[row, place - one["begin"]] = float(text.counted[place + 1])
    return tokens, labels, weights


class Wide(TorchFunctionMode):
    """Reads float32 as float64 in whatever runs inside: their norms and angles ask for float32 by name."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.float:
            return args[0].double()
        wide = tuple(torch.float64 if one is torch.float32 else one for one in args)
        named = {key: torch.float64 if one is torch.float32 else one for key, one in (kwargs or {}).items()}
        return function(*wide, **named)


def rate(recipe: dict[str, Any], step: int, steps: int) -> float:
    """The share of the peak in the middle of `step`: linear warm-up over `warmup` steps, then half a cosine to `final`."""
    here, begin = step - 0.5, recipe["warmup"]
    if here < begin:
        return float(here / begin)
    if recipe["schedule"] == "constant":
        return 1.0
    through = (here - begin) / (steps - begin)
    return float(recipe["final"] + (1 - recipe["final"]) * (1 + math.cos(math.pi * through)) / 2)


def clipped(gradients: Sequence[torch.Tensor], most: float) -> None:
    """Scale `gradients` so that their norm is `most` where it is larger. Torch's own clipping adds 1e-6 to the norm, after
    which a norm is not quite `most`, and losses in float64 are off by some 1e-7.
    """
    norm = torch.nn.utils.get_total_norm(gradients, foreach=False)
    for one in gradients if norm > most else ():
        one.mul_(most / norm)


def losses(
    folder: Path, told: Sequence[Sequence[dict[str, Any]]], texts: dict[tuple[str, int], Text], kind: torch.dtype,
    recipe: dict[str, Any],
) -> list[float]:  # fmt: skip
    """The loss of each step, in nats per counted label, as transformers' model learns from the weights in `folder`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(folder))
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    stored: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        stored |= {name: one.to(kind) for name, one in load_file(path).items()}
    with Wide() if kind == torch.float64 else torch.enable_grad():
        model = AutoModelForCausalLM.from_config(config, dtype=kind, attn_implementation="eager").train()
        absent = model.load_state_dict(stored, strict=False)
        assert not absent.unexpected_keys and all("lm_head" in name for name in absent.missing_keys)
        plain, decayed = [], []
        for name, parameter in model.named_parameters():
            table = any(word in name for word in ("embed_tokens", "wte", "wpe"))
            (decayed if parameter.ndim > 1 and not table else plain).append(parameter)
        update = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": recipe["decay"]}, {"params": plain, "weight_decay": 0.0}],
            lr=recipe["lr"], betas=(0.9, 0.95), eps=recipe["epsilon"], foreach=False,
        )  # fmt: skip
        found = []
        for step, rows in enumerate(told, 1):
            tokens, labels, weights = batch(rows, texts)
            logits = model(input_ids=tokens, use_cache=False).logits
            each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
            loss = (each * weights.flatten().to(kind)).sum() / weights.sum()
            update.zero_grad()
            loss.backward()
            if recipe["clip"]:
                clipped([p.grad for p in model.parameters() if p.grad is not None], recipe["clip"])
            for group in update.param_groups:
                group["lr"] = recipe["lr"] * rate(recipe, step, len(told))
            update.step()
            found.append(float(loss.detach()))
    return found
