"""The page of a run: `report.html`, one file that needs neither network nor scripts, made from the run folder alone.

The one script that it holds adds downloads as PNG; the page's policy admits that script by its hash, and no other.
Order of the page = order of the questions one has. Everything that comes from the folder is escaped; long parts are cut and
say so, so that the page stays under a megabyte whatever the run's length.
"""

from __future__ import annotations

import base64
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from string import Template

from argosy.observe import charts, sections
from argosy.observe.summary import Summary
from argosy.run.folder import Run, write_whole


def write(run: Run) -> Path:
    """Write `report.html` into the run folder; gives its path. Refused where there is no run."""
    path = run.path / "report.html"
    write_whole(path, page(run))
    return path


def page(run: Run) -> str:
    """The whole page as text."""
    summary = Summary(run)
    template = Template(_part("report.html"))
    script = _part("report.js")
    return template.substitute(
        title=sections.text(f"{summary.name}: {sections.sentence(summary)}"),
        version=sections.text(summary.info.get("argosy", "?")),
        light=_colours(charts.LIGHT),
        dark=_colours(charts.DARK),
        rules=_rules(),
        script=script,
        permit="sha256-" + base64.b64encode(sha256(script.encode()).digest()).decode(),
        body="\n".join(part for section in sections.ORDER if (part := section(summary))),
    )


def _part(name: str) -> str:
    return files("argosy.observe").joinpath(name).read_text(encoding="utf-8")


def _colours(colours: tuple[str, ...]) -> str:
    return "".join(f"  --s{index}: {colour};\n" for index, colour in enumerate(colours))


def _rules() -> str:
    """The rules that paint series and that show the chosen pane."""
    paint = [
        f".s{index}.line {{ stroke: var(--s{index}); }} .s{index}.fill {{ fill: var(--s{index}); }} "
        f".s{index}.sign {{ color: var(--s{index}); }}"
        for index in range(len(charts.LIGHT))
    ]
    show = [f".choice-{index}:checked ~ .pane-{index} {{ display: block; }}" for index in range(sections.PANES)]
    return "\n".join(paint + show)
