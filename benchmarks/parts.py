"""What PyTorch offers for each dimension of a layout, each in a minimal loop of its own: what `argosy train` is compared with.

`torchrun --standalone --nproc-per-node 2 parts.py DIMENSION MODEL.json ...` trains on random tokens and prints, on rank 0, the
seconds of each step. *replicate* is DistributedDataParallel, *zero1* to *zero3* are `fully_shard`, *pipeline* is PipelineStage
and Schedule1F1B: all three around Argosy's own model, so that the dimension alone differs. *tensor* is `parallelize_module`,
which takes nothing but nn.Linear and nn.Embedding: it has a plain decoder of the same shape, below, of torch's own parts.
Blocks are compiled, AdamW is fused, gradients are clipped. MODEL.json is the model section of a job in force, untied.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import programs


def compiled(blocks: Any) -> None:
    """Compile each block by itself."""
    for block in blocks:
        block.forward = torch.compile(block.forward, dynamic=False)


def model_of(options: argparse.Namespace, section: dict[str, Any]) -> Any:
    """Argosy's decoder, its blocks compiled."""
    model = programs.decoder(section, options.sequence, torch.float32, compiled=True)
    compiled(model.blocks)
    return model


def own(options: argparse.Namespace, section: dict[str, Any]) -> list[Any]:
    """This rank's micro-batches of a step whose sequences the ranks share out."""
    rows = options.tokens // options.sequence // dist.get_world_size()
    return [
        programs.batch(options.micro, options.sequence, section["vocabulary"]) for _ in range(rows // options.micro)
    ]


def finished(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Clip and update."""
    nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def replicate(options: argparse.Namespace, section: dict[str, Any]) -> programs.Step:
    """Gradients are averaged by DistributedDataParallel, in buckets that are views of them, after the last micro-batch."""
    from torch.nn.parallel import DistributedDataParallel

    model = model_of(options, section)
    parallel = DistributedDataParallel(programs.Loss(model, options.chunk), gradient_as_bucket_view=True)
    optimizer, parts = programs.adamw(model), own(options, section)
    counted = options.tokens // dist.get_world_size()

    def step() -> Tensor:
        for number, part in enumerate(parts):
            with contextlib.nullcontext() if number == len(parts) - 1 else parallel.no_sync():
                loss = parallel(part) / counted
                loss.backward()
        finished(model, optimizer)
        return loss.detach()

    return step


def zero(stage: int, options: argparse.Namespace, section: dict[str, Any]) -> programs.Step:
    """`fully_shard` of each block and of the rest, told to gather and to scatter as this ZeRO stage does."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    model, mesh = model_of(options, section), init_device_mesh("cpu", (dist.get_world_size(),))
    whole: Any = programs.Loss(model, options.chunk)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=stage == 3)
    fully_shard(whole, mesh=mesh, reshard_after_forward=stage == 3)
    for module in whole.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)  # gloo has no average
    optimizer, parts = programs.adamw(whole), own(options, section)
    counted = options.tokens // dist.get_world_size()

    def step() -> Tensor:
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            whole.set_requires_gradient_sync(last or stage > 1)
            whole.set_is_last_backward(last)
            whole.set_reshard_after_backward(last or stage == 3)
            loss = whole(part) / counted
            loss.backward()
        finished(whole, optimizer)
        return loss.detach()

    return step


# --- tensor and sequence parallelism ----------------------------------------------------------------------------------


class Attention(nn.Module):
    """Causal attention with rotary positions."""

    def __init__(self, width: int, heads: int, kv_heads: int, size: int):
        super().__init__()
        self.size = size
        self.query = nn.Linear(width, heads * size, bias=False)
        self.key = nn.Linear(width, kv_heads * size, bias=False)
        self.value = nn.Linear(width, kv_heads * size, bias=False)
        self.output = nn.Linear(heads * size, width, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        def turned(y: Tensor) -> Tensor:
            first, second = y.chunk(2, -1)
            return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)

        q, k, v = (
            made(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for made in (self.query, self.key, self.value)
        )
        seen = F.scaled_dot_product_attention(
            turned(q), turned(k), v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
        )
        found: Tensor = self.output(seen.transpose(1, 2).flatten(-2))
        return found


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return found


class Block(nn.Module):
    """Attention, then feed-forward, each after a norm."""

    def __init__(self, width: int, block: dict[str, Any]):
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, block["norm_epsilon"])
        self.attention = Attention(width, block["heads"], block["kv_heads"] or block["heads"], block["head_size"])
        self.mlp_norm = nn.RMSNorm(width, block["norm_epsilon"])
        self.mlp = FeedForward(width, block["hidden"])

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cosine, sine)
        found: Tensor = x + self.mlp(self.mlp_norm(x))
        return found


class Plain(nn.Module):
    """A decoder of torch's own layers, of the shape of `section`."""

    def __init__(self, section: dict[str, Any]):
        super().__init__()
        width, block = section["width"], section["block"]
        self.embedding = nn.Embedding(section["vocabulary"], width)
        self.blocks = nn.ModuleList(Block(width, block) for _ in range(section["layers"]))
        self.norm = nn.RMSNorm(width, block["norm_epsilon"])
        self.head = nn.Linear(width, section["vocabulary"], bias=False)

    def forward(self, tokens: Tensor, cosine: Tensor, sine: Tensor) -> Any:
        x = self.embedding(tokens).clone()  # what is still being scattered loses its gradient's layout in compiled code
        for block in self.blocks:
            x = block(x, cosine, sine)
        return self.head(self.norm(x))


