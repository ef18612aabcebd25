from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from argosy.errors import Refused
from argosy.job.load import load
from argosy.job.schema import VERSION
from argosy.job.upgrade import difference, upgrade

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.mark.parametrize("version", range(1, VERSION + 1))
def test_every_version_has_a_fixture_that_is_read(version: int, tmp_path: Path) -> None:
    text = (FIXTURES / f"version-{version}.toml").read_text(encoding="utf-8")
    path = tmp_path / "job.toml"
    path.write_text(upgrade(text, "job.toml"), encoding="utf-8")
    job = load(str(path)).job
    assert (job.name, job.train.tokens, job.optim.lr, job.optim.clip) == ("fixture", 100_000, 2e-3, None)
    assert (job.memory.limit, job.checkpoint.bandwidth, job.observe.log_every) == (2 << 30, 1e8, 5.0)
    assert (job.model.block.window, job.model.pattern[0].window, job.layout.zero) == (64, 0, 3)


def test_the_newest_version_stays_byte_for_byte() -> None:
    text = (FIXTURES / f"version-{VERSION}.toml").read_text(encoding="utf-8")
    assert upgrade(text, "x") == text


def test_a_file_without_a_version_gets_one_and_keeps_its_comments() -> None:
    old = "# mine\n\nname = 'x'  # why\n[train]\nsteps = 3 # short\n"
    new = upgrade(old, "x.toml")
    assert new == "# mine\n\nversion = 1\nname = 'x'  # why\n[train]\nsteps = 3 # short\n"
    assert tomllib.loads(new)["version"] == VERSION
    assert difference(old, new, "x.toml").count("\n+version = 1") == 1
    assert difference(new, new, "x.toml") == ""
    assert tomllib.loads(upgrade("[train]\nsteps = 3\n", "x"))["train"] == {"steps": 3}
    assert tomllib.loads(upgrade("# only a comment", "x")) == {"version": VERSION}


@pytest.mark.parametrize("text", ["version = 99\n", "version = 0\n", "version = 'x'\n", "version =\n"])
def test_what_cannot_be_upgraded(text: str) -> None:
    with pytest.raises(Refused):
        upgrade(text, "x.toml")
