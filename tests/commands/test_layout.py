from __future__ import annotations

import json

import pytest

from argosy.commands.layout import show
from argosy.errors import Refused


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
        ("tp", "in node"), ("dp", "across the fabric"), ("pp", "between pools"), ("all", "between pools"),
    ]  # fmt: skip


def test_a_jobs_layout_is_drawn() -> None:
    text = show(["laptop", "layout.shape=replicate2 dp2"])
    assert "replicate2 dp2: 4 ranks" in text


@pytest.mark.parametrize(
    ("words", "more", "said"),
    [
        (["tp3 dp2"], {"workers": 8}, "makes 6 ranks, there are 8 workers"),
        (["zp2 dp2"], {}, "zp2 is no degree"),
        (["tp2"], {"rank": 2}, "--rank 2: tp2 has 2 ranks. Use 0 to 1."),
        (["tp8 dp32"], {"cluster": "two-nics"}, "has no device"),
        (["nosuchjob"], {}, "is no job file and no shipped job"),
        (["laptop", "layout.shape=tp5"], {}, "tp5 must divide the 6 query heads. Nearest: tp6"),
    ],
)
def test_what_cannot_be_drawn_is_explained(words: list[str], more: dict[str, object], said: str) -> None:
    with pytest.raises(Refused, match=said) as caught:
        show(words, **more)  # type: ignore[arg-type]
    assert caught.value.code == 2
