"""One key of a job: what was asked, what is in force, who said so and why. The list of these connects all rooms."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """One key of a job, resolved.

    origin: "my.toml:14", "command line", "default", "derived", "preset tiny", "this machine" or "measured".
    """

    key: str  # "train.precision"
    asked: object  # "bfloat16"; None where the job is silent
    used: object  # "float32"
    origin: str
    why: str = ""  # "bfloat16 is 4.4x slower on this CPU: 32 against 140 GFLOP/s"
