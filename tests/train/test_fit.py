"""`argosy.fit`: any module; the example with two inputs is killed and goes on bit for bit."""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

import argosy
from argosy.errors import MACHINE, Refused
from argosy.prove.pool import Failed, Pool

HERE = Path(__file__)
EXAMPLE = HERE.parents[2] / "examples" / "two_inputs.py"


def example(rank: int, ranks: int, board: str, asked: dict[str, str]) -> str:
    """Run the example as a program would; `point` says where it is killed."""
    from argosy import points

    points._passed.clear()
    os.environ.pop("ARGOSY_POINT", None)
    if asked.get("point"):
        os.environ["ARGOSY_POINT"] = asked["point"]
    sys.argv = [str(EXAMPLE), asked["run"]]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    return printed.getvalue()


def metrics(run: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


def test_the_example_is_killed_and_goes_on_bit_for_bit(pool: Pool, tmp_path: Path) -> None:
    entry = f"{HERE}:example"
    [whole] = pool.call(entry, {"run": str(tmp_path / "whole")}, ranks=1)
    assert whole.startswith("step 300: loss ")
    for point in ("record.step.after:137:kill", "step.update.after:30:kill", "save.copy.after:1:kill"):
        with pytest.raises(Failed, match="rank 0 died"):
            pool.call(entry, {"run": str(tmp_path / "killed"), "point": point}, ranks=1)
    [again] = pool.call(entry, {"run": str(tmp_path / "killed")}, ranks=1)
    assert again == whole
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert [step for step, _ in metrics(tmp_path / "whole")] == list(range(1, 301))


def test_the_example_imports_nothing_of_ours_but_argosy() -> None:
    imports = [line for line in EXAMPLE.read_text().splitlines() if line.startswith(("import ", "from "))]
    assert [line for line in imports if "argosy" in line] == ["import argosy"]


def small(tmp_path: Path, data: Any, *, width: int = 1, **more: Any) -> Any:
    """Fit a line."""
    import torch
    from torch import nn

    from argosy.train.fit import fit

    torch.manual_seed(1)
    options = {"steps": 4, "save_every": "never", "run": tmp_path / "run", **more}
    return fit(nn.Linear(width, 1), data, loss=lambda line, x: line(x).square().mean(), **options)


def test_an_iterable_is_begun_again_and_a_finished_run_is_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    data = [torch.ones(2, 1), torch.zeros(2, 1), torch.ones(2, 1)]
    done = small(tmp_path, data, batches=2)
    assert (done.step, done.finished) == (4, True)
    assert len(metrics(tmp_path / "run")) == 4
    again = small(tmp_path, data, batches=2)
    assert (again.step, again.finished, again.loss) == (4, True, pytest.approx(done.loss))
    with pytest.raises(Refused, match="this run has taken 4 steps, and this call asks for 3"):
        small(tmp_path, data, batches=2, steps=3)
    capsys.readouterr()
    longer = small(tmp_path, data, batches=2, steps=6)
    assert capsys.readouterr().err == f"{tmp_path / 'run'}: going on from step 4 of 6\n"
    with pytest.raises(Refused, match="this run holds a module of your own"):
        argosy.sample(tmp_path / "run", "x")
    assert longer.step == 6
    assert [step for step, _ in metrics(tmp_path / "run")] == list(range(1, 7))


def test_data_that_end_are_told(tmp_path: Path) -> None:
    import torch

    with pytest.raises(Refused, match="the data ended in round 1") as refused:
        small(tmp_path, iter([torch.ones(2, 1)]))
    assert refused.value.code == 3


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(tmp_path: Path) -> None:
    import torch

    assert small(tmp_path, [torch.ones(4, 1)], steps=3).finished
    for file in (tmp_path / "run/checkpoints").glob("*/*.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(Refused, match="the only checkpoint of this run is damaged") as caught:
        small(tmp_path, [torch.ones(4, 1)], steps=5)
    assert caught.value.code == MACHINE


def test_another_module_is_refused(tmp_path: Path) -> None:
    import torch

    small(tmp_path, [torch.ones(2, 1)], steps=1)
    with pytest.raises(Refused, match="another module or optimizer"):
        small(tmp_path, [torch.ones(2, 3)], width=3)


@pytest.mark.parametrize(("option", "told"), [("seed", "seed = 1"), ("batches", "batches = 1")])
def test_other_draws_are_refused_with_both_values(tmp_path: Path, option: str, told: str) -> None:
    import torch

    run = small(tmp_path, [torch.ones(2, 1)], steps=1).run
    before = run.settings()
    with pytest.raises(Refused, match=f"begun with {told}, this call says {option} = 7"):
        small(tmp_path, [torch.ones(2, 1)], steps=9, **{option: 7})
    assert run.settings() == before


def test_another_rate_or_clip_stands_in_the_ledger(tmp_path: Path) -> None:
    import torch

    for steps, more in ((2, {}), (3, {}), (5, {"lr": 0.5}), (6, {"lr": 0.5, "clip": None})):
        run = small(tmp_path, [torch.ones(2, 1)], steps=steps, **more).run
    told = [(row.from_step, row.key, row.old, row.new) for row in run.ledger().entries if row.key.startswith("optim.")]
    first = [(0, "optim.lr", None, 1e-3), (0, "optim.clip", None, 1.0)]
    assert told == [*first, (4, "optim.lr", 1e-3, 0.5), (6, "optim.clip", 1.0, None)]


def test_a_folder_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    import torch

    (tmp_path / "run").mkdir()
    (tmp_path / "run/job.toml").write_text("mine")
    with pytest.raises(Refused, match=r"holds something that is no run\. Found: job\.toml"):
        small(tmp_path, [torch.ones(2, 1)])
    assert [(file.name, file.read_text()) for file in (tmp_path / "run").iterdir()] == [("job.toml", "mine")]
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="this is a file"):
        small(tmp_path, [torch.ones(2, 1)], run=tmp_path / "file")


def test_numbers_of_starts_go_on_where_the_local_folder_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what the later start saves would count as older than what the first one did."""
    import shutil

    import torch

    monkeypatch.setenv("ARGOSY_LOCAL", str(tmp_path / "local"))
    for number, steps in ((1, 2), (2, 4), (3, 6)):
        done = small(tmp_path, [torch.ones(2, 1)], steps=steps)
        assert (done.step, done.finished, done.run.info()["incarnation"]) == (steps, True, number)
        if number == 2:  # a run of before this was kept in run.json
            done.run.update_info(incarnation=0)
        shutil.rmtree(tmp_path / "local")
    assert [step for step, _ in metrics(tmp_path / "run")] == list(range(1, 7))


def test_a_call_that_finds_the_run_busy_changes_nothing_in_it(tmp_path: Path) -> None:
    import torch

    from argosy.run.folder import Run

    small(tmp_path, [torch.ones(2, 1)], steps=1)
    run = Run(tmp_path / "run")
    before = run.info(), run.settings()
    with run.lock(), pytest.raises(Refused, match="in use"):
        small(tmp_path, [torch.ones(2, 1)], steps=9)
    assert (run.info(), run.settings()) == before


def test_a_parameter_that_takes_no_part_is_named(tmp_path: Path) -> None:
    import torch
    from torch import nn

    from argosy.train.fit import fit

    module = nn.ModuleDict({"used": nn.Linear(1, 1), "idle": nn.Linear(1, 1)})
    with pytest.raises(Refused, match=r"idle\.weight, idle\.bias"):
        fit(module, [torch.ones(2, 1)], loss=lambda m, x: m["used"](x).mean(), steps=2, run=tmp_path / "run")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_it_with_a_checkpoint_and_the_same_call_goes_on(tmp_path: Path, name: str) -> None:
    import signal

    import torch

    from argosy.run.folder import Run
    from argosy.train.callbacks import Callback

    class Ask(Callback):
        def step(self, trainer: Any, vote: Any) -> None:
            if trainer.state.step == 3:
                os.kill(os.getpid(), getattr(signal, name))

    before = signal.getsignal(signal.SIGTERM)
    data = [torch.ones(2, 1), torch.full((2, 1), 2.0), torch.zeros(2, 1)]
    stopped = small(tmp_path, data, steps=9, callbacks=[Ask()])
    assert (stopped.step, stopped.finished, stopped.run.newest_step()) == (4, False, 4)
    assert signal.getsignal(signal.SIGTERM) == before
    ends = [row for row in journal(stopped.run) if row["what"] in ("asked", "ended")]
    assert [(row["what"], row.get("reason") or row.get("because")) for row in ends] == [
        ("asked", name),
        ("ended", name),
    ]
    assert small(tmp_path, data, steps=9).finished
    small(tmp_path / "whole", data, steps=9)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole" / "run")
    assert Run(tmp_path / "run").info()["state"] == "finished"


@pytest.mark.parametrize(
    ("names", "at_once", "leaves"),
    [
        (["SIGINT", "SIGINT"], 600.0, False),  # one press, heard from the terminal and from who started us
        (["SIGINT", "SIGINT"], 1e-6, True),
        (["SIGTERM", "SIGINT", "SIGINT"], 1e-6, True),
    ],
)
def test_a_second_ctrl_c_leaves_at_once_whatever_came_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], at_once: float, leaves: bool
) -> None:
    import signal
    import time

    import torch

    from argosy.run import signals
    from argosy.train.callbacks import Callback

    class Press(Callback):
        def step(self, trainer: Any, vote: Any) -> None:
            if trainer.state.step == 3:
                for name in names:
                    signal.raise_signal(getattr(signal, name))
                    time.sleep(0.001)

    monkeypatch.setattr(signals, "AT_ONCE", at_once)
    before = signal.getsignal(signal.SIGINT)
    try:
        left = small(tmp_path, [torch.ones(2, 1)], steps=9, callbacks=[Press()]).run.newest_step() != 4
    except KeyboardInterrupt:  # caught here: it would end all tests
        left = True
    assert left == leaves
    assert signal.getsignal(signal.SIGINT) == before


def journal(run: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "journal.jsonl").read_text().splitlines()]


def test_save_and_stop_are_answered_with_the_step(tmp_path: Path) -> None:
    """As `argosy save` and `argosy stop` ask: from elsewhere, while steps go on until the answer is there."""
    import threading

    import torch

    from argosy.commands.save import ask_and_wait
    from argosy.run.folder import Run
    from argosy.train.callbacks import Callback

    run, answers = Run(tmp_path / "run"), {}
    begun = threading.Event()

    class Begun(Callback):
        def step(self, trainer: Any, vote: Any) -> None:
            begun.set()

    def ask() -> None:
        begun.wait()
        for wish in ("save", "save", "stop"):
            answers[len(answers)] = ask_and_wait(run, wish, 300.0)  # type: ignore[arg-type]

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        done = small(tmp_path, [torch.ones(2, 1)], steps=10**9, callbacks=[Begun()], keep=9)
    finally:
        begun.set()
        asker.join(300.0)
    assert not done.finished
    assert 0 < answers[0] < answers[1] <= answers[2] == done.step
    saved = {int(path.parent.name.removeprefix("step-")) for path in run.checkpoints.glob("*/manifest.json")}
    assert saved == set(answers.values())


def test_it_is_one_process_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    ranks = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Refused, match=r"one process.*rank 1 of 2, started by torchrun"):
        small(tmp_path, [torch.ones(2, 1)])
    assert not (tmp_path / "run").exists()
