"""Tensor and sequence parallelism on real gloo ranks against the reference, in float64: loss, every gradient, weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from argosy.prove.pool import Failed, Pool

CASES = str(Path(__file__).with_name("tensor_cases.py"))
HERE = str(Path(__file__))

TWO: list[dict[str, Any]] = [
    {"shape": "tp2"},
    {"shape": "tp2", "parallel": True, "biases": True, "norm": "layer", "activation": "gelu", "dropout": 0.2},
    {"shape": "tp2", "qk_norm": "full", "kv_heads": 1, "positions": "learned", "norm": "layer", "biases": True, "window": 4},
    {"shape": "tp2", "qk_norm": "full", "kv_heads": 2, "tied": False, "dropout": 0.2},
    {"shape": "tp2", "heads": 6, "kv_heads": 3, "head_size": 4, "qk_norm": "head", "activation": "gelu_tanh"},
    {"shape": "tp2", "split_sequence": False, "qk_norm": "full", "biases": True, "positions": "learned"},
    {"shape": "tp2", "placement": "peri", "softcap": 2.0, "z_loss": 0.05, "norm": "layer", "biases": True, "dropout": 0.2},
    {"shape": "tp2", "placement": "post", "split_sequence": False, "qk_norm": "full", "z_loss": 0.05, "tied": False},
]  # fmt: skip
FOUR: list[dict[str, Any]] = [
    {"shape": "tp4", "kv_heads": 2, "qk_norm": "full", "biases": True, "vocabulary": 5, "hidden": 5, "sequence": 5},
    {"shape": "dp2 tp2", "zero": 1, "parallel": True, "split_sequence": False, "biases": True},
    {"shape": "dp2 tp2", "zero": 2, "kv_heads": 1, "dropout": 0.1, "tied": False, "micro": 1},
    {"shape": "dp2 tp2", "zero": 3, "qk_norm": "head", "biases": True},
    {"shape": "replicate2 tp2", "positions": "learned", "norm": "layer", "biases": True},
    {
        "shape": "dp2 tp2",
        "zero": 3,
        "placement": "post",
        "softcap": 3.0,
        "z_loss": 0.05,
        "qk_norm": "full",
        "kv_heads": 2,
    },
]


@pytest.mark.parametrize("cases, ranks", [(TWO, 2), (FOUR, 4)], ids=["2 ranks", "4 ranks"])
def test_loss_and_every_gradient_equal_the_reference(pool: Pool, cases: list[dict[str, Any]], ranks: int) -> None:
    """Odd sizes everywhere: 29 or 5 tokens, 37 or 5 hidden units, sequences of 13 or 5, so that some ranks hold nothing."""
    for answers in pool.call(f"{CASES}:differences", cases, ranks=ranks):
        for case, found in zip(cases, answers, strict=True):
            assert max(found["loss"], found["gradient"], found["norm"]) < 1e-10, (case, found)
            assert found["order"][0] == f"tensor over {ranks if case['shape'] == f'tp{ranks}' else 2}"


def test_three_clipped_steps_change_the_weights_as_on_one_process(pool: Pool) -> None:
    """Muon makes whole matrices orthogonal wherever their parts lie; the norm counts every weight once, tied ones too."""
    cases: list[dict[str, Any]] = [
        {"shape": "dp2 tp2", "optim": "muon", "clip": 0.1, "zero": 3, "rows": 4, "biases": True},
        {"shape": "replicate2 tp2", "optim": "muon", "clip": 0.1, "kv_heads": 1, "positions": "learned"},
        {"shape": "tp4", "optim": "adamw", "clip": 0.1, "tied": False, "norm": "layer", "biases": True},
    ]
    for answers in pool.call(f"{CASES}:trained", cases, ranks=4):
        for case, found in zip(cases, answers, strict=True):
            assert found["clipped"] == 3
            assert max(found["loss"], found["norm"], found["weights"]) < 1e-10, (case, found)


def counted(rank: int, ranks: int, board: str, asked: list[dict[str, Any]]) -> list[list[dict[str, int]]]:
    """Collectives of one block's forward and backward pass, by name, for each case."""
    import torch

    from argosy.layout.layout import Layout
    from argosy.parallel.mesh import Meeting, joined

    tools, found = _tools(), []
    for number, more in enumerate(asked):
        case = {**tools.PLAIN, **more}
        layout = Layout.parse(case["shape"], ranks)
        with joined(layout, rank, Meeting(f"count/{number}", Path(f"{board}-{number}"))) as mesh:
            decoder = tools.laid_out(case, layout, mesh).module
            batch = tools.batch_of(case)
            tokens, positions, segments = (
                torch.tensor(array) for array in (batch.tokens, batch.positions, batch.segments)
            )
            x = decoder.embed(tokens, positions).detach().requires_grad_()
            rotation = decoder._rotation(0, positions)
            with tools.watched() as forward:
                y = decoder.blocks[0](x, segments, rotation, None)
            with tools.watched() as backward:
                y.sum().backward()
        kinds = ("all_gather_into_tensor", "reduce_scatter_tensor", "all_reduce", "all_to_all_single")
        counts = [{kind: mode.names.count(kind) for kind in kinds} for mode in (forward, backward)]
        found.append([{kind: count for kind, count in each.items() if count} for each in counts])
    return found


