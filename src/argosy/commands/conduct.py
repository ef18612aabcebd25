"""From a job to a finished run: what `argosy train` does. Driver, agent and screen are put together here; torch is not needed.

Order: load the job -> see what lies in its folder -> warm server starts loading -> prepare the text -> settle -> lock, keep ->
workers until they are done -> the last words and the page. `commands/train.py` spells it; no command of its own.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from argosy.cluster.here import Machine, Trial, machine
from argosy.commands import fork, held, inherit, ledger, measure, runs
from argosy.data.chat import FILE as CHAT
from argosy.data.prepare import Prepared, licences, mixture
from argosy.data.statistics import padding_note
from argosy.data.tokenizer import FILE as TOKENIZER
from argosy.errors import DONE, Refused
from argosy.fleet.agent import Agent
from argosy.fleet.driver import Driver, Outcome
from argosy.fleet.journal import Journal
from argosy.fleet.workers import WarmServer, warm
from argosy.job import parts
from argosy.job.load import Loaded, job_from, load
from argosy.job.schema import Job
from argosy.layout.layout import Layout
from argosy.observe import progress, words
from argosy.plan.layouts import workers as workers_of
from argosy.plan.settle import Settled, refuse_layout
from argosy.run import folder, origin, requests, rule
from argosy.run.folder import Run
from argosy.run.incarnation import Incarnation
from argosy.run.rule import Asked, Verdict


@dataclass(frozen=True)
class Wanted:
    """What one start of `argosy train` asks for."""

    job: str | Job | Mapping[str, Any] | None = None
    overrides: Sequence[str] = ()
    run: Path | None = None
    fork: bool | str = False  # or the parent: "RUN", "RUN@STEP"
    change: bool = False
    workers: int | None = None
    strict: bool = False
    quiet: bool = False
    json: bool = False
    debug: bool = False
    requeue: bool = False
    began: float = field(default_factory=time.time)

    def loaded(self) -> Loaded:
        """The job as asked, with its overrides."""
        if self.job is None or isinstance(self.job, str):
            return load(fork.job_of(self.job, self.fork), self.overrides, strict=self.strict)
        values = self.job.model_dump(exclude_unset=True) if isinstance(self.job, Job) else dict(self.job)
        return job_from(values, self.overrides, strict=self.strict)


@dataclass
class Start:
    """All that is known before the first worker starts."""

    wanted: Wanted
    loaded: Loaded
    verdict: Verdict
    machine: Machine
    workers: int
    screen: progress.Screen
    prepared: Prepared | None = None
    probed: Mapping[str, Any] = field(default_factory=dict)
    settled: Settled | None = None
    cached: bool = True
    local: int | None = None  # workers on the node that has most, where a launcher started some
    first: inherit.First = field(default_factory=inherit.First)
    sets: list[tuple[str, Path]] = field(default_factory=list)  # name and folder of each named held-out set
    grown: list[str] = field(default_factory=list)  # what the first weights do not have, and what code has changed


def lead(wanted: Wanted, server: WarmServer | None = None) -> tuple[Outcome, Run]:
    """Do all that `argosy train` does; gives how it ended, and where. server: one that is loading already."""
    from argosy.commands import launched

    place = launched.place()
    if place is not None and place.rank > 0:
        return launched.other(place, wanted)
    mode = progress.mode(sys.stdout, quiet=wanted.quiet, json=wanted.json)
    screen = progress.screen(mode, sys.stdout)
    with ExitStack() as stack:
        stack.callback(screen.close)
        note = None if place is None else stack.enter_context(launched.Note(place, wanted.run))
        here = machine()
        loaded = wanted.loaded()
        parts.check_all(loaded.job, loaded.written)
        screen.title(words.title(here))
        count = workers_of(loaded.job, here, wanted.workers, place.world if place else None, loaded.written)
        asked, verdict = judged(wanted, loaded, count)
        if verdict.action == "finished":
            return nothing_to_do(verdict, screen)
        shape = inherit.first(loaded, verdict, weights=False).shape
        refuse_layout(replace(loaded, shape=shape), bool(here.devices), count, launched=place is not None)
        start = Start(wanted, loaded, verdict, here, count, screen, local=place.fullest if place else None)
        lock = hold(stack, start, asked) if verdict.action == "continue" else None
        if start.verdict.action == "finished":  # by another start, while this one waited for it
            return nothing_to_do(start.verdict, screen)
        if server is None:
            # It loads on the cores on which layers are timed meanwhile. That is accepted: to wait would cost every start
            # seconds, and what is timed so is taken by its shortest run, and not believed for long where runs differ.
            server = warm(loaded.job) if place is None and count > 0 else WarmServer()
        stack.callback(server.stop)
        ready(start)
        if lock is None:
            lock = hold(stack, start, asked)
        made = keep(start)
        if note is not None:
            return launched.first(note, start, made), made
        if count == 0:
            return launched.alone(start, made), made
        return parent(start, made, lock, server), made


def nothing_to_do(verdict: Verdict, screen: progress.Screen) -> tuple[Outcome, Run]:
    """The end of a start that finds its run finished."""
    screen.note(f"{verdict.path}: {verdict.because}")
    return Outcome(DONE, "finished", verdict.step, verdict.because), Run(verdict.path)


def judged(wanted: Wanted, loaded: Loaded, workers: int) -> tuple[Asked, Verdict]:
    """What the run rule says about the folder that is meant. Refused where it refuses."""
    explicit = wanted.run is not None
    place = wanted.run if wanted.run is not None else rule.newest_of(runs.root() / loaded.job.name)
    free, at = rule.free_name(rule.stem(place, loaded.job.name)), None
    forks = bool(wanted.fork)
    if isinstance(wanted.fork, str) and fork.again(wanted.run, wanted.fork):
        forks = False  # the same command again: its run goes on
    elif isinstance(wanted.fork, str):
        place, at = fork.parent(wanted.fork)
        free = fork.place(loaded.job.name, wanted.run)
    asked = Asked(loaded.job, place, explicit, forks, wanted.change, workers, at)
    verdict = rule.judge(asked, rule.look(place), free)
    if verdict.action == "refuse":
        raise verdict.refused
    return asked, verdict


def hold(stack: ExitStack, start: Start, asked: Asked) -> int:
    """Lock the run's folder until `stack` ends; gives the lock's descriptor.

    Somebody may have been faster: what lies there is judged again under the lock.
    """
    path = start.verdict.path
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = stack.enter_context(Run(path).lock(note=start.screen.note))
    except OSError as error:
        raise Refused("a run cannot be kept there.", where=str(path), found=error.strerror or str(error)) from None
    if start.verdict.action != "continue":
        if rule.look(path).kind not in ("empty", "missing"):
            raise Refused("another start has just made a run here.", where=str(path), do="Give the same command again.")
        return lock
    found = rule.look(path)
    if found.kind in ("unfinished", "finished"):
        requests.clear(Run(path))  # not later: from now on it counts as busy, and whoever asks must be heard
        # A change is dated by the newest checkpoint: it must stay that.
        inherit.sorted_out(Run(path), start.screen.note, whole=asked.change and found.kind == "unfinished")
    # It was not finished when this was asked: what was meant is this run, not a new one behind it.
    start.verdict = rule.judge(replace(asked, explicit=True), rule.look(path), rule.free_name(path))
    if start.verdict.action == "refuse":
        raise start.verdict.refused
    if start.verdict.path != path:
        raise Refused("another start has changed the run here.", where=str(path), do="Give the same command again.")
    if start.verdict.action != "finished":
        inherit.refuse_lost(Run(path))
    return lock


def ready(start: Start) -> None:
    """Prepare the text and settle every value."""
    job, screen = start.loaded.job, start.screen
    screen.log_every = job.observe.log_every
    if start.verdict.source is not None:
        start.verdict = fork.whole(start.verdict)
    timing = Trial()
    try:
        if start.verdict.action == "create":
            timing.begin()  # loads torch while the text is prepared
        start.first = inherit.first(start.loaded, start.verdict)
        start.loaded = replace(start.loaded, shape=start.first.shape)
        start.prepared, start.cached = inherit.text(start.loaded, start.verdict, screen.preparing, start.first)
        start.sets = held.sets(start.loaded, start.prepared, screen.preparing)
        start.settled = _settle(start, timing)
        inherit.refuse_ended(start.verdict, start.settled.job)
        start.grown = inherit.resized(start.first, start.settled.job)
        start.grown += inherit.recoded(start.verdict, start.loaded.job)
    finally:
        timing.close()


def _settle(start: Start, timing: Trial) -> Settled:
    """Every value in force, with what `timing` or an earlier start measured."""
    assert start.prepared is not None
    run = Run(start.verdict.path)
    source = Run(start.verdict.source) if start.verdict.source else run
    kept = {}
    if start.verdict.action in ("continue", "fork") and (source.path / "settings.json").is_file():
        # Before the first checkpoint nothing was trained at the derived rate: it may be derived again.
        kept = {row.key: row for row in source.settings() if start.verdict.step or not row.key.startswith("optim.")}
    read = ledger.read(start.verdict, source, start.loaded.job)
    settled, start.probed = measure.settled(
        start.loaded, start.machine, start.prepared.facts, start.workers, timing, kept, run, read, start.local
    )
    return settled


def keep(start: Start) -> Run:
    """Write the run folder: what was asked, what is in force, where it comes from."""
    assert start.settled is not None
    assert start.prepared is not None
    verdict, job, settled, prepared = start.verdict, start.loaded.job, start.settled, start.prepared
    run, text, source = Run(verdict.path), origin.mask(start.loaded.text), origin.origin()
    if verdict.source:
        fork.checkpoint(Run(verdict.source), run, verdict.step)
    elif verdict.action == "create":
        folder.create(run.path, asked=job, text=text, origin=source)
    elif verdict.renew:
        run.update_info(
            parents=[*run.info()["parents"], _parent(replace(verdict, source=run.path))], id=folder.new_id()
        )
    origin.keep_patch(run.path)
    ledger.write(run, settled.job, verdict, prepared)
    folder.settle(run, job, start.loaded.written, settled.settings, prepared.folder, text, start.sets)
    shutil.copyfile(prepared.tokenizer, run.path / TOKENIZER)
    if (prepared.folder / CHAT).is_file():
        shutil.copyfile(prepared.folder / CHAT, run.path / CHAT)
    if verdict.source:  # run.json last: a fork that is killed before is no run, and nothing goes on with it
        folder.create(run.path, asked=job, text=text, origin=source, parents=[_parent(verdict)])
    run.local.mkdir(parents=True, exist_ok=True)
    run.update_info(**source, **_facts(start), **inherit.keep(start.first, verdict, run))
    Journal(run).note("begun", time=start.wanted.began, command=source["command"], because=verdict.because)
    folder.latest(runs.root(), run.path)
    start.screen.log_to(run.path / "log.txt")
    return run


def header(start: Start) -> None:
    """Print what will be trained."""
    assert start.settled is not None
    assert start.prepared is not None
    facts = start.prepared.facts
    fitted = start.settled.job.batch.packing == "best-fit"
    padding = [padding_note(start.prepared.folder, start.settled.job)] if fitted else []
    cuda = bool(start.machine.devices)
    lines = words.start(
        start.settled.job,
        start.settled.settings,
        start.settled.plan,
        run=f"{start.verdict.path} ({start.verdict.because})",
        data=start.prepared.summary + (" (cached)" if start.cached else ""),
        documents=facts.documents,
        tokens=facts.tokens,
        held_out=facts.held_out_documents,
        workers=start.workers,
        threads=threads(start),
        because="OMP_NUM_THREADS" if start.machine.told else "",
        backend="nccl" if cuda else "gloo",
        decays=fork.decays(Run(start.verdict.path), start.settled.job),
        notes=[
            *start.loaded.notes,
            *start.verdict.notes,
            *start.prepared.notes,
            *start.settled.notes,
            *start.grown,
            *padding,
        ],
    )
    start.screen.start(lines)


def parent(start: Start, run: Run, lock: int, server: WarmServer) -> Outcome:
    """Train with processes of our own."""
    header(start)
    first = incarnation(start, run, os.getpid())
    agent = Agent(run, lock, server)
    driver = Driver(run, first, start.screen, agent, requeue=start.wanted.requeue, debug=start.wanted.debug)
    return last_words(start, run, driver.run())


def last_words(start: Start, run: Run, outcome: Outcome) -> Outcome:
    """Write the page and print how it ended. Whatever goes wrong with either changes nothing of what was trained."""
    from argosy.observe import report

    if not run.exists:  # it was moved away meanwhile, and that was told
        return outcome
    try:
        report.write(run)
    except Exception as error:
        start.screen.note(_unwritten("the page was not written", run, error))
    if outcome.state != "failed":
        try:
            start.screen.done(words.end(run))
            if start.settled is not None:
                measure.learn(run, start.settled, start.probed)
        except Exception as error:
            start.screen.note(_unwritten(f"{run.path}: {outcome.state}; its figures cannot be read", run, error))
    return outcome


def _unwritten(what: str, run: Run, error: Exception) -> str:
    """The note about what failed after the training; crash.txt holds the rest where it is no matter of the disk."""
    told = f"{what}: {type(error).__name__}: {error}"
    if isinstance(error, OSError):
        return told
    with suppress(OSError), (run.path / "crash.txt").open("a", encoding="utf-8") as file:
        file.write(origin.mask("".join(traceback.format_exception(error))))
    return f"{told}; {run.path / 'crash.txt'} tells more"


def incarnation(start: Start, run: Run, owner: int | None, master: str | None = None) -> Incarnation:
    """The next start of all workers."""
    assert start.settled is not None
    return Incarnation(
        number=Incarnation.next(run),
        world=max(1, start.workers),
        layout=start.settled.job.layout.shape,
        threads=threads(start),
        device="cuda" if start.machine.devices else "cpu",
        master=master,
        parent=owner,
    )


def threads(start: Start) -> int:
    """Threads of each worker."""
    return start.machine.threads(start.workers if start.local is None else start.local)


def _parent(verdict: Verdict) -> dict[str, object]:
    source = Run(verdict.source or verdict.path)
    return {"id": source.info()["id"], "path": str(source.path), "step": verdict.step}


def _facts(start: Start) -> dict[str, object]:
    """What report, screen and other readers find in run.json."""
    assert start.settled is not None
    assert start.prepared is not None
    prepared, here, job = start.prepared, start.machine, start.settled.job
    data = {
        **asdict(prepared.facts),
        "source": prepared.source,
        "version": prepared.version,
        "license": licences(job.data, prepared),
        "files": prepared.files,
        "bytes": prepared.bytes,
        "digest": prepared.digest,
        "tokenizer": prepared.tokenizer_name,
        "notes": list(prepared.notes),
        "passed_over": list(prepared.unread),
        "mix": [{**row, "tokens": _tokens(prepared, row)} for row in mixture(job.data, prepared)]
        if job.data.mix
        else [],
    }
    machine_facts = {
        "cores": here.cores,
        "memory_bytes": here.memory_bytes,
        "processor": here.processor,
        "platform": here.platform,
        "compiler": here.compiler,
        "devices": [device.name for device in here.devices],
    }
    return {
        "predicted": asdict(start.settled.plan),
        "probed": dict(start.probed),
        "machine": machine_facts,
        "data": data,
        "parts": parts.facts(job),
        "steps": job.train.steps,
        "tokens": job.train.tokens,
        "workers": start.workers,
        "threads": threads(start),
        "layout": Layout.parse(job.layout.shape, max(1, start.workers)).text(),
    }


def _tokens(prepared: Prepared, row: Mapping[str, object]) -> int:
    """Tokens of one epoch of a source of the mix."""
    return next(part.facts.tokens for part in prepared.parts if part.folder.name == row["digest"])
