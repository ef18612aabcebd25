"""A run folder, its ranks and its writer in one process: what the tests of this room share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from argosy.checkpoint import snapshot
from argosy.checkpoint.plan import TensorSpec, held
from argosy.checkpoint.save import TYPES, Saver
from argosy.checkpoint.slots import Slots
from argosy.layout.layout import Layout
from argosy.layout.placement import Split, inside
from argosy.run.folder import Run

WHOLE = ((), ())


@dataclass
class Bench:
    """All ranks of a run and its writer. `shm` stands for /dev/shm, so that no test touches another's slots."""

    run: Run
    shm: Path
    lines: list[dict[str, object]] = field(default_factory=list)
    open: list[Saver | Slots] = field(default_factory=list)

    def savers(
        self,
        layout: Layout,
        specs: Sequence[TensorSpec],
        *,
        incarnation: int = 1,
        nodes: Sequence[int] | None = None,
        slots: int = 2,
    ) -> list[Saver]:
        """The savers of all ranks."""
        made = [
            Saver(self.run, rank, layout.world, incarnation, layout, specs, nodes=nodes, slots=slots, shm=self.shm)
            for rank in range(layout.world)
        ]
        self.open += made
        return made

    def writer(self, *, keep: int = 2, bandwidth: float | None = None, node: int = 0) -> snapshot.Writer:
        """The writer of a node."""
        slots = Slots(self.run.path, self.run.local, node, shm=self.shm)
        self.open.append(slots)
        return snapshot.Writer(slots, self.run.checkpoints, keep=keep, bandwidth=bandwidth, note=self.lines.append)

    def save(self, step: int, values: dict[str, torch.Tensor], *, incarnation: int = 1, keep: int = 2) -> Path:
        """Save whole tensors as one rank; gives the folder."""
        specs = [TensorSpec(name, TYPES[value.dtype], tuple(value.shape)) for name, value in values.items()]
        (saver,) = self.savers(Layout(), specs, incarnation=incarnation)
        saver.begin(step, values, {"tokens": step * 10})
        writer = self.writer(keep=keep)
        assert writer.turn()
        assert not writer.turn()
        return self.run.checkpoints / f"step-{step:06d}"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.delenv("ARGOSY_LOCAL", raising=False)
    run = Run(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    run.local.mkdir()
    shm = tmp_path / "shm"
    shm.mkdir()
    made = Bench(run, shm)
    yield made
    for opened in made.open:
        opened.close()


def _values() -> dict[str, torch.Tensor]:
    """A small state with every kind of trouble: uneven, empty for some ranks, scalar, several types, one large tensor."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "model.embedding.weight": normal(77, 12),
        "model.norm.weight": normal(5).to(torch.bfloat16),
        "model.tiny.weight": normal(2, 3).double(),
        "optim.embedding.momentum": normal(77, 12),
        "optim.step": torch.tensor(41),
        "optim.flags": torch.tensor([True, False, True]),
        "optim.large": normal(1100, 512),
    }


@pytest.fixture
def values() -> dict[str, torch.Tensor]:
    return _values()


SHARDED = {
    "model.embedding.weight",
    "model.norm.weight",
    "model.tiny.weight",
    "optim.embedding.momentum",
    "optim.large",
}


@pytest.fixture
def specs_for() -> Callable[[dict[str, torch.Tensor], Layout], list[TensorSpec]]:
    """The specs of a state under a layout: matrices and vectors are cut over dp_shard, and matrices also over tp."""

    def made(values: dict[str, torch.Tensor], layout: Layout) -> list[TensorSpec]:
        specs = []
        for name, value in values.items():
            splits = []
            if name in SHARDED and layout.tp > 1 and value.ndim == 2:
                splits.append(Split("tp", 1))
            if name in SHARDED and layout.dp_shard > 1:
                splits.append(Split("dp_shard", 0))
            specs.append(TensorSpec(name, TYPES[value.dtype], tuple(value.shape), tuple(splits)))
        return specs

    return made


@pytest.fixture
def parts() -> Callable[[dict[str, torch.Tensor], Sequence[TensorSpec], Layout, int], dict[str, torch.Tensor]]:
    """What a rank holds of a state."""

    def made(
        values: dict[str, torch.Tensor], specs: Sequence[TensorSpec], layout: Layout, rank: int
    ) -> dict[str, torch.Tensor]:
        held_parts = {}
        for spec in specs:
            whole = tuple(0 for _ in spec.shape), spec.shape
            part = held(spec, layout, rank)
            value = values[spec.name]
            held_parts[spec.name] = value[:0] if part is None else value[inside(part, whole)].clone()
        return held_parts

    return made
