"""What is done about an event: an ordered tuple of rules, each with its sentence. Pure: no clock, no process, no file.

`decide(fleet, event)` first notes what the event says about the fleet, then asks the rules in order; the first that answers
decides. The sentence `because` exists once: screen, journal and report print it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from signal import Signals

from argosy.errors import BUG, INPUT, MACHINE, NO
from argosy.policy.events import Action, Broken, End, Event, GiveUp, Mend, Progress, Restart
from argosy.policy.state import Fleet

# Failures that another try would only repeat: the exit code says whose they are.
_FINAL = {BUG: "bug", INPUT: "refused", NO: "no", MACHINE: "machine"}
MENDS = 20  # times in a row without a new step that a process which only serves the workers is started again


@dataclass(frozen=True)
class Decision:
    """What is done about an event, and the sentence that screen, journal and report print."""

    fleet: Fleet
    actions: tuple[Action, ...] = ()
    because: str = ""


Rule = Callable[[Fleet, Event], Decision | None]


def decide(fleet: Fleet, event: Event, rules: tuple[Rule, ...] | None = None) -> Decision:
    """The answer of the first rule that has one. Driver, tests, chaos and simulator all call this. Pure."""
    fleet = noted(fleet, event)
    answers = (rule(fleet, event) for rule in (RULES if rules is None else rules))
    return next((answer for answer in answers if answer), Decision(fleet))


def noted(fleet: Fleet, event: Event) -> Fleet:
    """The fleet with what `event` says about it; nothing is decided yet."""
    match event:
        case Progress(step):
            fleet = replace(fleet, step=max(fleet.step, step))
            return replace(fleet, restarts=0, mends=0, evidence=()) if fleet.progress else fleet
        case Broken(ends):
            return replace(fleet, evidence=(*fleet.evidence, story(culprit(ends), fleet.step)))


def give_up(fleet: Fleet, event: Event) -> Decision | None:
    """Leave when another try would end the same way, when it is not wanted, or when tries are spent."""
    if not isinstance(event, Broken):
        return None
    end = culprit(event.ends)
    told = fleet.evidence[-1]
    if end.starved and end.manner == "killed":
        return _leave(fleet, MACHINE, "out_of_memory", f"{told}: {end.starved} ran out and the kernel chose it")
    if end.manner == "left" and end.code in _FINAL and end.kind != "peer":
        kind = _FINAL[end.code] if end.kind in ("", "refused") else end.kind
        return _leave(fleet, end.code, kind, told)
    if not fleet.recover:
        return _leave(fleet, MACHINE, "lost", f"{told}; faults.recover = false leaves it so")
    if not _workers(event):
        if fleet.mends >= MENDS:
            return _leave(fleet, MACHINE, "spent", f"{told}; {MENDS} new ones in a row brought no new step, giving up")
    elif fleet.restarts >= fleet.limit:
        tries = f"{fleet.restarts} starts in a row brought no new step" if fleet.limit else "faults.restarts = 0"
        return _leave(fleet, MACHINE, "spent", f"{told}; {tries}, giving up")
    return None


def restart(fleet: Fleet, event: Event) -> Decision | None:
    """Start again what ended: a reader, a snapshot process or the warm server alone, workers all together."""
    if not isinstance(event, Broken):
        return None
    end = culprit(event.ends)
    told = fleet.evidence[-1]
    fleet = replace(fleet, faults=fleet.faults + 1)
    if not _workers(event):
        fleet = replace(fleet, mends=fleet.mends + 1)
        trades = tuple(dict.fromkeys(one.trade for one in event.ends))
        return Decision(fleet, tuple(Mend(trade) for trade in trades), f"{told}; {end.name} is started again")
    following = fleet.incarnation + 1
    reached = max(fleet.reached, fleet.step)
    fleet = replace(fleet, incarnation=following, reached=reached, restarts=fleet.restarts + 1)
    whom = {1: "the worker", 2: "both workers"}.get(fleet.world, f"all {fleet.world} workers")
    beside = [story(one, fleet.step) for one in event.ends if one.trade == "server" and one is not end]
    because = f"{told}; {whom} start{'s' if fleet.world == 1 else ''} again from the newest checkpoint"
    because += "".join(f"; {one}: it is started again too" for one in beside)
    return Decision(fleet, (Restart(following),), because)


RULES: tuple[Rule, ...] = (give_up, restart)


def culprit(ends: tuple[End, ...]) -> End:
    """Which of the ends that were seen together was the cause: what was killed or stopped from outside, before what told
    of a failure of its own, before what only lost a peer.
    """
    return min(ends, key=_guilt)


def story(end: End, step: int) -> str:
    """One end in words: who, how, when."""
    where = f" at step {step:,}" if step else " before the first step"
    seen = f", seen after {end.after:.1f} s" if end.after >= 0.05 else ""
    if end.manner == "stopped":
        return f"{end.name} was stopped (signal {end.signal}){where}{seen}"
    if end.manner == "killed":
        number = f"signal {end.signal}" + (f", {Signals(end.signal).name}" if end.signal in set(Signals) else "")
        return f"{end.name} was killed ({number}){where}{seen}"
    told = f": {end.sentence}" if end.sentence else ""
    return f"{end.name} left with code {end.code}{where}{told}"


def _workers(event: Broken) -> bool:
    """Whether workers are among what broke: they are started again all together, and `faults.restarts` counts that."""
    return any(end.trade == "worker" for end in event.ends)


def _guilt(end: End) -> tuple[int, int, int]:
    order = {"killed": 0, "stopped": 1, "left": 2}[end.manner]
    if end.kind == "peer":
        order = 4
    elif end.manner == "left" and end.code == 0:
        order = 3
    return order, 0 if end.trade == "worker" else 1, end.rank or 0


def _leave(fleet: Fleet, code: int, kind: str, because: str) -> Decision:
    return Decision(fleet, (GiveUp(code, kind),), because)
