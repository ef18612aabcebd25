"""Tensor and sequence parallelism on real gloo ranks against the reference, in float64: loss, every gradient, weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from argosy.job.schema import Job
from argosy.prove.options import Case, job_of, plain, ranks_of
from argosy.prove.parity import Bench, Trial
from argosy.prove.pool import Pool

HERE = str(Path(__file__))
# Odd sizes everywhere: 29 or 5 entries, 37 or 5 hidden units, sequences of 13 or 5 tokens, so that some ranks hold nothing.
ODD: Case = {
    **plain(), "hidden": 37, "vocabulary": 29, "length": 13, "layers": 2, "micros": 2, "micro": 2, "uneven": True,
    "packed": True, "tp": 2, "sequence": True, "tied": True, "clip": 0.05,
}  # fmt: skip
TWO: list[Case] = [
    {},
    {"parallel": True, "biases": True, "norm": "layer", "activation": "gelu", "dropout": 0.2, "update": "adamw"},
    {"qk_norm": "full", "heads": "4/1", "positions": "learned", "norm": "layer", "biases": True, "window": "all"},
    {"qk_norm": "full", "heads": "4/2", "tied": False, "dropout": 0.2, "update": "muon"},
    {"heads": "6/3", "head_size": 4, "qk_norm": "head", "activation": "gelu_tanh", "loss_chunk": 16},
    {"sequence": False, "qk_norm": "full", "biases": True, "positions": "learned"},
    {
        "placement": "peri",
        "softcap": 2.0,
        "z_loss": 0.05,
        "norm": "layer",
        "biases": True,
        "dropout": 0.2,
        "update": "adamw",
    },
    {"placement": "post", "sequence": False, "qk_norm": "full", "z_loss": 0.05, "tied": False, "scaling": "llama3"},
]
FOUR: list[Case] = [
    {"tp": 4, "heads": "4/2", "qk_norm": "full", "biases": True, "vocabulary": 5, "hidden": 5, "length": 5},
    {"tp": 4, "tied": False, "norm": "layer", "biases": True, "update": "adamw"},
    {"shard": 2, "zero": 1, "parallel": True, "sequence": False, "biases": True},
    {"shard": 2, "zero": 2, "heads": "4/1", "dropout": 0.2, "tied": False, "micro": 1},
    {"shard": 2, "zero": 3, "qk_norm": "head", "biases": True, "update": "muon"},
    {"replicate": 2, "heads": "4/1", "positions": "learned", "norm": "layer", "biases": True, "update": "muon"},
    {"shard": 2, "zero": 3, "placement": "post", "softcap": 2.0, "z_loss": 0.05, "qk_norm": "full", "heads": "4/2"},
]


def odd(more: Case) -> Job:
    """The job of ODD with what is said put over it."""
    case = {**ODD, **more}
    job = job_of(case)
    block = job.model.block.model_copy(update={"hidden": case["hidden"]})
    return job.model_copy(update={"model": job.model.model_copy(update={"block": block})})


def trial(more: Case) -> Trial:
    case = {**ODD, **more}
    return Trial(odd(more), case["update"], case["packed"], ranks_of(case))


@pytest.fixture
def bench(pool: Pool) -> Iterator[Bench]:
    made = Bench(pool)
    yield made
    made.close()


@pytest.mark.parametrize("cases", [TWO, FOUR], ids=["2 ranks", "4 ranks"])
def test_three_clipped_steps_are_those_of_the_reference(bench: Bench, cases: list[Case]) -> None:
    """Muon makes whole matrices orthogonal wherever their parts lie; the norm counts every weight once, tied ones too."""
    for more in cases:
        found = bench.try_(trial(more))
        assert found.ok, (more, found.wrong)
        assert found.order[0] == f"tensor over {more.get('tp', 2)}"


def counted(rank: int, ranks: int, board: str, asked: list[Any]) -> list[list[dict[str, int]]]:
    """Collectives of one block's forward and backward pass, by name, for each job."""
    import torch

    from argosy.device.torch_versions import hearing
    from argosy.parallel import apply
    from argosy.parallel.mesh import Meeting, joined
    from argosy.plan import layouts

    kinds = ("all_gather_into_tensor", "reduce_scatter_tensor", "all_reduce", "all_to_all_single")
    found = []
    for number, told in enumerate(asked):
        job = Job.model_validate(told)
        layout, counts = layouts.of(job.layout, ranks), []
        with joined(layout, rank, Meeting(f"count/{number}", Path(f"{board}-{number}"))) as mesh:
            decoder = apply.decoder(job, mesh, torch.device("cpu")).module
            tokens = torch.arange(2 * job.batch.sequence).view(2, -1) % 5
            positions = torch.arange(job.batch.sequence).expand(2, -1).contiguous()
            x = decoder.embed(tokens, positions).detach().requires_grad_()
            y = x
            for forward in (True, False):
                names: list[str] = []
                with hearing(lambda name, given, made, names=names: names.append(name.rpartition(".")[2])):  # type: ignore[misc]
                    if forward:
                        y = decoder.blocks[0](x, torch.ones_like(tokens), decoder._rotation(0, positions), None)
                    else:
                        y.sum().backward()
                counts.append({kind: names.count(kind) for kind in kinds if kind in names})
        found.append(counts)
    return found


