"""What is done to torch's own workings: a look at the processor is remembered, and only as long as it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor import cpu_vec_isa

from argosy.device import torch_versions

KIND: Any = cpu_vec_isa.VecISA


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The libraries that torch itself loaded into a fresh interpreter; "bad" in a name makes one fail."""
    if not hasattr(KIND, "_probe_load"):
        pytest.skip("this torch looks at the processor in another way, which is left as it is")
    paths: list[str] = []

    def load(isa: object, library: str) -> bool:
        paths.append(library)
        return "bad" not in library

    monkeypatch.setattr(KIND, "_probe_load", load)
    torch_versions.remember_instructions()
    return paths


def test_a_library_that_could_be_loaded_is_not_tried_again_until_it_changes(looked: list[str], tmp_path: Path) -> None:
    library = tmp_path / "isa.so"
    library.write_bytes(b"one")
    isa = cpu_vec_isa.VecAVX2()
    assert [isa._probe_load(str(library)) for _ in range(3)] == [True] * 3
    assert looked == [str(library)]
    library.write_bytes(b"two and more")
    assert isa._probe_load(str(library)) and isa._probe_load(str(library))
    assert looked == [str(library)] * 2
    (tmp_path / "isa.so.loads").write_text("torn")
    assert isa._probe_load(str(library))
    assert looked == [str(library)] * 3


def test_what_failed_is_tried_again(looked: list[str], tmp_path: Path) -> None:
    (tmp_path / "bad.so").touch()
    isa = cpu_vec_isa.VecAVX2()
    for path in ("bad.so", "bad-and-missing.so"):
        library = str(tmp_path / path)
        assert [isa._probe_load(library) for _ in range(2)] == [False, False]
        assert looked[-2:] == [library, library]
    torch_versions.remember_instructions()  # once is enough
    assert not isa._probe_load(str(tmp_path / "bad.so"))
    assert len(looked) == 5


def test_memory_is_tracked_over_any_number_of_calls() -> None:
    """Torch's tracker alone refuses a second call of the outermost module."""
    with torch_versions.memory_tracker() as tracker:
        model = torch.nn.Sequential(torch.nn.Linear(100, 50, bias=False), torch.nn.ReLU())
        for _ in range(3):
            model(torch.ones(8, 100)).sum().backward()
        now, most = (tracker.get_tracker_snapshot(kind)[torch.device("cpu")] for kind in ("current", "peak"))
    assert now["Total"] == 2 * 4 * 100 * 50  # weights and their gradients
    assert now["Total"] < most["Total"] <= now["Total"] + 4 * (2 * 100 * 50 + 8 * (100 + 3 * 50))
