"""In and out against transformers itself, for every family: the same logits, and the very bytes that came in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from exchange_models import MODELS, SHARDED, TEMPLATE, TYPES, own_run
from safetensors.torch import load_file

from argosy.commands.train import interrupted
from argosy.errors import TERMINATED, Refused
from argosy.exchange import check
from argosy.exchange.huggingface import bring, look, staged
from argosy.exchange.send import send
from argosy.exchange.source import Source

Folders = Callable[[str], Path]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, read by the safetensors library."""
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers_and_what_goes_out_is_what_came_in(
    folders: Folders, tmp_path: Path, name: str
) -> None:
    folder = folders(name)
    run, known = bring(Source(folder, str(folder)), tmp_path / "run")
    ids = check.tokens_for(known.model, known.context)
    assert ids.shape[1] == min(64, known.context)
    wanted = check.theirs(folder, ids)
    found = check.compare(wanted, check.ours(run, ids))
    assert found.difference <= 1e-4 and found.same and found.largest > 0.5, found

    sent = send(run, tmp_path / "out", shard=40_000 if name in SHARDED else 10**9)
    assert (sent.files > 1) == (name in SHARDED) and sent.kind == TYPES.get(name, "float32")
    before, after = weights(folder), weights(tmp_path / "out")
    assert set(before) == set(after)
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    old, new = (json.loads((place / "config.json").read_text()) for place in (folder, tmp_path / "out"))
    assert {key: new[key] for key in old} == old
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (folder / file).read_bytes()
    assert torch.equal(check.theirs(tmp_path / "out", ids), wanted)


def test_the_check_reads_beyond_a_window_that_is_not_long(folders: Folders) -> None:
    model = look(Source(folders("mistral"), "x")).model
    for window, length in ((0, 64), (5, 64), (200, 232), (992, 1024), (993, 64), (4096, 64)):
        other = model.model_copy(update={"block": model.block.model_copy(update={"window": window})})
        assert check.tokens_for(other, 5000).shape == (2, length)
    assert check.tokens_for(model, 9).shape == (2, 9)


def test_an_imported_model_is_a_run_that_samples_and_is_sent_again(folders: Folders, tmp_path: Path) -> None:
    from argosy.commands.runs import row
    from argosy.commands.sample import sample

    run, _ = bring(Source(folders("qwen3"), "somewhere"), tmp_path / "run")
    assert run.job().model.init == "somewhere" and run.info()["place"] == str(tmp_path / "run")
    assert row(run).state == "finished"
    assert run.path.stat().st_mode & 0o777 == 0o700, "as of every run"
    assert sample(run.path, "the sea", tokens=4, temperature=0.0) == sample(
        run.path, "the sea", tokens=4, temperature=0.0
    )
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["run"]
    half = send(run, tmp_path / "half", kind="bfloat16")
    assert {one.dtype for one in weights(half.out).values()} == {torch.bfloat16}
    assert json.loads((half.out / "config.json").read_text())["dtype"] == "bfloat16"
    ids = check.tokens_for(run.job().model, 48)
    same = check.compare(check.theirs(half.out, ids), check.ours(run, ids, rounded=torch.bfloat16))
    assert same.same and check.compare(check.theirs(half.out, ids), check.ours(run, ids)).difference > same.difference


