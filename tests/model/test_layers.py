"""Dropout drops the same elements compiled and eager, whatever the width."""

from __future__ import annotations

import pytest
import torch

from argosy.model.layers import drop
from argosy.random import bits, key


@pytest.mark.parametrize("width", [24, 27])
def test_compiled_and_eager_drop_the_same_elements(width: int) -> None:
    """Widths that are no multiple of 16: a vector loop has a tail there."""
    keys = bits(torch.tensor([key(1, "a")]), torch.arange(32)).view(2, 16)
    noise = (keys, torch.arange(width))
    x = torch.ones(2, 16, width)
    expected = drop(x, noise, 0.1)
    assert 0.05 < float((expected == 0).float().mean()) < 0.15
    found = torch.compile(drop, dynamic=False, fullgraph=True)(x, noise, 0.1)
    assert torch.equal(found, expected)
