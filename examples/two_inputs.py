"""A module with two inputs and no tokens, trained by `argosy.fit`: kill it at any moment, start it again, and it goes on.

    python examples/two_inputs.py [RUN]

It learns to turn a point (first input) by an angle (second input).
"""

import sys

import torch
from torch import nn

import argosy


class Turn(nn.Module):
    """Points [N, 2] and angles [N, 1] to the turned points [N, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.angle = nn.Sequential(nn.Linear(1, 32), nn.GELU(), nn.Dropout(0.05), nn.Linear(32, 4))

    def forward(self, points: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        """The points, each turned by the matrix that is made from its angle."""
        return torch.einsum("nij,nj->ni", self.angle(angles).unflatten(1, (2, 2)), points)


def batch(number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Batch `number`: points, angles, and the points turned by them."""
    points, angles = torch.randn(64, 2), torch.rand(64, 1) * 6.28
    cosine, sine = angles.cos()[:, 0], angles.sin()[:, 0]
    turned = torch.stack([cosine * points[:, 0] - sine * points[:, 1], sine * points[:, 0] + cosine * points[:, 1]], 1)
    return points, angles, turned


def loss(turn: nn.Module, data: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Mean squared distance."""
    points, angles, turned = data
    return (turn(points, angles) - turned).square().sum(1).mean()


torch.manual_seed(0)
fitted = argosy.fit(
    Turn(), batch, loss=loss, steps=300, lr=1e-2, save_every=50,
    run=sys.argv[1] if len(sys.argv) > 1 else "runs/two-inputs",
)  # fmt: skip
print(f"step {fitted.step}: loss {fitted.loss}")
