"""`argosy import` and `argosy export` as typed, and a run that starts from a folder of weights and goes out again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import argosy
from argosy.__main__ import main
from argosy.errors import Refused


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 with a tokenizer, as transformers writes it."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from argosy.data.tokenizer import train_bpe

    place = tmp_path_factory.mktemp("weights") / "qwen"
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(str(place))
    text = "the sea was calm and a few ships lay still in every bay while men sang of the sea"
    (place / "tokenizer.json").write_text(train_bpe(iter([text] * 20), 280), encoding="utf-8")
    return place


def test_in_and_out_as_typed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    assert main(["import", str(folder), "--out", str(run)]) == 0
    told = capsys.readouterr().out
    assert "logits check against transformers: the same" in told and "qwen3, 2 layers x 32" in told
    assert main(["export", str(run), "--to", "hf", "--out", str(out), "--type", "bfloat16"]) == 0
    told = capsys.readouterr().out
    assert "logits check against transformers: the same" in told and "as qwen3, bfloat16, 1 file" in told
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert (out / "README.md").read_text().startswith("---\n")
    for words, expected in (
        (["import", str(folder), "--out", str(run)], "there is something already"),
        (["import", str(run), "--out", str(tmp_path / "again")], "this is a run already"),
        (["export", str(run), "--out", str(tmp_path / "x"), "--type", "int4"], "--type int4 is no type"),
        (["export", str(run), "--out", str(tmp_path / "x"), "--family", "bert"], "--family bert is none"),
        (["export", str(run), "--out", str(tmp_path / "x"), "--shard-size", "5"], "--shard-size"),
        (["export", str(run), "--out", str(tmp_path / "x"), "--family", "gpt2"], "the family gpt2 cannot say"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and expected in error, error
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "run"]


def test_without_a_check_it_says_so(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(folder), "--out", str(tmp_path / "run"), "--no-check"]) == 0
    assert "logits not checked: --no-check" in capsys.readouterr().out


def test_a_run_starts_from_the_folder_with_its_shape_and_tokenizer_and_goes_out_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from argosy.exchange import check

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text").mkdir()
    for number in range(20):
        (tmp_path / "text" / f"{number}.txt").write_text(f"the sea was calm and {number} ships lay still. " * 5)
    job = {
        "name": "on", "model": {"init": str(folder)}, "data": {"source": "text", "held_out": "20%"},
        "batch": {"sequence": 32, "tokens": 128, "micro": 2}, "observe": {"sample_every": "never"},
        "train": {"steps": 2, "precision": "float32", "compile": False}, "evaluate": {"every": "never"},
        "optim": {"lr": 1e-9, "warmup": 0, "schedule": "constant"},
    }  # fmt: skip
    run = argosy.train(job, workers=0, quiet=True)
    used = run.job()
    assert (used.model.layers, used.model.width, used.model.block.qk_norm, used.model.vocabulary) == (
        2,
        32,
        "head",
        300,
    )
    assert run.setting("model.width").origin == "first weights"
    assert run.info()["init"]["family"] == "qwen3" and run.info()["data"]["vocabulary"] == 280
    argosy.train({**job, "train": {**job["train"], "steps": 3}}, workers=0, quiet=True)  # type: ignore[dict-item]

    assert main(["export", "runs/on", "--out", "out"]) == 0
    ids = check.tokens_for(used.model, 32)
    # At a rate of 1e-9 the weights are those that it began with, but for the last digits.
    assert check.compare(check.theirs(tmp_path / "out", ids), check.theirs(folder, ids)).difference < 1e-4
    before = AutoModelForCausalLM.from_pretrained(str(folder)).state_dict()
    after = AutoModelForCausalLM.from_pretrained(str(tmp_path / "out")).state_dict()
    assert not all(torch.equal(before[name], after[name]) for name in before), "nothing was trained"


def test_first_weights_that_are_none_are_refused_with_their_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["job", "check", "smoke", f"model.init={tmp_path}"]) == 2
    assert "no run with a checkpoint there, and no folder of weights" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(Refused, match=r"model.init \(command line\): .*no rules are there for model_type = 'bert'"):
        argosy.train("smoke", f"model.init={tmp_path}", workers=0, quiet=True, run=tmp_path / "run")


def test_a_job_shows_the_shape_of_its_first_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["job", "show", "smoke", f"model.init={folder}"]) == 0
    told = capsys.readouterr().out
    assert "qk_norm" in told and "first weights" in told and "width          = 32" in told
