"""What the driver believes about the fleet: a value that only `policy/rules.py` makes anew."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fleet:
    """All workers of a run and what was tried so far."""

    world: int  # workers
    recover: bool = True  # faults.recover
    limit: int = 5  # faults.restarts: starts in a row without a step of progress
    incarnation: int = 1
    step: int = 0  # the furthest step that the record shows
    reached: int = 0  # the furthest step before the newest start; progress is what lies beyond
    restarts: int = 0  # starts of the workers in a row without progress
    mends: int = 0  # starts of what serves them in a row without a new step
    faults: int = 0  # faults repaired in all
    evidence: tuple[str, ...] = ()  # a sentence for each fault since the last progress

    @property
    def progress(self) -> bool:
        """Whether the newest start brought a step that no earlier one had."""
        return self.step > self.reached
