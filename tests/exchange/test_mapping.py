"""The rules by themselves: patterns, parts of fused tensors, what is refused in a family's file."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch

from argosy.errors import Refused
from argosy.exchange.mapping import FAMILIES, Rows, Tensors, families, family_of, filled, read, stars
from argosy.exchange.send import merged
from argosy.exchange.source import Entry
from argosy.exchange.weights import Weights

FILE = """
family = "knit"
about = "a test"
model_type = "knit"
architecture = "KnitForCausalLM"
[keys]
n = "layers"
[[tensor]]
theirs = "layer.*.fused.weight"
ours = ["blocks.*.q.weight", "blocks.*.k.weight", "blocks.*.v.weight"]
{more}
"""


def test_a_star_is_one_word() -> None:
    assert stars("a.*.b.*", "a.7.b.bias") == ("7", "bias")
    assert stars("a.*.b", "a.7.c.b") is None and stars("a.*", "a") is None and stars("a", "b") is None
    assert stars("a", "a") == ()
    assert filled("x.*.y.*", ("1", "weight")) == "x.1.y.weight"


@pytest.mark.parametrize("more", ["", "transpose = true", 'interleave = "block.kv_heads"',
                                  'transpose = true\ninterleave = "block.kv_heads"'])  # fmt: skip
def test_fused_parts_are_split_and_merged_again(more: str, tmp_path: Path) -> None:
    """Every row of every part, read in any pieces, and the whole made again from its parts."""
    rules = read(FILE.format(more=more), "test")
    shapes = {"blocks.0.q.weight": (12, 5), "blocks.0.k.weight": (6, 5), "blocks.0.v.weight": (6, 5)}
    tensors = Tensors(rules, shapes, False, {"block.kv_heads": 3})
    draw = torch.Generator().manual_seed(1)
    parts = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    whole = merged(tensors, "layer.0.fused.weight", parts.__getitem__).contiguous()
    assert tensors.theirs() == {"layer.0.fused.weight": tuple(whole.shape)} == {
        "layer.0.fused.weight": (5, 24) if "transpose" in more else (24, 5)
    }  # fmt: skip
    upright = whole.t() if "transpose" in more else whole
    rows = {name: [upright.tolist().index(row.tolist()) for row in part] for name, part in parts.items()}
    if "interleave" in more:  # a group: four queries, two keys, two values
        assert rows["blocks.0.k.weight"] == [4, 5, 12, 13, 20, 21]
    else:
        assert rows["blocks.0.k.weight"] == [*range(12, 18)]
    path = tmp_path / "raw"
    path.write_bytes(whole.numpy().tobytes())
    entry = Entry(path, "F32", tuple(whole.shape), 0, whole.numel() * 4)
    weights = Weights({"layer.0.fused.weight": entry}, tensors, "test")
    chance = Random(2)
    for name, part in parts.items():
        for _ in range(20):
            begin, end = sorted((chance.randint(0, part.shape[0]), chance.randint(0, part.shape[0])))
            assert torch.equal(weights.rows(name, begin, end), part[begin:end]), (name, begin, end)


def test_runs_cover_each_row_once() -> None:
    for groups in (1, 2, 5):
        seen: list[int] = []
        for part in range(3):
            rows, next_row = Rows((4, 2, 3), part, groups), 0
            for first, ours, count in rows.runs(0, rows.count):
                assert ours == next_row and count > 0
                next_row += count
                seen += range(first, first + count)
            assert next_row == rows.count
        assert sorted(seen) == list(range(9 * groups))


@pytest.mark.parametrize(
    "change, expected",
    [
        (("ours = [", "hours = ["), "tensor.0"),
        (('"blocks.*.k.weight"', '"blocks.k.weight"'), "as many stars on both sides"),
        (('n = "layers"', "n = 3"), "keys.n"),
        (('family = "knit"', 'family = "../knit"'), "family"),
        (("[keys]", "[keys"), "no TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_its_key(change: tuple[str, str], expected: str) -> None:
    text = FILE.format(more="").replace(*change)
    assert text != FILE.format(more="")
    with pytest.raises(Refused, match=expected) as caught:
        read(text, "knit.toml")
    assert caught.value.where == "knit.toml"


def test_every_shipped_family_is_named_after_its_file_and_found_by_its_model_type() -> None:
    known = families()
    assert sorted(known) == ["gpt2", "llama", "mistral", "olmo2", "qwen2", "qwen3"]
    for name, rules in known.items():
        assert family_of(rules.model_type, "").family == name
        assert rules.about


def test_an_unknown_model_is_refused_with_the_ones_there_are() -> None:
    with pytest.raises(Refused, match=r"no rules .* 'mamba'.*llama.*qwen3.*ARGOSY_FAMILIES"):
        family_of("mamba", "config.json")
    with pytest.raises(Refused, match="no rules"):
        family_of({"a": 1}, "config.json")


def test_families_of_ones_own_are_found_in_the_folder_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "knit.toml").write_text(FILE.format(more=""), encoding="utf-8")
    monkeypatch.setenv(FAMILIES, str(tmp_path))
    assert families()["knit"].architecture == "KnitForCausalLM" and "llama" in families()
    monkeypatch.setenv(FAMILIES, str(tmp_path / "nowhere"))
    with pytest.raises(Refused, match="names no folder"):
        families()


@pytest.mark.parametrize(
    "content, expected",
    [(b"\xff\xfe\x00", "no UTF-8 text"), (b"a = " + b"[" * 50_000, "no TOML"), (b"#" * (2 << 20), "too large")],
    ids=["bytes", "deep", "large"],
)
def test_a_file_of_rules_that_is_none_is_refused_in_one_sentence(
    content: bytes, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.toml").write_bytes(content)
    monkeypatch.setenv(FAMILIES, str(tmp_path))
    with pytest.raises(Refused, match=expected) as caught:
        families()
    assert caught.value.where == str(tmp_path / "evil.toml") and caught.value.code == 2


def test_a_tensor_without_a_rule_is_named_with_the_nearest_one() -> None:
    rules = read(FILE.format(more=""), "test")
    with pytest.raises(Refused, match=r"no rule of the family knit is for blocks.0.gate.weight.*nearest: blocks"):
        Tensors(rules, {"blocks.0.gate.weight": (2, 2)}, False)
    tensors = Tensors(rules, {f"blocks.0.{part}.weight": (2, 2) for part in "qkv"}, False)
    assert "nearest rule is for layer.*.fused.weight" in tensors.meant("layer.3.fusion.weight")
    assert "makes it blocks.9.q.weight" in tensors.meant("layer.9.fused.weight")
