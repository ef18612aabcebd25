"""A plain transformer straight from the formulas: the judge of the trained one. Imports nothing of argosy and shares no
line with it; is itself checked against `transformers`' Llama and GPT-2.

It is written to be obviously right, not fast: one document at a time, so that nothing can leak between documents; whole
score matrices; whole logits; autograd. In: parameters by name, the model section as a plain mapping with every value
concrete, arrays of one batch. Out: the loss summed over counted tokens, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
Shape = Mapping[str, Any]
Dropout = Callable[
    [str, int, Tensor, Tensor], Tensor
]  # (layer name, row, places in the row, activations) -> activations


def shape_of_layer(model: Shape, number: int) -> dict[str, Any]:
    """The values of layer `number`: the block's, then what the pattern says at that place."""
    merged = dict(model["block"])
    variants = model.get("pattern") or [{}]
    for word, value in variants[number % len(variants)].items():
        if value is not None:
            merged[word] = value
    return merged


def affine(vectors: Tensor, weights: Weights, name: str) -> Tensor:
    """W x + b for each row x, b where there is one."""
    image = torch.einsum("ti,oi->to", vectors, weights[f"{name}.weight"])
    return image + weights[f"{name}.bias"] if f"{name}.bias" in weights else image


def normalised(vectors: Tensor, weights: Weights, name: str, layer: Shape) -> Tensor:
    """LayerNorm (Ba et al., 2016) or RMSNorm (Zhang and Sennrich, 2019)."""
    if layer["norm"] == "layer":
        variance, mean = torch.var_mean(vectors, dim=-1, correction=0, keepdim=True)
        unit = (vectors - mean) / torch.sqrt(variance + layer["norm_epsilon"])
    else:
        unit = vectors / torch.sqrt((vectors**2).sum(-1, keepdim=True) / vectors.shape[-1] + layer["norm_epsilon"])
    gained = weights[f"{name}.weight"] * unit
    return gained + weights[f"{name}.bias"] if f"{name}.bias" in weights else gained


def speeds(half: int, model: Shape) -> tuple[list[float], float]:
    """Radians a position of each of `half` pairs, theta^(-i/half), stretched for long texts; and the rotation's radius.

    Chen et al., 2023 (linear); Llama 3.1's published code; Peng et al., 2023 (YaRN): turns within the old length decide.
    """
    theta, radius = model["rope_theta"], 1.0
    found = [theta ** (-i / half) for i in range(half)]
    how = model.get("rope_scaling")
    if not isinstance(how, Mapping):
        return found, radius
    share = [0.0] * half  # of the old speed that is kept
    if how["kind"] == "llama3":
        slow, quick = how["low"] or 1, how["high"] or 4
        for i in range(half):
            wave = 2 * math.pi / found[i]
            share[i] = min(1.0, max(0.0, (how["original"] / wave - slow) / (quick - slow)))
    elif how["kind"] == "yarn":
        where = [
            half * math.log(how["original"] / (2 * math.pi * times)) / math.log(theta)
            for times in (how["fast"] or 32, how["slow"] or 1)
        ]
        first, last = max(0, math.floor(where[0])), min(2 * half - 1, math.ceil(where[1]))
        for i in range(half):
            share[i] = 1 - min(1.0, max(0.0, (i - first) / (last - first or 0.001)))
        radius = how["attention"] or 1 + math.log(how["factor"]) / 10
    return [speed * (part + (1 - part) / how["factor"]) for speed, part in zip(found, share, strict=True)], radius


def turned(heads: Tensor, positions: Tensor, model: Shape) -> Tensor:
    """Rotary positions of heads [t, head, k]: the pair (i, i + k/2) as one complex number times r e^(i m speed)."""
    half = heads.shape[-1] // 2
    listed, radius = speeds(half, model)
    angles = positions.double()[:, None, None] * torch.tensor(listed, dtype=torch.float64)
    complex_type = torch.complex128 if heads.dtype == torch.float64 else torch.complex64
    numbers = torch.complex(heads[..., :half], heads[..., half:])
    numbers = numbers * torch.polar(torch.full_like(angles, radius), angles).to(complex_type)
    return torch.cat([numbers.real, numbers.imag], dim=-1)


def held(numbers: Tensor, most: float | None) -> Tensor:
    """Numbers kept below `most` by a tanh (Gemma 2, 2024); None or 0: as they are."""
    return most * torch.tanh(numbers / most) if most else numbers


