"""The decoder: embedding, blocks, norm, head. Plain PyTorch, to be read from top to bottom.

In: the model section in force and a batch of tokens with their documents. Out: hidden states, logits, or the loss as a
sum over counted tokens. It is built on the meta device, laid out by whoever wants to, and filled by `weights.py`.
Shapes: B batch, S sequence, D model, H heads, G key-value heads, K head size, F hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from argosy.job.schema import BlockSection, ModelSection, layers
from argosy.model import kernels
from argosy.model.attention import attention
from argosy.model.layers import FeedForward, Norm, Projection, drop, known, project, rotate, rotation_table
from argosy.model.loss import loss_sum
from argosy.random import bits, key


class Attention(nn.Module):
    """Projections, norms of queries and keys, rotation; the product itself is `attention.attention`."""

    def __init__(self, width: int, block: BlockSection):
        super().__init__()
        self.heads = known(block.heads, "block.heads")
        self.groups = known(block.kv_heads, "block.kv_heads")
        self.size = known(block.head_size, "block.head_size")
        self.window = known(block.window, "block.window")
        self.kernel = "dense"  # Decoder.prepare chooses
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
        seen = attention(q, k, v, segments, self.window, self.kernel)
        return project(seen.flatten(-2), (self.output,))[0]


class Block(nn.Module):
    """Attention, then feed-forward, each after a norm; or MegaScale's parallel block, both after one norm.

    Source of the parallel block: Jiang et al., "MegaScale", 2024, section 3.1: y = x + mlp(norm x) + attention(norm x).
    """

    def __init__(self, width: int, block: BlockSection):
        super().__init__()
        self.parallel = known(block.parallel, "block.parallel")
        self.dropout = known(block.dropout, "block.dropout")
        self.attention_norm = norm_of(block, width)
        self.attention = Attention(width, block)
        if not self.parallel:
            self.mlp_norm = norm_of(block, width)
        hidden, activation = known(block.hidden, "block.hidden"), known(block.activation, "block.activation")
        self.mlp = FeedForward(width, hidden, activation, known(block.mlp_bias, "block.mlp_bias"))

    def forward(
        self, x: Tensor, segments: Tensor, rotation: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """X [B, S, D]; segments [B, S]; rotation [B, S, 2, K / 2] where positions turn; noise [B, S, 2] where dropped."""
        qkv = (self.attention.query, self.attention.key, self.attention.value)
        if self.parallel:
            q, k, v, *inner = project(self.attention_norm(x), (*qkv, *self.mlp.inputs))
            seen = self._dropped(self.attention(q, k, v, segments, rotation), noise, 0)
            return x + seen + self._dropped(self.mlp(*inner), noise, 1)
        q, k, v = project(self.attention_norm(x), qkv)
        x = x + self._dropped(self.attention(q, k, v, segments, rotation), noise, 0)
        return x + self._dropped(self.mlp(*project(self.mlp_norm(x), self.mlp.inputs)), noise, 1)

    def _dropped(self, x: Tensor, noise: Tensor | None, part: int) -> Tensor:
        return x if noise is None or not self.dropout else drop(x, noise[..., part], self.dropout)


def norm_of(block: BlockSection, size: int, *, biased: bool = True) -> Norm:
    """The norm that `block` asks for, over `size`; those of queries and keys have no bias."""
    kind, epsilon = known(block.norm, "block.norm"), known(block.norm_epsilon, "block.norm_epsilon")
    return Norm(size, kind, epsilon, biased and known(block.norm_bias, "block.norm_bias"))


class Decoder(nn.Module):
    """A decoder-only transformer as the model section in force describes it.

    Parameters live in `master` on the meta device until they are given memory and `weights.initialise` fills them;
    activations and matrix products are in `compute`. Parameter names are the contract of every checkpoint:
    embedding.weight, positions.weight, blocks.N.attention_norm.weight, blocks.N.attention.{query,key,value,output}.weight,
    blocks.N.attention.{query,key}_norm.weight, blocks.N.mlp_norm.weight, blocks.N.mlp.{gate,up,down}.weight, norm.weight,
    head.weight, and .bias beside each where asked.
    """

    def __init__(
        self, model: ModelSection, *, seed: int = 1, compute: torch.dtype = torch.float32,
        master: torch.dtype = torch.float32,
    ):  # fmt: skip
        super().__init__()
        self.section, self.seed, self.compute = model, seed, compute
        self.shapes = layers(model)
        self.rotary = known(model.positions, "positions") == "rotary"
        self.theta = known(model.rope_theta, "rope_theta") if self.rotary else 0.0
        width, vocabulary = known(model.width, "width"), known(model.vocabulary, "vocabulary")
        self.compile_loss = False
        self._tables: dict[tuple[Any, ...], Tensor] = {}
        with torch.device("meta"):
            self.embedding = nn.Embedding(vocabulary, width)
            self.positions = None if self.rotary else nn.Embedding(known(model.context, "context"), width)
            self.blocks = nn.ModuleList(Block(width, shape) for shape in self.shapes)
            self.norm = norm_of(model.block, width)
            self.head = None if known(model.tied, "tied") else Projection(width, vocabulary, bias=False)
        self.to(master)

    @property
    def head_weight(self) -> Tensor:
        """[V, D]: the head's own, or the embedding's where they are tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def prepare(self, device: str, sequence: int, compiled: bool) -> str:
        """Choose the attention kernel for sequences of this length on `device` and give its name."""
        kernel = kernels.choose(device, sequence, compiled, self.compute)
        for block in self.blocks:
            block.attention.kernel = kernel  # type: ignore[union-attr]
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
        x = F.embedding(tokens, self.embedding.weight).to(self.compute)
        if self.positions is not None:
            x = x + F.embedding(positions, self.positions.weight).to(self.compute)
        for index, block in enumerate(self.blocks):
            noise = self._noise(index, positions, segments, step, sequence)
            x = block(x, segments, self._rotation(index, positions), noise)
        return self.norm(x)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] to [..., V], whole: for sampling, not for training."""
        return F.linear(hidden, self.head_weight.to(hidden.dtype))

    def loss(self, batch: Any, chunk: int = 1024, step: Tensor | None = None) -> Tensor:
        """The negative log-likelihood of the counted labels of `batch` (a data.batch.Batch of tensors), summed, in nats."""
        hidden = self(batch.tokens, batch.positions, batch.segments, step, batch.sequence)
        return loss_sum(hidden, self.head_weight, batch.labels, batch.weights, chunk, compiled=self.compile_loss)

    def _rotation(self, index: int, positions: Tensor) -> Tensor | None:
        """The rotary angles of every token for block `index`: a row of a table each, so that documents start anew."""
        if not self.rotary:
            return None
        size = known(self.shapes[index].head_size, "block.head_size")
        wide = torch.promote_types(self.compute, torch.float32)
        wanted = (size, positions.shape[1], positions.device)
        if wanted not in self._tables:
            self._tables[wanted] = rotation_table(positions.shape[1], size, self.theta, positions.device, wide)
        return self._tables[wanted][positions]

    def _noise(
        self, index: int, positions: Tensor, segments: Tensor, step: Tensor | None, sequence: Tensor | None
    ) -> Tensor | None:
        """Keys [B, S, 2] of the two dropouts of block `index`: of layer name, step, sequence, document and position."""
        if not self.training or not self.shapes[index].dropout or step is None or sequence is None:
            return None
        parts = [key(self.seed, "dropout", f"blocks.{index}.{part}") for part in ("attention", "mlp")]
        streams = bits(torch.tensor(parts, device=step.device), step)
        token = segments.long() * 2**32 + positions.long()
        return bits(bits(streams, sequence[:, None])[:, None, :], token[..., None])
