"""Megatron's .bin and .idx, written here as its own writer does, and the index of ours that leaves the tokens there."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from argosy.data.document import Unreadable
from argosy.data.prepare import prepare
from argosy.data.shards import Shards
from argosy.data.sources import find, megatron
from argosy.data.tokenizer import train_bpe
from argosy.errors import Refused
from argosy.job.schema import DataSection

CODES = {"<u1": 1, "<i4": 4, "<i8": 5, "<u2": 8}


def write(prefix: Path, documents: list[list[list[int]]], kind: str = "<u2") -> list[np.ndarray]:
    """Documents of sequences of ids at `prefix`.bin and .idx; gives the ids of each document."""
    sequences = [sequence for document in documents for sequence in document]
    lengths = np.array([len(sequence) for sequence in sequences], "<i4")
    width = np.dtype(kind).itemsize
    places = (np.concatenate([[0], np.cumsum(lengths)[:-1]]) * width).astype("<i8")
    borders = np.cumsum([0, *map(len, documents)]).astype("<i8")
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, CODES[kind], len(sequences), len(borders))
    prefix.with_suffix(".idx").write_bytes(head + lengths.tobytes() + places.tobytes() + borders.tobytes())
    flat = [number for sequence in sequences for number in sequence]
    prefix.with_suffix(".bin").write_bytes(np.array(flat, kind).tobytes())
    return [np.array([number for sequence in document for number in sequence]) for document in documents]


def made(kind: str = "<u2", tmp_path: Path = Path()) -> tuple[Path, list[np.ndarray]]:
    generator = np.random.default_rng(3)
    documents = [
        [generator.integers(0, 250, generator.integers(1, 40)).tolist() for _ in range(generator.integers(1, 3))]
        for _ in range(60)
    ]
    documents[7] = []  # an empty document
    prefix = tmp_path / "corpus_text_document"
    return prefix, [ids for ids in write(prefix, documents, kind) if len(ids)]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    path = tmp_path / "tok" / "tokenizer.json"
    path.parent.mkdir()
    path.write_text(train_bpe(iter(["some words to learn from"]), 257))
    return path


def prepared(source: str, tmp_path: Path, tokenizer: object) -> Any:
    section = DataSection.model_validate({"source": source, "tokenizer": tokenizer})
    return prepare(section, base=tmp_path, cache=tmp_path / "cache")


@pytest.mark.parametrize("kind", ["<u1", "<u2", "<i4", "<i8"])
def test_the_tokens_are_trained_on_where_they_lie(tmp_path: Path, tokenizer: Path, kind: str) -> None:
    prefix, documents = made(kind, tmp_path)
    found = prepared(str(prefix), tmp_path, str(tokenizer))
    shards = Shards(found.folder)
    assert [shards.document(number).tolist() for number in range(shards.documents)] == [
        ids.tolist() for ids in documents
    ]
    assert found.facts.documents + found.facts.held_out_documents == len(documents)
    assert shards.place(0)[0] == "corpus_text_document.idx"
    assert sum(path.stat().st_size for path in found.folder.glob("part-*")) < 100 * len(documents) + 1000
    assert shards.part(3, 1, 3).tolist() == documents[3][1:3].tolist()
    assert prepared(str(prefix), tmp_path, str(tokenizer)).folder == found.folder


@pytest.mark.parametrize(
    "name", ["corpus_text_document", "corpus_text_document.bin", "corpus_text_document.idx", ".", "corpus_*", "*.idx"]
)
def test_any_name_of_the_pair_finds_it(tmp_path: Path, name: str) -> None:
    made("<u2", tmp_path)
    (tmp_path / "notes.md").write_text("not meant")
    found = find(name, tmp_path)
    assert [(file.name, file.kind) for file in found.files] == [("corpus_text_document.idx", "megatron")]


def test_tokens_that_were_written_anew_are_told_and_never_trained_on(tmp_path: Path, tokenizer: Path) -> None:
    prefix, documents = made("<u2", tmp_path)
    folder = prepared(str(prefix), tmp_path, str(tokenizer)).folder
    tokens = prefix.with_suffix(".bin")
    content = bytearray(tokens.read_bytes())
    content[-2] ^= 1
    tokens.write_bytes(content)
    shards = Shards(folder)
    with pytest.raises(
        Refused, match=r"corpus_text_document\.bin: the tokens of this text are read where they lie, and are not as"
    ):
        shards.document(0)
    tokens.write_bytes(content[:-2])
    with pytest.raises(Refused, match=r"Found: [0-9,]+ bytes, where [0-9,]+ were"):
        Shards(folder)
    tokens.unlink()
    with pytest.raises(Refused, match="Found: No such file or directory"):
        Shards(folder)
    index = next(folder.glob("*.borrowed"))
    right = index.read_bytes()
    for spoilt in (
        right[:-1] + b"x",
        right.replace(b'"documents": ', b'"documents": "x", "d": '),
        right.replace(b'"bytes": ', b'"bytes": -'),
        right.replace(b'"blocks": ', b'"blacks": '),
        b"[" * 100_000 + right,
    ):
        assert spoilt != right
        index.write_bytes(spoilt)
        with pytest.raises(Refused, match="this index of tokens is damaged"):
            Shards(folder)


def test_the_tokenizer_that_made_them_is_needed(tmp_path: Path, tokenizer: Path) -> None:
    prefix, _ = made("<u2", tmp_path)
    for other in ("bytes", {"train": "bpe", "vocabulary": 300}):
        with pytest.raises(Refused, match="these tokens were made by somebody else's tokenizer, which is needed"):
            prepared(str(prefix), tmp_path, other)
    write(prefix, [[[1, 2, 300]], [[4]]])
    with pytest.raises(Refused, match=r"made by another tokenizer\. Found: the id 300, where the tokenizer has 257"):
        prepared(str(prefix), tmp_path, str(tokenizer))
    write(prefix, [[[1, -2, 3]], [[4]]], "<i4")
    with pytest.raises(Refused, match="holds the id -2, which no tokenizer has"):
        prepared(str(prefix), tmp_path, str(tokenizer))
    assert not list((tmp_path / "cache/prepared").glob("*/prepared.json"))


def spoilt(prefix: Path, at: int, form: str, value: int) -> None:
    content = bytearray(prefix.with_suffix(".idx").read_bytes())
    struct.pack_into(form, content, at, value)
    prefix.with_suffix(".idx").write_bytes(content)


HEAD = 34
PLACES = HEAD + 4 * 3
BORDERS = PLACES + 8 * 3


@pytest.mark.parametrize(
    ("at", "form", "value", "says"),
    [
        (0, "<B", 0, "is no index of Megatron"),
        (9, "<Q", 2, "is an index of version 2"),
        (17, "<B", 7, "with tokens of type 7"),
        (18, "<Q", 2**62, "says 4,611,686,018,427,387,904 sequences"),
        (26, "<Q", 0, "says 3 sequences in -1 documents"),
        (HEAD, "<i", -5, "has a sequence at an impossible place, or of a negative length"),
        (PLACES, "<q", -2, "has a sequence at an impossible place"),
        (PLACES, "<q", 1, "has a sequence at an impossible place"),
        (HEAD + 8, "<i", 2**31 - 1, "points behind the end of its .bin"),
        (PLACES + 16, "<q", 2**62, "points behind the end of its .bin"),
        (PLACES + 8, "<q", 0, "has documents whose sequences do not follow each other"),
        (BORDERS, "<q", 1, "has documents that do not fit its sequences"),
        (BORDERS + 8, "<q", 2**62, "has documents that do not fit its sequences"),
    ],
)
def test_hostile_indexes_are_one_sentence(tmp_path: Path, at: int, form: str, value: int, says: str) -> None:
    prefix = tmp_path / "x"
    write(prefix, [[[1, 2], [3, 4]], [[5, 6]]])
    spoilt(prefix, at, form, value)
    with pytest.raises(Unreadable, match=says):
        megatron.read_index(prefix.with_suffix(".idx"))
