from __future__ import annotations

import json
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from argosy.commands.job import CLUSTER_SCHEMA, cluster_schema, presets
from argosy.job import leaves, reference

ROOT = Path(__file__).parents[2]


def shelf(package: str, ending: str) -> dict[str, str]:
    found = (entry for entry in files(package).iterdir() if entry.name.endswith(ending))
    return {entry.name: entry.read_text(encoding="utf-8") for entry in found}


@pytest.mark.parametrize(
    ("name", "made"),
    [
        (reference.SCHEMA, reference.schema_text),
        (reference.PAGE, lambda: reference.page(presets())),
        (CLUSTER_SCHEMA, cluster_schema),
    ],
)
def test_generated_files_are_up_to_date(name: str, made: Any) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == made(), "run: argosy job schema --write ."


@pytest.mark.parametrize(("package", "schema"), [("argosy.jobs", "job"), ("argosy.clusters", "cluster")])
def test_shipped_files_fit_their_schema_and_name_it(package: str, schema: str) -> None:
    rules = json.loads(shelf(package, ".json")[f"{schema}.schema.json"])
    jsonschema.Draft202012Validator.check_schema(rules)
    texts = shelf(package, ".toml")
    if schema == "job":
        texts["fixture"] = (Path(__file__).parent / "fixtures/version-1.toml").read_text(encoding="utf-8")
    assert texts
    for name, text in texts.items():
        assert text.startswith(f"#:schema ./{schema}.schema.json\n"), name
        values = json.loads(json.dumps(tomllib.loads(text), default=str))  # JSON has no dates
        jsonschema.validate(values, rules)


def test_the_schema_refuses_misspelt_keys() -> None:
    rules = json.loads(reference.schema_text())
    for wrong in (
        {"optim": {"learning_rate": 1}},
        {"modle": {}},
        {"model": {"pattern": [{"windw": 3}]}},
        {"train": {"seed": "x"}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, rules)


def test_every_key_is_on_the_page() -> None:
    page = reference.page(presets())
    for key, field in leaves.fields().items():
        assert f"| `{key}` | " in page
        assert reference.kinds(field), key
    assert "| `train.tokens` | count |" in page
    assert '| `memory.limit` | size, `"auto"` |' in page
    assert "8,030,261,248" in page
