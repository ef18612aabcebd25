"""The decoder: embedding, blocks, norm, head. Plain PyTorch, to be read from top to bottom.

In: the model section in force and a batch of tokens with their documents. Out: hidden states, logits, or the loss as a
sum over counted tokens. It is built on the meta device, laid out by whoever wants to, and filled by `weights.py`.
Shapes: B batch, S sequence, D model, H heads, G key-value heads, K head size, F hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from argosy.device.shards import local
from argosy.job.schema import BlockSection, ModelSection, RopeScaling, layers
from argosy.model import kernels
from argosy.model.attention import attention
from argosy.model.layers import (
    FeedForward,
    Joint,
    Noise,
    Norm,
    Projection,
    drop,
    known,
    lookup,
    project,
    rotate,
    rotation_table,
)
from argosy.model.loss import loss_sum
from argosy.model.memory import Memory
from argosy.model.precisions import Kinds, usual
from argosy.random import bits, key

Module = TypeVar("Module", bound=nn.Module)


class Attention(nn.Module):
    """Projections, norms of queries and keys, rotation; the product itself is `attention.attention`."""

    def __init__(self, width: int, block: BlockSection):
        super().__init__()
        self.heads = known(block.heads, "block.heads")
        self.groups = known(block.kv_heads, "block.kv_heads")
        self.size = known(block.head_size, "block.head_size")
        self.window, self.softcap = known(block.window, "block.window"), block.softcap or 0.0
        self.kernel = "dense"  # Decoder.prepare chooses
        self.memory: Memory | None = None  # keys and values of the tokens before, where a text is read in parts
        self.used: tuple[int, ...] = ()  # the key-value heads that this rank's queries use, where it holds more
        bias = known(block.qkv_bias, "block.qkv_bias")
        self.query = Projection(width, self.heads * self.size, bias)
        self.key = Projection(width, self.groups * self.size, bias)
        self.value = Projection(width, self.groups * self.size, bias)
        self.output = Projection(self.heads * self.size, width, known(block.attention_bias, "block.attention_bias"))
        self.full = block.qk_norm == "full"
        self.query_norm = self.key_norm = None
        if block.qk_norm != "none":
            sizes = [n * self.size if self.full else self.size for n in (self.heads, self.groups)]
            self.query_norm, self.key_norm = (norm_of(block, size, biased=False) for size in sizes)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, segments: Tensor, rotation: Tensor | None) -> Tensor:
        """From the projections q [B, S, H x K] and k, v [B, S, G x K] to [B, S, D]."""
        if self.query_norm is not None and self.key_norm is not None and self.full:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k, v = (x.unflatten(-1, (-1, self.size)) for x in (q, k, v))
        if self.query_norm is not None and self.key_norm is not None and not self.full:
            q, k = self.query_norm(q), self.key_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if self.used:
            k, v = (torch.stack([x[:, :, head] for head in self.used], 2) for x in (k, v))
        if self.memory is not None:
            seen = self.memory.attend(q, k, v, self.window, self.softcap)
        else:
            seen = attention(q, k, v, segments, self.window, self.kernel, self.softcap)
        return project(seen.flatten(-2), (self.output,))[0]


class Block(nn.Module):
    """Attention, then feed-forward, each with a norm; or MegaScale's parallel block, both after one norm.

    A norm stands before its part, after it ("post", as in OLMo 2, 2024, section 3.2: x + norm(part x)), or at both places
    ("peri": Kim et al., "Peri-LN", 2025). Source of the parallel block: Jiang et al., "MegaScale", 2024, section 3.1:
    y = x + mlp(norm x) + attention(norm x).
    """

    def __init__(self, width: int, block: BlockSection):
        super().__init__()
        self.parallel = known(block.parallel, "block.parallel")
        self.dropout = known(block.dropout, "block.dropout")
        # None in jobs in force of before there was a choice.
        before, after = block.norm_placement != "post", block.norm_placement in ("post", "peri")
        self.attention_norm = norm_of(block, width) if before else None
        self.attention = Attention(width, block)
        self.attention_post_norm = norm_of(block, width) if after else None
        self.mlp_norm = norm_of(block, width) if before and not self.parallel else None
        hidden, activation = known(block.hidden, "block.hidden"), known(block.activation, "block.activation")
        self.mlp = FeedForward(width, hidden, activation, known(block.mlp_bias, "block.mlp_bias"))
        self.mlp_post_norm = norm_of(block, width) if after else None
        # Where ranks share a layer: from this rank's tokens to all of them, from shares of a sum to the sum for this rank's
        # tokens, and from all tokens to this rank's.
        self.whole, self.own, self.part = Joint(), Joint(), Joint()

    def forward(
        self, x: Tensor, segments: Tensor, rotation: Tensor | None = None, noise: Noise | None = None
    ) -> Tensor:
        """X [B, S, D]; segments [B, S]; rotation [B, S, 2, K / 2] where positions turn; noise (keys [B, S, 2]) where dropped.

        Where ranks share the sequence out, x is [B, this rank's part of S, D]; the others are whole.
        """
        qkv, length = (self.attention.query, self.attention.key, self.attention.value), segments.shape[1]
        if self.parallel:  # dropped before the sum: the same elements in every share of it
            q, k, v, *inner = project(self.whole(normed(x, self.attention_norm), length), (*qkv, *self.mlp.inputs))
            seen = self._dropped(self.attention(q, k, v, segments, rotation), noise, 0)
            both: Tensor = self.own(seen + self._dropped(self.mlp(*inner), noise, 1), length)
            return x + both
        noise = None if noise is None else (self.part(noise[0], length), noise[1])
        q, k, v = project(self.whole(normed(x, self.attention_norm), length), qkv)
        seen = self.own(self.attention(q, k, v, segments, rotation), length)
        x = x + self._dropped(normed(seen, self.attention_post_norm), noise, 0)
        made = self.own(self.mlp(*project(self.whole(normed(x, self.mlp_norm), length), self.mlp.inputs)), length)
        return x + self._dropped(normed(made, self.mlp_post_norm), noise, 1)

    def _dropped(self, x: Tensor, noise: Noise | None, part: int) -> Tensor:
        return x if noise is None or not self.dropout else drop(x, (noise[0][..., part], noise[1]), self.dropout)


def here(module: Module | None) -> Module:
    """`module`, which the stages of this rank must have."""
    if module is None:
        raise RuntimeError("another stage of the pipeline holds this part of the model")
    return module


def normed(x: Tensor, norm: Norm | None) -> Tensor:
    """X after `norm`, as it is where there is none."""
    found: Tensor = x if norm is None else norm(x)
    return found


def norm_of(block: BlockSection, size: int, *, biased: bool = True) -> Norm:
    """The norm that `block` asks for, over `size`; those of queries and keys have no bias."""
    kind, epsilon = known(block.norm, "block.norm"), known(block.norm_epsilon, "block.norm_epsilon")
    return Norm(size, kind, epsilon, biased and known(block.norm_bias, "block.norm_bias"))


class Elsewhere(nn.Module):
    """In the place of a block that another stage of the pipeline holds: later blocks keep their numbers."""


class Decoder(nn.Module):
    """A decoder-only transformer as the model section in force describes it.

    Parameters live in `master` on the meta device until they are given memory and `weights.initialise` fills them;
    activations and matrix products are in `compute`, other classes of parameters compute in the type that `kinds` has for them
    (model/precisions.py). Parameter names are the contract of every checkpoint:
    embedding.weight, positions.weight, blocks.N.attention_norm.weight, blocks.N.attention.{query,key,value,output}.weight,
    blocks.N.attention.{query,key}_norm.weight, blocks.N.mlp_norm.weight, blocks.N.{attention,mlp}_post_norm.weight,
    blocks.N.mlp.{gate,up,down}.weight, norm.weight, head.weight, and .bias beside each where asked.
    Where a pipeline is split over ranks, `keep` leaves a rank its stages: blocks keep their numbers, and with them names,
    shapes, first weights and dropout.
    """

    def __init__(
        self, model: ModelSection, *, seed: int = 1, compute: torch.dtype = torch.float32,
        master: torch.dtype = torch.float32, kinds: Kinds | None = None,
    ):  # fmt: skip
        super().__init__()
        self.kinds: Kinds = {**usual(compute), **(kinds or {})}
        self.section, self.seed, self.compute = model, seed, compute
        self.shapes = layers(model)
        self.rotary = known(model.positions, "positions") == "rotary"
        self.theta = known(model.rope_theta, "rope_theta") if self.rotary else 0.0
        self.scaling = model.rope_scaling if isinstance(model.rope_scaling, RopeScaling) else None
        self.softcap, self.z_loss = model.softcap or 0.0, model.z_loss or 0.0
        width, vocabulary = known(model.width, "width"), known(model.vocabulary, "vocabulary")
        self.compile_loss = False
        self.reach = 0  # positions that there are at least, where a text is read in parts
        self._tables: dict[tuple[Any, ...], Tensor] = {}
        with torch.device("meta"):
            self.embedding: nn.Embedding | None = nn.Embedding(vocabulary, width)
            self.positions = None if self.rotary else nn.Embedding(known(model.context, "context"), width)
            self.blocks = nn.ModuleList(Block(width, shape) for shape in self.shapes)
            self.norm: Norm | None = norm_of(model.block, width)
            self.head = None if known(model.tied, "tied") else Projection(width, vocabulary, bias=False)
        self.to(master)
        for module in self.modules():
            if isinstance(module, Norm):
                module.kind = self.kinds["norm"]
        self.whole, self.own, self.part = Joint(), Joint(), Joint()  # as in a block
        self.every = Joint()  # from this rank's entries of the vocabulary to all of them

    @property
    def head_weight(self) -> Tensor:
        """[V, D]: the head's own, or the embedding's where they are tied. On the last stage of a pipeline."""
        return here(self.embedding).weight if self.head is None else self.head.weight

    @property
    def held(self) -> list[int]:
        """The numbers of the blocks that are here: all of them, unless a pipeline is split over ranks."""
        return [index for index, block in enumerate(self.blocks) if not isinstance(block, Elsewhere)]

    def keep(self, blocks: Container[int], *, first: bool, last: bool) -> None:
        """Drop all but what the stages of this rank need: these `blocks`; the `first` one embeds, the `last` one predicts.

        A tied embedding stays on both.
        """
        for index in range(len(self.blocks)):
            if index not in blocks:
                self.blocks[index] = Elsewhere()
        if not first:
            self.positions = None
            if not (last and self.head is None):
                self.embedding = None
        if not last:
            self.norm = self.head = None

    def prepare(self, device: str, sequence: int, compiled: bool) -> str:
        """Choose the attention kernel for sequences of this length on `device` and give its name, that of the block section.

        Layers that cap their scores use the dense one.
        """
        kernel = kernels.choose(device, sequence, compiled, self.compute, size=self.section.block.head_size or 64)
        for index in self.held:
            own: Attention = self.blocks[index].attention  # type: ignore[assignment]
            capped = bool(own.softcap)
            own.kernel = kernels.choose(device, sequence, compiled, self.compute, capped=capped, size=own.size)
        # The last norm stays eager: compiled it spares 3 ms of 2,048 tokens, under 2% of the laptop job's step, for one more
        # graph that every start and restart has to load. Blocks are compiled by whoever shards them.
        self.compile_loss = compiled
        return kernel

    def forward(
        self, tokens: Tensor, positions: Tensor, segments: Tensor, step: Tensor | None = None,
        sequence: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Hidden states [B, S, D] after the last norm.

        tokens, positions, segments [B, S] of integers. Dropout acts while training and where `step` (0-dimensional int64)
        and `sequence` [B] (int64, the sequences' global numbers) are given.
        """
        x = self.blocks_forward(self.embed(tokens, positions), self.held, positions, segments, step, sequence)
        return self.finish(x, tokens.shape[1])

    def blocks_forward(
        self, x: Tensor, blocks: Iterable[int], positions: Tensor, segments: Tensor, step: Tensor | None,
        sequence: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """X [B, S, D], or this rank's part of S, through the blocks of these numbers."""
        for index in blocks:
            noise = self._noise(index, positions, segments, step, sequence)
            x = self.blocks[index](x, segments, self._rotation(index, positions), noise)
        return x

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """What enters the first block: [B, S, D], or this rank's part of S."""
        length, kind = tokens.shape[1], self.kinds["embedding"]
        x: Tensor = self.own(lookup(tokens, here(self.embedding).weight).to(kind), length)
        if self.positions is not None:
            x = x + lookup(self.part(positions, length), self.positions.weight).to(kind)
        return x.to(self.compute)

    def finish(self, x: Tensor, length: int) -> Tensor:
        """Hidden states of all `length` tokens from what the last block made."""
        hidden: Tensor = self.whole(here(self.norm)(x), length)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """[B, S, D] to [B, S, V], whole: for sampling, not for training."""
        kind = self.kinds["head"]
        own = F.linear(hidden.to(kind), local(self.head_weight).to(kind))
        found: Tensor = self.every(own, self.head_weight.shape[0])
        return self.softcap * torch.tanh(found / self.softcap) if self.softcap else found

    def loss(self, batch: Any, chunk: int = 1024, step: Tensor | None = None) -> Tensor:
        """The negative log-likelihood of the counted labels of `batch` (a data.batch.Batch of tensors), summed, in nats."""
        hidden = self(batch.tokens, batch.positions, batch.segments, step, batch.sequence)
        return self.hidden_loss(hidden, batch, chunk)

    def hidden_loss(self, hidden: Tensor, batch: Any, chunk: int) -> Tensor:
        """The same from the hidden states [B, S, D] after the last norm."""
        near = hidden.to(self.kinds["head"])
        return loss_sum(
            near, self.head_weight, batch.labels, batch.weights, chunk,
            compiled=self.compile_loss, softcap=self.softcap, z=self.z_loss,
        )  # fmt: skip

    def _rotation(self, index: int, positions: Tensor) -> Tensor | None:
        """The rotary angles of every token for block `index`: a row of a table each, so that documents start anew."""
        if not self.rotary:
            return None
        size = known(self.shapes[index].head_size, "block.head_size")
        wide = torch.promote_types(self.compute, torch.float32)
        length, device = max(positions.shape[1], self.reach), positions.device
        wanted = (size, length, device)
        if wanted not in self._tables:
            self._tables[wanted] = rotation_table(length, size, self.theta, device, wide, self.scaling)
        return self._tables[wanted][positions]

    def _noise(
        self, index: int, positions: Tensor, segments: Tensor, step: Tensor | None, sequence: Tensor | None
    ) -> Noise | None:
        """Keys [B, S, 2] of the two dropouts of block `index`: of layer name, step, sequence, document and position."""
        if not self.training or not self.shapes[index].dropout or step is None or sequence is None:
            return None
        parts = [key(self.seed, "dropout", f"blocks.{index}.{part}") for part in ("attention", "mlp")]
        streams = bits(torch.tensor(parts, device=step.device), step)
        token = segments.long() * 2**32 + positions.long()
        keys = bits(bits(streams, sequence[:, None])[:, None, :], token[..., None])
        return keys, torch.arange(known(self.section.width, "width"), device=keys.device)
