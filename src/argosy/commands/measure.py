"""What a start measures before it settles, and what a run's end teaches the next prediction. No command of its own, no torch.

A run that goes on keeps what was decided when it began: nothing is timed for it that could decide anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Any

from argosy.cluster import here
from argosy.cluster.here import Machine, Trial
from argosy.job.load import Loaded
from argosy.job.setting import Setting
from argosy.observe.summary import Summary
from argosy.plan import seconds, trial
from argosy.plan.prepared import PreparedFacts
from argosy.plan.settle import Settled
from argosy.run.folder import Run

ENOUGH = 20  # steps that a median must rest on before it stands for the next run


def settled(
    loaded: Loaded,
    machine: Machine,
    facts: PreparedFacts,
    workers: int,
    timing: Trial,
    kept: Mapping[str, Setting],
    run: Run,
    read: tuple[int, int],
    local: int | None = None,
) -> tuple[Settled, Mapping[str, Any]]:
    """The job in force, and what was measured for it: asked of `timing`, or what the run that goes on measured then.

    local: how many of the `workers` are on this machine; None = all.
    """
    info = run.info() if kept and (run.path / "run.json").is_file() else {}
    same = (info.get("machine") or {}).get("processor") == machine.processor
    before: Mapping[str, Any] = info.get("probed") or {} if same else {}

    def ask(request: dict[str, Any]) -> Mapping[str, Any]:
        """The answer to `request`: of the run that goes on, or timed now."""
        if not before:
            return timing.ask(request)
        return {**before, **here.tried(request, timing.cache)}

    found, _, answer = trial.settled(
        loaded, machine, facts, workers, ask, kept, folder=run.path, read=read, local=local
    )
    note = "" if before else trial.doubt(answer)
    return (replace(found, notes=[*found.notes, note]) if note else found), answer


def learn(run: Run, settled: Settled, probed: Mapping[str, Any]) -> None:
    """Keep the median step of the run's last incarnation where the next run like it looks for its prediction.

    Steps before may have been of another size (--change), or taken on another machine.
    """
    request, rows = probed.get("request"), Summary(run).metrics
    taken = [
        row["seconds"]
        for row in rows
        if row.get("incarnation") == rows[-1].get("incarnation") and (row.get("seconds") or 0) > 0
    ]
    if request and len(taken) >= ENOUGH:
        here.learn(request, seconds.seen(settled.job), median(taken))
