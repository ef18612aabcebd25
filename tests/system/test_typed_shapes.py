"""What a new user types: a random valid shape trains to the same losses as any other."""

from __future__ import annotations

from itertools import product
from random import Random

import pytest
from tests.system.harness import Command, rows

from argosy.layout.asked import Asked
from argosy.layout.layout import Layout
from argosy.layout.legal import broken
from argosy.run.incarnation import Incarnation

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

RANKS, LAYERS, STEPS = 4, 2, 3
WORDS = (
    "--strict", "--train.steps", str(STEPS), "--model.layers", str(LAYERS), "--evaluate.every", "never",
    "--observe.sample_every", "1", "--optim.warmup", "512", "--checkpoint.every", "never",
)  # fmt: skip
AXES = {"pp": "pp", "replicate": "dp_replicate", "dp": "dp_shard", "tp": "tp"}


def typed(random: Random) -> tuple[str, tuple[str, ...]]:
    """A valid shape of four ranks with its degrees in any order, and some key that acts in it."""
    shapes = [dict(zip(AXES, degrees, strict=True)) for degrees in product((1, 2, 4), repeat=len(AXES))]
    while True:
        named = random.choice(shapes)
        layout = Layout(**{AXES[axis]: degree for axis, degree in named.items()})
        asked = Asked(layout, layers=LAYERS, heads=(2,), sequence=64, sequences=8)
        # Only what is shared out over two axes: one alone is trained by the shipped jobs.
        if layout.world != RANKS or sum(degree > 1 for degree in named.values()) < 2 or any(broken(asked)):
            continue
        words = [f"{axis}{degree}" for axis, degree in named.items() if degree > 1]
        random.shuffle(words)
        more = {"dp": ("--layout.zero", random.choice("13")), "pp": ("--layout.schedule", "gpipe")}
        more |= {"tp": ("--layout.sequence", "false"), "replicate": ()}
        return " ".join(words), more[words[0].rstrip("0123456789")]


def test_random_valid_shapes_train_and_write_the_same_samples(command: Command) -> None:
    random, losses = Random(9), {}
    while len(losses) < 3:
        shape, more = typed(random)
        name = f"typed-{shape.replace(' ', '-')}"
        if name in losses:
            continue
        run = command.finish(name, *WORDS, "--layout.shape", shape, *more, workers=None).run
        assert Incarnation.read(run, 1).world == RANKS
        losses[name] = [row["loss"] for row in rows(run.path / "metrics.jsonl")]
        assert len(rows(run.path / "samples.jsonl")) == STEPS
    first, *others = losses.values()
    assert len(first) == STEPS
    for other in others:
        assert other == pytest.approx(first, rel=1e-4)
