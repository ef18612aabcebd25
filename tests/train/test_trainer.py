"""The loop over a small module: clipping, skipping, diverging, saving by interval, clock and request, garbage."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from argosy.errors import NO, Refused
from argosy.prove.pool import Pool
from argosy.quantities import interval
from argosy.run import record
from argosy.run.recorder import Recorder


class Place:
    """A folder for a record."""

    def __init__(self, local: Path):
        self.local = local


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    made = Recorder(Place(tmp_path), 0, 1)
    yield made
    made.finish()


class Kept:
    """Takes checkpoints into memory."""

    def __init__(self) -> None:
        self.taken: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
        self.flushed = 0

    def begin(self, step: int, tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> float:
        self.taken[step] = ({name: tensor.clone() for name, tensor in tensors.items()}, dict(facts))
        return 0.0

    def flush(self) -> float:
        self.flushed += 1
        return 0.0


def trainer(recorder: Recorder, steps: int, *callbacks: Any, bad: Any = (), asked: Any = frozenset, **more: Any) -> Any:
    """Fits one number to 3 by AdamW; the steps in `bad` have a loss that is no number."""
    import torch
    from torch import nn

    from argosy.layout.layout import Layout
    from argosy.parallel import apply
    from argosy.parallel.execute import Plain
    from argosy.parallel.mesh import Mesh
    from argosy.train.any_optimizer import AnyOptimizer
    from argosy.train.feed import Part
    from argosy.train.state import State
    from argosy.train.trainer import Trainer
    from argosy.train.vote import Agree

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

    module = One()
    applied = apply.shard(module, (), Mesh(Layout(), 0))
    apply.materialise(applied, torch.device("cpu"))
    update = AnyOptimizer(torch.optim.AdamW(module.parameters(), lr=0.1), applied.named())
    state = State(module, update, applied.data, recorder, **more)

    def loss(module: Any, step: int) -> Any:
        return ((module.weight - 3) ** 2).sum() * (float("nan") if step in bad else 1.0)

    def feed(step: int) -> Part:
        return Part([step], 1, 10, 7)

    return Trainer(
        state, feed, Plain(applied.whole, loss, applied.data), Agree(), steps=steps, callbacks=callbacks, asked=asked
    )


def scalars(folder: Path, name: str, incarnation: int = 1) -> dict[int, float]:
    """step -> value, from the record."""
    found = {}
    for _, path in record.files(folder, incarnation=incarnation):
        for entry in record.read(path):
            if entry["kind"] == record.SCALAR and record.name(record.SCALAR, int(entry["name"])) == name:
                found[int(entry["step"])] = float(entry["value"])
    return found


def test_every_step_stands_in_the_record(recorder: Recorder, tmp_path: Path) -> None:
    made = trainer(recorder, 4, rate=lambda step: 1 / step)
    assert made.run() == "finished"
    assert scalars(tmp_path, "loss")[1] == 18.0
    assert scalars(tmp_path, "tokens") == {1: 10, 2: 20, 3: 30, 4: 40}
    assert scalars(tmp_path, "lr") == {step: pytest.approx(0.1 / step) for step in range(1, 5)}
    assert scalars(tmp_path, "bytes") == dict.fromkeys(range(1, 5), 7)


def test_the_gradient_is_clipped_to_its_norm(recorder: Recorder) -> None:
    made = trainer(recorder, 1, clip=1.0)
    vote = made.beat()
    assert vote.norm == pytest.approx(72**0.5)
    assert made.state.data.gradients()[0].norm().item() == pytest.approx(1.0)


def test_a_step_that_is_no_number_changes_nothing(recorder: Recorder, tmp_path: Path) -> None:
    made = trainer(recorder, 3, bad={2})
    made.beat()
    before = {name: tensor.clone() for name, tensor in made.state.tensors().items()}
    made.beat()
    assert all(tensor.equal(before[name]) for name, tensor in made.state.tensors().items())
    assert (made.state.step, made.state.skipped, made.state.skipped_in_a_row) == (2, 1, 1)
    made.beat()
    assert made.state.skipped_in_a_row == 0
    assert not made.state.tensors()["model.weight"].equal(before["model.weight"])
    assert scalars(tmp_path, "skipped") == {2: 1}


def test_ten_such_steps_in_a_row_are_divergence(recorder: Recorder) -> None:
    made = trainer(recorder, 50, bad=range(5, 50))
    with pytest.raises(Refused, match=r"diverged: .* 10 steps in a row, the last one step 14") as refused:
        made.run()
    assert refused.value.code == NO


def test_a_checkpoint_holds_all_that_going_on_needs(recorder: Recorder) -> None:
    from argosy.train.callbacks import Save

    kept, again = Kept(), Kept()
    trainer(recorder, 6, Save(kept, interval(2)), bad={3}).run()
    assert sorted(kept.taken) == [2, 4, 6]
    assert kept.flushed == 1
    tensors, facts = kept.taken[4]
    made = trainer(recorder, 6, Save(again, interval(2)), bad={3})
    made.state.optimizer.make_room({name: (tuple(t.shape), t.dtype) for name, t in tensors.items()})
    for name, tensor in made.state.tensors().items():
        tensor.copy_(tensors[name])
    made.state.restore(facts)
    made.run(facts)
    assert sorted(again.taken) == [6]
    for name, tensor in again.taken[6][0].items():
        assert tensor.equal(kept.taken[6][0][name]), name
    assert again.taken[6][1] == kept.taken[6][1]


def test_a_save_by_clock_goes_through_the_vote(recorder: Recorder) -> None:
    from argosy.train.callbacks import Save

    time = iter([0.0, 0.0, *[float(number) for number in range(1, 100)]])  # one second a look
    kept = Kept()
    trainer(recorder, 9, Save(kept, interval("3 s"), clock=lambda: next(time))).run()
    assert sorted(kept.taken) == [4, 8, 9]  # due after step 3, said in the vote of step 4


def test_a_save_and_a_stop_are_done_where_the_vote_hears_them(recorder: Recorder) -> None:
    from argosy.train.callbacks import Save

    kept = Kept()
    asked = iter([frozenset(), frozenset({"save"}), frozenset(), frozenset({"stop"})])
    made = trainer(recorder, 9, Save(kept, interval("never")), asked=lambda: next(asked))
    assert made.run() == "stopped"
    assert sorted(kept.taken) == [2, 4]
    assert made.state.step == 4


def test_garbage_is_collected_when_due_only(recorder: Recorder, tmp_path: Path) -> None:
    from argosy.train.callbacks import Callback, Garbage

    seen = []

    class Look(Callback):
        def step(self, trainer: Any, vote: Any) -> None:
            seen.append(gc.isenabled())

    was = gc.isenabled()
    trainer(recorder, 7, Garbage(3), Look()).run()
    assert seen == [False] * 7
    assert gc.isenabled() == was
    assert sorted(scalars(tmp_path, "collected")) == [3, 6]


def test_intervals() -> None:
    from argosy.train.callbacks import due

    assert [step for step in range(1, 9) if due(interval("25%"), step, 8)] == [2, 4, 6, 8]
    assert not any(due(interval(never), step, 8) for never in ("never", "3 s") for step in range(1, 9))


@pytest.mark.parametrize(
    "every, steps, at",
    [
        ("25%", 413, [103, 206, 309, 413]),  # and not at 412, a quarter rounded
        ("25%", 8, [2, 4, 6, 8]),
        ("25%", 50, [12, 24, 36, 50]),
        ("25%", 6, [2, 4, 6]),
        ("33%", 100, [33, 66, 100]),
        ("30%", 100, [30, 60, 100]),
        (100, 413, [100, 200, 300, 400, 413]),
        (100, 409, [100, 200, 300, 409]),
        (10, 31, [10, 20, 30, 31]),
        (1, 3, [1, 2, 3]),
        ("100%", 1, [1]),
    ],
)
def test_nothing_is_measured_twice_at_the_end(every: Any, steps: int, at: list[int]) -> None:
    from argosy.train.callbacks import measured

    assert [n for n in range(1, steps + 1) if n == steps or measured(interval(every), n, steps)] == at
    assert not measured(interval("never"), steps, steps)


def small(
    mesh: Any, recorder: Recorder, late: bool, *callbacks: Any, steps: int = 7, bad: Any = (4,), **more: Any
) -> Any:
    """Two matrices by Muon and the rest by AdamW, clipped, on every rank of `mesh`; steps in `bad` have no loss."""
    import torch
    from torch import nn

    from argosy.job.schema import OptimSection
    from argosy.optim.build import build
    from argosy.parallel import apply
    from argosy.parallel.execute import Plain
    from argosy.train.feed import Part
    from argosy.train.state import State
    from argosy.train.trainer import Trainer
    from argosy.train.vote import Agree

    torch.manual_seed(5)
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    applied = apply.shard(module, (), mesh)
    apply.materialise(applied, torch.device("cpu"))
    section = OptimSection(name="muon", lr=0.05, weight_decay=0.1)
    update = build(applied.named().items(), section, "cpu", group=mesh.data)
    state = State(module, update, applied.data, recorder, clip=0.5, world=mesh.layout.world)

    def loss(module: Any, step: int) -> Any:
        draw = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
        return (module(draw) ** 2).sum() * (float("nan") if step in bad else 1.0)

    return Trainer(
        state, lambda step: Part([step], 1, 10, 7), Plain(applied.whole, loss, applied.data),
        Agree(mesh.world, late=late), steps=steps, rank=mesh.rank, callbacks=callbacks, **more,
    )  # fmt: skip


def ends(mesh: Any, folder: Path, late: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """State and facts after seven steps of `small`, one of them left out."""
    from argosy.train.callbacks import Save

    kept = Kept()
    recorder = Recorder(Place(folder), mesh.rank, 1 + late)
    made = small(mesh, recorder, late, Save(kept, interval("never")))
    assert made.run() == "finished"
    recorder.finish()
    tensors, facts = kept.taken[7]
    return {name: getattr(tensor, "to_local", lambda t=tensor: t)() for name, tensor in tensors.items()}, facts


def both(rank: int, ranks: int, board: str, folder: str) -> list[str]:
    """Names of what differs between deciding on the host and where the sums lie, on a rank of a sharded mesh."""
    from argosy.layout.layout import Layout
    from argosy.parallel.mesh import Meeting, joined

    with joined(Layout(dp_shard=ranks), rank, Meeting("late/1", Path(board))) as mesh:
        (one, facts), (other, same) = (ends(mesh, Path(folder), late) for late in (False, True))
    return [name for name in one if not one[name].equal(other[name])] + [str(same)] * (facts != same)


def test_deciding_on_the_device_gives_the_same_bits(tmp_path: Path) -> None:
    from argosy.layout.layout import Layout
    from argosy.parallel.mesh import Mesh

    (one, facts), (other, same) = (ends(Mesh(Layout(), 0), tmp_path, late) for late in (False, True))
    assert facts == same
    assert (facts["skipped"], facts["optim"]["updates"]) == (1, 6)
    for name, tensor in one.items():
        assert tensor.isfinite().all()
        assert tensor.numpy().tobytes() == other[name].numpy().tobytes(), name
    for name in ("loss", "gradient_norm", "lr", "tokens", "counted", "bytes", "skipped"):
        rows = [scalars(tmp_path, name, incarnation) for incarnation in (1, 2)]
        assert rows[0] and str(rows[0]) == str(rows[1]), name


def test_deciding_on_the_device_works_on_shards(pool: Pool, tmp_path: Path) -> None:
    assert pool.call(f"{Path(__file__)}:both", str(tmp_path), ranks=2) == [[], []]


def test_a_late_host_acts_a_step_later(recorder: Recorder, tmp_path: Path) -> None:
    from argosy.layout.layout import Layout
    from argosy.parallel.mesh import Mesh
    from argosy.train.callbacks import Callback, Save

    heard = []

    class Look(Callback):
        def step(self, trainer: Any, vote: Any) -> None:
            heard.append((trainer.state.step, len(scalars(tmp_path, "loss"))))

    kept = Kept()
    asked = iter([frozenset(), frozenset({"save"}), frozenset(), frozenset(), frozenset({"stop"}), frozenset()])
    save = Save(kept, interval("never"))
    made = small(Mesh(Layout(), 0), recorder, True, Look(), save, steps=50, asked=lambda: next(asked))
    assert made.run() == "stopped"
    assert sorted(kept.taken) == [3, 6]  # asked for in steps 2 and 5
    assert heard == [(1, 0), (2, 1), (3, 2), (4, 3), (5, 4), (6, 6)]  # the last step leaves nothing unheard
    assert sorted(scalars(tmp_path, "loss")) == [1, 2, 3, 4, 5, 6]
    made = small(Mesh(Layout(), 0), recorder, True, steps=50, bad=range(5, 50))
    with pytest.raises(Refused, match=r"10 steps in a row, the last one step 14"):
        made.run()
    assert made.state.step == 15


def test_a_late_host_reads_nothing_in_the_step(recorder: Recorder) -> None:
    import torch

    from argosy.layout.layout import Layout
    from argosy.parallel.mesh import Mesh
    from argosy.train.step import step

    made = small(Mesh(Layout(), 0), recorder, True)
    made.state.begin(1, 1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        step(made.state, [1], made.execute, made.agree)
    assert "aten::_fused_adamw_" in {event.name for event in seen.events()}
    reads = []
    for event in seen.events():
        above = event.cpu_parent
        # The CPU's fused update reads the step that it counts; on a GPU the kernel does that where it lies.
        if event.name == "aten::item" and (above is None or above.name != "aten::_fused_adamw_"):
            reads.append(above and above.name)
    assert reads == []


def test_matrix_products_are_timed_beside_the_training(recorder: Recorder, tmp_path: Path) -> None:
    """For a hundredth of the time at most, however long they take."""
    from argosy.train.gauge import APART, Gauge

    # Asked after each step whether it is time, and before and after each measurement.
    now = iter([100.0, 100.125, 130.0, 130.25, 130.25, 131.25, 131.0 + APART, 131.25 + APART, 300.0, 301.0])
    rates = iter([5.0, 7.0, 9.0])
    gauge = Gauge(lambda: next(rates), 2, {"flops_per_token": 9.0}, clock=lambda: next(now))
    assert trainer(recorder, 5, gauge).run() == "finished"
    assert scalars(tmp_path, "gemm_rate") == {1: 10.0, 3: 14.0, 5: 18.0}  # of both ranks
    assert scalars(tmp_path, "flops_per_token") == {0: 9.0}


def test_all_ranks_of_a_cpu_measure_after_the_same_steps(recorder: Recorder, tmp_path: Path) -> None:
    from argosy.train.gauge import Gauge

    said: list[Sequence[float]] = []
    measured: dict[int, list[int]] = {0: [], 1: []}

    def lived(rank: int, told: Callable[[Sequence[float]], Sequence[float]]) -> None:
        """Twelve steps of ten seconds each."""
        gauge = Gauge(lambda: 5.0, 2, {}, seconds=100.0, told=told)
        made = trainer(recorder, 12, gauge)
        made.rank, gauge.clock = rank, lambda: 10.0 * made.state.step

        def measure() -> float:
            measured[rank].append(made.state.step)
            return 5.0

        gauge.measure = measure
        assert made.run() == "finished"

    def first(numbers: Sequence[float]) -> Sequence[float]:
        said.append(numbers)
        return numbers

    lived(0, first)
    assert measured[0] == [1, 11]
    assert scalars(tmp_path, "gemm_rate") == {1: 10.0, 11: 10.0}
    assert [due for due, _ in said] == [1, 0, 0, 0, 0, 0, 1, 0]  # after the steps 1, 2, 3, 7, 9, 10, 11 and 12
    heard = iter(list(said))
    lived(1, lambda numbers: next(heard))
    assert measured[1] == measured[0]
    assert next(heard, None) is None  # it asked as often


def test_one_rank_measures_while_the_others_wait(recorder: Recorder, tmp_path: Path) -> None:
    from argosy.train.gauge import Gauge

    def measure() -> float:
        raise AssertionError("rank 0 alone measures")

    other = trainer(recorder, 2, Gauge(measure, 2, {"flops_per_token": 9.0}))
    other.rank = 1
    assert other.run() == "finished"
    assert scalars(tmp_path, "gemm_rate") == scalars(tmp_path, "flops_per_token") == {}
