"""Boxes of tensors that are not sharded; those that are, tests/model/test_weights.py tries on real ranks."""

from __future__ import annotations

import torch

from argosy.device.shards import box, local, slices, whole, zeros


def test_a_plain_tensor_is_its_own_box() -> None:
    tensor = torch.arange(6.0).view(2, 3)
    assert box(tensor) == ((0, 0), (2, 3))
    assert torch.equal(tensor[slices(box(tensor))], tensor)
    assert local(tensor) is tensor and whole(tensor) is tensor
    assert zeros(tensor.requires_grad_()).requires_grad is False
