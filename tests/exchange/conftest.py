"""Folders of random models as `transformers` writes them; made once for all tests of this room."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # import-mode=importlib leaves it out

from exchange_models import MODELS, SHARDED, TYPES, made, tokenizer


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`folders(name)`: the folder of one of MODELS; tests read it and never write there."""
    home = tmp_path_factory.mktemp("models")
    known: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in known:
            place = home / name.replace(" ", "-")
            kind = {"smollm": "llama"}.get(name, name.split()[0])
            made(kind, MODELS[name], place, dtype=TYPES.get(name, "float32"), sharded=name in SHARDED)
            tokenizer(place)
            known[name] = place
        return known[name]

    return folder


@pytest.fixture
def copied(folders: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """`copied(name)`: a copy of such a folder, to be broken."""

    def copy(name: str) -> Path:
        place = tmp_path / "copy"
        shutil.copytree(folders(name), place)
        return place

    return copy
