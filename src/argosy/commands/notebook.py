"""A run as a notebook sees it: figures as Arrow tables and pictures. No command of its own, no torch, nothing to install."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from argosy.errors import Refused
from argosy.run import folder
from argosy.run.lines import rows, table

if TYPE_CHECKING:
    from argosy.observe.charts import Chart

LOSS = "loss"  # the name of the learning curve among the diagrams


class Figure:
    """A diagram: a cell that ends with one shows it. `save` writes it as .svg, its numbers as .csv."""

    def __init__(self, chart: Chart):
        self.chart = chart

    def __repr__(self) -> str:
        return f"Figure({self.chart.title!r}); .save('curve.svg') writes it"

    @property
    def svg(self) -> str:
        """The picture as SVG, colours and all."""
        from argosy.observe.charts import LIGHT, svg

        return svg(self.chart, colours=LIGHT)

    def save(self, path: str | Path) -> Path:
        """Write it to `path`; the name's end says how: .svg or .csv. Refused for another one."""
        from argosy.observe.charts import csv

        path = Path(path)
        if path.suffix not in (".svg", ".csv"):
            raise Refused("a figure is saved as .svg or .csv.", where=str(path))
        path.write_text(self.svg if path.suffix == ".svg" else csv(self.chart), encoding="utf-8")
        return path

    def _repr_svg_(self) -> str:
        return self.svg

    def _repr_html_(self) -> str:
        """The picture as an image, so that its colours stay its own, and under it what is drawn how."""
        from argosy.observe.charts import LIGHT, SIGNS

        data = base64.b64encode(self.svg.encode()).decode()
        shown = [(index, one) for index, one in enumerate(self.chart.series) if one.points]
        items = [
            f'<span style="color:{LIGHT[0 if one.kind == "faint" else index % len(LIGHT)]}">{SIGNS[one.kind]}</span> '
            f"{escape(one.name)}"
            for index, one in shown
        ]
        image = f'<img alt="{escape(self.chart.title)}" src="data:image/svg+xml;base64,{data}"/>'
        return f"<figure>{image}<div>{' &nbsp; '.join(items)}</div></figure>"


class Run(folder.Run):
    """A run folder with what a notebook wants of it: `metrics()`, `evaluations()`, `samples()`, `plot()`."""

    def evaluations(self) -> Any:
        """The table of evaluations.jsonl as a pyarrow.Table, one row an evaluation; named sets are in its column `sets`."""
        return table(rows(self.path / "evaluations.jsonl"))

    def samples(self) -> Any:
        """The table of samples.jsonl as a pyarrow.Table, one row for each step and prompt."""
        return table(rows(self.path / "samples.jsonl"))

    def plot(self, what: str = LOSS, against: str = "") -> Figure:
        """A diagram of the run so far.

        what: "loss", or a figure of every step: "tokens_per_second", "lr", "gradient_norm", "seconds". against: what the loss
        is drawn over: "tokens", "time", "FLOPs", "steps"; left out, the first that there is. Refused where that is not known.
        """
        from argosy.observe import curves
        from argosy.observe.summary import Summary

        summary = Summary(self)
        learning, others = dict(curves.learning(summary)), dict(curves.steps(summary))
        there = [*([LOSS] if learning else []), *others]
        if what == LOSS and learning and (not against or against in learning):
            return Figure(learning[against or next(iter(learning))])
        if what in others and against in ("", "steps"):
            return Figure(others[what])
        if not there:
            raise Refused("there is no step to draw yet.", where=str(self.path))
        if what == LOSS:
            raise Refused(f"the loss is not drawn against {against}.", do=f"There are: {', '.join(learning)}.")
        raise Refused(f"{what} is no figure of this run.", do=f"There are: {', '.join(there)}.")

    def _repr_html_(self) -> str:
        """Where it lies and how far it is."""
        if not self.exists:
            return f"<code>{escape(repr(self))}</code>"
        info = self.info()
        words = f"{info.get('state')}, step {info.get('step', 0):,} of {info.get('steps') or 0:,}"
        return f"<b>{escape(str(self.path))}</b>: {escape(words)}"
