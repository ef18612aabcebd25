"""Weights that do not belong, and weights that are shared out: each rank reads what it holds, one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from exchange_models import LLAMA, made
from safetensors.torch import load_file, save_file

from argosy.errors import Refused
from argosy.exchange.huggingface import bring, look
from argosy.exchange.source import Source
from argosy.prove.pool import Pool

Folders = Callable[[str], Path]
CASES = str(Path(__file__).with_name("fill_cases.py"))


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Source:
    """The folder with one file of weights, changed."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return Source(folder, "")


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
         "the weights lack model.layers.1.mlp.up_proj.weight. The rule is model.layers.*.mlp.up_proj.* -> blocks.*.mlp.up.*"),
        (lambda t: t.update({"model.layers.0.mlp.up_proj.bias": torch.zeros(52)}),
         "also hold model.layers.0.mlp.up_proj.bias. Found: the rule for model.layers.*.mlp.up_proj.* makes it "
         "blocks.0.mlp.up.bias, which this model does not have"),
        (lambda t: t.update({"model.layers.0.mlp.router.weight": torch.zeros(2, 2)}), "the nearest rule is for model.layers.*"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(25)}), "model.norm.weight has the shape [25], where"),
        (lambda t: t.update({"lm_head.weight": torch.zeros(400, 20)}), "lm_head.weight has the shape [400, 20]"),
        (lambda t: t.update({"lm_head.weight": torch.zeros(300, 20)}),
         "lm_head.weight has the shape [300, 20], where config.json asks for [307, 20]"),
        (lambda t: t.update({"model.norm.weight": torch.ones(20, dtype=torch.int8)}), "is stored as I8"),
    ],
)  # fmt: skip
def test_weights_that_do_not_belong_are_named(
    copied: Folders, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], expected: str
) -> None:
    source = changed(copied("qwen3"), change)
    with pytest.raises(Refused) as caught:
        bring(source, tmp_path / "run")
    assert expected in caught.value.text
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["copy"], "something was left half-written"


def test_a_tied_copy_and_tables_of_angles_are_passed_over(copied: Folders, tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)

    source = changed(copied("smollm"), change)
    bring(source, tmp_path / "run")

    def last(tensors: dict[str, torch.Tensor]) -> None:
        """One number of the last row is another."""
        tensors["lm_head.weight"][-1, -1] += 1

    with pytest.raises(
        Refused, match=r"lm_head.weight is not the tensor that it is tied to.*tie_word_embeddings = false"
    ):
        bring(changed(source.folder, last), tmp_path / "other")
    with pytest.raises(Refused, match="is not the tensor that it is tied to"):
        bring(changed(source.folder, lambda t: t.update({"lm_head.weight": torch.zeros(300, 24)})), tmp_path / "other")


def test_a_name_that_is_there_with_and_without_its_prefix_is_refused(copied: Folders, tmp_path: Path) -> None:
    folder = copied("gpt2 untied")
    source = changed(folder, lambda t: t.update({"h.0.ln_1.weight": t["transformer.h.0.ln_1.weight"] + 1}))
    with pytest.raises(
        Refused, match=r"transformer\.h\.0\.ln_1\.weight is there twice, with and without transformer\."
    ):
        bring(source, tmp_path / "run")


def test_a_config_that_speaks_of_another_model_is_refused_before_any_is_drawn(copied: Folders, tmp_path: Path) -> None:
    folder = copied("smollm")
    known = json.loads((folder / "config.json").read_text())
    for more in ({"num_hidden_layers": 9_999}, {"hidden_size": 10**9, "head_dim": 6}, {"vocab_size": 10**9}):
        (folder / "config.json").write_text(json.dumps({**known, **more}), encoding="utf-8")
        with pytest.raises(Refused, match=r"config\.json speaks of"):
            bring(Source(folder, ""), tmp_path / "run")


