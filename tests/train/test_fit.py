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
    options = {"steps": 4, "save_every": "never", **more}
    return fit(nn.Linear(width, 1), data, loss=lambda line, x: line(x).square().mean(), run=tmp_path / "run", **options)


def test_an_iterable_is_begun_again_and_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    import torch

    data = [torch.ones(2, 1), torch.zeros(2, 1), torch.ones(2, 1)]
    done = small(tmp_path, data, batches=2)
    assert (done.step, done.finished) == (4, True)
    assert len(metrics(tmp_path / "run")) == 4
    again = small(tmp_path, data, batches=2)
    assert (again.step, again.finished, again.loss) == (4, True, None)
    longer = small(tmp_path, data, batches=2, steps=6)
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


def test_a_call_that_finds_the_run_busy_changes_nothing_in_it(tmp_path: Path) -> None:
    import torch

    from argosy.run.folder import Run

    small(tmp_path, [torch.ones(2, 1)], steps=1)
    run = Run(tmp_path / "run")
    before = run.info(), run.settings()
    with run.lock(), pytest.raises(Refused):
        small(tmp_path, [torch.ones(2, 1)], steps=9, seed=2)
    assert (run.info(), run.settings()) == before


def test_a_parameter_that_takes_no_part_is_named(tmp_path: Path) -> None:
    import torch
    from torch import nn

    from argosy.train.fit import fit

    module = nn.ModuleDict({"used": nn.Linear(1, 1), "idle": nn.Linear(1, 1)})
    with pytest.raises(Refused, match=r"idle\.weight, idle\.bias"):
        fit(module, [torch.ones(2, 1)], loss=lambda m, x: m["used"](x).mean(), steps=2, run=tmp_path / "run")
