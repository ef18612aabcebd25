"""Times pieces of a job's own model in each type, before a run starts. A program of its own: its starter needs no torch.

`python -m argosy.train.trial` reads a request (`plan/trial.py`) from standard input, and on a second line the moment of
time.monotonic() until which there is time. It prints what it knows as JSON, a line whenever it knows better: who waits takes
the last one. Keys: what `device/probe.py` says of the machine, and `pieces`, seconds by type: `block` and `ends` (embedding,
last norm, loss), forward and backward; `block_update` and `ends_update`, the optimizer's step for their weights;
`block_products` and `ends_products`, the matrix products in them alone. `spread`: medians over shortest; `steady`: whether it
was quiet enough to be believed for good.
Everything is eager: compiling takes longer than it tells.
As many processes as the run will have workers here do the same beside it, for they share caches and memory.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from argosy.data.batch import Batch
from argosy.device import probe, threads, timing
from argosy.device.device import Device, counts
from argosy.device.precision import dtype
from argosy.device.products import Products
from argosy.device.timing import Timed, alternate
from argosy.job.schema import ModelSection, OptimSection
from argosy.model.decoder import Decoder
from argosy.model.weights import initialise
from argosy.optim.build import build
from argosy.run import guardian

SECONDS = 2.5  # for all pieces together, when they do not become steady before
NOISY = 1.6  # median over shortest of all pieces together above which an answer is believed for a while only
SMALL = 0.05  # seconds of all pieces together below which nobody minds
BASE = 0.05  # for each of the machine's own figures


class Piece:
    """One block of the request's model and both ends of it, in one type, each to be run and timed by itself."""

    def __init__(self, request: Mapping[str, Any], kind: str, device: Device):
        self.request, self.kind, self.device = request, dtype(kind), device
        model = ModelSection.model_validate_json(json.dumps(request["model"]))
        master = torch.float64 if kind == "float64" else torch.float32
        self.decoder = Decoder(model, compute=self.kind, master=master)
        self.decoder.prepare(device.kind, request["sequence"], False)
        self.decoder.to_empty(device=device.torch)
        initialise(self.decoder, 1)
        self.block = self.decoder.blocks[0]
        self.decoder.blocks = nn.ModuleList()  # what is left is the ends
        optim = OptimSection(lr=1e-6, **request["optim"])
        self.updates = {}
        for name, module in (("blocks", self.block), ("ends", self.decoder)):
            named = [(f"{name}.{key}", parameter) for key, parameter in module.named_parameters()]
            self.updates[name] = build(named, optim, device.kind, kind=self.kind)
        rows, sequence = request["rows"], request["sequence"]
        self.batch = _batch(1, request["ends"], model.vocabulary or 1, model.context, device)
        self.inner = _batch(rows, sequence, 1, None, device)
        width = model.width or 1
        self.x = torch.randn((rows, sequence, width), dtype=torch.float32, device=device.torch).to(self.kind)
        self.rotation = self.decoder._rotation(0, self.inner.positions) if self.decoder.rotary else None
        self.gradient = torch.full_like(self.x, 1e-3)

    def actions(self) -> dict[str, Callable[[], object]]:
        """What is timed, by name; a piece's update needs the gradients that the piece itself leaves."""
        rows, ends = self.request["rows"] * self.request["sequence"], self.request["ends"]
        pairs = [(int(a), int(b)) for a, b in self.request["block"]]
        head = [(int(a), int(b)) for a, b in self.request["head"]]
        return {
            "block": self.run_block,
            "ends": self.run_ends,
            "block_update": lambda: self.updates["blocks"].step(1.0),
            "ends_update": lambda: self.updates["ends"].step(1.0),
            "block_products": Products(pairs, rows, self.kind, self.device),
            "ends_products": Products(head, ends, self.kind, self.device),
        }

    def run_block(self) -> None:
        """Forward and backward of the block."""
        _forget(self.block)
        x = self.x.detach().requires_grad_()
        self.block(x, self.inner.segments, self.rotation, None).backward(self.gradient)

    def run_ends(self) -> None:
        """Forward and backward of embedding, last norm and loss."""
        _forget(self.decoder)
        self.decoder.loss(self.batch, self.request["chunk"]).backward()


