"""One step of a small model in some layout against the reference: what tests of tensor parallelism run in ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

HERE = str(Path(__file__))
PLAIN = {
    "layers": 2, "width": 24, "heads": 4, "kv_heads": 4, "head_size": 6, "hidden": 37, "vocabulary": 29, "sequence": 13,
    "rows": 3, "micro": 2, "norm": "rms", "parallel": False, "qk_norm": "none", "activation": "swiglu", "positions": "rotary",
    "tied": True, "window": 0, "biases": False, "dropout": 0.0, "shape": "tp2", "zero": 2, "split_sequence": True,
    "precision": "float64", "compile": False, "optim": "adamw", "clip": 1.0,
}  # fmt: skip


def job_of(case: dict[str, Any]) -> Any:
    """The job in force of a case."""
    from argosy.job.schema import Job

    block = {
        "heads": case["heads"], "kv_heads": case["kv_heads"], "head_size": case["head_size"], "hidden": case["hidden"],
        "activation": case["activation"], "parallel": case["parallel"], "norm": case["norm"], "norm_epsilon": 1e-5,
        "norm_bias": case["biases"] and case["norm"] == "layer", "qk_norm": case["qk_norm"], "qkv_bias": case["biases"],
        "attention_bias": case["biases"], "mlp_bias": case["biases"], "window": case["window"], "dropout": case["dropout"],
    }  # fmt: skip
    model = {
        "layers": case["layers"], "width": case["width"], "vocabulary": case["vocabulary"], "positions": case["positions"],
        "context": case["sequence"], "rope_theta": 1e4, "tied": case["tied"], "block": block,
    }  # fmt: skip
    master = "float64" if case["precision"] == "float64" else "float32"
    return Job.model_validate({
        "model": model,
        "batch": {"sequence": case["sequence"], "tokens": case["rows"] * case["sequence"], "micro": case["micro"]},
        "train": {
            "steps": 3, "precision": case["precision"], "master": master, "reduce": master, "seed": 5,
            "compile": case["compile"],
        },
        "optim": {"name": case["optim"], "lr": 0.01, "warmup": 0, "clip": case["clip"], "epsilon": 1e-3},
        "layout": {"shape": case["shape"], "zero": case["zero"], "sequence": case["split_sequence"]},
        "memory": {"loss_chunk": 16},
    })  # fmt: skip


def batch_of(case: dict[str, Any], step: int = 1) -> Any:
    """A global batch of several documents a row, some padding, and some labels that do not count."""
    import numpy as np

    from argosy.data.batch import Batch

    draw = np.random.default_rng(step)
    rows, length = case["rows"], case["sequence"]
    tokens = draw.integers(0, case["vocabulary"], (rows, length)).astype(np.int32)
    begins = draw.random((rows, length)) < 0.25
    begins[:, 0] = True
    segments = np.cumsum(begins, axis=1, dtype=np.int32)
    places = np.arange(length, dtype=np.int32)
    positions = (places - np.maximum.accumulate(np.where(begins, places, 0), axis=1)).astype(np.int32)
    weights = (draw.random((rows, length)) < 0.8).astype(np.float32)
    weights[:, -1] = 0
    segments[-1, -3:] = 0
    weights[-1, -4:] = 0
    numbers = np.arange(rows, dtype=np.int64) + 40
    return Batch(tokens, np.roll(tokens, -1, 1), segments, positions, np.zeros_like(tokens), weights, numbers)


def laid_out(case: dict[str, Any], layout: Any, mesh: Any) -> Any:
    """The model of a case on `mesh`."""
    import torch

    from argosy.parallel import apply

    del layout
    return apply.decoder(job_of(case), mesh, torch.device("cpu"))


def computed(case: dict[str, Any], layout: Any, rank: int, mesh: Any) -> tuple[Any, Any]:
    """One forward and backward: (what was laid out, the vote)."""
    import torch

    from argosy.parallel.norm import norm2
    from argosy.train.feed import cut, tensors
    from argosy.train.vote import Agree

    laid = laid_out(case, layout, mesh)
    laid.number.fill_(9)
    batch = batch_of(case)
    mine = cut(batch, layout.data, layout.data_index(rank), case["micro"])
    micro = [tensors(part, torch.device("cpu")) for part in mine]
    loss = laid.execute(micro, scale=1 / batch.counted)
    return laid, Agree(mesh.world, copies=layout.world // layout.data)(
        loss, norm2(laid.applied.data.gradients(), laid.world)
    )


def reference(case: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Loss sum and gradients of the mean loss in float64, by the reference, with this project's weights and masks."""
    import torch

    from argosy.layout.layout import Layout
    from argosy.model.layers import drop
    from argosy.parallel.mesh import Mesh
    from argosy.prove import reference
    from argosy.random import bits, key

    alone = laid_out({**case, "shape": "dp1", "precision": "float64", "compile": False}, Layout(), Mesh(Layout(), 0))
    weights = {name: tensor.detach().clone().requires_grad_() for name, tensor in alone.module.named_parameters()}
    batch = batch_of(case)
    arrays = {name: torch.tensor(value) for name, value in vars(batch).items()}

    def dropped(name: str, row: int, places: Any, vectors: Any) -> Any:
        stream = bits(torch.tensor([key(5, "dropout", name)]), torch.tensor([9]))
        token = arrays["segments"][row, places].long() * 2**32 + arrays["positions"][row, places].long()
        keys = bits(bits(stream, arrays["sequence"][row]), token)
        return drop(vectors, (keys, torch.arange(case["width"])), case["dropout"])

    loss = reference.loss(weights, job_of(case).model.model_dump(), arrays, dropped if case["dropout"] else None)
    (loss / batch.counted).backward()
    return float(loss.detach()), {name: tensor.grad for name, tensor in weights.items()}


