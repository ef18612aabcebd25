"""`argosy checkpoint list|show|verify RUN`: what a run has saved, what one holds, and whether every byte of it is whole."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from argosy.commands.runs import find
from argosy.errors import DONE, NO, Refused

if TYPE_CHECKING:
    from argosy.checkpoint.store import Checkpoint
    from argosy.run.folder import Run

HELP = "Data and models"

Name = Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run; left out: the newest.")]
Step = Annotated[int | None, typer.Option("--step", help="The step whose checkpoint is meant.")]
Json = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


@dataclass(frozen=True)
class Row:
    """A checkpoint, or a folder that holds none and why."""

    step: int
    bytes: int = 0
    tensors: int = 0
    layout: str = ""
    created: float = 0.0
    incarnation: int = 0
    problem: str = ""
    best: bool = False  # kept because no evaluation was better


def table(run: Run) -> list[Row]:
    """All checkpoints of `run`, the one that is used next first; then folders that hold none."""
    from argosy.checkpoint.store import best_step, listed

    good, bad = listed(run.checkpoints)
    best = best_step(good[0].manifest) if good else None
    rows = [replace(_row(found), best=found.step == best) for found in good]
    for found in good:
        found.close()
    return rows + [Row(-1, problem=reason) for reason in bad]


def chosen(run: Run, step: int | None) -> Checkpoint:
    """The checkpoint of `step`, None = the newest whose manifest can be read. Refused where there is none."""
    from argosy.checkpoint.manifest import Damaged
    from argosy.checkpoint.store import at, listed

    if step is not None:
        try:
            return at(run, step)
        except Damaged as reason:
            raise Refused(
                f"{reason}.", do=f"`argosy checkpoint list {run.path}` shows what there is.", code=NO
            ) from None
    good, bad = listed(run.checkpoints)
    if not good:
        raise Refused("there is no checkpoint.", where=str(run.path), found=bad[0] if bad else "", code=NO)
    for found in good[1:]:
        found.close()
    return good[0]


def verify(run: Run, step: int | None = None) -> list[str]:
    """Read every byte of the checkpoint of `step` (None = of all of them); what is wrong, a sentence each."""
    from argosy.checkpoint.store import listed, problems

    if step is not None:
        return list(problems(chosen(run, step)))
    good, bad = listed(run.checkpoints)
    if not good and not bad:
        raise Refused("there is no checkpoint.", where=str(run.path), code=NO)
    return bad + [problem for found in good for problem in problems(found)]


def _row(found: Checkpoint) -> Row:
    manifest = found.manifest
    layout = manifest.grid.layout.text()
    return Row(found.step, manifest.bytes, len(manifest.tensors), layout, manifest.created, manifest.incarnation)


def register(app: typer.Typer) -> None:
    """Spell the command for the shell."""
    group = typer.Typer(no_args_is_help=True, help="List, show, verify what a run has saved.")
    app.add_typer(group, name="checkpoint", rich_help_panel=HELP)

    @group.command("list")
    def list_command(run: Name = None, json_: Json = False) -> None:
        """All checkpoints; the first is used next. Exit code 3 where none of them is usable."""
        _list(find(run), json_)

    @group.command("show")
    def show_command(run: Name = None, step: Step = None, json_: Json = False) -> None:
        """What one holds: the newest, or the one of --step."""
        _show(chosen(find(run), step), json_)

    @group.command("verify")
    def verify_command(run: Name = None, step: Step = None) -> None:
        """Read and check every byte of all, or of --step. Exit code 3 where one is damaged."""
        found = verify(find(run), step)
        for problem in found:
            print(problem)
        if not found:
            print("whole: every byte is as it was written")
        raise typer.Exit(NO if found else DONE)


def _list(run: Run, as_json: bool) -> None:
    from datetime import datetime

    from argosy.quantities import bytes_text

    rows = table(run)
    if as_json:
        print(json.dumps([vars(row) for row in rows]))
    elif not rows:
        print(f"{run.path} has no checkpoint yet.")
    for row in rows if not as_json else ():
        when = datetime.fromtimestamp(row.created).strftime("%Y-%m-%d %H:%M:%S")
        words = f"step {row.step:>9,}   {bytes_text(row.bytes):>9}   {row.tensors:>5} tensors   {row.layout:<14} {when}"
        words += "   best" * row.best
        print(words if not row.problem else f"not usable: {row.problem}")
    if rows and all(row.problem for row in rows):
        raise typer.Exit(NO)


def _show(found: Checkpoint, as_json: bool) -> None:
    from argosy.quantities import bytes_text

    manifest = found.manifest
    if as_json:
        print(json.dumps(manifest.model_dump()))
        return
    print(
        f"{found.folder}: step {found.step:,}, {bytes_text(manifest.bytes)}, written by argosy {manifest.argosy}, ",
        end="",
    )
    print(f"torch {manifest.torch}, layout {manifest.grid.layout.text()}, incarnation {manifest.incarnation}")
    for spec in manifest.specs:
        splits = ", ".join(f"dim {split.dim} over {split.axis}" for split in spec.splits)
        print(f"  {spec.name:<48} {spec.dtype:>5} {'x'.join(map(str, spec.shape)) or 'scalar':<16} {splits}")
