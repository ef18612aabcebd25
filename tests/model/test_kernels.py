"""Tiles, the choice, and memory over many packings."""

from __future__ import annotations

import psutil
import pytest
import torch

from argosy.model import kernels
from argosy.model.attention import attention


@pytest.mark.parametrize("window", [0, 1, 3, 300])
def test_tiles_hold_exactly_what_is_allowed(window: int) -> None:
    segments = [[1] * 5 + [2] * 9 + [0] * 2, [3] * 16]
    covered = torch.zeros(2, 16, 16, dtype=torch.bool)
    for tile in kernels.tiles(segments, window):
        reach = torch.zeros(16, 16, dtype=torch.bool)
        reach[tile.begin : tile.end, tile.first : tile.end] = True
        assert not (covered[tile.row] & reach)[tile.begin : tile.end].any(), "a query stands in two tiles"
        covered[tile.row] |= reach
    wanted = kernels.allowed(torch.tensor(segments), window) & (torch.tensor(segments) != 0)[:, :, None]
    assert (covered | ~wanted).all()
    same = torch.tensor(segments)[:, :, None] == torch.tensor(segments)[:, None, :]
    assert (~covered | same).all()


def test_a_long_document_under_a_window_is_cut_into_bands() -> None:
    found = kernels.tiles([[1] * 1000], 10)
    assert [(t.first, t.begin, t.end) for t in found][:2] == [(0, 0, 256), (247, 256, 512)]
    assert found[-1].end == 1000


def test_the_choice_is_a_kernel_that_exists() -> None:
    for device in ("cpu", "cuda", "mps"):
        for length in (16, 1024, 1025, 1 << 20):
            for compiled in (True, False):
                for kind in (torch.float64, torch.float32, torch.bfloat16):
                    assert kernels.choose(device, length, compiled, kind) in kernels.KERNELS
    assert kernels.choose("cpu", 256, True, torch.bfloat16) == "dense compiled"
    assert kernels.choose("cpu", 256, False, torch.bfloat16) == "dense"
    assert kernels.choose("cpu", 8192, True, torch.bfloat16) == "loop"


@pytest.mark.long
@pytest.mark.parametrize("kernel", ["dense", "loop"])
def test_memory_stays_flat_over_many_packings(kernel: str) -> None:
    """oneDNN generates a kernel per shape in bfloat16 and keeps it: documents of any length must not mean any shape."""
    draw = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 512, 2, 64, generator=draw).bfloat16().requires_grad_() for _ in range(3))

    def pack() -> None:
        borders = torch.rand(1, 512, generator=draw) < 4 / 512
        attention(q, k, v, (borders.cumsum(1) + 1).int(), 0, kernel).sum().backward()

    for _ in range(60):  # every rounded shape has come up by then
        pack()
    before = psutil.Process().memory_info().rss
    for _ in range(200):
        pack()
    # Unrounded sides grow by about 350 MiB here.
    assert psutil.Process().memory_info().rss - before < 30 << 20