def differences(rank: int, ranks: int, board: str, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each of several cases: relative differences of loss, gradients and norm, and the worst parameter."""
    import torch

    from argosy.device.shards import whole
    from argosy.device.torch_versions import compile_strictly, compiled_frames, forget_compiled
    from argosy.layout.layout import Layout
    from argosy.parallel.mesh import Meeting, joined

    found = []
    for number, more in enumerate(asked):
        case = {**PLAIN, **more}
        layout = Layout.parse(case["shape"], ranks)
        forget_compiled()
        if case["compile"]:
            compile_strictly()
        with joined(layout, rank, Meeting(f"test/{number}", Path(f"{board}-{number}"))) as mesh:
            laid, vote = computed(case, layout, rank, mesh)
            frames = compiled_frames()
            laid.applied.check_gradients()
            gradients = {name: whole(p.grad) for name, p in laid.applied.named().items()}
            shares = {name: p.numel() for name, p in laid.module.named_parameters()}
        expected_loss, expected = reference(case)
        assert set(gradients) == set(expected), set(gradients) ^ set(expected)
        assert {name: tensor.numel() for name, tensor in expected.items()} == shares
        scale = max(float(tensor.abs().max()) for tensor in expected.values())
        off = {n: float((gradients[n].double() - tensor).abs().max()) / scale for n, tensor in expected.items()}
        norm = float(torch.stack([tensor.norm() for tensor in expected.values()]).norm())
        worst = max(off, key=lambda name: off[name])
        found.append({
            "loss": abs(vote.loss - expected_loss) / expected_loss, "gradient": off[worst], "worst": worst,
            "norm": abs(vote.norm - norm) / norm, "order": list(laid.applied.order), "frames": frames,
        })  # fmt: skip
    return found


def trained(rank: int, ranks: int, board: str, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each case: after three steps of its optimizer with clipping, largest difference of any weight from one process's."""
    from argosy.device.shards import whole
    from argosy.layout.layout import Layout
    from argosy.parallel.mesh import Meeting, Mesh, joined

    found = []
    for number, more in enumerate(asked):
        case = {**PLAIN, **more}
        layout = Layout.parse(case["shape"], ranks)
        with joined(layout, rank, Meeting(f"test/{number}", Path(f"{board}-{number}"))) as mesh:
            state, votes = three_steps(case, layout, rank, mesh)
            weights = {name: whole(tensor) for name, tensor in state.tensors().items()}
        alone, expected = three_steps({**case, "shape": "dp1", "compile": False}, Layout(), 0, Mesh(Layout(), 0))
        wanted = alone.tensors()
        assert set(weights) == set(wanted)
        off = {name: float((weights[name].double() - tensor.double()).abs().max()) for name, tensor in wanted.items()}
        worst = max(off, key=lambda name: off[name])
        losses = max(abs(a.loss - b.loss) / b.loss for a, b in zip(votes, expected, strict=True))
        norms = max(abs(a.norm - b.norm) / b.norm for a, b in zip(votes, expected, strict=True))
        clipped = sum(vote.norm > case["clip"] for vote in votes)
        found.append({"weights": off[worst], "worst": worst, "loss": losses, "norm": norms, "clipped": clipped})
    return found


def three_steps(case: dict[str, Any], layout: Any, rank: int, mesh: Any) -> tuple[Any, list[Any]]:
    """(the state after three steps, the votes)."""
    import torch

    from argosy.device.precision import dtype
    from argosy.optim.build import build
    from argosy.train.feed import cut, tensors
    from argosy.train.state import State
    from argosy.train.vote import Agree

    job, laid = job_of(case), laid_out(case, layout, mesh)
    optimizer = build(laid.applied.named().items(), job.optim, "cpu", group=mesh.stage, kind=dtype(case["precision"]))
    state = State(laid.module, optimizer, laid.applied.data, None, clip=job.optim.clip, world=layout.world)  # type: ignore[arg-type]
    agree, votes = Agree(mesh.world, copies=layout.world // layout.data), []
    for step in (1, 2, 3):
        batch = batch_of(case, step)
        laid.number.fill_(step)
        mine = cut(batch, layout.data, layout.data_index(rank), case["micro"])
        state.begin(batch.counted, batch.tokens.size)
        loss = laid.execute([tensors(part, torch.device("cpu")) for part in mine], scale=1 / batch.counted)
        votes.append(agree(loss, state.norm2()))
        state.update(votes[-1])
    return state, votes


def watched() -> Any:
    """A context that notes every operator below autograd: `.names`, and `.shapes` of what each gave."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode  # allowed: only this sees every operator

    class Watched(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []
            self.shapes: list[tuple[int, ...]] = []
            self.log: list[tuple[str, tuple[int, ...]]] = []  # of collectives: what each filled

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = function(*args, **(kwargs or {}))
            self.names.append(str(function).split(".")[1 if "c10d" in str(function) else 0])
            given = found if isinstance(found, (tuple, list)) else (found,)
            if "c10d" in str(function):
                filled = args[0] if str(function).startswith("c10d.") else found
                filled = filled[0] if isinstance(filled, (tuple, list)) else filled
                self.log.append((self.names[-1], tuple(getattr(filled, "shape", ()))))
            self.shapes += [tuple(each.shape) for each in given if isinstance(each, torch.Tensor)]
            return found

    return Watched()
