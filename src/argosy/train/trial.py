"""Times pieces of a job's own model in each type, before a run starts. A program of its own: its starter needs no torch.

`python -m argosy.train.trial` reads a request (`plan/trial.py`) from standard input, and on a second line the moment of
time.monotonic() until which there is time. It prints what it knows as JSON, a line whenever it knows better: who waits takes
the last one. Keys: what `device/probe.py` says of the machine, and `pieces`, median seconds by type: `block` and `ends`
(embedding, last norm, loss), forward and backward into gradients that stand, as in a step; `block_update` and `ends_update`,
the gradient's norm and the optimizer's step for their weights. What is in them is timed alone too: `block_products` and
`ends_products`, the matrix products; `block_attention`, where it is a kernel that the compiler cannot shorten; and
`block_orthogonal`, the part of Muon's update that workers share out. `spread`: medians over shortest; `steady`: whether it was
quiet enough to be believed for good.
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
from functools import partial
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
from argosy.model.attention import attention
from argosy.model.decoder import Decoder
from argosy.model.weights import initialise
from argosy.optim.build import Optimizer, build
from argosy.optim.muon import Muon, orthogonalise
from argosy.parallel.data import Replicated
from argosy.parallel.norm import norm2
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
        self.kernel = self.decoder.prepare(device.kind, request["sequence"], False)
        self.decoder.to_empty(device=device.torch)
        initialise(self.decoder, 1)
        self.block = self.decoder.blocks[0]
        self.decoder.blocks = nn.ModuleList()  # what is left is the ends
        optim = OptimSection(lr=1e-6, **request["optim"])
        self.updates: dict[str, Optimizer] = {}
        self.data: dict[str, Replicated] = {}
        for name, module in (("blocks", self.block), ("ends", self.decoder)):
            named = [(f"{name}.{key}", parameter) for key, parameter in module.named_parameters()]
            self.updates[name] = build(named, optim, device.kind, kind=self.kind)
            self.data[name] = Replicated(named)
        rows, sequence = request["rows"], request["sequence"]
        self.batch = _batch(1, request["ends"], model.vocabulary or 1, model.context, device)
        self.inner = _batch(rows, sequence, 1, None, device)
        width = model.width or 1
        self.x = torch.randn((rows, sequence, width), dtype=torch.float32, device=device.torch).to(self.kind)
        self.rotation = self.decoder._rotation(0, self.inner.positions) if self.decoder.rotary else None
        self.gradient = torch.full_like(self.x, 1e-3)
        self.stacks = self._stacked()
        inside: Any = self.block.attention
        self.window = int(inside.window)
        self.asked = tuple(
            torch.randn((rows, sequence, heads, inside.size), device=device.torch).to(self.kind).requires_grad_()
            for heads in (inside.heads, inside.groups, inside.groups)
        )
        self.towards = torch.full_like(self.asked[0], 1e-3)

    def _muon(self) -> Muon | None:
        """What updates the block's matrices, where that is Muon."""
        matrices = self.updates["blocks"].matrices
        return matrices if isinstance(matrices, Muon) else None

    def _stacked(self) -> list[Tensor]:
        """The block's matrices that Muon updates, those of one shape together; none under another optimizer."""
        muon = self._muon()
        alike: dict[torch.Size, list[Tensor]] = {}
        for parameter in muon.parameters.values() if muon else ():
            alike.setdefault(parameter.shape, []).append(parameter.detach().to(self.kind))
        return [torch.stack(matrices) for matrices in alike.values()]

    def actions(self) -> dict[str, Callable[[], object]]:
        """What is timed, by name; a piece's update needs the gradients that the piece itself leaves."""
        rows, ends = self.request["rows"] * self.request["sequence"], self.request["ends"]
        pairs = [(int(a), int(b)) for a, b in self.request["block"]]
        head = [(int(a), int(b)) for a, b in self.request["head"]]
        found: dict[str, Callable[[], object]] = {
            "block": self.run_block,
            "ends": self.run_ends,
            "block_update": partial(self.run_update, "blocks"),
            "ends_update": partial(self.run_update, "ends"),
            "block_products": Products(pairs, rows, self.kind, self.device),
            "ends_products": Products(head, ends, self.kind, self.device),
        }
        if not self.kernel.startswith("dense"):
            found["block_attention"] = self.run_attention
        if self.stacks:
            found["block_orthogonal"] = self.run_orthogonal
        return found

    def run_block(self) -> None:
        """Forward and backward of the block."""
        self.data["blocks"].begin()
        x = self.x.detach().requires_grad_()
        self.block(x, self.inner.segments, self.rotation, None).backward(self.gradient)

    def run_ends(self) -> None:
        """Forward and backward of embedding, last norm and loss."""
        self.data["ends"].begin()
        self.decoder.loss(self.batch, self.request["chunk"]).backward()

    def run_update(self, name: str) -> None:
        """What follows the backward pass: the norm for the vote, and the update."""
        norm2(self.data[name].gradients()).item()
        self.updates[name].step(1.0)

    def run_attention(self) -> None:
        """Forward and backward of attention alone, without projections."""
        for tensor in self.asked:
            tensor.grad = None
        q, k, v = self.asked
        seen = attention(q, k, v, self.inner.segments, self.window, self.kernel)
        seen.backward(self.towards)

    def run_orthogonal(self) -> None:
        """Newton-Schulz of the block's matrices, as Muon's update does them."""
        muon = self._muon()
        assert muon is not None
        for stack in self.stacks:
            orthogonalise(stack, muon.iterations)


