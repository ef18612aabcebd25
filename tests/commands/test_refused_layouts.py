"""Layouts that cannot be: numbers, rule and the nearest valid choice, exit code 2, and nothing was started or written."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from argosy.commands import conduct
from argosy.commands.conduct import Wanted
from argosy.commands.train import early
from argosy.errors import INPUT, Refused
from argosy.job.load import load
from argosy.plan.settle import refuse_layout


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("ARGOSY_RUNS", "ARGOSY_LOCAL", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "overrides, workers, numbers, remedy",
    [
        # Degrees that do not multiply to the ranks.
        (["layout.shape=tp2 pp2"], 6, "makes 4 ranks, there are 6 workers", 'Nearest: layout.shape="'),
        (["layout.shape=dp3"], 4, "makes 3 ranks, there are 4 workers", 'Nearest: layout.shape="dp4", or --workers 3'),
        # Of what is offered then nothing breaks a rule, and what no number of ranks would mend comes first.
        (["layout.shape=dp2"], 64, "makes 2 ranks, there are 64 workers", "Nearest: --workers 2."),
        (
            ["layout.shape=tp4 dp2"],
            12,
            "tp4 must divide the 6 query heads",
            'Nearest: layout.shape="dp2 tp3" --workers 6,',
        ),
        (
            ["layout.shape=cp2 dp2"],
            8,
            "this version has no context parallelism",
            'Nearest: layout.shape="dp4" --workers 4.',
        ),
        (["layout.shape=pp5 dp2"], 20, "pp5 makes 5 stages of 4 layers", 'Nearest: layout.shape="pp4 dp2" --workers 8'),
        # That do not divide what they must: heads; layers only where a list says so; the vocabulary need not divide.
        (
            ["layout.shape=tp4"],
            None,
            "tp4 must divide the 6 query heads",
            'Nearest: layout.shape="tp3" --workers 3, or layout.shape="dp2 tp2".',
        ),
        (["layout.shape=tp4 dp2"], 8, "tp4 must divide the 6 query heads", 'or layout.shape="dp4 tp2".'),
        (["layout.shape=pp2", "layout.stages=[1,2]"], None, "[1, 2] is 3 layers of 4", "layout.stages=[2,2]"),
        (["layout.shape=pp2", "layout.stages=[1,2,1]"], None, "names 3 stages; pp2 makes 2", "layout.stages=[2,2]"),
        # More stages than layers.
        (["layout.shape=pp8"], None, "pp8 makes 8 stages of 4 layers", 'Nearest: layout.shape="pp4"'),
        (
            ["layout.shape=pp4", "layout.virtual=2", "layout.schedule=interleaved"],
            None,
            "layout.virtual = 2 makes 8 stages of 4 layers",
            "Nearest: layout.schedule=1f1b",
        ),
        # A schedule with too few micro-batches; or too few sequences for all ranks.
        (
            ["layout.shape=pp2", "layout.virtual=2", "layout.schedule=interleaved", "batch.micro=16"],
            None,
            "needs at least pp = 2 micro-batches a step, a rank has 1",
            "Nearest: batch.micro=8",
        ),
        (["layout.shape=dp17"], None, "17 data-parallel ranks share 16 sequences", "Nearest: batch.tokens=4352"),
        # A switch with no effect in this layout.
        (["layout.shape=replicate2", "layout.zero=3"], None, "layout.zero does nothing with", "Remove layout.zero"),
        (["layout.shape=pp2", "layout.sequence=false"], None, "layout.sequence does nothing with", "a shape with tp2"),
        (["layout.shape=dp2", "layout.schedule=gpipe"], None, "layout.schedule does nothing with", "a shape with pp2"),
        (["layout.shape=dp4", "layout.secondary=2"], None, "does nothing with layout.zero = 2", "layout.zero=3"),
        (["layout.shape=tp2", "layout.order=tp pp replicate dp cp"], None, "layout.order does nothing with", "Remove"),
    ],
)
def test_a_layout_that_cannot_be_is_refused_before_any_process_starts(
    place: Path, overrides: list[str], workers: int | None, numbers: str, remedy: str
) -> None:
    """By the command itself, which would load torch in a helper meanwhile, and by whoever calls it from Python."""
    where = ["data.source=nowhere", "model.layers=4", *overrides]  # it does not come as far as the text
    before = psutil.Process().children(recursive=True)
    with pytest.raises(Refused) as caught, early("laptop", where, workers):
        raise AssertionError("something was started")
    assert caught.value.code == INPUT
    assert numbers in caught.value.text and remedy in caught.value.text, caught.value.text
    with pytest.raises(Refused) as again:
        conduct.lead(Wanted("laptop", where, workers=workers, quiet=True))
    assert again.value.text == caught.value.text
    assert psutil.Process().children(recursive=True) == before
    assert not (place / "runs").exists()


@pytest.mark.parametrize("shape, way", [("tp4", "on 3 ranks"), ("dp3", "start 3 ranks")])
def test_a_launcher_sets_the_number_of_ranks(shape: str, way: str) -> None:
    loaded = load("laptop", [f"layout.shape={shape}"])
    for launched in (False, True):
        with pytest.raises(Refused) as refused:
            refuse_layout(loaded, False, 4, launched=launched)
        assert (way in refused.value.do, "--workers 3" in refused.value.do) == (launched, not launched)