def _tools() -> Any:
    """This folder's tensor_cases, which a rank of the pool has no package for."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("tensor_cases", CASES)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_parallel_block_shares_one_gather_and_one_scatter(pool: Pool) -> None:
    gather, scatter, reduce = "all_gather_into_tensor", "reduce_scatter_tensor", "all_reduce"
    cases: list[dict[str, Any]] = [
        {},
        {"parallel": True},
        {"split_sequence": False},
        {"parallel": True, "split_sequence": False},
    ]
    plain, parallel, without, parallel_without = pool.call(f"{HERE}:counted", cases, ranks=2)[0]
    assert plain == [{gather: 2, scatter: 2}] * 2
    assert parallel == [{gather: 1, scatter: 1}] * 2
    assert without == [{reduce: 2}] * 2
    assert parallel_without == [{reduce: 1}] * 2


def sent(rank: int, ranks: int, board: str, asked: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Bytes that this rank sent in one step for activations and logits, and what the closed form says, for each case."""
    from math import prod

    from argosy.layout.layout import Layout
    from argosy.parallel.mesh import Meeting, joined
    from argosy.plan import flops, moved

    tools, found = _tools(), []
    for number, more in enumerate(asked):
        case = {**tools.PLAIN, **more}
        layout = Layout.parse(case["shape"], ranks)
        with joined(layout, rank, Meeting(f"sent/{number}", Path(f"{board}-{number}"))) as mesh:
            with tools.watched() as seen:
                laid, _ = tools.computed(case, layout, rank, mesh)
            own = sum(
                p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in laid.applied.named().values()
            )
        share, bytes_sent = 8 * (layout.tp - 1) / layout.tp, {"activations": 0.0, "logits": 0.0}
        for name, shape in seen.log:
            # What a rank of n sends of the whole tensor; a reduce-scatter gives a part of it, an all-reduce is two of them.
            times = {"reduce_scatter_tensor": layout.tp, "all_gather_into_tensor": 1, "all_reduce": 2}.get(name)
            if times is not None:
                bytes_sent["activations"] += share * times * prod(shape)
            elif name == "_allgather_base_":
                bytes_sent["logits"] += share * prod(shape)
        job = tools.job_of(case)
        said = moved.tensor(job, layout)
        found.append({
            **bytes_sent, "said activations": said.activations, "said logits": said.logits, "parameters": own,
            "said parameters": flops.parameters(job.model, layout.tp),
        })  # fmt: skip
    return found


def test_bytes_sent_and_held_equal_the_closed_forms(pool: Pool) -> None:
    even = {"sequence": 12, "rows": 3, "micro": 2}
    cases: list[dict[str, Any]] = [
        even,
        {**even, "split_sequence": False, "biases": True, "norm": "layer", "positions": "learned"},
        {**even, "parallel": True, "tied": False, "qk_norm": "head", "kv_heads": 1, "biases": True},
    ]
    for case, found in zip(cases, pool.call(f"{HERE}:sent", cases, ranks=2)[0], strict=True):
        for what in ("activations", "logits", "parameters"):
            assert found[what] == found[f"said {what}"] > 0, (case, found)


def largest(rank: int, ranks: int, board: str, asked: dict[str, Any]) -> int:
    """The most elements with the vocabulary as a dimension that an operator makes in one forward and backward of the loss."""
    import torch
    from torch import nn
    from torch.distributed.tensor import Shard, distribute_tensor

    from argosy.layout.layout import Layout
    from argosy.model.loss import loss_sum
    from argosy.parallel.mesh import Meeting, joined

    with joined(Layout(tp=ranks), rank, Meeting("loss/1", Path(board))) as mesh:
        grid = mesh.tensor()
        assert grid is not None
        weight = nn.Parameter(
            distribute_tensor(torch.randn(asked["vocabulary"], 8), grid, [Shard(0)], src_data_rank=None)
        )
        hidden = torch.randn(asked["tokens"], 8, requires_grad=True)
        labels = torch.arange(asked["tokens"]) % asked["vocabulary"]
        with _tools().watched() as seen:
            loss_sum(hidden, weight, labels, torch.ones(asked["tokens"]), asked["chunk"]).backward()
        own = weight.to_local().shape[0]
    rows = [shape for shape in seen.shapes if len(shape) == 2 and shape[1] in (own, asked["vocabulary"])]
    return max(shape[0] * shape[1] for shape in rows)


def test_logits_are_never_whole_in_memory(pool: Pool) -> None:
    asked = {"vocabulary": 101, "tokens": 60, "chunk": 12}
    for rank, most in enumerate(pool.call(f"{HERE}:largest", asked, ranks=2)):
        assert most == 12 * (51 if rank == 0 else 50)


def test_heads_that_do_not_divide_are_refused(pool: Pool) -> None:
    with pytest.raises(Failed, match="3 query heads do not divide by tp 2"):
        pool.call(f"{CASES}:differences", [{"shape": "tp2", "heads": 3, "kv_heads": 3, "head_size": 8}], ranks=2)


@pytest.mark.long
def test_each_dimension_compiles_once_a_block_shape(pool: Pool) -> None:
    """Compiled blocks under tp, in float32: right, and four blocks share one graph."""
    common = {"compile": True, "precision": "float32", "layers": 4, "rows": 4}
    cases = [
        {**common, "shape": "tp2", "parallel": True, "dropout": 0.1},
        {**common, "shape": "tp2", "split_sequence": False},
    ]
    answers = pool.call(f"{CASES}:differences", cases, ranks=2, limit=900)
    for found in answers[0]:
        assert max(found["loss"], found["gradient"], found["norm"]) < 2e-5, found
        assert found["frames"] <= 6
    with_data = [{**common, "shape": "dp2 tp2", "zero": 3, "qk_norm": "full"}]
    for (found,) in pool.call(f"{CASES}:differences", with_data, ranks=4, limit=900):
        assert max(found["loss"], found["gradient"], found["norm"]) < 2e-5, found
