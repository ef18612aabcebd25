from __future__ import annotations

from pathlib import Path

import pytest

from argosy.errors import Refused
from argosy.job import paths


def test_relative_paths_start_at_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("PLACE", "/data")
    base = Path("/jobs")
    assert paths.resolve("texts/../notes", base) == "/jobs/notes"
    assert paths.resolve("~/notes", base) == "/home/me/notes"
    assert paths.resolve("${PLACE}/x", base) == "/data/x"
    assert paths.resolve("s3://bucket/x", base) == "s3://bucket/x"
    with pytest.raises(Refused, match="NOWHERE"):
        paths.resolve("${NOWHERE}", base)


def test_secrets_are_kept_by_name_and_expanded_at_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_TOKEN", "hush-hush")
    assert paths.resolve("x/${HUB_TOKEN}", Path("/jobs")) == "x/${HUB_TOKEN}"
    assert paths.expand("x/${HUB_TOKEN}") == "x/hush-hush"


def test_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "canary-1234")
    assert paths.masked("x canary-1234 y") == "x ${MY_API_KEY} y"
    assert paths.masked("tokens = 4096") == "tokens = 4096"
