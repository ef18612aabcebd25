from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from argosy.commands.job import check, settled
from argosy.commands.layout import show
from argosy.errors import Refused
from argosy.job.load import load, split
from argosy.plan import layouts

DOCS = Path(__file__).parents[2] / "docs"


def test_a_shape_is_drawn_with_the_groups_of_a_rank() -> None:
    text = show(["tp2", "pp2", "dp2"], rank=5)
    assert "pp2 dp2 tp2: 8 ranks" in text and "pp 1  [ 4 5 ]  [ 6 7 ]" in text
    assert "Rank 5 (pp 1, dp 0, tp 1)" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["tp", "2", "ranks", "4", "5", "this", "machine"] in lines
    assert ["pp", "2", "ranks", "1", "5", "this", "machine"] in lines
    assert show(["tp2 pp2 dp2"], rank=5) == text


def test_ranks_not_named_go_to_dp() -> None:
    assert json.loads(show(["tp2"], workers=6, as_json=True))["degrees"]["dp"] == 3


def test_links_come_from_the_cluster() -> None:
    text = show(["tp8 pp2 dp8"], cluster="two-nics")
    assert "in node: nvswitch, 300 GB/s each way, 2 us" in text
    assert "between pools: ethernet" in text
    found = json.loads(show(["tp8 pp2 dp8"], cluster="two-nics", as_json=True))
    assert [(group["name"], group["link"]["tier"]) for group in found["groups"]] == [
        ("tp", "in node"), ("dp", "across the fabric"), ("pp", "between pools"), ("stage", "across the fabric"),
        ("all", "between pools"),
    ]  # fmt: skip


def test_a_jobs_layout_is_drawn() -> None:
    text = show(["laptop", "layout.shape=replicate2 dp2"])
    assert "replicate2 dp2: 4 ranks" in text


def test_a_named_shape_is_drawn_whatever_this_machine_holds() -> None:
    """Devices and memory of this machine have no say: 12,288 ranks of a model of 175 billion parameters."""
    text = show(["laptop", "model.preset=gpt3-175b", "layout.shape=tp8 pp8 dp192", "batch.tokens=393216"])
    assert "pp8 dp192 tp8: 12288 ranks" in text
    assert "embedding + layers 0-" in text and " + head" in text


def test_the_stages_drawn_are_those_that_the_run_has() -> None:
    """They are weighed by the vocabulary, which stands in no shape."""
    words = ["laptop", "model.layers=4", "layout.shape=pp4", 'data.tokenizer={ train = "bpe", vocabulary = 32000 }']
    job = settled(load(*split(words)), 4).job
    held = layouts.stages_held(job, layouts.of(job.layout, 4))
    assert json.loads(show(words, as_json=True))["layers"] == held


def test_a_folder_with_the_name_of_a_shape_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tp2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "tp2: 2 ranks" in show(["tp2"])


@pytest.mark.parametrize(
    ("words", "more", "said"),
    [
        (["tp3 dp2"], {"workers": 8}, "makes 6 ranks, there are 8 workers"),
        (["zp2 dp2"], {}, "zp2 is no degree"),
        (
            ["tp2", "dp2", "layout.zero=3"],
            {},
            "tp2 dp2 is a shape, and layout.zero=3 belongs to a job. Name the job: argosy",
        ),
        (["tp2"], {"rank": 2}, "--rank 2: tp2 has 2 ranks. Use 0 to 1."),
        (["tp8 dp32"], {"cluster": "two-nics"}, "has no device"),
        (["dp999999999"], {}, "more than the 1,000,000 that are drawn"),
        (["nosuchjob"], {}, "is no job file and no shipped job"),
        (["laptop", "layout.shape=tp5"], {}, 'tp5 must divide the 6 query heads. Nearest: layout.shape="tp6"'),
    ],
)
def test_what_cannot_be_drawn_is_explained(words: list[str], more: dict[str, object], said: str) -> None:
    with pytest.raises(Refused, match=said) as caught:
        show(words, **more)  # type: ignore[arg-type]
    assert caught.value.code == 2


def test_a_shape_in_a_file_that_cannot_be_read_is_told_with_its_place(tmp_path: Path) -> None:
    """By `layout show` as by `job check`."""
    file = tmp_path / "mine.toml"
    file.write_text('extends = "laptop"\n[layout]\nshape = "tp2xx"\n')
    for command in (show, check):
        with pytest.raises(Refused) as caught:
            command([str(file)])
        assert re.search(r'mine.toml:3: .*tp2xx is no degree. Did you mean layout.shape="tp2"', caught.value.text)


def test_what_is_drawn_and_cannot_be_trained_in_is_noted() -> None:
    """Of an axis for which this version has no parallelism."""
    assert "note: context parallelism (cp) is not built yet" in show(["cp2 dp2"])
    assert "note" not in show(["tp2 dp2"])


DRAWN = re.compile(r"```bash\n([^`]*argosy layout show[^`]*)```\s+```text\n([^`]*)```")


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("parallel-*.md")))
def test_the_drawing_in_a_page_is_what_the_command_prints(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    found = DRAWN.findall(text)
    assert len(found) == 1, f"{page} draws one layout"
    commands, drawing = found[0]
    (line,) = [line for line in commands.splitlines() if "layout show" in line]
    assert show(shlex.split(line)[3:]).rstrip() == drawing.rstrip()


def test_the_drawing_in_the_how_to_is_what_the_command_prints() -> None:
    text = (DOCS / "how-to" / "layouts.md").read_text(encoding="utf-8")
    assert f"```text\n{show(['tp2 pp2 dp2'])}\n```" in text
