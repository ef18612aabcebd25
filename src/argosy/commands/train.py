"""`argosy train [JOB]`: train, or go on with an unfinished run. What it does is in `conduct.py`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from argosy.errors import Refused

if TYPE_CHECKING:
    from types import FrameType

    from argosy.commands.notebook import Run
    from argosy.fleet.workers import WarmServer
    from argosy.job.schema import Job

HELP = "Start here"
PLACE = 0  # first in its section
_WORDS = {"allow_extra_args": True, "ignore_unknown_options": True}


def train(
    job: str | Job | Mapping[str, Any] | None = None,
    *overrides: str,
    run: Path | str | None = None,
    workers: int | None = None,
    fork: bool | str = False,
    change: bool = False,
    strict: bool = False,
    quiet: bool = False,
) -> Run:
    """Train `job` (a name, a file, a Job or a dict; None = the laptop job), or go on with its unfinished run.

    overrides: "optim.lr=3e-4". run: the folder, else runs/<name>. workers: processes; 0 = inside this one. Gives the run, whose
    `metrics()` is an Arrow table and whose `plot()` a notebook shows.
    Refused where something is wrong with what was asked, and with the run's own exit code where it failed.
    """
    from argosy.commands.conduct import Wanted, lead
    from argosy.commands.notebook import Run

    wanted = Wanted(job, overrides, folder(run), fork, change, workers, strict, quiet)
    outcome, made = lead(wanted)
    if outcome.state == "failed":
        raise Refused(outcome.because, where=str(made.path), code=outcome.code)
    return Run(made.path)


@contextmanager
def early(job: str | None, overrides: list[str], workers: int | None) -> Iterator[WarmServer | None]:
    """A warm server that loads torch while this process still loads its own parts; None where no workers are forked."""
    import os

    from argosy.job import parts
    from argosy.job.load import load
    from argosy.layout.world import world

    loaded = load(job, overrides)
    parts.check_all(loaded.job, loaded.written)
    if workers == 0 or world(os.environ) is not None:
        yield None
        return
    from argosy.fleet.workers import warm

    # What cannot be right is refused while nothing has been started; other weights bring a shape of their own: looked at later.
    if loaded.job.layout.shape != "auto" and loaded.job.model.init == "random":
        from argosy.cluster.here import machine
        from argosy.plan.layouts import workers as workers_of
        from argosy.plan.settle import refuse_layout

        here = machine()
        refuse_layout(loaded, bool(here.devices), workers_of(loaded.job, here, workers, written=loaded.written))
    server = warm(loaded.job)
    try:
        yield server
    finally:
        server.stop()


def folder(run: Path | str | None) -> Path | None:
    """The folder that `run` names: "." and "..", which have no name of their own, in full. None where none is named."""
    if run is None or str(run) == "":
        return None
    return Path(run) if Path(run).name not in ("", "..") else Path(os.path.abspath(run))


class Left(KeyboardInterrupt):
    """A signal other than Ctrl-C, taken like it; str() is its name."""


@contextmanager
def interrupted(requeue: bool = False) -> Iterator[None]:
    """Ctrl-C, SIGTERM, SIGHUP or SIGUSR1 while nothing is trained ends with its exit code, one sentence and no traceback."""
    import signal

    from argosy.run.signals import heard

    def leave(number: int, frame: FrameType | None) -> None:
        """End by an exception that `interrupted` understands."""
        signal.signal(number, signal.SIG_IGN)  # a second one must not disturb the leaving
        raise Left(signal.Signals(number).name)

    numbers = [number for number in heard() if number != signal.SIGINT]  # Python itself takes that one
    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    except KeyboardInterrupt as left:
        from argosy.fleet.clerk import leaving

        reason = str(left) if isinstance(left, Left) else "SIGINT"
        name = "Ctrl-C" if reason == "SIGINT" else reason
        _tell(f"\nstopped by {name} while nothing was being trained; nothing was lost")
        raise SystemExit(leaving(reason, requeue or _launched())) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(text: str) -> None:
    """Print to stderr. Where that is what was closed, neither this nor the end of the process fails: the exit code counts."""
    import os

    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)  # what is still buffered is written when the process ends
        os.close(nowhere)


def _launched() -> bool:
    """Whether this process is a rank of a launcher, which starts what leaves with 75 again."""
    import os

    from argosy.layout.world import world

    try:
        return world(os.environ) is not None
    except Refused:
        return False


def register(app: typer.Typer) -> None:
    """Spell the command for the shell."""

    @app.command(
        "train", rich_help_panel=HELP, context_settings=_WORDS, options_metavar="[JOB] [OPTIONS] [KEY=VALUE]..."
    )
    def command(
        context: typer.Context,
        run: Annotated[Path | None, typer.Option(help="Folder of the run; else runs/NAME.")] = None,
        fork: Annotated[
            bool,
            typer.Option(
                "--fork", help="A new run from this one's last checkpoint; --fork RUN[@STEP]: from that one's."
            ),
        ] = False,
        change: Annotated[bool, typer.Option("--change", help="Go on although keys have changed.")] = False,
        workers: Annotated[
            int | None,
            typer.Option(help="Worker processes; 0 trains inside this process."),
        ] = None,
        strict: Annotated[
            bool,
            typer.Option("--strict", help="Refuse where a key could not be had as asked, or a record cannot be used."),
        ] = False,
        quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
        json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
        debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
        requeue: Annotated[
            bool, typer.Option("--requeue", help="Leave with 75 after SIGTERM, as under Slurm: saved, start me again.")
        ] = False,
    ) -> None:
        """Train, or go on with an unfinished run. Without JOB: the built-in laptop job.

        JOB is the name of a shipped job or a job file. Any key of it can be given: --optim.lr 3e-4 or optim.lr=3e-4.
        """
        from argosy.commands.fork import job_of, parted
        from argosy.job.load import split

        began = time.time()
        said, source = parted(context.args) if fork else (context.args, None)
        job, overrides = split(said)
        job = job_of(job, source or fork)
        with interrupted(requeue), early(job, overrides, workers) as server:
            from argosy.commands.conduct import Wanted, lead

            wanted = Wanted(
                job, overrides, folder(run), source or fork, change, workers, strict, quiet, json, debug, requeue, began
            )
            outcome, _ = lead(wanted, server)
        raise typer.Exit(outcome.code)
