"""`argosy layout show`: the grid of ranks, the groups of a rank, and which links each uses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from argosy.errors import Refused

if TYPE_CHECKING:
    from argosy.cluster.links import Link
    from argosy.cluster.schema import Cluster
    from argosy.layout.layout import Layout

HELP = "Plan"
MOST = 1_000_000  # ranks: a drawing lists the members of each group
_WORDS = {"allow_extra_args": True, "ignore_unknown_options": True}


def show(
    words: Sequence[str],
    *,
    rank: int = 0,
    workers: int | None = None,
    cluster: str | None = None,
    as_json: bool = False,
) -> str:
    """The drawing of a shape ("tp2 pp2 dp2") or of a job's layout, and the groups of `rank`. Refused where it is not legal."""
    from argosy.cluster.schema import load
    from argosy.layout.draw import facts

    layout, stages = _asked(words, workers)
    if layout.world > MOST:
        raise Refused(
            f"{layout.text()} has {layout.world:,} ranks, more than the {MOST:,} that are drawn.", do="Use fewer."
        )
    if not 0 <= rank < layout.world:
        raise Refused(f"--rank {rank}: {layout.text()} has {layout.world} ranks.", do=f"Use 0 to {layout.world - 1}.")
    there = None if cluster is None else load(cluster)
    if as_json:
        rows = [{**row, "link": vars(row["link"])} for row in _groups(layout, rank, there)]
        return json.dumps({**facts(layout, rank), "groups": rows, "layers": stages})
    return "\n".join([*_text(layout, rank, there, stages), *_later(layout)])


def _asked(words: Sequence[str], workers: int | None) -> tuple[Layout, list[str]]:
    """The layout that is asked for, and what each pp coordinate holds where a job tells."""
    from argosy.layout.layout import Layout

    text = " ".join(words)
    shape = " ".join(word for word in words if "=" not in word)
    if shape != text and _is_shape(shape):
        told = " ".join(word for word in words if "=" in word)
        raise Refused(
            f"{shape} is a shape, and {told} belongs to a job.",
            do=f'Name the job: argosy layout show laptop layout.shape="{shape}" {told}',
        )
    if words and not any(Path(word).is_file() or "=" in word for word in words):
        try:
            return Layout.parse(text, workers), []
        except Refused:
            # One word that names a shipped job is a job; several can only be a shape, and a bad one.
            if " " in text or workers is not None:
                raise
    return _of_job(words, workers)


def _is_shape(text: str) -> bool:
    """Whether `text` is a shape, and no file."""
    from argosy.layout.layout import Layout

    with suppress(Refused):
        return bool(text) and not Path(text).exists() and bool(Layout.degrees_named(text))
    return False


def _of_job(words: Sequence[str], workers: int | None) -> tuple[Layout, list[str]]:
    """As `_asked`, of a job. A shape that the job names is drawn whatever this machine has: drawing is arithmetic."""
    from argosy.commands.inherit import shaped
    from argosy.commands.job import facts
    from argosy.job.load import load, split
    from argosy.plan import layouts
    from argosy.plan.settle import refuse_layout

    name, overrides = split(words)
    loaded = shaped(load(name, overrides))
    shape = loaded.job.layout.shape
    if shape == "auto":
        from argosy.cluster import here

        machine = here.machine()
        accelerated, count = bool(machine.devices), max(1, layouts.workers(loaded.job, machine, workers))
    else:
        accelerated, count = False, workers or layouts.named(shape, loaded.written.get("layout.shape", ""))
    job = refuse_layout(loaded, accelerated, count, facts(loaded))
    layout = layouts.of(job.layout, count)
    return layout, layouts.stages_held(job, layout)


def _groups(layout: Layout, rank: int, cluster: Cluster | None) -> list[dict[str, Any]]:
    """The groups of `rank` with their links."""
    from argosy.cluster.links import Link, link
    from argosy.layout.draw import groups

    return [
        {
            "name": group.name,
            "ranks": group.ranks,
            "talk": group.talk,
            "link": link(cluster, group.ranks) if cluster is not None else Link("this machine"),
        }
        for group in groups(layout, rank)
    ]


def _text(layout: Layout, rank: int, cluster: Cluster | None, stages: Sequence[str]) -> list[str]:
    from argosy.layout.draw import SHORT, drawing, listed

    ranks = f"{layout.world} rank{'s' * (layout.world != 1)}"
    where = f" on {cluster.name}" if cluster is not None else ""
    lines = [f"{layout.text()}: {ranks}{where}", "", *drawing(layout, stages), ""]
    place = ", ".join(f"{SHORT[axis]} {at}" for axis, at in layout.at(rank).items() if getattr(layout, axis) > 1)
    lines.append(f"Rank {rank}" + (f" ({place})" if place else " has no group: it is alone."))
    rows = _groups(layout, rank, cluster)
    members = [listed(row["ranks"]) for row in rows]
    wide = max((len(text) for text in members), default=0)
    for row, text in zip(rows, members, strict=True):
        lines.append(f"  {row['name']:<9} {len(row['ranks']):>6} ranks  {text:<{wide}}  {_link(row['link'])}")
        lines += [f"  {'':<9} {sentence}" for sentence in row["talk"]]
    return lines


def _later(layout: Layout) -> list[str]:
    """What of `layout` can be drawn and not yet trained in."""
    from argosy.layout.layout import LATER

    return [
        f"note: {name} parallelism ({axis}) is not built yet: no job can be trained in this layout"
        for axis, name in LATER.items()
        if getattr(layout, axis) > 1
    ]


def _link(link: Link) -> str:
    """A tier and what it gives, as people say it."""
    if link.bandwidth is None or link.latency is None:
        return link.tier
    return f"{link.tier}: {link.kind}, {link.bandwidth / 1e9:.3g} GB/s each way, {link.latency * 1e6:g} us"


def register(app: typer.Typer) -> None:
    """Spell the command for the shell."""
    layout = typer.Typer(no_args_is_help=True, help="Draw how ranks share a model.")
    app.add_typer(layout, name="layout", rich_help_panel=HELP)

    @layout.command("show", context_settings=_WORDS)
    def show_command(
        context: typer.Context,
        rank: Annotated[int, typer.Option(help="Whose groups are listed.")] = 0,
        workers: Annotated[int | None, typer.Option(help="Number of ranks; those not named go to dp.")] = None,
        cluster: Annotated[
            str | None, typer.Option(help="A cluster file or a shipped cluster: names the links.")
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    ) -> None:
        """JOB [KEY=VALUE ...] or "tp2 pp2 dp2": the grid of ranks, the groups of a rank, and their links."""
        print(show(context.args, rank=rank, workers=workers, cluster=cluster, as_json=as_json))
