"""A compiled layout through the command itself, under --strict: nothing falls back in silence to what was not asked for."""

from __future__ import annotations

import pytest
from tests.system.harness import Command, rows

from argosy.run.incarnation import Incarnation

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

STEPS = 3
SHORT = (
    "--strict", "--train.steps", str(STEPS), "--train.compile", "true", "--model.layers", "4", "--evaluate.every", "2",
    "--observe.sample_every", "never", "--optim.warmup", "512",
)  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "workers", "more"),
    [
        ("pp2 tp2", 4, ("--memory.recompute", "attention")),
        ("pp2", 2, ("--layout.schedule", "interleaved", "--layout.virtual", "2")),
    ],
)
def test_a_compiled_layout_trains_under_strict(
    command: Command, shape: str, workers: int, more: tuple[str, ...]
) -> None:
    name = f"compiled-{shape.replace(' ', '-')}"
    run = command.finish(name, *SHORT, "--layout.shape", shape, *more, workers=workers).run
    assert (run.job().train.compile, run.job().layout.shape) == (True, shape)
    assert Incarnation.read(run, 1).world == workers
    trained = rows(run.path / "metrics.jsonl")
    assert [row["step"] for row in trained] == [1, 2, 3]
    assert rows(run.path / "evaluations.jsonl")
