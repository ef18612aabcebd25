"""What real ranks send, heard below the model, is what the closed forms say: by kind, group, and tier of links."""

from __future__ import annotations

from typing import Any

import pytest

from argosy.cluster.links import TIERS
from argosy.cluster.schema import Cluster, load
from argosy.job.schema import Job
from argosy.layout.layout import Layout
from argosy.plan import flops, moved
from argosy.plan.moved import Move
from argosy.prove.options import Case, job_of, plain, ranks_of, rows_of
from argosy.prove.pool import Pool

STEP = "argosy.prove.traffic:step"
SEQUENCE = 12
EVEN: Case = {**plain(), "micros": 2, "micro": 2, "layers": 4, "heads": "4/2", "tied": True}
PP: Case = {"pp": 2, "schedule": "1f1b"}
LOUD: Case = {
    "norm": "layer",
    "biases": True,
    "positions": "learned",
    "qk_norm": "head",
    "heads": "4/1",
    "parallel": True,
}
CASES: list[Case] = [
    {"replicate": 2},
    {"shard": 2, "zero": 1},
    {"shard": 2, "zero": 2},
    {"shard": 2, "zero": 3, "tied": False},
    {"tp": 2, "sequence": True},
    {"tp": 2, "sequence": False, **LOUD},
    {"tp": 2, "sequence": True, **LOUD},
    PP,
    {**PP, "tied": False, "schedule": "interleaved", "virtual": 2},
    {"replicate": 2, "shard": 2, "zero": 1},
    {"replicate": 2, "shard": 2, "zero": 3},
    {"shard": 4, "zero": 3, "secondary": 2},
    {"shard": 2, "zero": 3, "tp": 2, "sequence": True},
    {"replicate": 2, "tp": 2, "sequence": True, **LOUD},
    {**PP, "tp": 2, "sequence": True},
    {**PP, "shard": 2, "zero": 1},
    {**PP, "shard": 2, "zero": 2},
    {**PP, "shard": 2, "zero": 3, "schedule": "interleaved", "virtual": 2},
    {**PP, "pp": 4},
    {**PP, "shard": 2, "zero": 2, "tp": 2, "sequence": True},
    {**PP, "shard": 4, "zero": 3, "secondary": 2},
]


def even(case: Case) -> Job:
    """The job of a case with sizes that divide by every number of ranks."""
    told = job_of(case).model_dump(mode="json")
    told["batch"] |= {"sequence": SEQUENCE, "tokens": rows_of(case) * SEQUENCE}
    told["model"] |= {"context": SEQUENCE} if case["positions"] == "learned" else {}
    return Job.model_validate(told)


def asked(cases: list[Case]) -> dict[str, Any]:
    return {"jobs": [even(case).model_dump(mode="json") for case in cases]}


def moves(rows: list[dict[str, Any]]) -> list[Move]:
    return [Move(row["kind"], tuple(row["ranks"]), row["size"]) for row in rows]


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_what_ranks_send_is_what_the_closed_forms_say(pool: Pool, ranks: int) -> None:
    cases = [{**EVEN, **more} for more in CASES]
    cases = [case for case in cases if ranks_of(case) == ranks]
    answers = pool.call(STEP, asked(cases), ranks=ranks)
    for number, case in enumerate(cases):
        for rank, answer in enumerate(answers):
            assert answer[number]["heard"] == answer[number]["formula"], (rank, even(case).layout)
            assert answer[number]["heard"], "a rank that says nothing"


def two_nodes() -> Cluster:
    """Two nodes of two devices each, behind one switch."""
    large = load("two-nics")
    pool = large.pool[0]
    small = pool.model_copy(update={"nodes": 2, "devices": pool.devices.model_copy(update={"per_node": 2})})
    return large.model_copy(update={"pool": [small]})


def test_a_second_shard_keeps_half_of_the_gathers_inside_the_node(pool: Pool) -> None:
    """ZeRO++: of both gathers of the weights only the forward one crosses the nodes; bytes by tier, as they were heard."""
    second: Case = {**EVEN, "shard": 4, "zero": 3, "secondary": 2}
    cases = [second, {**second, "secondary": 0}]
    job = even(second)
    whole = flops.parameters(job.model) * 8 * 2  # bytes in float64, for two micro-batches
    near, far = TIERS[1], TIERS[2]
    for answer in pool.call(STEP, asked(cases), ranks=4):
        found, without = (moved.by_tier(moves(one["heard"]), two_nodes()) for one in answer)
        assert found == {near: whole * 1 / 2, far: (1 + 1) * whole * 3 / 4}
        assert without == {far: (1 + 1 + 1) * whole * 3 / 4}


def test_the_form_of_a_second_shard_names_the_neighbours() -> None:
    job, layout = even({**EVEN, "shard": 4, "zero": 3, "secondary": 2}), Layout(dp_shard=4)
    for rank, near in enumerate([(0, 1), (0, 1), (2, 3), (2, 3)]):
        kinds = {(move.kind, move.ranks) for move in moved.step(job, layout, rank)}
        assert kinds == {("all-gather", (0, 1, 2, 3)), ("all-gather", near), ("reduce-scatter", (0, 1, 2, 3))}
