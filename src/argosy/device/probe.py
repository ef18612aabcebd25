"""Measures this machine and prints JSON: a program of its own, so that doctor and settle need no torch.

`python -m argosy.device.probe [--device cpu] [--shapes M,K,N ...] [--seconds 0.15]`. Keys: torch, devices, threads,
instructions, gemm (GFLOP/s by type, the mean over the shapes), bandwidth (bytes/s of a copy, read and written),
compiler (path or null), compile (whether compiling can work).
"""

from __future__ import annotations

import argparse
import json
import sysconfig
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from argosy.device import torch_versions
from argosy.device.device import Device, counts
from argosy.device.precision import TYPES
from argosy.device.timing import best

SHAPES = ((2048, 512, 512), (2048, 512, 2048))  # tokens x width x width, and a feed-forward part's


def gemm(device: Device, kind: torch.dtype, shapes: Sequence[tuple[int, int, int]], seconds: float) -> float:
    """GFLOP/s of matrix products M x K by K x N of type `kind`: all operations over all time."""
    flops, spent = 0.0, 0.0
    for m, k, n in shapes:
        left = torch.ones((m, k), dtype=kind, device=device.torch)
        right = torch.ones((n, k), dtype=kind, device=device.torch)  # as a layer holds its weight
        spent += best(lambda a=left, b=right: a @ b.t(), device, seconds / len(shapes))  # type: ignore[misc]
        flops += 2.0 * m * k * n
    return flops / spent / 1e9


def bandwidth(device: Device, seconds: float) -> float:
    """Bytes/s of a copy larger than any cache, read and written both counted."""
    source = torch.ones(1 << (24 if device.kind == "cpu" else 26), dtype=torch.float32, device=device.torch)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / best(lambda: target.copy_(source), device, seconds)


def compiles() -> bool:
    """Whether torch.compile can build for a CPU: a compiler, and Python's own headers, which its glue includes."""
    return torch_versions.compiler_path() is not None and (Path(sysconfig.get_path("include")) / "Python.h").exists()


def probe(
    device: Device,
    shapes: Sequence[tuple[int, int, int]] = SHAPES,
    seconds: float = 0.15,
    names: Collection[str] = tuple(TYPES),
) -> dict[str, Any]:
    """Everything the module's docstring lists, spending about `seconds` on each figure. names: the types to measure."""
    kinds = {name: TYPES[name] for name in names if device.wide.itemsize >= TYPES[name].itemsize}
    return {
        "torch": torch.__version__,
        "device": device.kind,
        "devices": [torch.cuda.get_device_name(index) for index in range(counts()["cuda"])],
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gemm": {name: float(f"{gemm(device, kind, shapes, seconds):.4g}") for name, kind in kinds.items()},
        "bandwidth": round(bandwidth(device, seconds)),
        "compiler": torch_versions.compiler_path(),
        "compile": compiles(),
    }


def _shape(text: str) -> tuple[int, int, int]:
    m, k, n = (int(word) for word in text.split(","))
    return m, k, n


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="argosy.device.probe")
    parser.add_argument("--device", default="cuda" if counts()["cuda"] else "cpu")
    parser.add_argument("--shapes", nargs="*", type=_shape, default=list(SHAPES), metavar="M,K,N")
    parser.add_argument("--seconds", type=float, default=0.15)
    said = parser.parse_args()
    print(json.dumps(probe(Device.open(said.device), said.shapes, said.seconds)))


if __name__ == "__main__":
    main()
