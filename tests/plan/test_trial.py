"""What is asked about a job before it starts, and what the answers decide."""

from __future__ import annotations

from typing import Any

import pytest
from plan_machines import FACTS, a_machine, setting

from argosy.job.load import load
from argosy.layout.layout import Layout
from argosy.plan import flops, seconds, trial

# Seconds: compiled, a step of two workers in float32 takes more than twice as long as one in bfloat16.
PIECES = {
    "float32": {"block": 0.2, "ends": 0.085, "block_update": 0.02, "ends_update": 0.001, "block_products": 0.045,
                "ends_products": 0.037, "block_attention": 0.03, "block_orthogonal": 0.016},
    "bfloat16": {"block": 0.15, "ends": 0.04, "block_update": 0.012, "ends_update": 0.001,
                 "block_products": 0.01, "ends_products": 0.009, "block_orthogonal": 0.008},
}  # fmt: skip


def answer(settled: Any, **pieces: Any) -> dict[str, Any]:
    asked = trial.request(settled().job, 2, 1, "cpu")
    return {
        "pieces": {**PIECES, **pieces},
        "request": asked,
        "compile": True,
        "gemm": {"float32": 413, "bfloat16": 348},
    }


def test_the_request_holds_the_job_s_own_shapes(settled: Any) -> None:
    asked = trial.request(settled().job, 2, 1, "cpu")
    assert (asked["rows"], asked["sequence"], asked["ends"], asked["workers"]) == (8, 256, 2048, 2)
    assert asked["block"] == [[192, 576], [192, 1024], [192, 192], [512, 192]]
    assert asked["model"]["layers"] == 1
    parallel = settled("model.block.parallel=true").job
    assert trial.request(parallel, 2, 1, "cpu")["block"] == [[192, 1600], [192, 192], [512, 192]]
    assert trial.request(settled("train.precision=float64").job, 2, 1, "cpu")["kinds"][-1] == "float64"


def test_length_and_rate_change_nothing_of_the_request(settled: Any) -> None:
    plain = trial.request(settled().job, 2, 1, "cpu")
    assert trial.request(settled("train.steps=7", "optim.lr=1e-4", "model.layers=9").job, 2, 1, "cpu") == plain
    assert trial.request(settled("batch.micro=4").job, 2, 1, "cpu") != plain


def test_a_large_model_is_tried_with_fewer_tokens_and_a_larger_one_not_at_all(settled: Any) -> None:
    wide = ["model.width=2048", "model.block.heads=16", "model.layers=1", "batch.sequence=128", "batch.tokens=512"]
    asked = trial.request(settled(*wide, "model.block.hidden=512").job, 2, 1, "cpu")
    assert trial.FEWEST <= asked["rows"] * asked["sequence"] < 256
    huge = settled(*wide, "model.block.hidden=60000", machine=a_machine(memory=1 << 40)).job
    assert trial.request(huge, 2, 1, "cpu") == {}
    assert trial.request(huge, 2, 1, "cuda")["rows"] == 2


def test_the_passes_of_a_model_are_its_matrix_products(settled: Any) -> None:
    for words in (
        (),
        ("model.layers=4", "model.block.kv_heads=2", "model.pattern=[{ window = 64 }, { hidden = 100 }]"),
    ):
        model = settled(*words).job.model
        found = trial.passes(model)
        elements = sum(times * sum(inner * outer for inner, outer in part) for part, times in found)
        assert elements == flops.matrix_parameters(model) + 192 * 2048


def test_steps_decide_the_type_where_products_say_otherwise(settled: Any) -> None:
    found = settled(probed=answer(settled))
    one = setting(found, "train.precision")
    assert (one.used, one.origin) == ("bfloat16", "measured")
    assert one.why.startswith("bfloat16 is 2.")
    assert one.why.endswith("s a step, timed with this model's own layers")
    assert f"about {found.plan.step_seconds:.2g} against" in one.why
    slow = {name: 3 * taken for name, taken in PIECES["float32"].items()}
    other = setting(settled(probed=answer(settled, bfloat16=slow)), "train.precision")
    assert (other.used, "slower on this CPU" in other.why) == ("float32", True)
    assert "slower here" in settled("train.precision=bfloat16", probed=answer(settled, bfloat16=slow)).notes[0]


def test_a_step_is_the_sum_of_its_pieces(settled: Any) -> None:
    probed = answer(settled)
    eager = settled("model.layers=4", "train.compile=false", probed=probed, workers=1)
    one = PIECES["bfloat16"]
    passed = 2 * (4 * one["block"] + one["ends"])  # 4,096 tokens are two passes over 2,048
    rest = 4 * one["block_update"] + one["ends_update"]
    assert eager.plan.step_seconds == pytest.approx(passed + rest)
    assert settled("model.layers=4", probed=probed, workers=1).plan.step_seconds < eager.plan.step_seconds
    more = settled("model.layers=8", "train.compile=false", probed=probed, workers=1)
    assert more.plan.step_seconds - eager.plan.step_seconds == pytest.approx(
        4 * (2 * one["block"] + one["block_update"])
    )


