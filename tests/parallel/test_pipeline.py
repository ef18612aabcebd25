"""Pipelines on real gloo ranks against the reference, in float64: loss, every gradient, norm, weights after three steps."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from argosy.prove.options import legal, plain
from argosy.prove.parity import Bench, Trial
from argosy.prove.pool import Failed, Pool

HERE = str(Path(__file__))
TWO: list[dict[str, Any]] = [
    {"schedule": "gpipe", "micros": 3, "tied": True, "dropout": 0.2, "packed": True, "clip": 0.05},
    {"schedule": "1f1b", "micros": 1, "positions": "learned", "biases": True, "vocabulary": 31},
    {"schedule": "1f1b", "micros": 4, "layers": 3, "stages": "front", "tied": True, "update": "adamw", "clip": 0.05},
    {"schedule": "interleaved", "virtual": 2, "layers": 5, "micros": 3, "tied": True, "dropout": 0.2, "update": "muon"},
]
FOUR: list[dict[str, Any]] = [
    {"pp": 4, "schedule": "1f1b", "layers": 5, "micros": 2, "tied": True, "clip": 0.05},  # fewer than ranks
    {"pp": 4, "schedule": "1f1b", "layers": 4, "micros": 6, "micro": 2, "uneven": True},
    {"schedule": "1f1b", "shard": 2, "zero": 1, "micros": 3, "tied": True, "clip": 0.05},
    {"schedule": "gpipe", "shard": 2, "zero": 2, "micros": 3, "tied": True, "clip": 0.05},
    {
        "schedule": "interleaved",
        "virtual": 2,
        "layers": 4,
        "shard": 2,
        "zero": 3,
        "micros": 3,
        "tied": True,
        "clip": 0.05,
    },
    {"schedule": "interleaved", "virtual": 2, "layers": 4, "shard": 2, "zero": 1, "micros": 4, "recompute": "block"},
    {"schedule": "1f1b", "tp": 2, "sequence": True, "micros": 3, "tied": True, "vocabulary": 29, "dropout": 0.2},
]
EIGHT: list[dict[str, Any]] = [
    {"schedule": "1f1b", "tp": 2, "replicate": 2, "micros": 3, "tied": True, "update": "muon", "clip": 0.05},
    {
        "schedule": "interleaved",
        "virtual": 2,
        "layers": 4,
        "tp": 2,
        "shard": 2,
        "zero": 2,
        "sequence": True,
        "micros": 2,
    },
]


@pytest.mark.parametrize("cases", [TWO, FOUR, EIGHT], ids=["2 ranks", "4 ranks", "8 ranks"])
def test_every_schedule_trains_the_same_model(pool: Pool, cases: list[dict[str, Any]]) -> None:
    """With every kind of data parallelism, tensor ranks, unequal stages, and micro-batches that do not divide."""
    bench = Bench(pool)
    try:
        for changes in cases:
            case = {**plain(), "pp": 2, "layers": 2, **changes}
            assert legal(case), changes
            found = bench.try_(Trial.of(case))
            assert found.ok, (changes, found.wrong)
            assert found.order[0] == f"pipeline over {case['pp']}"
    finally:
        bench.close()


def held(rank: int, ranks: int, board: str, asked: dict[str, Any]) -> dict[str, Any]:
    """What a rank holds during one step: names, most micro-batches at once, letters that it has not let go of."""
    import torch

    from argosy.job.schema import Job
    from argosy.layout.schedule import Action
    from argosy.parallel import apply, pipeline
    from argosy.parallel.mesh import Meeting, joined
    from argosy.plan import layouts
    from argosy.prove.options import job_of
    from argosy.prove.sample import batch_of
    from argosy.train.feed import cut, tensors

    job: Job = job_of(asked["case"])
    layout = layouts.of(job.layout, ranks)
    most = {"stand": 0, "kept": 0, "sent": 0, "sent forward only": 0}
    with joined(layout, rank, Meeting("test", Path(board))) as mesh:
        laid = apply.decoder(job, mesh, torch.device("cpu"))
        execute = laid.execute
        assert isinstance(execute, pipeline.Pipeline)
        batch = batch_of(1, rows=asked["rows"], sequence=12, packed=False, vocabulary=32)
        micro = [tensors(part, torch.device("cpu")) for part in cut(batch, 1, 0, 1)]
        plainly = pipeline.Run.do

        def watched(run: pipeline.Run, action: Action) -> None:
            plainly(run, action)
            infos = [info for stage in run.stages.values() for each in stage.args_recv_info.values() for info in each]
            most["kept"] = max(most["kept"], sum(info.buffer is not None and not info.buffer.is_meta for info in infos))
            most["stand"] = max(most["stand"], sum(len(stage.fwd_cache) for stage in run.stages.values()))
            sent = "sent" if run.backward else "sent forward only"
            most[sent] = max(most[sent], len(execute.links._sent))

        setattr(pipeline.Run, "do", watched)  # noqa: B010
        try:
            loss = float(execute(micro, scale=1.0))
            again = float(execute(micro, scale=1.0, backward=False))
        finally:
            setattr(pipeline.Run, "do", plainly)  # noqa: B010
        gradients = [parameter.grad for parameter in laid.module.parameters()]
        gradient = sum(float(gradient.abs().sum()) for gradient in gradients if gradient is not None)
        ends = sorted(name for name, _ in laid.module.named_parameters() if not name.startswith("blocks."))
        return {
            "ends": ends, "blocks": laid.module.held, **most, "left": len(execute.links._sent),
            "loss": loss, "again": again, "gradient": gradient,
        }  # fmt: skip


def test_a_rank_holds_its_stages_and_few_micro_batches(pool: Pool) -> None:
    """Global names; 1F1B holds as many micro-batches as ranks follow, GPipe all; letters are let go of during the step."""
    most = {}
    for schedule in ("1f1b", "gpipe"):
        case = {**plain(), "pp": 4, "layers": 5, "schedule": schedule, "micros": 6, "tied": True}
        found = pool.call(f"{HERE}:held", {"case": case, "rows": 12}, ranks=4)
        assert [one["ends"] for one in found] == [["embedding.weight"], [], [], ["embedding.weight", "norm.weight"]]
        assert [one["blocks"] for one in found] == [[0], [1], [2, 3], [4]]
        assert [one["loss"] > 0 for one in found] == [False, False, False, True]
        # Evaluation is the same sum without a backward pass, and leaves the gradients alone.
        assert found[-1]["again"] == pytest.approx(found[-1]["loss"], rel=1e-12)
        assert all(one["gradient"] > 0 and one["left"] == 0 for one in found)
        most[schedule] = found
    assert [one["stand"] for one in most["1f1b"]] == [4, 3, 2, 1]
    assert [one["stand"] for one in most["gpipe"]] == [12] * 4
    assert [one["kept"] for one in most["1f1b"]][1:] == [3, 2, 1]  # what was received is forgotten with its micro-batch
    sent = {name: max(one["sent"] for one in found) for name, found in most.items()}
    assert sent["1f1b"] <= 8 < sent["gpipe"]
    assert max(one["sent forward only"] for found in most.values() for one in found) == 8


class Given(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keep",
        )
    ]


def given_out() -> int | None:
    """Bytes that malloc gave out and that nobody has freed; None where the C library does not tell."""
    tell = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if tell is None:
        return None
    tell.restype = Given
    found = tell()
    return int(found.uordblks + found.hblkhd)


def standing(rank: int, ranks: int, board: str, case: dict[str, Any]) -> list[int | None]:
    """What stands on a rank after each of twelve steps whose letters have 256 tokens."""
    import gc

    import torch

    from argosy.parallel import apply
    from argosy.parallel.mesh import Meeting, joined
    from argosy.plan import layouts
    from argosy.prove.options import job_of
    from argosy.prove.sample import batch_of
    from argosy.train.feed import cut, tensors

    job = job_of(case)
    batch = job.batch.model_copy(update={"sequence": 256, "tokens": 256 * case["micros"]})
    job = job.model_copy(update={"batch": batch})
    layout, found = layouts.of(job.layout, ranks), []
    with joined(layout, rank, Meeting("test", Path(board))) as mesh:
        laid = apply.decoder(job, mesh, torch.device("cpu"))
        text = batch_of(1, rows=case["micros"], sequence=256, packed=False, vocabulary=32)
        micro = [tensors(part, torch.device("cpu")) for part in cut(text, 1, 0, 1)]
        for _ in range(12):
            float(laid.execute(micro, scale=1.0))
            gc.collect()  # which the ranks of the pool leave to whoever calls them
            found.append(given_out())
    return found


@pytest.mark.parametrize(
    "more", [{"schedule": "1f1b"}, {"schedule": "interleaved", "virtual": 2, "layers": 4}], ids=str
)
def test_no_letter_outlives_its_step(pool: Pool, more: dict[str, Any]) -> None:
    """By what malloc gave out: nothing that Python or torch may know of keeps a letter alive."""
    if given_out() is None:
        pytest.skip("the C library does not tell what it gave out (glibc 2.33 and later do)")
    case = {**plain(), "pp": 2, "layers": 2, "micros": 4, **more}
    letter = 256 * 24 * 8  # bytes: tokens, width, float64
    for found in pool.call(f"{HERE}:standing", case, ranks=2):
        # The least of several looks: gloo's threads let go of a letter a moment late. One kept in each step would make seven.
        assert min(found[8:]) - min(found[1:5]) < 2 * letter, found


def exchanged(rank: int, ranks: int, board: str, asked: dict[str, Any]) -> list[list[Any]]:
    """Letters over channels that are groups of their own, as NCCL needs them: what this rank read, in the order of reading."""
    import torch

    from argosy.layout.layout import Layout
    from argosy.layout.schedule import Action
    from argosy.parallel.links import Links
    from argosy.parallel.mesh import Meeting, joined

    layout = Layout(pp=ranks, virtual=asked["virtual"])
    with joined(layout, rank, Meeting("test", Path(board))) as mesh:
        ends = sorted((layout.holder(rank, 0), layout.holder(rank, layout.stages - 1)))
        if asked["tied"] and rank in ends:
            mesh.among(ends)  # as for a tied embedding: ranks at the ends are in one group more than those between
        mesh.kind = "cuda"  # only the choice of channels looks at it here
        links = Links(mesh)
        mesh.kind = "cpu"
        own, last = layout.stages_of(rank), layout.stages - 1
        boxes = [Action(kind, stage, m) for stage in own for kind in ("RECV_F", "RECV_B") for m in (0, 1)]
        boxes = [box for box in boxes if (box.stage > 0 if box.kind == "RECV_F" else box.stage < last)]
        for box in boxes:
            links.open(box, torch.empty(1))
        for micro in (0, 1):
            for stage in reversed(own):  # another order than that of the boxes: channels do not wait for each other
                if stage > 0:
                    links.send(Action("SEND_B", stage, micro), torch.tensor([-10.0 * stage - micro]))
                if stage < last:
                    links.send(Action("SEND_F", stage, micro), torch.tensor([10.0 * stage + micro]))
        found = [[box.kind, box.stage, box.micro, float(links.read(box))] for box in boxes]
        links.close()
        return found


@pytest.mark.parametrize(
    ("ranks", "virtual", "tied", "letters"),
    [
        (2, 2, False, [6, 6]),  # two channels of both kinds in both directions of one pair
        (3, 1, False, [2, 4, 2]),  # the rank in the middle has channels to both others, each of which has those to one
        (4, 2, True, [6, 8, 8, 6]),  # the last rank's first stage and the first rank's second one are neighbours too
    ],
)
def test_channels_of_their_own_keep_letters_apart(
    pool: Pool, ranks: int, virtual: int, tied: bool, letters: list[int]
) -> None:
    """Each box gets the letter of the right stage, kind and micro-batch."""
    answers = pool.call(f"{HERE}:exchanged", {"virtual": virtual, "tied": tied}, ranks=ranks)
    assert [len(found) for found in answers] == letters
    for kind, stage, micro, letter in (each for found in answers for each in found):
        assert letter == (10 * (stage - 1) + micro if kind == "RECV_F" else -10 * (stage + 1) - micro)


def failing(rank: int, ranks: int, board: str, asked: dict[str, Any]) -> None:
    """A stage whose block raises."""
    import torch

    from argosy.layout.layout import Layout
    from argosy.parallel.data import Replicated
    from argosy.parallel.execute import Whole
    from argosy.parallel.links import Links
    from argosy.parallel.mesh import Meeting, joined
    from argosy.parallel.pipeline import Pipeline

    def compute(module: Any, x: Any, batch: Any) -> Any:
        raise MemoryError("nothing left on rank 0") if rank == 0 else RuntimeError("rank 1 never gets here")

    with joined(Layout(pp=2), rank, Meeting("test", Path(board))) as mesh:
        pipeline = Pipeline(
            mesh.layout, rank, "1f1b", Whole(torch.nn.Linear(1, 1)), {rank: compute}, Replicated(()), Links(mesh),
            lambda batch: ((1, 1, 1), torch.float32), torch.float32, torch.device("cpu"),
        )  # fmt: skip
        pipeline([object()], scale=1.0)


def test_an_error_in_a_stage_is_the_error_that_is_raised(pool: Pool) -> None:
    """Torch's stage wraps it in a text about tensors, in which nobody would find running out of memory."""
    with pytest.raises(Failed, match=r"rank 0:(?s:.*)MemoryError: nothing left on rank 0"):
        pool.call(f"{HERE}:failing", {}, ranks=2)