def test_the_parallel_block_shares_one_gather_and_one_scatter(pool: Pool) -> None:
    gather, scatter, reduce = "all_gather_into_tensor", "reduce_scatter_tensor", "all_reduce"
    cases: list[Case] = [{}, {"parallel": True}, {"sequence": False}, {"parallel": True, "sequence": False}]
    asked = [odd(case).model_dump(mode="json") for case in cases]
    plain, parallel, without, parallel_without = pool.call(f"{HERE}:counted", asked, ranks=2)[0]
    assert plain == [{gather: 2, scatter: 2}] * 2
    assert parallel == [{gather: 1, scatter: 1}] * 2
    assert without == [{reduce: 2}] * 2
    assert parallel_without == [{reduce: 1}] * 2


def sent(rank: int, ranks: int, board: str, asked: list[Any]) -> list[dict[str, float]]:
    """Bytes sent in one step for activations and logits, parameters held, and the closed forms of both, for each job."""
    import torch

    from argosy.device.shards import local
    from argosy.parallel import apply
    from argosy.parallel.mesh import Meeting, joined
    from argosy.plan import flops, layouts, moved
    from argosy.prove.sample import batch_of
    from argosy.prove.traffic import heard
    from argosy.train.feed import cut, tensors

    found, device = [], torch.device("cpu")
    for number, told in enumerate(asked):
        job = Job.model_validate(told)
        layout, rows = layouts.of(job.layout, ranks), job.batch.tokens // job.batch.sequence
        batch = batch_of(1, rows=rows, sequence=job.batch.sequence, packed=False, vocabulary=job.model.vocabulary or 0)
        with joined(layout, rank, Meeting(f"sent/{number}", Path(f"{board}-{number}"))) as mesh:
            laid = apply.decoder(job, mesh, device)
            with heard() as moves:
                laid.execute([tensors(part, device) for part in cut(batch, 1, 0, int(job.batch.micro))], scale=1.0)
            own = sum(local(parameter).numel() for parameter in laid.applied.named().values())
        said = moved.tensor(job, layout)
        repeated = flops.repeated_parameters(
            job.model, range(len(laid.module.shapes)), first=True, last=True, tp=layout.tp, sequence=job.layout.sequence
        )
        found.append({
            "bytes": sum(move.sent for move in moves), "parameters": own,
            "said bytes": said.total + 8 * repeated * 2 * (layout.tp - 1) / layout.tp,
            "said parameters": flops.parameters(job.model, layout.tp),
        })  # fmt: skip
    return found


def test_bytes_sent_and_held_equal_the_closed_forms(pool: Pool) -> None:
    even: Case = {"length": 12, "hidden": 40, "vocabulary": 32, "uneven": False}
    cases: list[Case] = [
        even,
        {**even, "sequence": False, "biases": True, "norm": "layer", "positions": "learned"},
        {**even, "parallel": True, "tied": False, "qk_norm": "head", "heads": "4/1", "biases": True},
        {**even, "placement": "peri", "norm": "layer", "biases": True},
    ]
    asked = [odd(case).model_dump(mode="json") for case in cases]
    for case, found in zip(cases, pool.call(f"{HERE}:sent", asked, ranks=2)[0], strict=True):
        for what in ("bytes", "parameters"):
            assert found[what] == found[f"said {what}"] > 0, (case, found)


def largest(rank: int, ranks: int, board: str, asked: dict[str, Any]) -> int:
    """The most elements with the vocabulary as a dimension that an operator makes in one forward and backward of the loss."""
    import torch
    from torch import nn
    from torch.distributed.tensor import Shard, distribute_tensor

    from argosy.device.torch_versions import hearing
    from argosy.layout.layout import Layout
    from argosy.model.loss import loss_sum
    from argosy.parallel.mesh import Meeting, joined

    shapes: list[tuple[int, ...]] = []

    def made(name: str, given: Any, found: Any) -> None:
        several = found if isinstance(found, (tuple, list)) else (found,)
        shapes.extend(tuple(one.shape) for one in several if isinstance(one, torch.Tensor))

    with joined(Layout(tp=ranks), rank, Meeting("loss/1", Path(board))) as mesh:
        grid = mesh.tensor()
        assert grid is not None
        weight = nn.Parameter(
            distribute_tensor(torch.randn(asked["vocabulary"], 8), grid, [Shard(0)], src_data_rank=None)
        )
        hidden = torch.randn(asked["tokens"], 8, requires_grad=True)
        labels = torch.arange(asked["tokens"]) % asked["vocabulary"]
        with hearing(made):
            loss_sum(hidden, weight, labels, torch.ones(asked["tokens"]), asked["chunk"]).backward()
        own = weight.to_local().shape[0]
    rows = [shape for shape in shapes if len(shape) == 2 and shape[1] in (own, asked["vocabulary"])]
    return max(shape[0] * shape[1] for shape in rows)


def test_logits_are_never_whole_in_memory(pool: Pool) -> None:
    asked = {"vocabulary": 101, "tokens": 60, "chunk": 12}
    for rank, most in enumerate(pool.call(f"{HERE}:largest", asked, ranks=2)):
        assert most == 12 * (51 if rank == 0 else 50)


def test_heads_that_do_not_divide_are_refused(bench: Bench) -> None:
    found = bench.try_(trial({"heads": "3/3", "head_size": 8}))
    assert found.raised and "3 query heads do not divide by tp 2" in found.wrong, found.wrong
