"""Ranks from birth to end: alone and together, stopped and going on, under one layout and another."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from argosy.errors import MACHINE, Refused
from argosy.prove.pool import Failed, Pool
from argosy.run import requests
from argosy.run.folder import Run
from argosy.run.ledger import Entry, append
from argosy.run.requests import Request


def rows(run: Run, name: str) -> list[dict[str, Any]]:
    """The lines of one of the run's files."""
    return [json.loads(line) for line in (run.path / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the undisturbed run of this module's job lies, trained by one rank."""
    return tmp_path_factory.mktemp("whole") / "run"


@pytest.fixture
def undisturbed(whole: Path, make_run: Any, work: Any, losses_of: Any) -> Run:
    """One rank, from the first step to the last, once for all tests of this module."""
    if not whole.exists():
        assert work(make_run(whole)) == 0
        losses_of(Run(whole))
    return Run(whole)


def test_a_run_trains_to_its_end(undisturbed: Run, losses_of: Any) -> None:
    found = losses_of(undisturbed)
    assert [step for step, _ in found] == list(range(1, 9))
    assert found[-1][1] < found[0][1]
    assert undisturbed.newest_step() == 8
    assert [row["step"] for row in rows(undisturbed, "evaluations.jsonl")] == [4, 8]
    assert [row["step"] for row in rows(undisturbed, "samples.jsonl")] == [4, 8]
    metrics = rows(undisturbed, "metrics.jsonl")
    assert metrics[-1]["tokens"] == 8 * 256
    assert all(row["bits_per_byte"] > 0 and row["lr"] > 0 and row["gradient_norm"] > 0 for row in metrics)
    assert all(row["gemm_share"] > 0 for row in metrics[1:])  # the products are first timed after the first step
    assert not any("mfu" in row for row in metrics)  # no peak is known of a CPU


def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    undisturbed: Run, make_run: Any, work: Any, losses_of: Any, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run")
    requests.tell(run, Request(stop=True, reason="SIGTERM", number=1))
    assert work(run) == 0
    assert run.newest_step() == 1  # the first vote heard it
    requests.clear(run)
    assert work(run) == 0
    assert losses_of(run) == losses_of(undisturbed)
    assert rows(run, "samples.jsonl")[-1]["text"] == rows(undisturbed, "samples.jsonl")[-1]["text"]
    for file in ("evaluations.jsonl",):
        assert [row["loss"] for row in rows(run, file)] == [row["loss"] for row in rows(undisturbed, file)]


def test_a_sample_is_whole_though_a_stop_is_asked_for_meanwhile(
    undisturbed: Run, make_run: Any, work: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from argosy.train.samples import Samples

    run = make_run(tmp_path / "run")
    scores, asked = Samples.from_whole, []

    def first_asks(self: Samples, *tensors: Any) -> Any:
        if not asked:
            requests.tell(run, Request(stop=True, reason="SIGTERM", number=1))
            asked.append(True)
        return scores(self, *tensors)

    monkeypatch.setattr(Samples, "from_whole", first_asks)
    assert work(run) == 0
    assert run.newest_step() == 5  # the vote after the sample of step 4
    requests.clear(run)
    assert work(run) == 0
    whole, others = ([(row["step"], row["text"]) for row in rows(one, "samples.jsonl")] for one in (undisturbed, run))
    assert others == whole


LAYOUTS = [
    ("replicate3", 3, None),
    ("replicate2 dp2", 4, 3),
    ("tp2", 2, None),
    ("pp2", 2, None),
    *(
        pytest.param(*more, marks=pytest.mark.long)
        for more in [
            ("replicate2", 2, None),
            ("dp2", 2, 1),
            ("dp3", 3, 2),
            ("dp2", 2, 3),
            ("dp2 tp2", 4, 3),
            ("replicate2 tp2", 4, None),
            ("pp2 dp2", 4, 3),
            ("pp2 tp2", 4, None),
        ]
    ),
]


LATER = [("dp2", "tp2"), ("replicate2", "pp2")]


@pytest.mark.parametrize("shape, ranks, zero", LAYOUTS, ids=str)
def test_a_layout_gives_the_same_losses_and_another_goes_on(
    undisturbed: Run,
    make_run: Any,
    work: Any,
    workers: Any,
    losses_of: Any,
    tmp_path: Path,
    shape: str,
    ranks: int,
    zero: int | None,
) -> None:
    """E2 in float32 along a whole run, and E3: the second half is done by one rank, from the checkpoint of many."""
    stage = {} if zero is None else {"layout.zero": zero}
    run = make_run(tmp_path / "run", ranks, **{"layout.shape": shape, **stage})
    assert workers(run, shape, ranks) == [0] * ranks
    expected = losses_of(undisturbed)
    assert [step for step, _ in losses_of(run)] == [step for step, _ in expected]
    assert [loss for _, loss in losses_of(run)] == pytest.approx([loss for _, loss in expected], rel=2e-5)
    shutil.rmtree(run.checkpoints / "step-000008")
    assert work(run) == 0
    assert [loss for _, loss in losses_of(run)] == pytest.approx([loss for _, loss in expected], rel=2e-5)
    assert run.newest_step() == 8


@pytest.mark.parametrize(
    "first, then",
    [("tp2", "dp2"), ("pp2", "replicate2"), *(pytest.param(*more, marks=pytest.mark.long) for more in LATER)],
)
def test_a_run_stopped_in_one_layout_goes_on_in_another(
    undisturbed: Run, make_run: Any, workers: Any, losses_of: Any, tmp_path: Path, first: str, then: str
) -> None:
    """E3 with an update of matrices that both layouts cut, each in its own way."""
    run = make_run(tmp_path / "run", 2, **{"layout.shape": first})
    assert workers(run, first, 2) == [0, 0]
    shutil.rmtree(run.checkpoints / "step-000008")
    assert workers(run, then, 2) == [0, 0]
    expected = [loss for _, loss in losses_of(undisturbed)]
    assert [loss for _, loss in losses_of(run)] == pytest.approx(expected, rel=2e-5)
    assert [row["incarnation"] for row in rows(run, "metrics.jsonl")] == [1] * 6 + [2] * 2


def killed(rank: int, ranks: int, board: str, asked: dict[str, Any]) -> int:
    """Train alone; `point` says where this process is killed."""
    from argosy import points
    from argosy.run.incarnation import Incarnation
    from argosy.train import worker

    run = Run(asked["run"])
    points._passed.clear()
    os.environ.pop("ARGOSY_POINT", None)
    if asked["point"]:
        os.environ["ARGOSY_POINT"] = f"{asked['point']}:kill"
    number = Incarnation.next(run)
    Incarnation(number, 1, "dp1", 1, parent=os.getpid()).write(run)
    run.update_info(incarnation=number)
    return worker.main(str(run.path), 0, number)


def ends_by_kill(pool: Pool, run: Run, point: str) -> bool:
    """Train until `point`; whether it was passed."""
    try:
        pool.call(f"{__file__}:killed", {"run": str(run.path), "point": point}, ranks=1)
    except Failed as failed:
        if "died" not in str(failed):
            raise
        return True
    return False


POINTS = [
    "worker.start:1", "worker.group:1", "worker.built:1", "worker.loaded:1", "step.begin:2", "step.vote.before:2",
    "step.vote.after:4", "evaluate.begin:1", "step.update.after:1", "evaluate.end:1", "record.step.after:2",
    "save.copy.before:1", "save.copy.after:1", "save.announce.after:2", "worker.end:1",
]  # fmt: skip


@pytest.mark.parametrize(
    "points", [POINTS[4:12:3], pytest.param(POINTS, marks=pytest.mark.long)], ids=["short", "long"]
)
def test_killed_anywhere_a_run_goes_on_bit_for_bit(
    undisturbed: Run, make_run: Any, losses_of: Any, pool: Pool, tmp_path: Path, points: list[str]
) -> None:
    """E1: one run, killed at one point after the other."""
    run = make_run(tmp_path / "run")
    died = [ends_by_kill(pool, run, point) for point in points]
    assert sum(died) >= len(points) - 2  # points of a save or evaluation are not passed again once the run is past them
    assert pool.call(f"{__file__}:killed", {"run": str(run.path), "point": ""}, ranks=1) == [0]
    assert losses_of(run) == losses_of(undisturbed)
    for file, key in (("evaluations.jsonl", "loss"), ("samples.jsonl", "text")):
        assert [(row["step"], row[key]) for row in rows(run, file)] == [
            (row["step"], row[key]) for row in rows(undisturbed, file)
        ]


def announced(run: Run, step: int) -> None:
    """Turn the checkpoint of `step` back into what a rank has announced and nobody has written yet."""
    import torch

    from argosy.checkpoint.load import at, load
    from argosy.checkpoint.save import TYPES, Saver
    from argosy.layout.layout import Layout

    found = at(run, step)
    types = {name: dtype for dtype, name in TYPES.items()}
    values = {spec.name: torch.empty(spec.shape, dtype=types[spec.dtype]) for spec in found.manifest.specs}
    facts = load(run, found, values)
    saver = Saver(run, 0, 1, found.manifest.incarnation, Layout(), found.manifest.specs)
    saver.begin(step, values, facts)
    saver.close()
    found.close()
    shutil.rmtree(found.folder)


def test_what_a_killed_start_announced_is_written_before_the_next_one_chooses(
    make_run: Any, work: Any, losses_of: Any, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run")
    assert work(run) == 0
    assert losses_of(run)[-1][0] == 8
    announced(run, 8)
    assert run.newest_step() == 6
    assert work(run) == 0
    assert run.newest_step() == 8
    losses_of(run)
    assert {row["incarnation"] for row in rows(run, "metrics.jsonl")} == {1}, "no step was done twice"


def ordered(rank: int, ranks: int, board: str, asked: dict[str, Any]) -> list[str]:
    """Be a worker; tells in which order it waited for rank 0's choice of a checkpoint and met the others in a collective."""
    from argosy.parallel.mesh import Mesh
    from argosy.train import worker

    told: list[str] = []
    first, broadcast = Mesh.first, worker.dist.broadcast

    def waits(self: Mesh, *arguments: Any) -> None:
        first(self, *arguments)
        told.append("waited")

    def meets(*arguments: Any, **options: Any) -> Any:
        told.append("met")
        return broadcast(*arguments, **options)

    Mesh.first, worker.dist.broadcast = waits, meets  # type: ignore[method-assign,assignment]
    try:
        worker.main(asked["run"], rank, asked["incarnation"])
    finally:
        Mesh.first, worker.dist.broadcast = first, broadcast  # type: ignore[method-assign]
    return told


def test_no_rank_sits_in_a_collective_while_an_earlier_checkpoint_is_written(
    make_run: Any, workers: Any, tmp_path: Path
) -> None:
    """A collective gives up after half an hour; how long rank 0 waits for the disk, and then reads, nobody knows."""
    run = make_run(tmp_path / "run", 2, **{"train.steps": 1, "layout.shape": "replicate2"})
    for told in workers(run, "replicate2", 2, f"{__file__}:ordered"):
        assert told.index("waited") < told.index("met"), told


def test_the_loss_is_computed_in_few_equal_chunks() -> None:
    from argosy.parallel.apply import chunk

    found = [chunk(tokens, 1024) for tokens in (600, 1024, 1536, 2048, 2039, 2 * 2039)]
    assert found == [600, 1024, 768, 1024, 1020, 1020]  # 2,039 is prime: the last chunk is filled up


def test_the_rate_is_keyed_by_tokens_also_where_the_batch_changed() -> None:
    from argosy.job.schema import OptimSection
    from argosy.optim.schedule import rate
    from argosy.run.ledger import Ledger
    from argosy.train.rates import scheduled

    section = OptimSection(schedule="cosine", warmup=10_000, final=0.1)
    plain = Ledger.start(batch__sequence=64, batch__tokens=4096)
    before = scheduled(section, plain, 320)
    for step in (1, 2, 3, 200, 319, 320):
        assert before(step) == rate(section, (step - 0.5) * 4096, 320 * 4096)
    for tokens, steps in ((8192, 260), (2048, 440)):
        after = scheduled(section, plain.changed(201, "batch.tokens", tokens, "--change"), steps)
        assert after(200) == before(200)
        assert after(201) == rate(section, 200 * 4096 + tokens / 2, 320 * 4096)
        assert after(steps) == rate(section, 320 * 4096 - tokens / 2, 320 * 4096)


def test_a_ledger_that_is_not_the_checkpoints_is_refused(undisturbed: Run, work: Any, tmp_path: Path) -> None:
    run = Run(shutil.copytree(undisturbed.path, tmp_path / "run"))
    ledger = run.path / "ledger.jsonl"
    as_it_was = ledger.read_text()
    append(ledger, [Entry(3, "batch.tokens", 256, 512, "--change")])  # dated by a checkpoint before the newest one
    with pytest.raises(Refused, match=r"batch\.tokens was changed from step 3 on, but the run is at step 8 without it"):
        work(run)
    ledger.write_text(as_it_was.replace('"new": 256', '"new": 512'))
    with pytest.raises(Refused, match="the ledger is not the one this checkpoint was made with"):
        work(run)
    told = [json.loads(failed.read_text()) for failed in run.local.glob("failed-rank-0000-*.json")]
    assert [row["kind"] for row in told] == ["refused"] * 2


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(
    undisturbed: Run, work: Any, losses_of: Any, tmp_path: Path
) -> None:
    run = Run(shutil.copytree(undisturbed.path, tmp_path / "run"))
    before = losses_of(run)
    for file in run.checkpoints.glob("*/*.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(Refused, match="none of the 2 checkpoints of this run is whole") as caught:
        work(run)
    assert caught.value.code == MACHINE
    assert "has 0 bytes" in caught.value.found and "--run NEW" in caught.value.do
    assert losses_of(run) == before, "what was measured is still there"
    for manifest in run.checkpoints.glob("*/manifest.json"):
        manifest.unlink()  # as where a start was killed while it saved for the first time: nothing is lost
    assert work(run) == 0
    assert run.newest_step() == undisturbed.newest_step()


def test_first_weights_of_another_run(
    undisturbed: Run, make_run: Any, work: Any, losses_of: Any, tmp_path: Path
) -> None:
    run = make_run(
        tmp_path / "run", **{"model.init": str(undisturbed.path), "train.steps": 1, "checkpoint.every": "never"}
    )
    assert work(run) == 0
    assert losses_of(run)[0][1] < losses_of(undisturbed)[1][1]  # begins where the other one ended, not anew


def test_the_trained_model_is_measured_and_sampled(undisturbed: Run, text: Path, tmp_path: Path) -> None:
    """`argosy evaluate` and `argosy sample`: the same figure as the run's last evaluation, the same text as its last sample."""
    import argosy
    from argosy.commands.sample import continued
    from argosy.evaluate.trained import Trained

    found = argosy.evaluate(undisturbed.path)
    last = rows(undisturbed, "evaluations.jsonl")[-1]
    assert found["step"] == 8
    assert found["loss"] == pytest.approx(last["loss"], rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(last["bits_per_byte"], rel=1e-6)
    file = text / "00.txt"
    own = argosy.evaluate(undisturbed.path, file)
    assert own["bytes"] == len(file.read_bytes()) - 1  # the first byte is predicted by nothing
    assert own["tokens"] == own["bytes"] + 1  # and the end of the text is one more token
    shown: list[str] = []
    written = argosy.sample(undisturbed.path, "the sea", tokens=12, show=shown.append)
    assert "".join(shown) == written
    assert argosy.sample(undisturbed.path, "the sea", tokens=12) == written
    model = Trained.open(undisturbed)
    hottest, coldest = (continued(model, ["the"], 12, heat, seed=1)[0].text for heat in (5.0, 0.0))
    assert hottest != coldest
    with pytest.raises(Refused, match="this is no UTF-8 text"):
        (tmp_path / "binary").write_bytes(b"\xff\xfe")
        argosy.evaluate(undisturbed.path, tmp_path / "binary")
    assert argosy.evaluate(undisturbed.path, file, tokens=100)["tokens"] == 100
    with pytest.raises(Refused, match="the text to continue is no UTF-8"):
        argosy.sample(undisturbed.path, "\udcff")
    (tmp_path / "empty").touch()
    with pytest.raises(Refused, match="nothing to predict"):
        argosy.evaluate(undisturbed.path, tmp_path / "empty")


def test_a_batch_of_prompts_chats_and_stop_texts(undisturbed: Run, capsys: Any) -> None:
    """Side by side as each alone, with kept keys as without; a prompt given twice draws twice."""
    import argosy
    from argosy.commands.sample import Shell
    from argosy.evaluate.prompts import prompt
    from argosy.evaluate.trained import Trained

    chat = [{"role": "user", "content": "the sea"}]
    texts: list[Any] = ["the sea", "", chat, "ships", "the sea"]
    found = argosy.sample(undisturbed.path, texts, tokens=40, temperature=1.0, top_p=0.9)
    alone = [argosy.sample(undisturbed.path, text, tokens=40, temperature=1.0, top_p=0.9) for text in texts]
    assert found[:4] == alone[:4] and found[4] != found[0] == alone[4]
    model = Trained.open(undisturbed)
    prompts = [prompt(text, model.tokenizer, model.template) for text in texts]
    plain = model.continued(prompts, tokens=40, temperature=1.0, top_p=0.9, cached=False)
    assert [one.text for one in plain] == found
    assert argosy.sample(
        undisturbed.path, "x" * 100, tokens=4, temperature=0
    )  # longer than what the model reads at once
    first = next(letter for letter in alone[0] if alone[0].count(letter) > 1)
    cut = argosy.sample(undisturbed.path, "the sea", tokens=40, temperature=1.0, top_p=0.9, stop=[first, "never said"])
    assert alone[0].startswith(cut) and alone[0][len(cut)] == first and first not in cut
    options = {"tokens": 40, "temperature": 1.0, "top_p": 0.9, "stop": [first], "seed": 0}
    capsys.readouterr()
    Shell(model, options, chat=False, json=True).all(texts)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prompt"] for row in rows] == texts and rows[0]["text"] == cut
    assert rows[0]["ended"] == "stop" and {row["ended"] for row in rows} <= {"stop", "end", "tokens"}
    assert all(0 < row["tokens"] <= 40 for row in rows if row["ended"] == "stop")
    Shell(model, {**options, "stop": ()}, chat=False, json=False).all(["the sea"])
    assert capsys.readouterr().out == f"the sea{alone[0]}\n"
    for wrong in ({"tokens": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"temperature": -1.0}, {"temperature": float("nan")}):
        with pytest.raises(Refused, match="tokens must be at least 1"):
            argosy.sample(undisturbed.path, "x", **wrong)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_blocks_are_compiled_once_for_training_and_evaluation(make_run: Any, pool: Pool, tmp_path: Path) -> None:
    """One graph for all three equal blocks and one for the loss, whatever the packing and whether it is trained or measured."""
    run = make_run(tmp_path / "run", **{"train.compile": True, "model.layers": 3})
    [frames] = pool.call(f"{__file__}:compiled", {"run": str(run.path)}, ranks=1, limit=1200)
    first, all_steps = frames
    assert first == all_steps
    assert first <= 5  # a block, the loss, and what the attention kernel itself compiles


def compiled(rank: int, ranks: int, board: str, asked: dict[str, Any]) -> list[int]:
    """Frames compiled after the first step of a run, and after all of it."""
    from argosy.device.torch_versions import compiled_frames
    from argosy.train.trainer import Trainer

    after: list[int] = []
    beat = Trainer.beat

    def counted(self: Trainer) -> Any:
        vote = beat(self)
        after.append(compiled_frames())
        return vote

    Trainer.beat = counted  # type: ignore[method-assign]
    try:
        killed(rank, ranks, board, {**asked, "point": ""})
    finally:
        Trainer.beat = beat  # type: ignore[method-assign]
    return [after[0], compiled_frames()]