def test_the_chat_template_arrives(folders: Folders, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    run, _ = bring(Source(folders("llama"), "x"), tmp_path / "run")
    send(run, tmp_path / "out")
    found = AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    assert found.apply_chat_template([{"role": "user", "content": "sea"}], tokenize=False) == "<user>sea"
    assert found.decode(found.encode("the calm sea")) == "the calm sea"
    assert json.loads((run.path / "chat.json").read_text())["source"] == TEMPLATE


def test_the_chat_template_of_a_trained_run_goes_out_and_a_broken_one_is_noted(copied: Folders, tmp_path: Path) -> None:
    from argosy.data.chat import FILE, Template

    run = own_run(tmp_path / "own", {})
    (run.path / FILE).write_text(Template("<{{ messages[0].content }}>").content, encoding="utf-8")
    send(run, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "<{{ messages[0].content }}>"
    folder = copied("smollm")
    (folder / "chat_template.jinja").write_text("{% for %}", encoding="utf-8")
    brought, known = bring(Source(folder, "x"), tmp_path / "run")
    assert any("its chat template cannot be used here" in note for note in known.notes)
    assert not (brought.path / FILE).exists()


def test_a_model_of_ours_goes_out_as_the_first_family_that_can_say_it(tmp_path: Path) -> None:
    plain = own_run(tmp_path / "plain", {})
    assert send(plain, tmp_path / "a").rules.family == "llama"
    normed = own_run(tmp_path / "normed", {"block": {"heads": 2, "qk_norm": "head", "window": 5}})
    sent = send(normed, tmp_path / "b")
    assert sent.rules.family == "qwen3"
    ids = check.tokens_for(normed.job().model, 32)
    assert check.compare(check.theirs(tmp_path / "b", ids), check.ours(normed, ids)).difference <= 1e-4
    capped = own_run(tmp_path / "capped", {"softcap": 30.0})
    with pytest.raises(Refused, match=r"no family .* llama cannot say model.softcap = 30"):
        send(capped, tmp_path / "c")
    other = {"layers": 2, "width": 16, "positions": "learned", "context": 32, "rope_theta": None, "tied": True}
    block = {"heads": 2, "hidden": 40, "norm": "layer", "norm_bias": True, "activation": "gelu", "qkv_bias": True}
    block |= {"attention_bias": True, "mlp_bias": True}
    for more in ({"head_size": 6}, {"kv_heads": 1}):
        odd = own_run(tmp_path / f"odd-{next(iter(more))}", {**other, "block": {**block, **more}})
        with pytest.raises(Refused, match=rf"the family gpt2 cannot say model.block.{next(iter(more))} = "):
            send(odd, tmp_path / "c", family="gpt2")
    assert send(own_run(tmp_path / "usual", {**other, "block": block}), tmp_path / "g", family="gpt2").files == 1
    with pytest.raises(Refused, match=r"the family olmo2 cannot say model.block.norm_placement = pre"):
        send(plain, tmp_path / "c", family="olmo2")
    assert not (tmp_path / "c").exists()


def test_the_tokenizer_of_bytes_goes_out_as_one_that_everybody_reads(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    send(own_run(tmp_path / "run", {}), tmp_path / "out")
    found = AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    text = "Käse\n\t<|no mark|> 日本 \x00."
    assert found.encode(text) == list(text.encode("utf-8"))
    assert found.decode(found.encode(text), clean_up_tokenization_spaces=False) == text
    assert found.eos_token_id == 256 and set(found(text)) == {"input_ids", "attention_mask"}


def test_code_that_came_along_is_not_even_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks on the terminal where a class is missing, and would run it upon a yes."""
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine", "AutoModelForCausalLM": "code.Mine"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n", encoding="utf-8")
    monkeypatch.setattr("builtins.input", lambda text="": "y")
    with pytest.raises(Refused, match="transformers has no class for model_type = 'mine'") as caught:
        check.theirs(tmp_path, torch.zeros(1, 4, dtype=torch.int64))
    assert caught.value.code == 3 and not (tmp_path / "ran").exists()


def test_a_text_begins_as_its_tokenizer_begins_one_until_somebody_trains(copied: Folders, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from argosy.commands.sample import continued
    from argosy.evaluate.trained import Trained

    folder = copied("llama")
    table = json.loads((folder / "tokenizer.json").read_text())
    end = next(one["id"] for one in table["added_tokens"])
    mark = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [end], "tokens": ["<|endoftext|>"]}}
    order = [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    table["post_processor"] = {"type": "TemplateProcessing", "single": order, "pair": order, "special_tokens": mark}
    (folder / "tokenizer.json").write_text(json.dumps(table), encoding="utf-8")
    run, _ = bring(Source(folder, "x"), tmp_path / "run")
    model = Trained.open(run)
    [found] = continued(model, ["the sea"], 2, 0.0)
    wanted = AutoTokenizer.from_pretrained(str(folder))("the sea")["input_ids"]
    assert list(found.prompt.ids) == wanted and wanted[0] == end
    assert model.on_text("the sea").counted == len(wanted)  # all of it, and the end
    run.update_info(imported=None)
    [found] = continued(Trained.open(run), ["the sea"], 2, 0.0)
    assert list(found.prompt.ids) == wanted[1:]


def test_ids_that_end_an_answer_are_those_of_its_own_tokenizer(copied: Folders, tmp_path: Path) -> None:
    from argosy.data.tokenizer import BYTES
    from argosy.evaluate.trained import Trained

    folder = copied("llama")
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9]}', encoding="utf-8")
    run, _ = bring(Source(folder, "x"), tmp_path / "run")
    assert {7, 9} < set(Trained.open(run).ends)
    (run.path / "tokenizer.json").write_text(BYTES, encoding="utf-8")  # as where a job has a tokenizer of its own
    assert Trained.open(run).ends == (256,)


def test_names_without_their_prefix_are_found(copied: Folders, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = copied("gpt2")
    known = weights(folder)
    for path in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
        path.unlink()
    bare = {name.removeprefix("transformer."): one.clone() for name, one in known.items()}
    bare |= {"h.0.attn.bias": torch.ones(1, 1, 4, 4), "lm_head.weight": known["transformer.wte.weight"].clone()}
    save_file(bare, folder / "model.safetensors")
    run, model = bring(Source(folder, "x"), tmp_path / "run")
    ids = check.tokens_for(model.model, model.context)
    assert check.compare(check.theirs(folder, ids), check.ours(run, ids)).same
    send(run, tmp_path / "out")
    assert set(weights(tmp_path / "out")) == set(known)


def test_a_wrong_rule_is_seen_by_the_check(folders: Folders, tmp_path: Path) -> None:
    """Queries where keys belong: shapes agree, logits do not, and nothing is left."""
    from argosy.exchange import mapping

    rules = look(Source(folders("qwen3 windows"), "x")).rules
    swapped = {"query": "key", "key": "query"}
    wrong = [
        rule.model_copy(update={"ours": tuple(
            ".".join(swapped.get(word, word) for word in one.split(".")) if ".self_attn." in rule.theirs else one
            for one in rule.ours)})
        for rule in rules.tensor
    ]  # fmt: skip
    broken = rules.model_copy(update={"tensor": tuple(wrong)})
    known = mapping.families()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapping, "families", lambda: {**known, "qwen3": broken})
        run, model = bring(Source(folders("qwen3 windows"), "x"), tmp_path / "run")
    ids = check.tokens_for(model.model, model.context)
    found = check.compare(check.theirs(folders("qwen3 windows"), ids), check.ours(run, ids))
    assert not found.same
    with pytest.raises(Refused, match="NOT the same") as caught:
        found.demand("there")
    assert caught.value.code == 3


def test_a_signal_and_what_a_killed_process_left_leave_nothing_half_written(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / f".out.{gone.pid}").mkdir()
    (tmp_path / f".out.{os.getppid()}").mkdir()  # somebody else is at it
    with pytest.raises(SystemExit) as left, interrupted(), staged(tmp_path / "out") as place:
        assert not (tmp_path / f".out.{gone.pid}").exists()
        (place / "half").touch()
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert left.value.code == TERMINATED
    assert [path.name for path in tmp_path.iterdir()] == [f".out.{os.getppid()}"]
