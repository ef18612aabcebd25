"""What a start measures before it settles, and what a run's end teaches the next prediction. No command of its own, no torch.

A run that goes on keeps what was decided when it began: nothing is timed for it that could decide anything.
"""

from __future__ import annotations

from collections.abc import Mapping
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
) -> tuple[Settled, Mapping[str, Any]]:
    """The job in force, and what was measured for it: asked of `timing`, or what the run that goes on measured then."""
    info = run.info() if kept and (run.path / "run.json").is_file() else {}
    same = (info.get("machine") or {}).get("processor") == machine.processor
    before: Mapping[str, Any] = info.get("probed") or {} if same else {}

    def ask(request: dict[str, Any]) -> Mapping[str, Any]:
        known = here.tried(request, timing.cache)
        if "pieces" in known or not before:
            return timing.ask(request)
        return {**before, **known}

    found, _, answer = trial.settled(loaded, machine, facts, workers, ask, kept, folder=run.path, read=read)
    return found, answer


def learn(run: Run, settled: Settled, probed: Mapping[str, Any]) -> None:
    """Keep the run's own median step where the next run like it looks for its prediction."""
    request = probed.get("request")
    summary = Summary(run)
    taken = summary.step_seconds
    if request and taken and len(summary.metrics) >= ENOUGH:
        here.learn(request, seconds.seen(settled.job), taken)
