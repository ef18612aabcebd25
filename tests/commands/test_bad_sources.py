"""Every way in which a source can be bad, as a person meets it: one sentence, exit code 2, nothing half-written."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from argosy.__main__ import main

Make = Callable[[Path], tuple[str, ...]]
WORDS = "".join(f"word {number}\n\n" for number in range(400))
LINES = "".join(json.dumps({"title": f"words {number}"}) + "\n" for number in range(50))


def file(name: str, content: bytes, *words: str) -> Make:
    """A source that is one file."""

    def made(folder: Path) -> tuple[str, ...]:
        (folder / name).write_bytes(content)
        return (f"data.source={folder / name}", *words)

    return made


def none(folder: Path) -> tuple[str, ...]:
    return (f"data.source={folder / 'nowhere'}",)


def pictures(folder: Path) -> tuple[str, ...]:
    (folder / "mine").mkdir()
    (folder / "mine" / "a.jpg").write_bytes(b"x")
    return (f"data.source={folder / 'mine'}",)


def empty_folder(folder: Path) -> tuple[str, ...]:
    (folder / "mine").mkdir()
    return (f"data.source={folder / 'mine'}",)


def table(change: Callable[[bytes], bytes]) -> Make:
    """A Parquet file that somebody spoilt."""

    def made(folder: Path) -> tuple[str, ...]:
        path = folder / "a.parquet"
        parquet.write_table(pyarrow.table({"text": [f"row {number}" for number in range(50)]}), path)
        path.write_bytes(change(path.read_bytes()))
        return (f"data.source={path}",)

    return made


def megatron(largest: int) -> Make:
    """Tokens of Megatron, one of which is `largest`, beside a tokenizer of our own."""

    def made(folder: Path) -> tuple[str, ...]:
        ids = np.array([[1, 2, largest], [4, 5, 6], [7, 8, 9]], "<i4")
        (folder / "a.bin").write_bytes(ids.tobytes())
        head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 4, 3, 4)
        places = np.array([0, 12, 24], "<i8").tobytes() + np.arange(4, dtype="<i8").tobytes()
        (folder / "a.idx").write_bytes(head + np.array([3, 3, 3], "<i4").tobytes() + places)
        return (f"data.source={folder / 'a.bin'}", f"data.tokenizer={tokenizer(folder)}")

    return made


def tokenizer(folder: Path) -> Path:
    """A tokenizer of 300 pieces in the folder `model`."""
    from argosy.data.tokenizer import train_bpe

    (folder / "model").mkdir()
    (folder / "model" / "tokenizer.json").write_text(train_bpe(iter([WORDS]), 300))
    return folder / "model"


def other_ids(folder: Path) -> tuple[str, ...]:
    rows = [json.dumps({"input_ids": [1, 2, number * 30]}) for number in range(50)]
    (folder / "a.jsonl").write_text("\n".join(rows))
    return (f"data.source={folder / 'a.jsonl'}", f"data.tokenizer={tokenizer(folder)}")


def template(text: str) -> Make:
    """Chats, and a tokenizer with this chat template."""

    def made(folder: Path) -> tuple[str, ...]:
        talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        rows = [json.dumps({"messages": [*talk, {"role": "user", "content": f"{n}"}]}) for n in range(50)]
        (folder / "a.jsonl").write_text("\n".join(rows))
        place = tokenizer(folder)
        (place / "chat_template.jinja").write_text(text)
        return (f"data.source={folder / 'a.jsonl'}", f"data.tokenizer={place}")

    return made


def two(folder: Path) -> str:
    (folder / "a.txt").write_text(WORDS)
    return f'data.mix=[{{ source = "{folder / "a.txt"}", weight = 0 }}]'


def index_alone(folder: Path) -> tuple[str, ...]:
    words = megatron(9)(folder)
    (folder / "a.bin").unlink()
    return (words[0].replace("a.bin", "a.idx"), *words[1:])


CASES: dict[str, tuple[Make, str]] = {
    "missing": (none, "there is no such file or folder"),
    "empty": (file("a.txt", b""), "this file is empty"),
    "an empty folder": (empty_folder, "0 text files there"),
    "nothing to read": (pictures, "Found: 1 .jpg"),
    "too little": (file("a.txt", b"one word\n"), "too little text"),
    "latin-1": (file("a.txt", WORDS.replace("w", "\xfc").encode("latin-1")), "is not UTF-8: byte 0 is 0xfc"),
    "UTF-16": (file("a.txt", WORDS.encode("utf-16")), "is UTF-16; save it as UTF-8"),
    "binary called text": (file("a.txt", b"a\0b" * 500), "is binary, not text"),
    "gzip cut off": (file("a.txt.gz", gzip.compress(WORDS.encode())[:-200]), "cannot be read"),
    "zstd cut off": (
        file("a.txt.zst", pyarrow.compress(WORDS.encode(), "zstd", asbytes=True)[:-200]),
        "cannot be read",
    ),
    "text called gzip": (file("a.txt.gz", WORDS.encode()), "cannot be read"),
    "text called Parquet": (file("a.parquet", WORDS.encode()), "is no Parquet file that can be read"),
    "Parquet cut off": (table(lambda raw: raw[: len(raw) // 2]), "is no Parquet file that can be read"),
    "Parquet of two gigabytes of columns": (
        table(lambda raw: raw[:-8] + (2**31 - 1).to_bytes(4, "little") + raw[-4:]),
        "is no Parquet file that can be read",
    ),
    "text called JSONL": (file("a.jsonl", WORDS.encode()), "the first: a.jsonl:1 is not JSON"),
    "a list called JSONL": (file("a.jsonl", b'[\n  {"text": "a"}\n]\n'), "is one JSON list, not one record a line"),
    "no field of text": (file("a.jsonl", LINES.encode()), 'it has "title". Name the field'),
    "another field": (file("a.jsonl", LINES.encode(), "data.field=body"), 'has no field "body"; it has "title"'),
    "ids of another tokenizer": (other_ids, "these tokens were made by another tokenizer"),
    "Megatron's of another tokenizer": (megatron(300), "these tokens were made by another tokenizer"),
    "Megatron's below zero": (megatron(-7), "holds the id -7, which no tokenizer has"),
    "Megatron's index alone": (index_alone, "a.idx needs a.bin beside it, which is not there"),
    "MDS of four billion samples": (
        file("a.mds", b"\xff\xff\xff\xff" + bytes(60)),
        "says that it has 4,294,967,295 samples",
    ),
    "a template that fails": (
        template("{{ raise_exception('no') }}"),
        "the record at 0, does not suit the chat template: no",
    ),
    "a template that is none": (template("{% for %}"), "this chat template cannot be read"),
    "a mix of nothing": (lambda folder: (two(folder),), "the weights of data.mix sum to nothing"),
    "a licence that is not allowed": (
        file("a.txt", WORDS.encode(), 'data.licences=["MIT"]', "data.license=GPL-3.0"),
        "its licence is GPL-3.0, which data.licences does not allow",
    ),
    "nothing left to train on": (
        file("a.txt", WORDS.encode(), "data.held_out=100%"),
        "data.held_out = 1 leaves 0.00% of the text to train on",
    ),
    "an address of nobody": (lambda folder: ("data.source=nobody://x/y",), "addresses with nobody:// are not known"),
    "a model of the Hub": (lambda folder: ("data.source=hf://me/model",), "this is no address of a data set"),
    "a tokenizer that is none": (
        lambda folder: (*file("a.txt", WORDS.encode())(folder), f"data.tokenizer={folder / 'a.txt'}"),
        "it is no JSON",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_source_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path / "cache"))
    make, says = CASES[case]
    (tmp_path / "mine").mkdir()
    words = make(tmp_path / "mine")
    plain = () if any(word.startswith("data.tokenizer") for word in words) else ("data.tokenizer=bytes",)
    assert main(["data", "prepare", "smoke", *words, *plain, "--workers", "1"]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ") and told.err.count("\n") == 1, told.err
    assert says in told.err
    assert "Traceback" not in told.err and told.out == ""
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert left == [], "no shard, no plan, no name of a folder that is not there"
