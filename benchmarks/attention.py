"""Where the CPU's two kernels of attention cross: dense (all scores, compiled) and flash, one document at a time.

`python benchmarks/attention.py [--rounds 9] [--heads 6] [--size 32] [--tokens 2048] [--quick]`

One process of one thread; contestants alternate on the same inputs: forward and backward of one layer of the laptop job's
shape, in both types, at several lengths, with about one, three or eight documents a sequence. "copies" is the dense kernel on
float32 copies of bfloat16: what exact scores would cost at most. DENSE in `plan/bytes.py` is what came of it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded

import torch
from torch import Tensor

import measure
from argosy.device import torch_versions
from argosy.model import kernels
from argosy.plan.bytes import DENSE

LENGTHS = (64, 128, 256, 384, 512, 1024)
DOCUMENTS = (1, 3, 8)


def segments(rows: int, length: int, documents: int, draw: torch.Generator) -> Tensor:
    """Documents' numbers [rows, length], borders drawn at random: about `documents` a row."""
    borders = torch.rand(rows, length, generator=draw) < (documents - 1) / length
    return (borders.cumsum(1) + 1).int()


def seconds(kernel: str, inputs: list[Tensor], numbers: Tensor, copies: bool) -> float:
    """Of a forward and a backward, repeated until 20 ms are over."""
    forward, backward = kernels.KERNELS[kernel]
    times, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < 0.02 or not times:
        q, k, v, grad = (x.float() for x in inputs) if copies else inputs
        scale = q.shape[-1] ** -0.5
        out, lse = forward(q, k, v, numbers, 0, scale)
        backward(grad, q, k, v, out, lse, numbers, 0, scale)
        times += 1
    return took / times


def error(kernel: str, heads: int, size: int) -> float:
    """Relative error in bfloat16 against float64 of the output for scores with a spread of nine."""
    draw = torch.Generator().manual_seed(1)
    given = [(torch.randn(2, 256, heads, size, generator=draw) * by).bfloat16() for by in (3, 3, 1)]
    numbers = torch.ones(2, 256, dtype=torch.int32)
    wanted, _ = kernels.KERNELS["dense"][0](*(x.double() for x in given), numbers, 0, size**-0.5)
    found, _ = kernels.KERNELS[kernel][0](*given, numbers, 0, size**-0.5)
    return float((found.double() - wanted).norm() / wanted.norm())


def case(table: measure.Table, kind: str, length: int, documents: int, options: argparse.Namespace) -> str:
    """All rounds of one type, length and number of documents; a line of the page."""
    draw = torch.Generator().manual_seed(0)
    rows = max(1, options.tokens // length)
    shape = (rows, length, options.heads, options.size)
    inputs = [torch.randn(shape, generator=draw).to(getattr(torch, kind)) for _ in range(4)]
    numbers = segments(rows, length, documents, draw)
    contestants: dict[str, Callable[[], float]] = {
        "dense": lambda: seconds("dense compiled", inputs, numbers, False),
        "flash": lambda: seconds("loop", inputs, numbers, False),
    }
    if kind == "bfloat16":
        contestants["copies"] = lambda: seconds("dense compiled", inputs, numbers, True)
    for run in contestants.values():  # compiled, and every kernel generated
        run()
    (rate,) = measure.gemm(threads=1, seconds=0.1)
    names, took = list(contestants), {}
    with measure.load() as loaded:
        for turn in range(options.rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                took[name, turn] = contestants[name]() * 1e3
    place = f"{kind}, {length} tokens, {documents} documents"
    for (name, turn), value in took.items():
        sample = measure.Sample(f"{place}: {name}", turn, value, loaded["foreign"], rate, value / 1e3)
        table.samples.append(sample)
    shown = [f"{table.median(f'{place}: {name}'):.1f}" for name in names] + [""] * (3 - len(names))
    ratio = measure.spread([took["flash", turn] / took["dense", turn] for turn in range(options.rounds)])[0]
    told = f"| {kind} | {length} | {documents} | {' | '.join(shown)} | {ratio:.2f} | {loaded['foreign']:.0%} |"
    print(told, flush=True)
    return told


def main() -> None:
    """Read the options, measure, print, and write the page unless it was quick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--size", type=int, default=32, help="of a head")
    parser.add_argument("--tokens", type=int, default=2048, help="of a micro-batch")
    parser.add_argument("--quick", action="store_true", help="one round at one length, nothing written")
    options = parser.parse_args()
    lengths, documents = LENGTHS, DOCUMENTS
    if options.quick:
        options.rounds, lengths, documents = 1, lengths[:1], documents[:1]
    torch_versions.compile_strictly()
    torch.set_num_threads(1)
    table = measure.Table("attention", "ms")
    table.settings = {
        "what": "forward and backward of one layer, in ms",
        "shape": f"{options.tokens} tokens, {options.heads} heads of {options.size}, one thread",
        "dense is chosen up to": ", ".join(f"{length} tokens in {kind}" for kind, length in DENSE.items()),
    }
    rows = [case(table, *one, options) for one in itertools.product(("float32", "bfloat16"), lengths, documents)]
    lines = [
        "### attention",
        "",
        *measure.markdown(measure.Table("", "", [], table.settings))[:-3],
        "",
        "| type | tokens | documents | dense | flash | copies | flash / dense | foreign load |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        "Error of the output in bfloat16, scores with a spread of nine: "
        + ", ".join(
            f"{name} {error(kernel, options.heads, options.size):.4f}"
            for name, kernel in (("dense", "dense compiled"), ("flash", "loop"))
        ),
    ]
    measure.finish(table, lines, write=not options.quick)


if __name__ == "__main__":
    main()