def test_a_rank_of_a_cpu_that_is_not_alone_waits_between_steps(settled: Any) -> None:
    probed = answer(settled)
    for workers in (0, 1, 2):
        job = settled("model.layers=4", "train.precision=bfloat16", workers=workers).job
        on = {where: {**probed, "request": {**probed["request"], "device": where}} for where in ("cpu", "cuda")}
        found = {where: seconds.from_pieces(job, each, workers) for where, each in on.items()}
        layout = Layout(dp_replicate=max(1, workers))
        sent = seconds.exchanged(job, layout, 16 // layout.data) + seconds.shared_out(job, layout)
        more = sent / seconds.EXCHANGE - sent / seconds.EXCHANGE_LINK
        assert found["cpu"] - found["cuda"] - more == pytest.approx(seconds.BETWEEN if workers > 1 else 0.0, abs=1e-9)


def test_the_compiler_shortens_neither_products_nor_a_kernel(settled: Any) -> None:
    probed = answer(settled)

    def step(**pieces: float) -> float:
        changed = {**probed, "pieces": {**PIECES, "float32": {**PIECES["float32"], **pieces}}}
        job = settled("train.precision=float32", "train.compile=true", "model.layers=4", probed=changed, workers=1)
        return float(job.plan.step_seconds)

    without = step(block_attention=0.0)
    spared = 4 * 2 * PIECES["float32"]["block_attention"] * (1 - seconds.LEFT["float32"])
    assert step() - without == pytest.approx(spared)


def test_workers_share_out_newton_schulz_and_nothing_else_of_an_update(settled: Any) -> None:
    one, job = PIECES["bfloat16"], settled("model.layers=4").job
    alone, mine = 4 * one["block_update"] + one["ends_update"], 4 * one["block_orthogonal"]
    assert seconds.update(job, one, Layout()) == pytest.approx(alone)
    assert seconds.update(job, one, Layout(dp_replicate=2)) == pytest.approx(alone - mine / 2)
    assert seconds.update(job, one, Layout(dp_shard=2)) == pytest.approx(alone / 2)  # each has half of the rest, too
    assert seconds.update(job, {**one, "block_orthogonal": 0.0}, Layout(dp_replicate=2)) == pytest.approx(alone)
    matrices = flops.matrix_parameters(job.model)
    assert seconds.shared_out(job, Layout(dp_replicate=2)) == matrices * 4 / 2  # in float32
    assert seconds.shared_out(job, Layout()) == 0
    assert seconds.shared_out(settled("optim.name=adamw").job, Layout(dp_replicate=2)) == 0


def test_a_time_becomes_steps_by_what_was_timed_and_better_by_what_was_seen(settled: Any) -> None:
    probed = answer(settled)
    first = settled("train.time=3 min", probed=probed)
    assert first.job.train.steps == round(180 / first.plan.step_seconds)
    assert "predicted from layers timed here" in setting(first, "train.steps").why
    taken = {**probed, "seen": {seconds.seen(first.job): 0.3}}
    second = settled("train.time=3 min", probed=taken)
    assert second.job.train.steps == 600
    assert "as the last such run here took" in setting(second, "train.steps").why
    begun = settled("train.time=3 min", "model.init=runs/other", "model.layers=3", "train.seed=2", probed=taken)
    assert begun.plan.step_seconds == 0.3
    changes = ("batch.tokens=8192", "model.layers=9", "model.pattern=[{ window = 64 }, {}, {}]", "batch.sequence=128")
    for change in changes:
        other = settled("train.time=3 min", change, probed=taken)
        assert other.plan.basis == "predicted from layers timed here", change  # another step than the one seen
    deep = settled("model.layers=24", probed=taken).plan.step_seconds
    assert deep > 2 * first.plan.step_seconds


def test_what_could_not_be_timed_is_said_and_never_decided_again(settled: Any) -> None:
    first = settled(probed={"failed": "it took longer than 90 s"})
    one = setting(first, "train.precision")
    assert (one.used, one.why) == ("float32", "nothing was measured here: it took longer than 90 s")
    kept = {one.key: one for one in first.settings}
    assert settled(probed=answer(settled), kept=kept).job.train.precision == "float32"


def test_the_question_is_asked_once_with_the_job_in_force(settled: Any) -> None:
    asked: list[dict[str, Any]] = []

    def ask(request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request)
        return answer(settled)

    found, request, said = trial.settled(load("laptop"), a_machine(), FACTS, 2, ask)
    assert asked == [request] == [said["request"]]
    assert found.job.train.precision == "bfloat16"
    trial.settled(load("laptop"), a_machine(), FACTS, 2, ask, local=1)  # the other one is on another machine
    assert [(one["workers"], one["threads"]) for one in asked] == [(2, 1), (1, 2)]


def test_a_busy_machine_is_told_beside_what_follows_from_it(settled: Any) -> None:
    quiet, busy = answer(settled), {**answer(settled), "steady": False}
    assert trial.doubt(quiet) == "" == trial.doubt({"failed": "no torch here"})
    assert "so types and times may be off; a new run from an hour later on" in trial.doubt(busy)
    assert "are a guess" in trial.doubt({"failed": "it took longer than 20 s", "steady": False})
    told = [setting(settled(probed=one), "train.precision") for one in (quiet, busy)]
    assert told[0].used == told[1].used
    assert told[1].why == f"{told[0].why} on a busy machine"
