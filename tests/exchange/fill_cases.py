"""On a rank: a model laid out, then filled from a folder of weights. No test of its own; see test_weights.py."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any


def job(model: dict[str, Any], layout: dict[str, Any]) -> Any:
    from argosy.exchange.config import complete
    from argosy.job.schema import Job

    found = Job.model_validate({
        "batch": {"sequence": 16, "tokens": 64, "micro": 1}, "optim": {"lr": 0.1, "name": "adamw"}, "layout": layout,
        "train": {"steps": 1, "precision": "float32", "master": "float32", "reduce": "float32", "compile": False},
    })  # fmt: skip
    return found.model_copy(update={"model": complete(model)})


def filled(rank: int, ranks: int, board: str, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each layout: how this rank's weights differ from the whole model's, and the most memory that filling took."""
    import torch

    from argosy.device.shards import box, local, slices
    from argosy.exchange.huggingface import begin, look
    from argosy.exchange.source import Source
    from argosy.model.decoder import Decoder
    from argosy.parallel import apply
    from argosy.parallel.mesh import Meeting, joined
    from argosy.plan import layouts

    found = []
    for number, case in enumerate(asked):
        source = Source(Path(case["folder"]), "")
        model = look(source)
        plain = Decoder(model.model).to_empty(device="cpu")
        begin(source, plain, dict(plain.named_parameters()))
        wanted = dict(plain.named_parameters())
        one = job(case["shape"], case["layout"])
        with joined(layouts.of(one.layout, ranks), rank, Meeting(f"fill/{number}", Path(f"{board}-{number}"))) as mesh:
            laid = apply.decoder(one, mesh, torch.device("cpu"))
            named = laid.applied.named()
            tracemalloc.start()
            begin(source, laid.module, named)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            wrong = [
                name for name, parameter in named.items()
                if not torch.equal(local(parameter.detach()), wanted[name].detach()[slices(box(parameter))])
            ]  # fmt: skip
            held = sum(local(parameter.detach()).numel() for parameter in named.values())
        found.append({"wrong": wrong, "peak": peak, "held": held, "all": sum(p.numel() for p in wanted.values())})
    return found
