"""Tiles, the choice, and memory over many packings."""

from __future__ import annotations

import psutil
import pytest
import torch

from argosy.model import documents, kernels
from argosy.model.attention import attention
from argosy.model.kernels import KERNELS


@pytest.mark.parametrize("window", [0, 1, 3, 300])
def test_tiles_hold_exactly_what_is_allowed(window: int) -> None:
    segments = [[1] * 5 + [2] * 9 + [0] * 2, [3] * 16]
    covered = torch.zeros(2, 16, 16, dtype=torch.bool)
    for tile in documents.tiles(segments, window):
        reach = torch.zeros(16, 16, dtype=torch.bool)
        reach[tile.begin : tile.end, tile.first : tile.end] = True
        assert not (covered[tile.row] & reach)[tile.begin : tile.end].any(), "a query stands in two tiles"
        covered[tile.row] |= reach
    wanted = kernels.allowed(torch.tensor(segments), window) & (torch.tensor(segments) != 0)[:, :, None]
    assert (covered | ~wanted).all()
    same = torch.tensor(segments)[:, :, None] == torch.tensor(segments)[:, None, :]
    assert (~covered | same).all()


def test_a_long_document_under_a_window_is_cut_into_bands() -> None:
    found = documents.tiles([[1] * 1000], 10)
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
    assert kernels.choose("cpu", 256, True, torch.float32) == "loop"
    assert kernels.choose("cpu", 8192, True, torch.bfloat16) == "loop"


def test_heads_of_odd_sizes_do_not_go_to_the_kernel_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    sizes = {64: "documents", 8: "documents", 256: "documents", 10: "dense compiled", 264: "dense compiled"}
    found = {size: kernels.choose("cuda", 512, True, torch.bfloat16, size=size) for size in sizes}
    assert found == sizes


def test_the_borders_of_a_batch_are_looked_for_once() -> None:
    segments = torch.tensor([[1, 1, 2, 2], [3, 3, 3, 0]])
    found = kernels.offsets(segments)
    assert found.tolist() == [0, 2, 4, 7, 8] and found.dtype is torch.int32
    assert kernels.offsets(segments) is found
    assert kernels.offsets(segments.clone()) is not found
    segments.fill_(1)
    assert kernels.offsets(segments).tolist() == [0, 4, 8]


def test_every_layer_is_given_the_same_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def forward(q, k, v, segments, window, scale):  # type: ignore[no-untyped-def]
        seen.append(kernels.offsets(segments))
        return KERNELS["dense"][0](q, k, v, segments, window, scale)

    def backward(grad, q, k, v, out, lse, segments, window, scale):  # type: ignore[no-untyped-def]
        seen.append(kernels.offsets(segments))
        return KERNELS["dense"][1](grad, q, k, v, out, lse, segments, window, scale)

    monkeypatch.setitem(KERNELS, "looking", (forward, backward))
    segments, x = torch.ones(1, 4, dtype=torch.int32), torch.randn(1, 4, 1, 8, requires_grad=True)
    for _ in range(2):
        x = attention(x, x, x, segments, 0, "looking")
    x.sum().backward()
    assert len(seen) == 4 and all(one is seen[0] for one in seen)


def test_documents_of_one_rounded_length_are_computed_together() -> None:
    segments = torch.tensor([[1] * 40 + [2] * 24, [3] * 60 + [0] * 4])
    long, short = documents.groups(documents.tiles(segments.tolist(), 0), segments.shape)
    assert [(group.count, group.length, group.whole) for group in (long, short)] == [(2, 64, False), (1, 32, False)]
    assert long.places[:64].tolist() == [*range(40), *[39] * 24]
    assert long.kept is not None and long.kept.tolist() == [*range(40), *range(64, 124)]
    (all_of_it,) = documents.groups(documents.tiles([[1] * 64] * 2, 0), segments.shape)
    assert all_of_it.whole and all_of_it.kept is None


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_who_else_is_in_the_batch_changes_no_bit(kind: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(2)
    qkv = [torch.randn(4, 64, 2, 16, generator=draw).to(kind).requires_grad_() for _ in range(3)]
    grad = torch.randn(4, 64, 2, 16, generator=draw).to(kind)
    for segments in (torch.ones(4, 64), torch.tensor([1] * 30 + [2] * 27 + [0] * 7).expand(4, 64).contiguous()):
        together = attention(*qkv, segments.int(), 0, "loop")
        alone = [attention(*(x[row : row + 1] for x in qkv), segments[:1].int(), 0, "loop") for row in range(4)]
        assert torch.equal(together, torch.cat(alone))
        found = torch.autograd.grad(together, qkv, grad)
        for one, other in zip(found, torch.autograd.grad(alone, qkv, list(grad.split(1))), strict=True):
            assert torch.equal(one, other)


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
