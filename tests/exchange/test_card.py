"""The model card says what the run recorded, and nothing that a stranger wrote becomes its structure."""

from __future__ import annotations

import json
from pathlib import Path

from exchange_models import own_run

from argosy.exchange.card import card


def test_a_card_tells_data_licences_tokens_figures_and_commit(tmp_path: Path) -> None:
    run = own_run(tmp_path / "run", {})
    data = {
        "source": "notes | <b>x</b>",
        "license": "CC0-1.0",
        "documents": 12,
        "tokens": 34_567,
        "held_out_documents": 2,
    }
    run.update_info(data=data, commit="abc123", uncommitted=True, argosy="0.1.0", torch="2.13.0")
    rows = [{"step": 2, "loss": 3.5, "bits_per_byte": 2.25}, {"step": 4, "loss": 3.25, "bits_per_byte": 2.125}]
    (run.path / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    text = card(run, title="my model", family="llama", kind="float32", step=4)
    for part in (
        "# my model", "license: cc0-1.0\n", "34,567", "12", "2 documents were held out", "bits per byte: 2.1250", "abc123",
        "with uncommitted changes", "4 steps of 64", "notes \\| &lt;b>x&lt;/b>",
    ):  # fmt: skip
        assert part in text, part
    assert "2.2500" not in text
    early = card(run, title="x", family="llama", kind="float32", step=3)
    assert "bits per byte: 2.2500" in early and "2.1250" not in early


def test_a_mix_is_told_source_by_source_and_steps_of_several_sizes_are_added_up(tmp_path: Path) -> None:
    run = own_run(tmp_path / "run", {})
    rows = [
        {"source": "prose", "license": "MIT", "tokens": 4_000, "weight": 3.0},
        {"source": "code", "license": "Apache-2.0", "tokens": 9_000, "weight": 1.0},
    ]
    run.update_info(data={"source": "prose, code", "license": "prose: MIT; code: Apache-2.0", "mix": rows})
    run.ledger().changed(3, "batch.tokens", 128, "--change").write(run.path / "ledger.jsonl")
    text = card(run, title="t", family="llama", kind="float32", step=4)
    assert "| `prose` | `MIT` | 4,000 | 75.0% |" in text and "| `code` | `Apache-2.0` | 9,000 | 25.0% |" in text
    assert "license:" not in text.split("---")[1], "two licences are not one"
    assert "384 tokens in 4 steps, the last of 128, sequences of 32" in text
    run.update_info(data={"mix": [{**row, "license": "MIT"} for row in rows]})
    assert "license: mit\n" in card(run, title="t", family="llama", kind="float32", step=2)


def test_what_is_not_known_is_left_out_and_hostile_words_stay_words(tmp_path: Path) -> None:
    run = own_run(tmp_path / "run", {})
    run.update_info(data={"license": 'x"\n---\ntags: [evil]', "source": "a\n## b`"})
    text = card(run, title="t", family="llama", kind="float32", step=1)
    front = text.split("---")[1]
    assert "Figures" not in text and "commit" not in text and "\n## b" not in text
    assert len([line for line in front.splitlines() if line.startswith("tags")]) == 1
    assert "license: other\nlicense_name: " + json.dumps('x"\n---\ntags: [evil]') in text