def _batch(rows: int, sequence: int, vocabulary: int, context: int | None, device: Device) -> Batch:
    """Any tokens, a document a row; the last row has two, as rows of any text have: kernels are faster where none ends."""
    place = torch.arange(sequence, dtype=torch.int32, device=device.torch)

    def everywhere(row: Tensor) -> Tensor:
        """The same row for every sequence."""
        return row.expand(rows, sequence).contiguous()

    tokens = everywhere((place * 7919) % vocabulary)
    positions = everywhere(place % context if context else place)
    ones = torch.ones((rows, sequence), dtype=torch.int32, device=device.torch)
    segments = ones.clone()
    segments[-1, sequence // 2 :] += 1
    return Batch(
        tokens,
        tokens,
        segments,
        positions,
        torch.zeros_like(ones),
        ones.float(),
        torch.arange(rows, device=device.torch),
    )


def actions(request: Mapping[str, Any], device: Device) -> dict[str, Callable[[], object]]:
    """Everything that is timed: "float32 block" and so on."""
    pieces = {kind: Piece(request, kind, device).actions() for kind in request["kinds"]}
    names = dict.fromkeys(name for one in pieces.values() for name in one)
    # A piece in one type, then the same in the other: what disturbs meets both.
    return {f"{kind} {name}": pieces[kind][name] for name in names for kind in pieces if name in pieces[kind]}


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
        """What the other workers do in a step, in no order with this one."""
        if not made:  # in a child: threads and tensors of its own
            threads.limit(request["threads"])
            made.update(actions(request, Device.open("cpu")))
        for action in made.values():
            action()

    def over() -> bool:
        """Whether there is no time left."""
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
            """Say what is known by now."""
            # Two rounds at least, or a single one would always look steady.
            if min(len(one.found) for one in timed.values()) > 1:
                say({**known, **summary(timed)})

        alternate(wanted, device, enough, clock=clock, over=over, seen=better)


def summary(timed: Mapping[str, Timed]) -> dict[str, Any]:
    """`pieces`, `spread` and `steady` of what was timed. The median, not the shortest: a run's steps are no race."""
    pieces: dict[str, dict[str, float]] = {}
    for name, one in timed.items():
        kind, piece = name.split(" ")
        pieces.setdefault(kind, {})[piece] = float(f"{one.usual:.4g}")
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
