from __future__ import annotations

from pathlib import Path

import pytest

from argosy.cluster import schema
from argosy.errors import Refused


def test_shipped_clusters() -> None:
    assert schema.shipped() == ["eight-h100", "two-nics"]
    found = schema.load("two-nics")
    assert found.devices == 128
    assert found.pool[0].nic is not None
    assert found.pool[0].nic.bandwidth == 25e9
    assert found.between[0].latency == pytest.approx(30e-6)
    assert found.storage.local is not None
    assert found.storage.local.size == 7 * 10**12
    assert schema.load("eight-h100").devices == 8


GOOD = """
name = "x"
[[pool]]
name = "a"
nodes = 2
devices = { kind = "h200-sxm", per_node = 8 }
nic = { kind = "roce", per_node = 1, bandwidth = "100 Gb/s" }
"""


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("nodes = 2", "nods = 2", "pool.0.nods is not a key"),
        ("h200-sxm", "h20-sxm", "did you mean h200-sxm"),
        ('"100 Gb/s"', "100", "(bits)"),
        ("nodes = 2", "nodes = 0", "pool.0.nodes"),
        ("nodes = 2", "nodes = true", "pool.0.nodes"),
        ('name = "x"', "", "name"),
        ('name = "x"', 'name = "x"\nbetween = [{ pools = ["a", "b"], bandwidth = "1 Gb/s" }]', "b is no pool"),
        ('name = "x"', 'name = "x', "this is no TOML"),
    ],
)
def test_bad_clusters_are_refused(tmp_path: Path, old: str, new: str, expected: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(GOOD, encoding="utf-8")
    assert schema.load(str(path)).devices == 16
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(Refused) as caught:
        schema.load(str(path))
    assert expected in caught.value.text
    assert str(path) in caught.value.text


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="Shipped clusters"):
        schema.load(str(tmp_path / "none.toml"))
    (tmp_path / "b.toml").write_bytes(b"\xff")
    with pytest.raises(Refused, match="UTF-8"):
        schema.load(str(tmp_path / "b.toml"))