def attended(normal: Tensor, weights: Weights, name: str, layer: Shape, model: Shape, positions: Tensor) -> Tensor:
    """Multi-head attention of one document (Vaswani et al., 2017), grouped (Ainslie et al., 2023), within a window."""
    length, size = len(normal), layer["head_size"]
    parts = {}
    for kind, count in (("query", layer["heads"]), ("key", layer["kv_heads"]), ("value", layer["kv_heads"])):
        flat = affine(normal, weights, f"{name}.{kind}")
        if kind != "value" and layer["qk_norm"] == "full":
            flat = normalised(flat, weights, f"{name}.{kind}_norm", layer)
        split = flat.reshape(length, count, size)
        if kind != "value" and layer["qk_norm"] == "head":
            split = normalised(split, weights, f"{name}.{kind}_norm", layer)
        if kind != "value" and model["positions"] == "rotary":
            split = turned(split, positions, model)
        parts[kind] = split
    reach = layer["window"] or length
    hidden = torch.tensor([[not 0 <= here - other < reach for other in range(length)] for here in range(length)])
    together = []
    for head in range(layer["heads"]):
        group = head // (layer["heads"] // layer["kv_heads"])
        scores = held(parts["query"][:, head] @ parts["key"][:, group].T / math.sqrt(size), layer.get("softcap"))
        seen = torch.where(hidden, -math.inf, scores)
        odds = torch.exp(seen - seen.detach().amax(dim=1, keepdim=True))
        together.append(odds / odds.sum(dim=1, keepdim=True) @ parts["value"][:, group])
    return affine(torch.cat(together, dim=1), weights, f"{name}.output")


def fed_forward(normal: Tensor, weights: Weights, name: str, layer: Shape) -> Tensor:
    """SwiGLU (Shazeer, 2020) or GELU (Hendrycks and Gimpel, 2016), exact or by tanh."""
    raised = affine(normal, weights, f"{name}.up")
    if layer["activation"] == "swiglu":
        opened = affine(normal, weights, f"{name}.gate")
        active = opened / (1 + torch.exp(-opened)) * raised
    elif layer["activation"] == "gelu":
        active = raised * (1 + torch.erf(raised / math.sqrt(2))) / 2
    else:
        active = raised * (1 + torch.tanh(math.sqrt(2 / math.pi) * (raised + 0.044715 * raised**3))) / 2
    return affine(active, weights, f"{name}.down")


def logits_of_document(
    weights: Weights, model: Shape, tokens: Tensor, positions: Tensor, dropped: Callable[[str, Tensor], Tensor]
) -> Tensor:
    """Logits [t, vocabulary] of one document of t tokens at `positions`."""
    stream = weights["embedding.weight"][tokens.long()]
    if model["positions"] == "learned":
        stream = stream + weights["positions.weight"][positions.long()]
    for number in range(model["layers"]):
        layer, name = shape_of_layer(model, number), f"blocks.{number}"
        first, then = layer.get("norm_placement") != "post", layer.get("norm_placement") in ("post", "peri")
        normal = normalised(stream, weights, f"{name}.attention_norm", layer) if first else stream
        seen = attended(normal, weights, f"{name}.attention", layer, model, positions)
        seen = normalised(seen, weights, f"{name}.attention_post_norm", layer) if then else seen
        seen = dropped(f"{name}.attention", seen)
        if not layer["parallel"]:
            stream = stream + seen
            normal = normalised(stream, weights, f"{name}.mlp_norm", layer) if first else stream
        thought = fed_forward(normal, weights, f"{name}.mlp", layer)
        thought = normalised(thought, weights, f"{name}.mlp_post_norm", layer) if then else thought
        thought = dropped(f"{name}.mlp", thought)
        stream = stream + thought if not layer["parallel"] else stream + seen + thought
    final = normalised(stream, weights, "norm", shape_of_layer({"block": model["block"]}, 0))
    return held(final @ weights["embedding.weight" if model["tied"] else "head.weight"].T, model.get("softcap"))


def documents(segments: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(row, places) of every document of a batch [B, S]; segment 0 is padding."""
    for row, numbers in enumerate(segments.tolist()):
        for number in sorted(set(numbers) - {0}):
            yield row, torch.tensor([place for place, other in enumerate(numbers) if other == number])


def loss(weights: Weights, model: Shape, batch: Mapping[str, Tensor], dropout: Dropout | None = None) -> Tensor:
    """Sum over tokens of weight x -log p(label), in nats. The model's z-loss (PaLM, 2022) is in its gradient alone.

    batch: tokens, labels, segments, positions, weights [B, S]. dropout is given where the model drops.
    """
    total = torch.zeros((), dtype=weights["embedding.weight"].dtype)
    for row, places in documents(batch["segments"]):

        def dropped(name: str, vectors: Tensor, row: int = row, places: Tensor = places) -> Tensor:
            """What dropout leaves of `vectors`, where there is any."""
            return vectors if dropout is None else dropout(name, row, places, vectors)

        tokens, positions = batch["tokens"][row, places], batch["positions"][row, places]
        logits = logits_of_document(weights, model, tokens, positions, dropped)
        counted = batch["weights"][row, places].to(logits.dtype)
        labels = torch.where(counted > 0, batch["labels"][row, places], 0).long()
        odds = torch.exp(logits - logits.detach().amax(dim=1, keepdim=True))
        chances = odds[torch.arange(len(places)), labels] / odds.sum(dim=1)
        total = total - (counted * torch.log(chances)).sum()
        sums = torch.log(odds.sum(dim=1)) + logits.detach().amax(dim=1)
        penalty = (model.get("z_loss") or 0.0) * (counted * sums**2).sum()
        total = total + penalty - penalty.detach()
    return total
