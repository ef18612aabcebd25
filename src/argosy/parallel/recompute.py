"""Recomputation: what the forward pass does not keep, the backward pass computes again. Knows blocks and their parts by name.

In: blocks, and what of them: "block" (only the block's input is kept) or operators ("attention", "mlp", "norm": only what goes
into each is kept). A forward method is replaced, not a module wrapped, so that parameter names stay and the hooks of sharded
weights run outside. It is done before compilation. Dropout needs no care: its numbers are functions of place, not of time.
Source: Chen et al., "Training deep nets with sublinear memory cost", 2016; by operator: Korthikanti et al., 2022, section 5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

NORMS = ("attention_norm", "mlp_norm", "attention_post_norm", "mlp_post_norm")
PARTS = {"attention": ("attention",), "mlp": ("mlp",), "norm": NORMS}  # operator -> modules


def apply(blocks: Iterable[nn.Module], what: Sequence[str]) -> int:
    """Let `blocks` recompute `what`: "block", or some of PARTS. Gives the number of modules that do."""
    modules: list[nn.Module] = []
    for block in blocks:
        if "block" in what:
            modules.append(block)
        else:
            names = [name for part in what for name in PARTS[part]]
            modules += [part for name, part in block.named_children() if name in names]
    for module in modules:
        object.__setattr__(module, "forward", again(module.forward))
    return len(modules)


def again(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`forward`, which keeps its arguments alone, and is called again when its gradient is wanted."""

    def recomputed(*arguments: Any) -> Tensor:
        """`forward`, of which only the arguments are kept until the backward pass."""
        found: Tensor = checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=False)
        return found

    return recomputed
