"""Parameters and FLOPs of a model by closed formulas. Knows the job's model section only.

Shapes: D width, H heads, G key and value heads, K head size, F hidden, V vocabulary, S sequence, W window.
Counting: a multiplication and an addition are two FLOP; attention is counted causally (a token sees S/2 others on
average), backward is twice forward. Checked against built models in tests/system and against published sizes.
"""

from __future__ import annotations

from collections.abc import Iterable

from argosy.job.schema import BlockSection, ModelSection, layers


def head_size(model: ModelSection, block: BlockSection) -> int:
    """K: as written, else D / H."""
    return block.head_size or (model.width or 0) // (block.heads or 1)


def hidden(model: ModelSection, block: BlockSection) -> int:
    """F: as written, else 4 D, or 8/3 D rounded up to a multiple of 32 for SwiGLU."""
    width = model.width or 0
    return block.hidden or (-(-8 * width // 96) * 32 if block.activation == "swiglu" else 4 * width)


def held(model: ModelSection, block: BlockSection, tp: int = 1) -> tuple[int, int, int]:
    """H, G and F of the largest of `tp` ranks that share a block: key-value heads that do not divide stand on all of them."""
    heads = block.heads or 1
    kv_heads = block.kv_heads or heads
    return heads // tp, kv_heads // tp if kv_heads % tp == 0 else kv_heads, -(-hidden(model, block) // tp)


def _matrices(model: ModelSection, block: BlockSection, tp: int = 1) -> tuple[int, int]:
    """Elements of the attention's and of the feed-forward part's matrices, on one of `tp` ranks."""
    width, size = model.width or 0, head_size(model, block)
    heads, kv_heads, inner = held(model, block, tp)
    attention = width * size * (heads + 2 * kv_heads) + heads * size * width
    return attention, width * inner * (3 if block.activation == "swiglu" else 2)


def _vectors(model: ModelSection, block: BlockSection, tp: int = 1) -> int:
    """Elements of norms and biases, on one of `tp` ranks."""
    width, size = model.width or 0, head_size(model, block)
    heads, kv_heads, inner = held(model, block, tp)
    count = width * _norms(block) * _norm(block)
    count += {"head": 2 * size, "full": size * (heads + kv_heads)}.get(block.qk_norm or "none", 0)
    count += size * (heads + 2 * kv_heads) if block.qkv_bias else 0
    count += width if block.attention_bias else 0
    if block.mlp_bias:
        count += inner * (2 if block.activation == "swiglu" else 1) + width
    return count


def _norms(block: BlockSection) -> int:
    """Norms of the residual stream: the parallel block has one for both parts, "peri" two for each."""
    return 1 if block.parallel else 4 if block.norm_placement == "peri" else 2


def _norm(block: BlockSection) -> int:
    """Vectors of one norm."""
    return 2 if block.norm == "layer" and block.norm_bias else 1


def matrix_parameters(model: ModelSection, tp: int = 1) -> int:
    """Elements of all matrices in the blocks: what Muon updates, on the largest of `tp` ranks that share every block."""
    return stage_matrices(model, range(len(layers(model))), tp)


def stage_matrices(model: ModelSection, blocks: Iterable[int], tp: int = 1) -> int:
    """Elements of the matrices in the layers `blocks`, on the largest of `tp` ranks that share every one."""
    shapes = layers(model)
    return sum(sum(_matrices(model, shapes[one], tp)) for one in blocks)


def parameters(model: ModelSection, tp: int = 1) -> int:
    """All parameters of `model`, whose vocabulary and shape are concrete; on the largest of `tp` ranks that share it."""
    return stage_parameters(model, range(len(layers(model))), first=True, last=True, tp=tp)


def stage_parameters(model: ModelSection, blocks: Iterable[int], *, first: bool, last: bool, tp: int = 1) -> int:
    """Parameters of the layers `blocks` and, where they are the `first` or the `last` ones, of that end of the model.

    On the largest of `tp` ranks that share each matrix. A tied embedding stands at both ends, and once where both are here.
    """
    shapes, width, vocabulary = layers(model), model.width or 0, -(-(model.vocabulary or 0) // tp)
    total = sum(sum(_matrices(model, shapes[one], tp)) + _vectors(model, shapes[one], tp) for one in blocks)
    tables = {"embedding"} if first else set()
    tables |= {"embedding" if model.tied else "head"} if last else set()
    total += len(tables) * vocabulary * width
    total += (model.context or 0) * width if first and model.positions == "learned" else 0
    return total + (width * _norm(model.block) if last else 0)


def norm_parameters(model: ModelSection, blocks: Iterable[int], *, last: bool, tp: int = 1) -> tuple[int, int]:
    """Of `stage_parameters`, those of the norms in the layers `blocks`, and of the last norm."""
    shapes, width, total = layers(model), model.width or 0, 0
    for block in (shapes[one] for one in blocks):
        heads, kv_heads, _ = held(model, block, tp)
        size = head_size(model, block)
        total += width * _norms(block) * _norm(block)
        total += {"head": 2 * size, "full": size * (heads + kv_heads)}.get(block.qk_norm or "none", 0)
    return total, width * _norm(model.block) if last else 0


def repeated_norms(
    model: ModelSection, blocks: Iterable[int], *, last: bool, tp: int, sequence: bool
) -> tuple[int, int]:
    """Of `norm_parameters`, those that `repeated_parameters` counts."""
    shapes, width, total = layers(model), model.width or 0, 0
    for block in (shapes[one] for one in blocks):
        size, kv_heads = head_size(model, block), block.kv_heads or block.heads or 1
        total += width * _norms(block) * _norm(block) if sequence else 0
        total += 2 * size if block.qk_norm == "head" else 0
        total += kv_heads * size if block.qk_norm == "full" and kv_heads % tp else 0
    return total, width * _norm(model.block) if last and sequence else 0


def repeated_parameters(
    model: ModelSection, blocks: Iterable[int], *, first: bool, last: bool, tp: int, sequence: bool
) -> int:
    """Of `stage_parameters`, those that all `tp` ranks hold whole while each makes a share of their gradient only.

    sequence: the ranks share the tokens between layers, so what is used once a token gets a share of its gradient too.
    """
    shapes, width, held_here = layers(model), model.width or 0, list(blocks)
    total = sum(repeated_norms(model, held_here, last=last, tp=tp, sequence=sequence))
    for block in (shapes[one] for one in held_here):
        size, kv_heads = head_size(model, block), block.kv_heads or block.heads or 1
        total += width * (bool(block.attention_bias) + bool(block.mlp_bias))
        if kv_heads % tp:  # keys and values stand on every rank
            total += 2 * kv_heads * size * (width + bool(block.qkv_bias))
    if sequence:
        total += (model.context or 0) * width if first and model.positions == "learned" else 0
    return total


def seen(sequence: int, window: int) -> float:
    """How many tokens, itself included, a token of one document of `sequence` tokens sees on average."""
    reach = min(window, sequence) if window else sequence
    return reach - reach * (reach - 1) / (2 * sequence)


def flops_per_token(model: ModelSection, sequence: int) -> float:
    """FLOP of forward and backward, for one token of sequences of `sequence` tokens in one document each."""
    forward = 2.0 * (model.vocabulary or 0) * (model.width or 0)
    for block in layers(model):
        forward += 2.0 * sum(_matrices(model, block))
        forward += 4.0 * (block.heads or 1) * head_size(model, block) * seen(sequence, block.window or 0)
    return 3.0 * forward
