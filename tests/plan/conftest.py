from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # import-mode=importlib leaves it out

from plan_machines import FACTS, SLOW_HALF, a_machine

from argosy.cluster.here import Machine
from argosy.job.load import load
from argosy.job.setting import Setting
from argosy.plan.prepared import PreparedFacts
from argosy.plan.settle import Settled, settle

Settle = Callable[..., Settled]


@pytest.fixture
def settled() -> Settle:
    """Settle the laptop job with overrides on an invented machine."""

    def make(
        *overrides: str,
        workers: int = 2,
        machine: Machine | None = None,
        probed: Mapping[str, Any] = SLOW_HALF,
        facts: PreparedFacts = FACTS,
        kept: Mapping[str, Setting] | None = None,
        strict: bool = False,
        job: str = "laptop",
        read: tuple[int, int] = (0, 0),
        local: int | None = None,
    ) -> Settled:
        loaded = load(job, overrides, strict=strict)
        return settle(loaded, machine or a_machine(), probed, facts, workers, kept, read=read, local=local)

    return make
