"""The whole way of somebody new: chats, text and a random Qwen3 in; mixed anew and killed on the way; out again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.exchange.exchange_models import LLAMA, TEMPLATE, made, tokenizer
from tests.system.harness import WAIT, Command, rows, write_text

from argosy.run.folder import Run

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

JOB = """
version = 1
name    = "way"
[model]
init = "qwen3"
[data]
mix      = [{ source = "chats.jsonl", weight = 1.0, license = "CC0-1.0" }, { source = "text", weight = 2.0 }]
held_out = "10%"
cache    = "cache"
[batch]
sequence = 48
tokens   = 576
micro    = 2
[train]
steps     = 100000
precision = "float32"
compile   = false
[optim]
lr       = 1e-3
schedule = "constant"
warmup   = 0
[checkpoint]
every = 2
[evaluate]
every = "never"
[observe]
sample_every = "never"
"""
MIX = [{"source": "chats.jsonl", "weight": 1.0, "license": "CC0-1.0"}, {"source": "more", "weight": 1.0}]
CHANGED = "data.mix=[" + ", ".join(
    "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in row.items()) + " }" for row in MIX
) + "]"  # fmt: skip


@pytest.fixture(scope="module")
def way(place: Command) -> Iterator[Command]:
    """A folder of its own with a random Qwen3, a file of chats and two folders of text."""
    folder = place.folder / "way"
    folder.mkdir()
    made("qwen3", {**LLAMA, "num_key_value_heads": 2, "head_dim": 6, "tie_word_embeddings": True}, folder / "qwen3")
    tokenizer(folder / "qwen3")
    chats = [
        {"messages": [{"role": "user", "content": f"how calm is the sea at {n}"},
                      {"role": "assistant", "content": f"a few ships lay still at {n} of {n % 5}"}]}
        for n in range(80)
    ]  # fmt: skip
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats), encoding="utf-8")
    write_text(folder / "text")
    (folder / "more").mkdir()
    for number in range(30):
        (folder / "more" / f"{number}.txt").write_text(f"men sang in bay {number} while ships lay still.\n" * 9)
    (folder / "way.toml").write_text(JOB, encoding="utf-8")
    command = Command(folder, {**place.environment, "ARGOSY_RUNS": str(folder / "runs")})
    yield command
    command.clean()


def argosy(way: Command, *words: str) -> str:
    """What a command prints; it must succeed."""
    command = [sys.executable, "-P", "-m", "argosy", *words]
    done = subprocess.run(command, cwd=way.folder, env=way.environment, capture_output=True, text=True, timeout=WAIT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_chats_and_a_strangers_model_in_a_mix_changed_killed_and_out_again(way: Command) -> None:
    job = str(way.folder / "way.toml")
    started = way.train("way", workers=3, job=job)
    started.reach(4)
    assert started.stop() == 0, started.text
    run = started.run
    first = run.newest_step()
    assert run.info()["init"]["family"] == "qwen3" and run.job().model.block.qk_norm == "head"
    check_masks(run)

    for words in (["--change", CHANGED], [CHANGED]):  # changed and killed; then the same, and killed again
        started = way.train("way", *words, workers=3, job=job)
        started.reach(first + 4)
        started.process.kill()
        started.gone()
    started = way.train("way", CHANGED, workers=3, job=job)
    started.reach(first + 8)
    assert started.stop() == 0, started.text

    told = [row["step"] for row in rows(run.path / "metrics.jsonl")]
    assert told == list(range(1, run.newest_step() + 1)), "each step once"
    check_order(run, first)
    check_export(way, run)


def check_masks(run: Run) -> None:
    """Of a chat only what the assistant says is counted, of a text all."""
    from argosy.data.shards import Shards
    from argosy.data.tokenizer import open_tokenizer

    shards, words = Shards(run.prepared()), open_tokenizer(run.path)
    chats = next(part for part in shards.parts if part.source.endswith("chats.jsonl"))
    number = int(chats.train_documents[0])
    tokens = shards.document(number)
    counted = shards.part(number, 0, len(tokens), "mask")
    said = words.decode(
        [int(token) for token, kept in zip(tokens, counted, strict=True) if kept and token != words.end]
    )
    assert "a few ships lay still" in said and "how calm" not in said
    assert "how calm" in words.decode([int(token) for token in tokens if token != words.end])
    other = next(part for part in shards.parts if part.source.endswith("text"))
    length = int(shards.lengths[other.train_documents[0]])
    whole = shards.part(int(other.train_documents[0]), 0, length, "mask")
    assert not len(whole) or whole.all()


def check_order(run: Run, first: int) -> None:
    """Steps read the sources that the mix of their time names, those before the change still as they did."""
    from argosy.commands.data import show

    def sources(step: int) -> set[str]:
        return {Path(row["source"]).name for row in json.loads(show(run.path, step, as_json=True))}

    last = run.newest_step()
    changed = next(entry.from_step for entry in run.ledger().entries if entry.key == "data.mix" and entry.from_step)
    assert changed == first + 1
    assert set().union(*(sources(step) for step in range(1, changed))) == {"chats.jsonl", "text"}
    assert set().union(*(sources(step) for step in range(changed, last + 1))) == {"chats.jsonl", "more"}
    assert [entry.from_step for entry in run.ledger().entries if entry.key == "data.mix"] == [0, changed]


def check_export(way: Command, run: Run) -> None:
    """transformers loads what goes out, with the logits, tokenizer and chat template that it should have."""
    from transformers import AutoTokenizer

    from argosy.exchange import check

    told = argosy(way, "export", str(run.path), "--to", "hf", "--out", "out")
    assert "logits check against transformers: the same" in told and f"step {run.newest_step():,} of" in told
    out = way.folder / "out"
    ids = check.tokens_for(run.job().model, 48)
    theirs = check.theirs(out, ids)
    assert check.compare(theirs, check.ours(run, ids)).difference < 1e-4
    assert check.compare(theirs, check.theirs(way.folder / "qwen3", ids)).difference > 1e-2, "nothing was trained"
    words = AutoTokenizer.from_pretrained(str(out))
    assert words.chat_template == TEMPLATE
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "CC0-1.0" in card and "chats.jsonl" in card and f"step {run.newest_step():,}" in card
