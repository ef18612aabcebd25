"""The manifest: read back as written, refused when newer, recognised as damaged when hostile; version 1 for ever."""

from __future__ import annotations

import json
import pickle  # allowed: to plant what must never run
from pathlib import Path
from typing import Any

import pytest
import torch

from argosy.checkpoint.load import load
from argosy.checkpoint.manifest import MANIFEST, Damaged, Manifest, Sidecar, read, text
from argosy.checkpoint.store import opened, problems, search
from argosy.errors import Refused
from argosy.layout.layout import Layout
from argosy.run.folder import Run

FIXTURE = Path(__file__).parent / "version-1"
LATER = Path(__file__).parent / "version-2"
OTHER = ("tp", "pp", "dp_replicate", "dp_shard", "cp")  # the axes in an order that version 1 does not know


class Hostile:
    """Unpickled anywhere, it leaves a file behind."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_a_checkpoint_of_version_1_loads_for_ever() -> None:
    """Written once by the first version of the format and never again. Values: see the assertions."""
    found = opened(FIXTURE / "step-000003")
    assert list(problems(found)) == []
    tensors = {
        "model.w": torch.zeros(4, 3),
        "optim.w.first": torch.zeros(4, 3, dtype=torch.bfloat16),
        "n": torch.tensor(0),
    }
    facts = load(Run(FIXTURE), found, tensors)
    assert facts == {"step": 3, "tokens": 96, "ledger": {"length": 2, "digest": "00ff"}}
    assert torch.equal(tensors["model.w"], torch.arange(12.0).view(4, 3))
    assert torch.equal(tensors["optim.w.first"], torch.arange(12).to(torch.bfloat16).view(4, 3) / 4)
    assert tensors["n"].item() == 3


def test_a_checkpoint_of_version_2_loads_for_ever() -> None:
    """The same, written by four ranks in an order of their own."""
    found = opened(LATER / "step-000003")
    assert found.manifest.version == 2 and list(problems(found)) == []
    assert found.manifest.grid.layout == Layout(dp_shard=2, tp=2, order=OTHER)
    tensors = {
        "model.w": torch.zeros(4, 6),
        "optim.w.first": torch.zeros(4, 6, dtype=torch.bfloat16),
        "n": torch.tensor(0),
    }
    assert load(Run(LATER), found, tensors)["tokens"] == 96
    assert torch.equal(tensors["model.w"], torch.arange(24.0).view(4, 6))
    assert torch.equal(tensors["optim.w.first"], torch.arange(24).to(torch.bfloat16).view(4, 6) / 4)
    assert tensors["n"].item() == 7


def test_it_reads_back_as_it_was_written(bench: Any) -> None:
    folder = bench.save(4, {"w": torch.ones(3), "b": torch.zeros(2, 2, dtype=torch.int64)})
    found = read(folder)
    assert text(found) == (folder / MANIFEST).read_bytes()
    assert Manifest.model_validate(json.loads(text(found))) == found
    assert (found.step, found.facts["tokens"], len(found.specs)) == (4, 40, 2)


def test_the_order_of_the_axes_is_named_where_it_is_not_the_one_of_version_1(
    bench: Any, values: Any, specs_for: Any, parts: Any
) -> None:
    """A program that knows version 1 only reads what it can, and says which one can read the rest."""
    for version, layout in enumerate((Layout(dp_shard=2, tp=2), Layout(dp_shard=2, tp=2, order=OTHER)), 1):
        specs = specs_for(values, layout)
        for rank, saver in enumerate(bench.savers(layout, specs, incarnation=version)):
            saver.begin(version, parts(values, specs, layout, rank), {})
        assert bench.writer().turn()
        folder = bench.run.checkpoints / f"step-{version:06d}"
        written = json.loads((folder / MANIFEST).read_text())
        assert written["version"] == version
        assert written["grid"].get("order") == (None if version == 1 else list(OTHER))
        assert read(folder).grid.layout == layout
        assert text(read(folder)) == (folder / MANIFEST).read_bytes()


def test_it_grows_with_tensors_and_nodes_only(bench: Any, values: Any, specs_for: Any, parts: Any) -> None:
    sizes = []
    for step, layout in enumerate((Layout(dp_shard=2), Layout(dp_shard=9)), 1):
        specs = specs_for(values, layout)
        for rank, saver in enumerate(bench.savers(layout, specs, incarnation=step)):
            saver.begin(step, parts(values, specs, layout, rank), {})
        assert bench.writer().turn()
        sizes.append(len((bench.run.checkpoints / f"step-{step:06d}" / MANIFEST).read_bytes()))
    assert abs(sizes[0] - sizes[1]) < 16


def test_a_newer_format_is_refused_not_skipped(bench: Any) -> None:
    bench.save(1, {"w": torch.ones(3)})
    folder = bench.save(2, {"w": torch.ones(3)}, incarnation=2)
    values = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(values | {"version": 99}))
    with pytest.raises(Refused, match="format version 99"):
        search(bench.run.checkpoints)


BROKEN = {
    "empty": "",
    "half": '{"version": 1, "st',
    "list": "[]",
    "deep": "[" * 100_000,
    "no version": "{}",
    "extra": {"surprise": 1},
    "path": {"files": [{"name": "../../etc/passwd", "bytes": 100, "digest": "0" * 32}]},
    "absolute": {"files": [{"name": "/etc/passwd", "bytes": 100, "digest": "0" * 32}]},
    "huge shape": {"tensors": [["w", "F32", [10**15], [], None]]},
    "negative": {"tensors": [["w", "F32", [-3], [], None]]},
    "type": {"tensors": [["w", "object", [3], [], None]]},
    "axis": {"tensors": [["w", "F32", [3], [["rm", 0]], None]]},
    "dim": {"tensors": [["w", "F32", [3], [["dp_shard", 7]], None]]},
    "twice": {"tensors": [["w", "F32", [1], [], None], ["w", "F32", [1], [], None]]},
    "ranks": {"grid": {"degrees": {"dp_shard": 3}, "nodes": [1]}},
    "degree": {"grid": {"degrees": {"dp_shard": 0}, "nodes": [1]}},
    "unknown degree": {"grid": {"degrees": {"world": 1}, "nodes": [1]}},
    "nodes": {"grid": {"degrees": {}, "nodes": [0, 1]}},
    "step": {"step": 7},
}


@pytest.mark.parametrize("name", BROKEN)
def test_whatever_stands_in_it_is_only_read(bench: Any, name: str) -> None:
    bench.save(1, {"w": torch.ones(3)})
    folder = bench.save(2, {"w": torch.ones(3)}, incarnation=2)
    broken = BROKEN[name]
    if isinstance(broken, dict):
        broken = json.dumps(json.loads((folder / MANIFEST).read_text()) | broken)
    (folder / MANIFEST).write_text(broken)
    with pytest.raises(Damaged):
        opened(folder)
    found, reasons = search(bench.run.checkpoints)
    assert found is not None and found.step == 1 and len(reasons) == 1 and str(folder) in reasons[0]


@pytest.mark.parametrize("victim", ["manifest.json", "*.json", "*.safetensors"])
def test_a_hostile_pickle_never_runs(bench: Any, tmp_path: Path, victim: str) -> None:
    bench.save(1, {"w": torch.ones(30)})
    folder = bench.save(2, {"w": torch.ones(30)}, incarnation=2)
    trace = tmp_path / "trace"
    planted = pickle.dumps(Hostile(trace))  # allowed: to plant what must never run
    path = next(path for path in folder.glob(victim) if victim == "manifest.json" or path.name != "manifest.json")
    path.write_bytes(planted + b"\0" * max(0, path.stat().st_size - len(planted)))
    found, reasons = search(bench.run.checkpoints)
    assert found is not None and found.step == 1 and len(reasons) == 1
    assert not trace.exists()
    pickle.loads(planted)  # allowed: shows that the plant works where somebody does run it
    assert trace.exists()


@pytest.mark.parametrize("wrong", [{"pieces": 3}, {"pieces": [1]}, {"bytes": "many"}, {"more": 1}, {"header": None}])
def test_a_wrong_sidecar_is_damage(tmp_path: Path, wrong: dict[str, object]) -> None:
    good = Sidecar(1, 1, 10, "aa", ("bb",))
    path = tmp_path / "sidecar.json"
    path.write_bytes(good.text())
    assert Sidecar.read(path) == good
    path.write_text(json.dumps(json.loads(good.text()) | wrong))
    with pytest.raises(Damaged, match=r"sidecar\.json"):
        Sidecar.read(path)


def test_a_newer_sidecar_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "sidecar.json"
    path.write_text(json.dumps(json.loads(Sidecar(1, 1, 10, "aa", ("bb",)).text()) | {"version": 9, "more": 1}))
    with pytest.raises(Damaged, match="has version 9 of a sidecar, this program reads up to 1"):
        Sidecar.read(path)