def tensor(options: argparse.Namespace, section: dict[str, Any]) -> programs.Step:
    """`parallelize_module` with torch's styles, sequence parallel between layers, and its vocabulary-parallel loss."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        PrepareModuleInput,
        RowwiseParallel,
        SequenceParallel,
        loss_parallel,
        parallelize_module,
    )

    torch.manual_seed(0)
    model, mesh = Plain(section), init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        gathered = PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=Replicate())
        plan = {"attention_norm": SequenceParallel(), "mlp_norm": SequenceParallel(), "mlp": gathered}
        plan |= {f"attention.{name}": ColwiseParallel() for name in ("query", "key", "value")}
        plan |= {"mlp.gate": ColwiseParallel(), "mlp.up": ColwiseParallel()}
        plan |= {name: RowwiseParallel(output_layouts=Shard(1)) for name in ("attention.output", "mlp.down")}
        plan["attention"] = PrepareModuleInput(
            input_layouts=(Shard(1), None, None), desired_input_layouts=(Replicate(), None, None)
        )
        parallelize_module(block, mesh, plan)
    ends = {
        "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Shard(-1), use_local_output=False),
    }
    parallelize_module(model, mesh, ends)
    compiled(model.blocks)
    optimizer = programs.adamw(model)
    rows = options.tokens // options.sequence
    tokens = programs.batch(rows, options.sequence, section["vocabulary"]).tokens.long()
    size = section["block"]["head_size"]
    angle = torch.arange(options.sequence)[:, None] * section["rope_theta"] ** (-torch.arange(0, size, 2) / size)

    def step() -> Tensor:
        with loss_parallel():
            logits = model(tokens, angle.cos(), angle.sin())
            loss = F.cross_entropy(logits.flatten(0, 1), tokens.roll(-1, 1).flatten())
            loss.backward()
        finished(model, optimizer)
        return loss.detach()

    return step


# --- pipeline ---------------------------------------------------------------------------------------------------------


class Stage(nn.Module):
    """One of two halves of Argosy's decoder. Every row is one document."""

    def __init__(self, model: Any, blocks: list[int], first: bool, last: bool):
        super().__init__()
        self.model, self.held, self.first, self.last = model, blocks, first, last

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        positions = torch.arange(length, dtype=torch.int32).expand(x.shape[0], length)
        segments = torch.ones_like(positions)
        if self.first:
            x = self.model.embed(x, positions)
        x = self.model.blocks_forward(x, self.held, positions, segments, None, None)
        found: Tensor = self.model.finish(x, length) if self.last else x
        return found


def pipeline(options: argparse.Namespace, section: dict[str, Any]) -> programs.Step:
    """Torch's 1F1B schedule over two stages of as many layers each."""
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    rank, ranks, layers = dist.get_rank(), dist.get_world_size(), section["layers"]
    blocks = list(range(rank * layers // ranks, (rank + 1) * layers // ranks))
    first, last = rank == 0, rank == ranks - 1
    model = model_of(options, section)
    model.keep(blocks, first=first, last=last)
    rows, micro = options.tokens // options.sequence, options.micro
    between = torch.empty(micro, options.sequence, section["width"], requires_grad=True)
    given = torch.zeros(micro, options.sequence, dtype=torch.int32) if first else between
    stage = PipelineStage(
        Stage(model, blocks, first, last), rank, ranks, torch.device("cpu"), input_args=given, output_args=between
    )
    tokens = programs.batch(rows, options.sequence, section["vocabulary"]).tokens

    def loss_of(hidden: Tensor, target: Tensor) -> Tensor:
        named = SimpleNamespace(labels=target, weights=torch.ones(target.shape))
        found: Tensor = model.hidden_loss(hidden, named, options.chunk) / options.tokens
        return found

    schedule = Schedule1F1B(stage, rows // micro, loss_fn=loss_of, scale_grads=False)
    optimizer, parameters = programs.adamw(model), [*model.parameters()]

    def step() -> Tensor:
        losses: list[Tensor] = []
        if first:
            schedule.step(tokens, return_outputs=False)
        else:
            schedule.step(target=tokens.roll(-1, 1), losses=losses, return_outputs=False)
        square = nn.utils.get_total_norm([one.grad for one in parameters], foreach=True).square()
        dist.all_reduce(square)
        nn.utils.clip_grads_with_norm_(parameters, 1.0, square.sqrt(), foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return torch.stack(losses).sum().detach() if losses else torch.zeros(())

    return step


DIMENSIONS = {
    "replicate": replicate,
    "zero1": lambda options, section: zero(1, options, section),
    "zero2": lambda options, section: zero(2, options, section),
    "zero3": lambda options, section: zero(3, options, section),
    "tensor": tensor,
    "pipeline": pipeline,
}


def main() -> None:
    """Read the options, time each step, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("dimension", choices=list(DIMENSIONS))
    parser.add_argument("model", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--tokens", type=int, default=4096, help="of a step, over all ranks")
    parser.add_argument("--sequence", type=int, default=256)
    parser.add_argument("--micro", type=int, default=4, help="sequences of a micro-batch")
    parser.add_argument("--chunk", type=int, default=1024)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    step = DIMENSIONS[options.dimension](options, json.loads(options.model.read_text()))
    seconds = []
    for _ in range(options.steps):
        began = time.perf_counter()
        loss = float(step())
        seconds.append(time.perf_counter() - began)
    if dist.get_rank() == dist.get_world_size() - 1:
        print(json.dumps({"seconds": seconds, "loss": loss}), flush=True)
    dist.barrier()
    os._exit(0)  # threads of torch's own that still run at the interpreter's end now and then abort the process


if __name__ == "__main__":
    main()
