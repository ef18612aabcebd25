"""A run in a notebook: trained in the calling process, also inside a running event loop; its figures as Arrow, its pictures."""

from __future__ import annotations

import asyncio
import json
import sys
import xml.etree.ElementTree as tree
from pathlib import Path
from typing import Any

import pytest

from argosy.commands.notebook import Run
from argosy.errors import Refused

STEPS = {"step": 1, "tokens": 128, "loss": 5.5, "bits_per_byte": 7.9, "lr": 0.1, "gradient_norm": 1.0, "seconds": 0.5}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A folder as a run leaves it, with three steps and two evaluations."""
    (tmp_path / "run.json").write_text(json.dumps({"version": 1, "state": "finished", "step": 3, "steps": 3}))
    lines = [
        {**STEPS, "step": step, "tokens": 128 * step, "loss": 6.0 / step, "time": 1e9 + step} for step in (1, 2, 3)
    ]
    lines[2]["layers"] = {"gradient_norm": [1.0, 2.0]}  # what only some rows have
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [{"step": step, "loss": 6.0 / step, "bits_per_byte": 2.0, "time": 1e9} for step in (2, 3)]
    rows[1]["sets"] = {"code": {"loss": 1.0}}
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Run(tmp_path)


def test_metrics_are_a_table_with_every_column(run: Run, tmp_path: Path) -> None:
    table = run.metrics()
    assert table.num_rows == 3 and table["loss"].to_pylist() == [6.0, 3.0, 2.0]
    assert table["layers"].to_pylist() == [None, None, {"gradient_norm": [1.0, 2.0]}]
    assert run.evaluations()["sets"].to_pylist() == [None, {"code": {"loss": 1.0}}]
    assert run.samples().num_rows == 0
    assert Run(tmp_path / "none").metrics().num_rows == 0


def test_a_plot_is_a_picture_that_stands_alone(run: Run, tmp_path: Path) -> None:
    figure = run.plot()
    picture = tree.fromstring(figure._repr_svg_())
    assert picture.tag.endswith("svg") and picture.get("width")
    shown = figure._repr_html_()
    assert shown.startswith("<figure><img") and "held out" in shown and "<script" not in shown
    assert "Figure('bits per byte" in repr(figure)
    assert figure.save(tmp_path / "curve.svg").read_text() == figure.svg
    assert figure.save(str(tmp_path / "curve.csv")).read_text().startswith("series,")
    assert "learning rate" in run.plot("lr").svg.lower()
    assert "time at work" in run.plot(against="time").svg
    for words, why in (
        (("nothing",), "nothing is no figure of this run. There are: loss"),
        (("loss", "moon"), "not drawn against moon. There are: tokens, time"),
    ):
        with pytest.raises(Refused, match=why):
            run.plot(*words)
    with pytest.raises(Refused, match=r"as \.svg or \.csv"):
        figure.save(tmp_path / "curve.png")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(Refused, match="no step to draw yet"):
        run.plot()


def test_a_cell_shows_where_the_run_is(run: Run, tmp_path: Path) -> None:
    assert "finished, step 3 of 3" in run._repr_html_()
    assert Run(tmp_path / "<b>")._repr_html_() == f"<code>Run(&#x27;{tmp_path}/&lt;b&gt;&#x27;)</code>"


class Cell:
    """What stands in for a stream in some notebooks: it can be written to, and no more."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


def test_a_run_trains_in_the_calling_process_inside_an_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import argosy

    (tmp_path / "text").mkdir()
    for number in range(30):
        (tmp_path / "text" / f"{number}.txt").write_text(f"{number} ships sail past island {number * 7}. " * 20)
    (tmp_path / "other.txt").write_text("quite another text, of which nobody has ever read a line. " * 40)
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path / "cache"))
    job: dict[str, Any] = {
        "model": {"width": 32, "layers": 1, "block": {"heads": 2}},
        "data": {"source": str(tmp_path / "text"), "held_out": 0.2},
        "batch": {"sequence": 32, "tokens": 128},
        "train": {"steps": 30, "precision": "float32", "compile": False},
        "optim": {"name": "adamw", "lr": 50.0, "schedule": "constant", "clip": "none"},
        "observe": {"sample_every": "never"},
        "evaluate": {
            "every": 1,
            "tokens": 64,
            "patience": 1,
            "sets": [{"name": "other", "source": str(tmp_path / "other.txt")}],
        },
    }
    cell, ticks = Cell(), []

    async def cells() -> Any:
        async def beside() -> None:
            while True:
                ticks.append(1)
                await asyncio.sleep(0.01)

        task = asyncio.ensure_future(beside())
        await asyncio.sleep(0)
        made = argosy.train(job, workers=0, run=tmp_path / "run")  # a notebook's cell: called while the loop runs
        await asyncio.sleep(0.02)
        task.cancel()
        return made

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", cell)
        run = asyncio.run(cells())
    assert isinstance(run, argosy.Run) and ticks
    info = run.info()
    assert info["state"] == "finished" and info["step"] < 30
    assert "no better on held-out than the one at step" in info["early"]
    assert f"note: {info['early']}" in cell.text, "when it is decided"
    assert "  Early " in cell.text, "and at the end"
    assert ", other " in cell.text and "best so far by held-out" in cell.text
    assert run.metrics().num_rows == info["step"]
    assert set(run.evaluations()["sets"].to_pylist()[0]) == {"other"}
    assert run.plot()._repr_svg_()
    # The same command again: finished. Another patience is another length: it goes on.
    again = argosy.train(job, workers=0, run=tmp_path / "run", quiet=True)
    assert again.info()["step"] == info["step"]
    job["evaluate"]["patience"] = 3
    assert argosy.train(job, workers=0, run=tmp_path / "run", quiet=True).info()["step"] > info["step"]
