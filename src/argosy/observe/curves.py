"""The curves of a run: which rows go into which diagram, against what. Pure: rows in, charts out."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from argosy.observe.charts import SMALL, Chart, Point, Series, thin
from argosy.observe.summary import Summary
from argosy.observe.text import clock
from argosy.quantities import count_text

Row = Mapping[str, Any]
SHOWN = 6  # layers with a line of their own in a small diagram
MOST_LAYERS = 10_001  # that a job may have, and the rest of the model
ENDS = ("gradient_norm", "update_ratio")  # figures that the rest has too
IN_PASSING = (
    "Taken while the step was computed, as often as observe.numerics_every says. The scores are those of up to 64 query rows "
    "drawn from the step, exact, with every key that they see; the largest of the whole step may be larger."
)


def learning(summary: Summary) -> list[tuple[str, Chart]]:
    """(label, chart) of the loss against tokens, time and FLOPs; those that are known."""
    rows = summary.metrics
    if not rows:
        return []
    key = "bits_per_byte" if any(row.get("bits_per_byte") is not None for row in rows) else "loss"
    unit = "bits per byte" if key == "bits_per_byte" else "loss" if summary.own else "loss, nats per token"
    axes: list[tuple[str, str, list[float], Callable[[float], str]]] = []
    if summary.own:
        axes.append(("steps", "step", [float(row["step"]) for row in rows], count_text))
    elif all(row.get("tokens") is not None for row in rows):
        tokens = [float(row["tokens"]) for row in rows]
        axes.append(("tokens", "tokens trained on", tokens, count_text))
    axes.append(("time", "time at work (h:mm:ss)", elapsed(rows), clock))
    if axes[0][0] == "tokens" and summary.flops_per_token:
        work = [value * summary.flops_per_token for value in axes[0][2]]
        axes.append(("FLOPs", "FLOPs", work, lambda value: f"{value:.3g}"))
    steps = [int(row["step"]) for row in rows]
    found = []
    for label, title, across, form in axes:

        def place(step: int, across: Sequence[float] = across) -> float:
            """How far along the axis `step` lies."""
            at = bisect_right(steps, step) - 1
            return across[at] if at >= 0 else 0.0

        raw = [(x, float(row[key])) for x, row in zip(across, rows, strict=True) if row.get(key) is not None]
        mean, window = smooth(raw)
        series = (
            Series(f"training, mean of {window} steps" if window > 1 else "training", thin(mean)),
            Series("held out", _held_out(summary.evaluations, place, key), "dots"),
            Series("saved", tuple((place(step), 0.0) for step in _steps(summary.saves)), "triangles"),
            Series("fault", tuple((place(step), 0.0) for step in _steps(summary.faults)), "crosses"),
            Series("each step", thin(raw) if window > 1 else (), "faint"),
            *(Series(name, _held_out(held, place, key), "dots") for name, held in summary.sets.items()),
        )
        chart = Chart(f"{unit} against {label}", title, unit, series, form, lambda value: f"{value:.3g}")
        if not chart.empty:
            found.append((label, chart))
    return found


def steps(summary: Summary) -> list[tuple[str, Chart]]:
    """(name, chart) of speed, learning rate and gradient norm by step."""
    across = [float(row["step"]) for row in summary.metrics]
    found = []
    for key, title, unit, form in (
        ("tokens_per_second", "Speed", "tokens/s", count_text),
        ("lr", "Learning rate", "learning rate", lambda value: f"{value:.2g}"),
        ("gradient_norm", "Gradient norm", "norm of the gradient", lambda value: f"{value:.3g}"),
        ("seconds", "Time of a step", "seconds", lambda value: f"{value:.3g}"),
    ):
        series = (Series(title.lower(), _points(summary.metrics, across, key)),)
        chart = Chart(f"{title} by step", "step", unit, series, count_text, form, SMALL, key == "seconds")
        if not chart.empty:
            found.append((key, chart))
    return found


def layers(summary: Summary) -> list[tuple[str, Chart]]:
    """(name, chart) of the figures that were taken of every layer; of many layers SHOWN, evenly chosen."""
    found = []
    for key, title, unit in (
        ("gradient_norm", "Gradient norm of each layer", "norm"),
        ("update_ratio", "Update over weights of each layer", "ratio"),
        ("activation_rms", "Activations of each layer", "root mean square"),
        ("attention_logit", "Largest attention score of each layer", "score"),
    ):
        lines = _by_layer(summary.metrics, key)
        count = max(0, len(lines) - (key in ENDS))  # the last one of these is no block
        chosen = sorted({index * (count - 1) // max(1, min(count, SHOWN) - 1) for index in range(min(count, SHOWN))})
        named = [(f"layer {index}", lines[index]) for index in chosen]
        named += [("embedding and head", lines[count])] if len(lines) > count else []
        series = tuple(Series(name, thin(points, 100)) for name, points in named)
        chart = Chart(title, "step", unit, series, count_text, lambda value: f"{value:.3g}", SMALL)
        if not chart.empty:
            found.append((key, chart))
    return found


def _by_layer(rows: Sequence[Row], key: str) -> list[list[Point]]:
    """The points of each layer's line; what is no number is left out: others' folders are read too."""
    lines: list[list[Point]] = []
    for row in rows:
        told = row.get("layers")
        values = told.get(key) if isinstance(told, Mapping) else None
        for layer, value in enumerate(values if isinstance(values, list) else ()):
            if layer == len(lines) < MOST_LAYERS:
                lines.append([])
            if layer < len(lines) and isinstance(value, int | float) and math.isfinite(value):
                lines[layer].append((float(row["step"]), float(value)))
    return lines


def smooth(points: Sequence[Point]) -> tuple[list[Point], int]:
    """Each point with the mean of its neighbours, and of how many: a fiftieth of the curve. A short one stays as it is."""
    finite = [point for point in points if math.isfinite(point[1])]
    half = len(finite) // 100
    sums = [0.0, *accumulate(y for _, y in finite)]
    found = []
    for index, (x, _) in enumerate(finite):
        reach = min(half, index, len(finite) - 1 - index)  # as much on either side: the ends stay in their place
        found.append((x, (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)))
    return found, 2 * half + 1


def elapsed(rows: Sequence[Row]) -> list[float]:
    """Seconds at work at each row: the clock's within an incarnation, a step's own where the run was away."""
    found: list[float] = []
    total = 0.0
    before: Row | None = None
    for row in rows:
        own = float(row.get("seconds") or 0.0)
        passed = (
            float(row["time"]) - float(before["time"])
            if before is not None and row.get("time") and before.get("time")
            else own
        )
        same = before is not None and before.get("incarnation") == row.get("incarnation")
        total += max(passed, 0.0) if same else own
        found.append(total)
        before = row
    return found


def _points(rows: Sequence[Row], across: Sequence[float], key: str) -> tuple[Point, ...]:
    return thin([(x, float(row[key])) for x, row in zip(across, rows, strict=True) if row.get(key) is not None])


def _held_out(rows: Sequence[Row], place: Callable[[int], float], key: str) -> tuple[Point, ...]:
    return thin([(place(int(row["step"])), float(row[key])) for row in rows if row.get(key) is not None], 200)


def _steps(rows: Sequence[Row], limit: int = 100) -> list[int]:
    """The steps of some rows, at most `limit` of them, evenly chosen."""
    known = sorted({int(row["step"]) for row in rows if isinstance(row.get("step"), int)})
    return known if len(known) <= limit else [known[index * (len(known) - 1) // (limit - 1)] for index in range(limit)]
