"""Named places where a test may kill, stop, hang or raise: `point("checkpoint.rename.before")`.

`ARGOSY_POINT=name:nth:kill|stop|hang|raise` acts when this process passes `name` for the nth time (counted from 1); several,
joined by commas, each act for themselves. `ARGOSY_POINT_ONCE=PREFIX` lets each act once over all processes and incarnations,
one after the other in their order, at the nth passing or a later one: whoever creates the file PREFIX.name acts. Who hangs, as
in a slow store, goes on when PREFIX.name.on is there.
`ARGOSY_POINTS_LOG=FILE` appends the name of every point passed, a line each: a test reads it and fails for points that no
test ever hit. Without those variables a point costs two dictionary look-ups.
"""

from __future__ import annotations

import os
import signal
import time

POINTS: dict[str, str] = {
    "worker.start": "a worker was born and has read the run folder",
    "worker.group": "a worker has joined its process groups",
    "worker.built": "model and optimizer stand, nothing is loaded yet",
    "worker.loaded": "a checkpoint or first weights are in the model",
    "worker.compile": "the first step of a worker that compiles: the compiler is about to work",
    "step.begin": "before the forward pass of a step",
    "step.vote.before": "gradients stand, the vote was not yet sent",
    "step.vote.after": "the vote is known, nothing was updated",
    "step.update.after": "weights are updated, the step was not yet recorded",
    "record.step.after": "the step stands in the record",
    "evaluate.begin": "before an evaluation on held-out documents",
    "evaluate.end": "after an evaluation, before it is recorded",
    "save.copy.before": "a save was agreed, nothing is copied",
    "save.copy.after": "a rank's shard is copied, not yet announced",
    "save.announce.after": "a rank's shard is announced to the writer",
    "checkpoint.write.before": "the writer starts a checkpoint's folder",
    "checkpoint.data.after": "data file and sidecar are written and synced, not yet read back",
    "checkpoint.manifest.before": "before the manifest is written",
    "checkpoint.manifest.after": "the manifest is written under its temporary name",
    "checkpoint.rename.before": "before the rename that commits a checkpoint",
    "checkpoint.rename.after": "a checkpoint is committed, its slots are not yet given back",
    "checkpoint.prune.before": "before an older checkpoint is removed",
    "checkpoint.prune.after": "an older checkpoint is removed",
    "reader.batch.before": "the reader starts on a batch",
    "reader.batch.after": "the reader published a batch",
    "worker.end": "the last save is done, the worker is about to leave",
}

_passed: dict[str, int] = {}


class Pointed(Exception):
    """Raised by `ARGOSY_POINT=name:nth:raise`; only tests ask for it."""


def point(name: str) -> None:
    """Pass the named place `name`, which must stand in POINTS."""
    asked, log = os.environ.get("ARGOSY_POINT"), os.environ.get("ARGOSY_POINTS_LOG")
    if asked is None and log is None:
        return
    if name not in POINTS:
        raise KeyError(f"{name} is not in points.POINTS")
    _passed[name] = _passed.get(name, 0) + 1
    if log is not None:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(descriptor, f"{name}\n".encode())
        os.close(descriptor)
    for wanted in asked.split(",") if asked else ():
        place, nth, action = wanted.rsplit(":", 2)
        if place == name and _due(name, int(nth)):
            _act(name, action)
        if place != name and _waits(place):
            return


def _due(name: str, nth: int) -> bool:
    once = os.environ.get("ARGOSY_POINT_ONCE")
    if once is None:
        return _passed[name] == nth
    if _passed[name] < nth:
        return False
    try:
        os.close(os.open(f"{once}.{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    except FileExistsError:
        return False
    return True


def _waits(place: str) -> bool:
    """Whether those behind `place` have to wait for it: it acts once, and has not yet."""
    once = os.environ.get("ARGOSY_POINT_ONCE")
    return once is not None and not os.path.exists(f"{once}.{place}")


def _act(name: str, action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "hang":
        while not os.path.exists(f"{os.environ['ARGOSY_POINT_ONCE']}.{name}.on"):
            time.sleep(0.01)
    elif action == "raise":
        raise Pointed(name)
    else:
        raise ValueError(f"ARGOSY_POINT: {action} is none of kill, stop, hang, raise")