def _forget(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.grad = None


def _batch(rows: int, sequence: int, vocabulary: int, context: int | None, device: Device) -> Batch:
    """Any tokens, one document a row."""
    place = torch.arange(sequence, dtype=torch.int32, device=device.torch)

    def everywhere(row: Tensor) -> Tensor:
        return row.expand(rows, sequence).contiguous()

    tokens = everywhere((place * 7919) % vocabulary)
    positions = everywhere(place % context if context else place)
    ones = torch.ones((rows, sequence), dtype=torch.int32, device=device.torch)
    return Batch(
        tokens, tokens, ones, positions, torch.zeros_like(ones), ones.float(), torch.arange(rows, device=device.torch)
    )


def actions(request: Mapping[str, Any], device: Device) -> dict[str, Callable[[], object]]:
    """Everything that is timed: "float32 block" and so on."""
    pieces = {kind: Piece(request, kind, device).actions() for kind in request["kinds"]}
    names = list(next(iter(pieces.values())))
    # A piece in one type, then the same in the other: what disturbs meets both.
    return {f"{kind} {name}": pieces[kind][name] for name in names for kind in pieces}


@contextmanager
def company(others: int, work: Callable[[], object]) -> Iterator[None]:
    """While the block lasts, `others` more processes do `work` again and again. Fork before this process has threads.

    They end with this process, however it ends, and hold nothing open that somebody reads to its end.
    """
    parent, children = os.getpid(), []
    for _ in range(others):
        child = os.fork()
        if child == 0:
            try:
                guardian.bind()
                nothing = os.open(os.devnull, os.O_RDWR)
                for standard in (0, 1, 2):
                    os.dup2(nothing, standard)
                while os.getppid() == parent:
                    work()
            finally:
                os._exit(0)
        children.append(child)
    try:
        yield
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def answer(request: Mapping[str, Any], until: float, say: Callable[[Mapping[str, Any]], object]) -> None:
    """Say what the module's docstring lists, as soon as every piece has run, and again whenever more is known.

    until: the moment of time.monotonic() after which nothing more is begun.
    """
    cpu = request["device"] == "cpu"
    made: dict[str, Callable[[], object]] = {}

    def busy() -> None:
        if not made:  # in a child: threads and tensors of its own
            threads.limit(request["threads"])
            made.update(actions(request, Device.open("cpu")))
        for action in made.values():
            action()

    def over() -> bool:
        return time.monotonic() >= until

    with company(request["workers"] - 1 if cpu else 0, busy):
        threads.limit(request["threads"])
        device = Device.open(request["device"] if counts().get(request["device"]) else "cpu")
        clock = time.process_time if device.kind == "cpu" and request["threads"] == 1 else time.perf_counter
        wanted = actions(request, device)
        known: dict[str, Any] = {"request": dict(request)}
        first = {name: Timed() for name in wanted}
        for _ in range(2):  # the first round also makes what the kernels keep
            began = time.perf_counter()
            for name, action in wanted.items():
                if over():
                    return
                first[name].found.append(timing.once(action, device, clock))
            say({**known, **summary(first), "steady": False})
        enough = min(SECONDS, 30 * (time.perf_counter() - began))  # for a small model as long as thirty rounds take
        shapes = [(request["rows"] * request["sequence"], int(k), int(n)) for k, n in request["block"]]
        known |= probe.probe(device, shapes, BASE, request["kinds"])
        say({**known, **summary(first), "steady": False})

        def better(timed: Mapping[str, Timed]) -> None:
            # Two rounds at least, or a single one would always look steady.
            if min(len(one.found) for one in timed.values()) > 1:
                say({**known, **summary(timed)})

        alternate(wanted, device, enough, clock=clock, over=over, seen=better)


def summary(timed: Mapping[str, Timed]) -> dict[str, Any]:
    """`pieces`, `spread` and `steady` of what was timed."""
    pieces: dict[str, dict[str, float]] = {}
    for name, one in timed.items():
        kind, piece = name.split(" ")
        pieces.setdefault(kind, {})[piece] = float(f"{one.best:.4g}")
    best = sum(one.best for one in timed.values())
    spread = sum(one.usual for one in timed.values()) / best
    return {"pieces": pieces, "spread": round(spread, 3), "steady": spread <= NOISY or best < SMALL}


def main() -> None:
    """The program."""
    line, until = sys.stdin.readline(), sys.stdin.readline()
    if line.strip():
        answer(
            json.loads(line),
            float(until) if until.strip() else math.inf,
            lambda known: print(json.dumps(known), flush=True),
        )


if __name__ == "__main__":
    main()
