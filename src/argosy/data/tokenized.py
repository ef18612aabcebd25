"""Preparing tokens that somebody else has made and that stay in their file: Megatron's .bin and .idx. No torch.

They are read once, for hashes, checksums and the largest id; what is written is an index of them (`borrowed`).
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from argosy.data import borrowed, tokenizer
from argosy.data.document import File, Source, Unreadable, held_out
from argosy.data.encode import wrong_vocabulary
from argosy.data.make import Recipe, finish, text_of, write
from argosy.data.scan import Progress, Scan
from argosy.data.shard_file import DOCUMENT
from argosy.data.sources.megatron import TOKENS, Index, read_index
from argosy.data.sources.streams import first_line
from argosy.errors import Refused


@dataclass
class Tokenized:
    """A source of tokens: what it holds, and for each of its files the index and what reading the tokens gave."""

    found: Scan
    files: list[tuple[Index, borrowed.Looked]]


def tokens_of(file: File) -> Path:
    """The file with the tokens of an index."""
    return file.path.with_suffix(TOKENS)


def look(source: Source, recipe: Recipe, progress: Progress) -> Tokenized:
    """Read the tokens of `source` once. Refused where an index or an id is impossible, or the tokenizer is missing."""
    if recipe.content is None or recipe.content == tokenizer.BYTES:
        raise Refused(
            "these tokens were made by somebody else's tokenizer, which is needed to read them.",
            where=source.where,
            do="Name it: --data.tokenizer FOLDER, or its tokenizer.json.",
        )
    made = tokenizer.parse(recipe.content, str(recipe.spec))
    files, rows, sizes = [], [], []
    whole = blake2b(b"tokens\n", digest_size=16)
    for number, file in enumerate(source.files):
        index, looked = _look(source, file, made, progress)
        mine = np.zeros(len(index.first), DOCUMENT)
        mine["file"], mine["hash"] = number, looked.hashes
        mine["begin"], mine["end"] = index.first, index.first + index.lengths
        files.append((index, looked))
        rows.append(mine)
        sizes.append(index.lengths)
        whole.update(file.name.encode() + b"\n" + looked.hashes.tobytes() + index.lengths.tobytes())
        whole.update(str(tokens_of(file).resolve()).encode("utf-8", "surrogateescape"))
    documents, lengths = np.concatenate(rows), np.concatenate(sizes)
    if len(np.unique(documents["hash"])) < 2:
        raise Refused(
            "too little text: one document to train on and another to hold out are needed, that are different.",
            where=source.where,
            found=f"{len(documents):,} documents",
        )
    documents["held"] = held_out(documents["hash"], recipe.held_out)
    return Tokenized(Scan(source, documents, whole.hexdigest(), 0, lengths.astype(np.uint64), ids=True), files)


def _look(source: Source, file: File, made: tokenizer.Tokenizer, progress: Progress) -> tuple[Index, borrowed.Looked]:
    try:
        index = read_index(file.path)
        size = tokens_of(file).stat().st_size
        looked = borrowed.look(tokens_of(file), index, lambda at: progress("reading", at, size))
    except Unreadable as error:
        raise Refused(f"{file.name} {error}.", where=source.where) from None
    except OSError as error:
        raise Refused(f"{file.name} cannot be read.", where=source.where, found=first_line(error)) from None
    progress("reading", size, size)
    if looked.smallest < 0:
        raise Refused(f"{file.name} holds the id {looked.smallest:,}, which no tokenizer has.", where=source.where)
    if looked.largest >= made.vocabulary:
        raise wrong_vocabulary(looked.largest, made.vocabulary, f"{source.where}, {file.name}")
    return index, looked


def make(folder: Path, tokens: Tokenized, recipe: Recipe) -> None:
    """Make `folder` under its partial name and rename it. Raises OSError."""
    partial = folder.with_suffix(".partial")
    partial.mkdir(exist_ok=True)
    made = tokenizer.parse(recipe.content or "", str(recipe.spec))
    write(partial / tokenizer.FILE, text_of(made))
    names = []
    for number, (file, (index, looked)) in enumerate(zip(tokens.found.source.files, tokens.files, strict=True)):
        rows = tokens.found.documents[tokens.found.documents["file"] == number].copy()
        rows["file"] = 0
        names.append(f"part-{number:05d}{borrowed.SUFFIX}")
        borrowed.write(partial / names[-1], tokens_of(file), file.name, index, rows, looked)
    finish(folder, partial, tokens.found, recipe, made, names)