def test_a_tokenizer_of_another_vocabulary_is_refused(copied: Folders, tmp_path: Path) -> None:
    from argosy.data.tokenizer import train_bpe

    folder = copied("smollm")
    (folder / "tokenizer.json").write_text(
        train_bpe(iter(["some other words here"] * 9 + [chr(c) for c in range(900)]), 400)
    )
    with pytest.raises(Refused, match=r"the tokenizer has 4\d\d entries, the model 307"):
        bring(Source(folder, ""), tmp_path / "run")
    (folder / "tokenizer.json").write_text('{"model": {"type": "Exploit"}}', encoding="utf-8")
    with pytest.raises(Refused, match="no tokenizer"):
        bring(Source(folder, ""), tmp_path / "run")


def test_every_rank_reads_what_it_holds_and_one_tensor_at_most_beside_it(pool: Pool, tmp_path: Path) -> None:
    config = {**LLAMA, "vocab_size": 30_000, "hidden_size": 24, "num_key_value_heads": 2, "num_hidden_layers": 4}
    llama = made("llama", config, tmp_path / "llama")
    gpt2 = made(
        "gpt2", {"vocab_size": 31, "n_embd": 24, "n_layer": 4, "n_head": 4, "n_positions": 16}, tmp_path / "gpt2"
    )
    layouts = [{"shape": "tp2 dp2", "zero": 3}, {"shape": "pp2 tp2"}, {"shape": "tp4"}, {"shape": "dp4", "zero": 2}]
    from argosy.exchange.config import described

    cases = [
        {"folder": str(folder), "layout": layout, "shape": described(Source(folder, ""))[1]}
        for folder in (llama, gpt2)
        for layout in layouts
    ]
    largest = 30_000 * 24 * 4
    for answers in pool.call(f"{CASES}:filled", cases, ranks=4):
        for case, found in zip(cases, answers, strict=True):
            assert not found["wrong"], (case["layout"], found)
            # Beside the bytes of one tensor: headers, names, and a decoder on meta.
            assert found["peak"] < largest + 3_000_000, (case["layout"], found)
            if case["folder"] == str(llama):
                assert found["held"] < 0.6 * found["all"], "this layout shares nothing out"


def test_a_larger_vocabulary_keeps_its_first_weights_in_the_new_rows(folders: Folders) -> None:
    from argosy.exchange.huggingface import begin
    from argosy.model.decoder import Decoder
    from argosy.model.weights import initialise

    source = Source(folders("smollm"), "")
    known = look(source).model
    decoder = Decoder(known.model_copy(update={"vocabulary": 320})).to_empty(device="cpu")
    initialise(decoder, 1)
    before = decoder.embedding.weight.detach().clone()  # type: ignore[union-attr]
    begin(source, decoder, dict(decoder.named_parameters()))
    after = decoder.embedding.weight.detach()  # type: ignore[union-attr]
    assert torch.equal(after[307:], before[307:]) and not torch.equal(after[:307], before[:307])


def test_more_positions_and_what_no_job_can_ask_for(folders: Folders) -> None:
    from argosy.exchange.huggingface import begin
    from argosy.model.decoder import Decoder
    from argosy.model.weights import initialise

    source = Source(folders("gpt2"), "")
    known = look(source).model
    decoder = Decoder(known.model_copy(update={"context": 60})).to_empty(device="cpu")
    initialise(decoder, 1)
    before = decoder.positions.weight.detach().clone()  # type: ignore[union-attr]
    begin(source, decoder, dict(decoder.named_parameters()))
    after = decoder.positions.weight.detach()  # type: ignore[union-attr]
    assert torch.equal(after[48:], before[48:]) and not torch.equal(after[:48], before[:48])
    for change, expected in (
        ({"width": 48}, r"has the shape \[307, 24\], where the job asks for \[307, 48\]"),
        ({"vocabulary": 300}, r"has the shape \[307, 24\], where the job asks for \[300, 24\]"),
    ):
        other = Decoder(known.model_copy(update=change)).to_empty(device="cpu")
        with pytest.raises(Refused, match=expected):
            begin(source, other, dict(other.named_parameters()))
    untied = Source(folders("qwen3"), "")
    tied = Decoder(look(untied).model.model_copy(update={"tied": True})).to_empty(device="cpu")
    with pytest.raises(Refused, match=r"lm_head.weight is not the tensor.*model.tied = false in a job"):
        begin(untied, tied, dict(tied.named_parameters()))
