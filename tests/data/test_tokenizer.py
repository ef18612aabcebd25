import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from argosy.data import tokenizer
from argosy.errors import INPUT, Refused

TEXT = [f"def parse_{word}(self): return '{word}' * {n}\n" for n in range(30) for word in ("queue", "größe", "list")]


@pytest.fixture(scope="module")
def bpe() -> tokenizer.Pieces:
    return tokenizer.Pieces(tokenizer.train_bpe(iter(TEXT), 300), "here")


def unigram(**changes: Any) -> dict[str, Any]:
    """A tokenizer as sentencepiece's are written: "▁" for a space, <0x0A> for bytes it does not know."""
    pieces = [["<unk>", 0.0], ["▁", -2.0], ["a", -1.0], ["b", -1.0], ["ab", -1.5]]
    pieces += [[f"<0x{byte:02X}>", -9.0] for byte in range(256)]
    return {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True},
        "decoder": {
            "type": "Sequence",
            "decoders": [{"type": "ByteFallback"}, {"type": "Metaspace", "replacement": "▁"}],
        },
        "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": True},
        **changes,
    }


@given(some.text())
def test_bytes_are_the_text_itself(text: str) -> None:
    made = tokenizer.Bytes()
    assert made.decode([*made.encode(text), made.end]) == text
    assert made.bytes_of[made.encode(text)].sum() == len(text.encode())
    assert made.encode_many([text])[0].tolist() == made.encode(text)


@given(text=some.text(some.characters(codec="utf-8")))
def test_bpe_writes_every_text_and_knows_its_bytes(bpe: tokenizer.Pieces, text: str) -> None:
    ids = bpe.encode(text)
    assert bpe.decode([*ids, bpe.end]) == text
    assert bpe.bytes_of[ids].sum() == len(text.encode())
    assert bpe.encode_many([text, "x"])[0].tolist() == ids


def test_bpe_has_the_size_that_was_asked_and_learned_something(bpe: tokenizer.Pieces) -> None:
    assert bpe.vocabulary == 300
    assert bpe.bytes_of[bpe.end] == 0
    assert len(bpe.encode("".join(TEXT))) < len("".join(TEXT)) / 2
    assert tokenizer.Pieces(tokenizer.train_bpe(iter(["ab"]), 5000), "small").vocabulary < 300


def test_what_looks_like_a_mark_in_the_text_is_text(bpe: tokenizer.Pieces) -> None:
    ids = bpe.encode("a<|endoftext|>b")
    assert bpe.end not in ids
    assert bpe.decode(ids) == "a<|endoftext|>b"


def test_training_is_the_same_in_every_process_and_with_any_number_of_threads(bpe: tokenizer.Pieces) -> None:
    program = "import sys, json; from argosy.data import tokenizer; print(tokenizer.train_bpe(iter(json.load(sys.stdin)), 300))"
    for threads in ("1", "4"):
        environment = {
            **os.environ,
            "RAYON_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": str(threads != "1").lower(),
        }
        made = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(TEXT),
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        )
        assert json.loads(made.stdout)["model"] == json.loads(bpe.content)["model"]


def test_a_tokenizer_of_another_kind_gets_an_end_mark_and_byte_counts(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(unigram()))
    made = tokenizer.open_tokenizer(tmp_path)
    assert made.vocabulary == 262
    assert made.end == 261
    for text in ("ab a b", "ab\nü"):
        ids = made.encode(text)
        assert made.bytes_of[ids].sum() == len(text.encode())
    again = tokenizer.parse(made.content, "again") if isinstance(made, tokenizer.Pieces) else None
    assert again is not None
    assert (again.vocabulary, again.end) == (made.vocabulary, made.end)


def test_a_known_end_mark_is_used(tmp_path: Path) -> None:
    mark = {"id": 261, "content": "</s>", "special": True, "single_word": False, "lstrip": False, "rstrip": False}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(unigram(added_tokens=[{**mark, "normalized": False}])))
    made = tokenizer.open_tokenizer(path)
    assert (made.end, made.vocabulary) == (261, 262)


def test_a_strangers_file_cannot_cut_or_fill_the_text(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 10**6}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"}
    path.write_text(json.dumps(unigram(truncation=truncation, padding={**padding, "pad_to_multiple_of": None})))
    made = tokenizer.open_tokenizer(path)
    assert made.decode(made.encode("ab ab ab ab")) == "ab ab ab ab"
    assert len(made.encode("ab ab ab ab")) == 7


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "it is no JSON"),
        (b"[1, 2]", 'without a "model" table'),
        (b'{"model": 3}', 'without a "model" table'),
        (b'{"model": {"type": "NoSuch"}}', "this is no tokenizer"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "zz"]]}}', "this is no tokenizer"),
        (b"[" * 100_000, "it is no JSON"),
        (b"\xff\xfe\0", "this is no UTF-8 text"),
        (
            b"\x80\x04cos\nsystem\n(S'touch hacked'\ntR.",
            "this is no UTF-8 text",
        ),  # allowed: a hostile pickle, never read as one
        (
            json.dumps(unigram(model={"type": "BPE", "vocab": {"a": 10**9, "b": 1}, "merges": []})).encode(),
            "largest id is",
        ),
    ],
)
def test_a_broken_or_hostile_file_is_refused_in_one_sentence(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(Refused) as refused:
        tokenizer.open_tokenizer(path)
    assert says in refused.value.text
    assert refused.value.text.startswith(str(path))
    assert "\n" not in refused.value.text
    assert refused.value.code == INPUT


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"this cannot be read\. Found: No such file or directory"):
        tokenizer.open_tokenizer(tmp_path / "tokenizer.json")
