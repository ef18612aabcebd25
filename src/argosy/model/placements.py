"""Which dimension of which weight is cut where ranks share every matrix: the table of tensor parallelism, as data.

It lies beside the model, which knows nothing of it; `parallel/tensor.py` applies it. A weight that the table does not name
is whole on every rank. Sources: Shoeybi et al., "Megatron-LM", 2019, section 3; for the sequence Korthikanti et al., "Reducing
activation recomputation", 2022, section 4.2. Knows names and the job's block section only.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from argosy.job.schema import BlockSection

# (name pattern, dimension). Dimension 0 of a matrix [out, in] is cut where it reads the stream, so that each rank makes its own
# heads, hidden units or vocabulary entries; dimension 1 where it writes to the stream, as a sum over ranks.
CUTS: tuple[tuple[str, int], ...] = (
    ("embedding.weight", 0),
    ("head.weight", 0),
    ("*.attention.query.*", 0),
    ("*.attention.key.*", 0),
    ("*.attention.value.*", 0),
    ("*.attention.query_norm.*", 0),
    ("*.attention.key_norm.*", 0),
    ("*.attention.output.weight", 1),
    ("*.mlp.gate.*", 0),
    ("*.mlp.up.*", 0),
    ("*.mlp.down.weight", 1),
)
# Held by head: whole on every rank where the key-value heads do not divide by the ranks, which then repeat them.
GROUPED = ("*.attention.key.*", "*.attention.value.*", "*.attention.key_norm.*")
# Of one head's size: shared by all heads, so there is nothing to cut unless they span all heads.
PER_HEAD = ("*.attention.query_norm.*", "*.attention.key_norm.*")
# Whole on every rank and used once per token: where ranks also share the sequence out, each sees its own tokens only.
PER_TOKEN = (
    "positions.weight",
    "norm.*",
    "*.attention_norm.*",
    "*.mlp_norm.*",
    "*.attention_post_norm.*",
    "*.mlp_post_norm.*",
)


def cut(name: str, block: BlockSection | None, ranks: int) -> int | None:
    """The dimension of parameter `name` that `ranks` ranks cut between them, None where each holds all of it.

    block: the section of the block that `name` belongs to, None outside of blocks. Pure.
    """
    if block is not None:
        if block.qk_norm == "head" and matches(name, PER_HEAD):
            return None
        if matches(name, GROUPED) and (block.kv_heads or 0) % ranks:
            return None
    return next((dim for pattern, dim in CUTS if fnmatchcase(name, pattern)), None)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether one of `patterns` is that of parameter `name`."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def repeated(heads: int, groups: int, ranks: int, rank: int) -> tuple[int, ...]:
    """The key-value heads, of `groups` that every rank holds, that the query heads of `rank` use, in their order.

    One for each run of query heads that share it where those runs are equally long; else one for each query head. Pure.
    """
    own = heads // ranks
    used = [head * groups // heads for head in range(rank * own, (rank + 1) * own)]
    distinct = sorted(set(used))
    return tuple(distinct if all(used.count(group) * len(distinct) == own for group in distinct) else used)
