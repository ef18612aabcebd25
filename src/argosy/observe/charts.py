"""Curves and bars as SVG, thinned so that a page stays small, each with a table and a download. Pure: numbers in, text out.

Colours are classes (`s0`, `s1`, ...) that the page paints for light and dark; a downloaded picture carries its own.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal, TypeAlias
from urllib.parse import quote

Point: TypeAlias = tuple[float, float]
Format: TypeAlias = Callable[[float], str]

POINTS = 400  # of a curve at most
LARGE, SMALL = (920, 330), (460, 230)  # width and height of a diagram across the page, and of one beside another
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 14, 14, 44
OUTLIER = 10  # times the median

# Okabe and Ito's colours, told apart with any colour vision; light and dark ground. Marks differ in shape as well.
LIGHT = (
    "#0072b2",
    "#c04a00",
    "#00795b",
    "#b0427f",
    "#7a5f00",
    "#3a6ea5",
    "#8a4500",
    "#50585f",
    "#a8323e",
    "#5b4ea0",
    "#2f7d32",
)
DARK = (
    "#56b4e9",
    "#f0954a",
    "#33c29a",
    "#e08ac0",
    "#e8cf4a",
    "#8fc4f5",
    "#e0a878",
    "#a9b3bd",
    "#f08a92",
    "#b3a7f0",
    "#86d08a",
)


@dataclass(frozen=True)
class Series:
    """Points to draw: as a line, as a faint one behind the first series, as dots, or as marks at the foot, whose y is none."""

    name: str
    points: tuple[Point, ...]
    kind: Literal["line", "faint", "dots", "triangles", "crosses"] = "line"


@dataclass(frozen=True)
class Chart:
    """One diagram. The formats turn an axis' numbers into text.

    robust: what is more than OUTLIER times the median is drawn at the edge, so that one point does not flatten all others.
    """

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    x_format: Format
    y_format: Format
    size: tuple[int, int] = LARGE
    robust: bool = False

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(series.points for series in self.series if series.kind in ("line", "dots"))


def thin(points: Sequence[Point], limit: int = POINTS) -> tuple[Point, ...]:
    """At most `limit` of `points`: the first, the last, and the lowest and highest of each stretch, so that spikes stay."""
    finite = [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]
    if len(finite) <= limit:
        return tuple(finite)
    stretches = max(1, (limit - 2) // 2)
    inner = finite[1:-1]
    found = [finite[0]]
    for index in range(stretches):
        part = inner[index * len(inner) // stretches : (index + 1) * len(inner) // stretches]
        if part:
            low, high = min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])
            found += sorted({low, high})
    return (*found, finite[-1])


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that cover `low` to `high`."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def told(values: Sequence[float], form: Format) -> list[str]:
    """Each of `values` in `form`, or in as many digits as tell them apart."""
    texts = [form(value) for value in values]
    digits = 3
    while len(set(texts)) < len(values) and digits < 12:
        texts, digits = [f"{value:.{digits}g}" for value in values], digits + 1
    return texts


def svg(chart: Chart, *, colours: Sequence[str] = ()) -> str:
    """The diagram as an SVG element. colours: written into it, for a picture that stands alone."""
    x_low, x_high, y_low, y_high = _ranges(chart)
    (wide, high), kind = chart.size, "small" if chart.size == SMALL else "large"

    def at(point: Point) -> Point:
        """Where a point lies on the paper."""
        across = (point[0] - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        up = min(1.0, (point[1] - y_low) / (y_high - y_low)) if y_high > y_low else 0.5
        return _LEFT + across * (wide - _LEFT - _RIGHT), high - _BOTTOM - up * (high - _TOP - _BOTTOM)

    size = f'width="{wide}" height="{high}" ' if colours else ""  # a picture that stands alone has a size of its own
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}viewBox="0 0 {wide} {high}" role="img" class="chart {kind}" '
        f'font-family="system-ui, sans-serif" font-size="12"><title>{escape(chart.title)}</title>'
    ]
    if colours:
        parts.append(_style(colours))
    heights = ticks(y_low, y_high)
    for value, label in zip(heights, told(heights, chart.y_format), strict=True):
        y = at((x_low, value))[1]
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{wide - _RIGHT}"/>')
        parts.append(f'<text class="label" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>')
    for value in ticks(x_low, x_high, wide // 92):
        x = at((value, y_low))[0]
        parts.append(_label(f'x="{x:.1f}" y="{high - _BOTTOM + 16}" text-anchor="middle"', chart.x_format(value)))
    parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{high - _BOTTOM}H{wide - _RIGHT}"/>')
    middle = (_LEFT + wide - _RIGHT) / 2
    parts.append(_label(f'x="{middle:.0f}" y="{high - 8}" text-anchor="middle"', chart.x))
    upright = f'transform="rotate(-90 14 {high / 2 - 10:.0f})" x="14" y="{high / 2 - 10:.0f}"'
    parts.append(_label(f'{upright} text-anchor="middle"', chart.y))
    for index, series in enumerate(chart.series):
        parts.append(_drawn(series, index, at, high - _BOTTOM))
    return "".join(parts) + "</svg>"


def _label(place: str, text: str) -> str:
    return f'<text class="label" {place}>{escape(text)}</text>'


def _ranges(chart: Chart) -> tuple[float, float, float, float]:
    """Lowest and highest x and y that are drawn, y with a little room."""
    shown = [point for series in chart.series if series.kind in ("line", "dots") for point in series.points]
    xs = [point[0] for series in chart.series for point in series.points]
    ys = sorted(point[1] for point in shown)
    usual = OUTLIER * abs(ys[len(ys) // 2]) if chart.robust else math.inf
    low, high = ys[0], max([y for y in ys if y <= usual], default=ys[-1])
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return min(xs), max(xs), max(0.0, low - room) if low >= 0 else low - room, high + room


def _drawn(series: Series, index: int, at: Callable[[Point], Point], foot: float) -> str:
    name = f"s{index % len(LIGHT)}"
    places = [at(point) for point in series.points]
    if series.kind == "line":
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places) if places else ""
        return f'<path class="{name} line" d="{path}"/>'
    if series.kind == "faint":
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places) if places else ""
        return f'<path class="s0 line" opacity="0.3" d="{path}"/>'
    if series.kind == "dots":
        return "".join(f'<circle class="{name} fill" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>' for x, y in places)
    if series.kind == "triangles":
        return "".join(f'<path class="{name} fill" d="M{x:.1f} {foot - 9:.1f}l4.5 9h-9z"/>' for x, _ in places)
    return "".join(f'<path class="{name} line" d="M{x - 4:.1f} {foot - 18:.1f}l8 8m0 -8l-8 8"/>' for x, _ in places)


def _style(colours: Sequence[str]) -> str:
    rules = ["svg{background:#fff}.grid{stroke:#dde1e5}.axis{stroke:#57606a;fill:none}.label{fill:#3b434a}"]
    rules += [
        f".s{index}.line{{stroke:{colour};fill:none;stroke-width:1.8}}.s{index}.fill{{fill:{colour}}}"
        for index, colour in enumerate(colours)
    ]
    return f"<style>{''.join(rules)}</style>"


SIGNS = {
    "line": "—",
    "faint": "┄",
    "dots": "●",
    "triangles": "▲",
    "crosses": "✕",
}  # what a legend has for each kind of series


def legend(chart: Chart) -> str:
    """What is drawn how, as HTML."""
    items = [
        f"<li>{_sign(0 if series.kind == 'faint' else index, SIGNS[series.kind])} {escape(series.name)}</li>"
        for index, series in enumerate(chart.series)
        if series.points
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'


def _sign(index: int, sign: str) -> str:
    return f'<span class="s{index % len(LIGHT)} sign" aria-hidden="true">{sign}</span>'


def csv(chart: Chart) -> str:
    """What is drawn, as text: series, x, y."""
    rows = [f'series,"{_quoted(chart.x)}","{_quoted(chart.y)}"']
    for series in chart.series:
        rows += [f'"{_quoted(series.name)}",{x:.10g},{y:.10g}' for x, y in series.points]
    return "\n".join(rows) + "\n"


def table(chart: Chart, rows: int = 40) -> str:
    """What is drawn, as an HTML table of at most about `rows` rows a series."""
    found = []
    for series in chart.series:
        kept = series.points if len(series.points) <= rows else thin(series.points, rows)
        for x, y in kept:
            value = chart.y_format(y) if series.kind not in ("triangles", "crosses") else ""
            found.append(
                f"<tr><td>{escape(series.name)}</td><td>{escape(chart.x_format(x))}</td><td>{escape(value)}</td></tr>"
            )
    head = f"<tr><th scope=col>what</th><th scope=col>{escape(chart.x)}</th><th scope=col>{escape(chart.y)}</th></tr>"
    caption = f"<caption>{escape(chart.title)}</caption>"
    return f'<div class="wide"><table>{caption}<thead>{head}</thead><tbody>{"".join(found)}</tbody></table></div>'


def figure(chart: Chart, name: str) -> str:
    """Diagram, legend, table and downloads together; `name` becomes the name of the downloaded files."""
    picture = "data:image/svg+xml;base64," + base64.b64encode(svg(chart, colours=LIGHT).encode()).decode()
    numbers = "data:text/csv;charset=utf-8," + quote(csv(chart), safe=",\"' .-+:")
    numbers = numbers.replace('"', "%22")
    links = (
        f'<a download="{escape(name)}.svg" href="{picture}" aria-label="{escape(chart.title)} as SVG">SVG</a> '
        f'<a download="{escape(name)}.csv" href="{escape(numbers)}" aria-label="{escape(chart.title)} as CSV">CSV</a>'
    )
    return (
        f"<figure><div class=wide>{svg(chart)}</div><figcaption>{legend(chart)}<span class=links>{links}</span></figcaption>"
        f"<details><summary>As a table</summary>{table(chart)}</details></figure>"
    )


def bar(shares: Sequence[tuple[str, float]], title: str) -> str:
    """Shares of a whole as one bar, with a legend; shares add up to 1."""
    at, parts, items = 0.0, [], []
    for index, (name, share) in enumerate(shares):
        colour = f"s{index % len(LIGHT)}"
        parts.append(f'<rect class="{colour} fill" x="{at * 1000:.2f}" y="0" width="{share * 1000:.2f}" height="40"/>')
        text = f"{share:.1%}" if share < 0.1 else f"{share:.0%}"
        items.append(f"<li>{_sign(index, '■')} {escape(name)} {text}</li>")
        at += share
    picture = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1000 40" role="img" class="bar" preserveAspectRatio="none">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
    return f'<figure>{picture}<figcaption><ul class="legend">{"".join(items)}</ul></figcaption></figure>'


def _quoted(text: str) -> str:
    return text.replace('"', '""')
