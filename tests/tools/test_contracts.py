"""The import contracts of pyproject.toml, tried on a stub of the house: kept as it is drawn, broken one by one."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

# For each contract, one import that must break it: the importing module and what it imports.
BREACHES = {
    "ground": ("argosy.run", "argosy.data"),
    "watch": ("argosy.policy", "argosy.fleet"),
    "engine": ("argosy.parallel", "argosy.checkpoint"),
    "ground-alone": ("argosy.job", "argosy.commands"),
    "watch-alone": ("argosy.fleet", "argosy.train"),
    "engine-alone": ("argosy.train", "argosy.observe"),
    "torch": ("argosy.checkpoint.store", "torch"),
    "reference": ("argosy.prove.reference", "argosy.errors"),
}


def configuration() -> dict[str, Any]:
    with open(ROOT / "pyproject.toml", "rb") as file:
        tool: dict[str, Any] = tomllib.load(file)["tool"]["importlinter"]
    return tool


def modules() -> set[str]:
    """Every module of argosy that a contract names."""
    text = (ROOT / "pyproject.toml").read_text()
    return set(re.findall(r"argosy(?:\.\w+)+", text.split("[tool.importlinter]")[1]))


def house(folder: Path, imports: Iterable[tuple[str, str]]) -> None:
    """A package of empty modules in `folder`, with these imports."""
    for module in modules():
        path = folder.joinpath(*module.split("."))
        path.mkdir(parents=True, exist_ok=True)
        (path / "__init__.py").write_text("")
    (folder / "argosy" / "__init__.py").write_text("")
    for module, imported in imports:
        folder.joinpath(*module.split("."), "__init__.py").write_text(f"def late():\n    import {imported}\n")


def linted(folder: Path) -> dict[str, bool]:
    """{contract's name: kept} as lint-imports says it about `folder`."""
    (folder / "pyproject.toml").write_text(
        "[tool.importlinter]" + (ROOT / "pyproject.toml").read_text().split("[tool.importlinter]")[1]
    )
    program = Path(sys.executable).parent / "lint-imports"
    answer = subprocess.run(
        [program, "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "400", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    names = [contract["name"] for contract in configuration()["contracts"]]
    found = {name: f"{name} KEPT" in answer.stdout for name in names if name in answer.stdout}
    assert len(found) == len(names), answer.stdout + answer.stderr
    return found


def test_the_drawn_house_keeps_every_contract_and_each_breach_is_found(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    house(whole, [("argosy.data", "argosy.run"), ("argosy.train", "torch"), ("argosy.commands", "argosy.fleet")])
    assert all(linted(whole).values())

    contracts = configuration()["contracts"]
    assert {contract["id"] for contract in contracts} == set(BREACHES)
    house(broken, BREACHES.values())
    kept = linted(broken)
    assert {contract["id"]: kept[contract["name"]] for contract in contracts} == dict.fromkeys(BREACHES, False)


def test_the_contracts_name_every_room_that_exists() -> None:
    rooms = {path.parent.name for path in (ROOT / "src" / "argosy").glob("*/__init__.py")}
    named = {module.split(".")[1] for module in modules()}
    assert rooms - named - {"jobs", "clusters"} == set()
