"""What can happen to a fleet, and what can be done: the vocabulary of the policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Trade = Literal["worker", "reader", "snapshot", "server"]
Manner = Literal["killed", "stopped", "left"]


@dataclass(frozen=True)
class End:
    """How one process ended, or that it stands still (SIGSTOP)."""

    trade: Trade
    pid: int
    manner: Manner
    rank: int | None = None  # of a worker
    code: int = 0  # exit code where it left by itself
    signal: int = 0  # where it was killed or stopped
    kind: str = ""  # what it told: bug, refused, diverged, out_of_memory, out_of_disk, peer
    sentence: str = ""  # what it told, for people
    starved: str = ""  # whose memory ran out, where the kernel's count of processes killed for that has risen
    after: float = 0.0  # seconds until it was seen

    @property
    def name(self) -> str:
        """ "worker 3", "the reader process"."""
        if self.trade == "worker":
            return f"worker {self.rank}"
        return "the warm server" if self.trade == "server" else f"the {self.trade} process"


@dataclass(frozen=True)
class Broken:
    """Processes ended that should not have; those seen together belong to one fault."""

    ends: tuple[End, ...]


@dataclass(frozen=True)
class Progress:
    """The record shows this step."""

    step: int


Event: TypeAlias = Broken | Progress


@dataclass(frozen=True)
class Restart:
    """End all workers that are left with SIGKILL, and start all anew from the newest checkpoint."""

    incarnation: int


@dataclass(frozen=True)
class Mend:
    """Start one process of this trade anew; the workers go on."""

    trade: Trade


@dataclass(frozen=True)
class GiveUp:
    """End everything and leave with `code`."""

    code: int
    kind: str


Action: TypeAlias = Restart | Mend | GiveUp
