"""Prepared folders of any shape, written by the same writer, and small texts on disk."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from argosy.data import shard_file, shards, tokenizer

MakeShards = Callable[..., shards.Shards]


def write_prepared(
    folder: Path, lengths: Sequence[int], held: Sequence[int] = (0,), files: int = 1, vocabulary: int = 257
) -> Path:
    """A prepared folder of documents with these lengths; token k of document n is a number that tells both apart."""
    folder.mkdir(parents=True)
    names = []
    for part, numbers in enumerate(np.array_split(np.arange(len(lengths)), files)):
        rows = np.zeros(len(numbers), shard_file.DOCUMENT)
        rows["held"] = np.isin(numbers, held)
        rows["hash"] = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        rows["file"] = np.arange(len(numbers))
        texts = [made_tokens(int(number), lengths[number], vocabulary) for number in numbers]
        contents = shard_file.Contents(
            np.cumsum([0, *map(len, texts)]).astype(np.uint64),
            rows,
            [f"folder/{number}.txt" for number in numbers],
            np.concatenate(texts).astype(np.uint16),
        )
        names.append(f"part-{part:05d}.shard")
        shard_file.write(folder / names[-1], contents)
    (folder / tokenizer.FILE).write_text(tokenizer.BYTES)
    np.array([1] * (vocabulary - 1) + [0], "<i4").tofile(folder / shards.TOKEN_BYTES)
    facts = {"version": 1, "digest": "d", "source": "made", "vocabulary": vocabulary, "shards": names}
    (folder / shards.FACTS).write_text(json.dumps(facts))
    return folder


def made_tokens(number: int, length: int, vocabulary: int = 257) -> np.ndarray:
    """The tokens of document `number`: its number, counting, the end mark."""
    tokens = (np.arange(length) * 7 + number * 31) % (vocabulary - 1)
    tokens[-1] = vocabulary - 1
    return tokens


@pytest.fixture
def make_shards(tmp_path: Path) -> MakeShards:
    def make(lengths: Sequence[int], held: Sequence[int] = (0,), files: int = 1) -> shards.Shards:
        number = len(list(tmp_path.glob("made-*")))
        return shards.Shards(write_prepared(tmp_path / f"made-{number}", lengths, held, files))

    return make


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A folder of 80 small notes, different from each other, enough for several documents on both sides."""
    folder = tmp_path / "notes"
    folder.mkdir()
    for number in range(80):
        words = " ".join(f"word{number * k % 97} wörd {k}" for k in range(40 + number % 7))
        (folder / f"note-{number:02d}.txt").write_text(f"Note {number}\n\n{words}\n", encoding="utf-8")
    return folder


@pytest.fixture
def tokens_of() -> Callable[..., np.ndarray]:
    return made_tokens


def write_mix(folder: Path, parts: Sequence[Path]) -> Path:
    """The prepared folder of a mix of `parts`, which lie beside it."""
    folder.mkdir()
    for name in (tokenizer.FILE, shards.TOKEN_BYTES):
        (folder / name).write_bytes((parts[0] / name).read_bytes())
    facts = {"version": 2, "parts": [part.name for part in parts]}
    (folder / shards.FACTS).write_text(json.dumps(facts))
    return folder


@pytest.fixture
def make_mix(tmp_path: Path) -> Callable[..., shards.Shards]:
    """Several sources, each (lengths, held), opened together; the digest of each is "d" and its number."""

    def make(*sources: tuple[Sequence[int], Sequence[int]]) -> shards.Shards:
        home = tmp_path / f"mix-{len(list(tmp_path.glob('mix-*')))}"
        folders = []
        for number, (lengths, held) in enumerate(sources):
            folder = write_prepared(home / f"d{number}", lengths, held)
            facts = json.loads((folder / shards.FACTS).read_text())
            told = facts | {"digest": folder.name, "source": f"source {number}"}
            (folder / shards.FACTS).write_text(json.dumps(told))
            folders.append(folder)
        return shards.Shards(write_mix(home / "whole", folders))

    return make
