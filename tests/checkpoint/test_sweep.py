"""What dead runs left in memory: removed, but for checkpoints that a next start would still write."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from argosy.checkpoint.save import Saver, specs_of
from argosy.checkpoint.slots import PREFIX, Slots, slots_in
from argosy.checkpoint.sweep import sweep
from argosy.layout.layout import Layout
from argosy.run.folder import Run

W = {"w": torch.zeros(5000)}
Killed = Callable[..., Path]


def run_at(path: Path, name: str = "a") -> Run:
    path.mkdir(parents=True, exist_ok=True)
    (path / "run.json").write_text(f'{{"version": 1, "id": "{name}"}}')
    return Run(path)


@pytest.fixture
def killed(bench: Any, tmp_path: Path) -> Killed:
    """`killed("x", 5)`: the slot folder of a run that announced step 5 and is gone, all its processes with it."""

    def made(name: str, step: int | None, ranks: int = 1, announce: int = 1) -> Path:
        run = run_at(tmp_path / name, name)
        layout = Layout(dp_replicate=ranks)
        savers = [Saver(run, rank, ranks, 1, layout, specs_of(W), shm=bench.shm) for rank in range(ranks)]
        for saver in savers[:announce] if step is not None else ():
            saver.begin(step, W, {})
        folder = savers[0].files.folder
        for saver in savers:
            saver.close()
        return folder

    return made


@pytest.fixture
def mine(bench: Any) -> Slots:
    slots = Slots(bench.run.path, bench.run.local, shm=bench.shm)
    bench.open.append(slots)
    return slots


def test_a_dead_runs_folder_is_swept_and_a_living_ones_is_not(bench: Any, mine: Slots, tmp_path: Path) -> None:
    living = Slots(tmp_path / "living", tmp_path / "living-local", shm=bench.shm)
    code = (
        "import sys, os, signal; from pathlib import Path; from argosy.checkpoint.slots import Slots;"
        "s = Slots(Path(sys.argv[1]) / 'dead', Path(sys.argv[1]) / 'l', shm=Path(sys.argv[2]));"
        "(s.folder / 'rank-0000-inc-0001-0.slot').write_bytes(b'x');"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(bench.shm)], check=False)
    assert ended.returncode == -9
    (bench.shm / f"{PREFIX}{os.getuid() + 1}-other").mkdir()
    gone = sweep(mine)
    assert len(gone) == 1 and living.folder.exists() and mine.folder.exists()
    assert (bench.shm / f"{PREFIX}{os.getuid() + 1}-other").exists()
    living.close()
    assert sweep(mine) == [living.folder]


def test_a_checkpoint_that_was_announced_outlives_other_starts(
    bench: Any, mine: Slots, killed: Killed, tmp_path: Path
) -> None:
    folder = killed("dead", 5)
    assert len(slots_in(folder)) == 2
    assert sweep(mine) == [] and sweep(mine) == []
    assert len(slots_in(folder)) == 1, "what is idle goes"
    bench.run = Run(tmp_path / "dead")  # its next start
    bench.savers(Layout(), specs_of(W), incarnation=2)
    writer = bench.writer()
    assert writer.turn() and [line["step"] for line in bench.lines] == [5]
    while writer.turn():
        pass
    assert sweep(mine) == [], "in use"
    for opened in bench.open[1:]:
        opened.close()
    assert sweep(mine) == [folder], "nothing waits any more"


def test_what_nobody_waits_for_goes(mine: Slots, killed: Killed, tmp_path: Path) -> None:
    idle, half = killed("idle", None), killed("half", 5, ranks=2)
    removed, other = killed("removed", 5), killed("other", 5)
    shutil.rmtree(tmp_path / "removed")
    run_at(tmp_path / "other", "another run of that name")
    torn = killed("torn", 5)
    (torn / "plan-0001.json").write_text("{")
    assert sweep(mine) == sorted([idle, half, removed, other, torn])
    assert not any(path.exists() for path in (idle, half, removed, other, torn))


def test_what_was_committed_before_the_kill_goes(bench: Any, mine: Slots, killed: Killed, tmp_path: Path) -> None:
    folder = killed("dead", 5)
    kept = folder.parent / "kept"
    shutil.copytree(folder, kept)
    bench.run = Run(tmp_path / "dead")
    writer = bench.writer()
    assert writer.turn()  # committed, and killed before it gave the slot back:
    writer.slots.close()
    shutil.copy(next(kept.glob("ready-*")), folder)
    assert sweep(mine) == [folder]


def test_what_stays_has_a_limit_and_the_newest_stays(mine: Slots, killed: Killed) -> None:
    folders = [killed(name, 5) for name in ("first", "second", "third")]
    for age, folder in enumerate(folders):
        for path in slots_in(folder):
            os.utime(path, (1000.0 + age, 1000.0 + age))
    assert sweep(mine) == []
    size = sum(path.stat().st_size for path in folders[0].iterdir())
    assert sweep(mine, room=2 * size + size // 2) == [folders[0]]
    assert sweep(mine, room=size // 2) == [folders[2], folders[1]]
