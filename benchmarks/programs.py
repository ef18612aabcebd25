"""Programs that are started by benchmarks and compared with Argosy: small, and each in its own best form.

`python programs.py loop CONTESTANT MODEL.json ...` trains on random tokens in one process and prints the seconds of each step:
*bare* is Argosy's own model in a loop without anything around it (the ceiling), *bare-whole* the same compiled as one piece,
*transformers* and *transformers-compiled* are Hugging Face's Llama of the same shape. `torchrun programs.py ranks MODEL.json
...` is what one writes with PyTorch alone: ranks of the same model, data parallel, optionally with a checkpoint on disk from
which a restarted program goes on. MODEL.json is the model section of a job in force.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Step = Callable[[], Tensor]


def llama(section: dict[str, Any]) -> nn.Module:
    """transformers' Llama of the shape that `section` describes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    block = section["block"]
    heads = block["heads"]
    configuration = LlamaConfig(
        vocab_size=section["vocabulary"],
        hidden_size=section["width"],
        intermediate_size=block["hidden"],
        num_hidden_layers=section["layers"],
        num_attention_heads=heads,
        num_key_value_heads=block["kv_heads"] or heads,
        head_dim=block["head_size"],
        rms_norm_eps=block["norm_epsilon"],
        rope_theta=section["rope_theta"],
        tie_word_embeddings=section["tied"],
        use_cache=False,
        attn_implementation="sdpa",
        attention_bias=False,
    )
    return LlamaForCausalLM(configuration)


def decoder(section: dict[str, Any], sequence: int, compute: torch.dtype, compiled: bool, seed: int = 1) -> Any:
    """Argosy's decoder of that shape with its first weights, ready for sequences of this length."""
    from argosy.job.schema import ModelSection
    from argosy.model.decoder import Decoder
    from argosy.model.weights import initialise

    model = Decoder(ModelSection.model_validate(section), seed=seed, compute=compute)
    model.to_empty(device="cpu")
    initialise(model, seed)
    model.prepare("cpu", sequence, compiled)
    return model


def batch(rows: int, sequence: int, vocabulary: int) -> Any:
    """Random tokens in the fields of a global batch, as tensors: each row one document."""
    import numpy as np

    from argosy.data.batch import Batch
    from argosy.train.feed import tensors

    random = np.random.default_rng(0)
    tokens = random.integers(0, vocabulary, (rows, sequence), dtype=np.int64).astype(np.int32)
    ones = np.ones((rows, sequence), np.int32)
    made = Batch(
        tokens=tokens,
        labels=np.roll(tokens, -1, axis=1),
        weights=np.ones((rows, sequence), np.float32),
        segments=ones,
        positions=np.broadcast_to(np.arange(sequence, dtype=np.int32), (rows, sequence)).copy(),
        kinds=np.zeros((rows, sequence), np.int32),
        sequence=np.arange(rows, dtype=np.int64),
    )
    return tensors(made, torch.device("cpu"))


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that all contestants use: fused AdamW, decay on matrices."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)


def loop(options: argparse.Namespace, section: dict[str, Any]) -> Step:
    """One training step of the contestant, to be called again and again."""
    rows = options.tokens // options.sequence
    precision = getattr(torch, options.precision)
    if options.contestant.startswith("transformers"):
        model = llama(section)
        tokens = torch.randint(0, section["vocabulary"], (rows, options.sequence))
        called: Any = torch.compile(model, dynamic=False) if options.contestant.endswith("compiled") else model
        mixed = precision != torch.float32

        def loss() -> Tensor:
            with torch.autocast("cpu", precision) if mixed else contextlib.nullcontext():
                return called(input_ids=tokens, labels=tokens).loss

    else:
        model = decoder(section, options.sequence, precision, compiled=True)
        part = batch(rows, options.sequence, section["vocabulary"])
        counted = rows * options.sequence
        whole = model.loss
        if options.contestant == "bare-whole":
            model.forward = torch.compile(model.forward, dynamic=False)
        else:
            for block in model.blocks:
                block.forward = torch.compile(block.forward, dynamic=False)

        def loss() -> Tensor:
            return whole(part, options.chunk) / counted

    optimizer = adamw(model)
    print(json.dumps({"parameters": sum(parameter.numel() for parameter in model.parameters())}), flush=True)

    def step() -> Tensor:
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.detach()

    return step


def run_loop(options: argparse.Namespace, section: dict[str, Any]) -> None:
    """Time each step."""
    torch.set_num_threads(options.threads)
    step = loop(options, section)
    seconds = []
    for _ in range(options.steps):
        began = time.perf_counter()
        loss = float(step())
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"seconds": seconds, "loss": loss}), flush=True)


class Loss(nn.Module):
    """The model's summed loss as a forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, model: Any, chunk: int):
        super().__init__()
        self.model, self.chunk = model, chunk

    def forward(self, part: Any) -> Tensor:
        return self.model.loss(part, self.chunk)


def save(path: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Weights and optimizer states in one file, the old one replaced when the new one is whole."""
    from safetensors.torch import save_file

    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        tensors |= {f"optim.{name}.{key}": value for key, value in optimizer.state[parameter].items()}
    part = path.with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, {"step": str(step)})
    os.replace(part, path)


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Take weights and optimizer states from `path`; the step they are from, 0 where there is none."""
    from safetensors import safe_open

    if not path.exists():
        return 0
    with safe_open(path, "pt") as file, torch.no_grad():
        names = list(file.keys())
        for name, parameter in model.named_parameters():
            parameter.copy_(file.get_tensor(f"model.{name}"))
            prefix = f"optim.{name}."
            states = {key.removeprefix(prefix): file.get_tensor(key) for key in names if key.startswith(prefix)}
            optimizer.state[parameter] = states
        return int(file.metadata()["step"])


def run_ranks(options: argparse.Namespace, section: dict[str, Any]) -> None:
    """Ranks under torchrun: data parallel, compiled blocks, a line in --lines for each finished step.

    With --kept, rank 0 writes weights and optimizer states every ten steps, and a restarted program goes on from them.
    """
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(options.threads)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    rows = options.tokens // options.sequence // world
    model = decoder(section, options.sequence, getattr(torch, options.precision), compiled=True)
    for block in model.blocks:
        block.forward = torch.compile(block.forward, dynamic=False)
    parallel = DistributedDataParallel(Loss(model, options.chunk))
    optimizer = adamw(model)
    part = batch(rows, options.sequence, section["vocabulary"])
    step = load(options.kept, model, optimizer) if options.kept else 0
    with open(options.lines, "a") as log:
        while step < options.steps:
            step += 1
            (parallel(part) / (rows * options.sequence)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
            line = {"step": step, "time": time.time(), "rank": rank, "pid": os.getpid(), "attempt": attempt}
            log.write(json.dumps(line) + "\n")
            log.flush()
            if options.kept and rank == 0 and step % 10 == 0:
                save(options.kept, step, model, optimizer)
    dist.destroy_process_group()


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("program", choices=("loop", "ranks"))
    parser.add_argument("model", type=Path)
    parser.add_argument("--contestant", default="bare")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--tokens", type=int, default=4096, help="of a step, over all ranks")
    parser.add_argument("--sequence", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--lines", type=Path)
    parser.add_argument("--kept", type=Path)
    options = parser.parse_args()
    section = json.loads(options.model.read_text())
    run_loop(options, section) if options.program == "loop" else run_ranks(options, section)


if __name__ == "__main__":
    main()
