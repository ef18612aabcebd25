"""Text to token ids and back: bytes, any `tokenizer.json`, byte-pair encoding trained on the corpus. No torch.

A tokenizer is one file, `tokenizer.json`: the format of the `tokenizers` library, or {"argosy": "bytes"} for bytes. It is
data and may come from a stranger: it is read by that library, which runs no code from it, and checked before use.
"""

from __future__ import annotations

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from argosy.errors import Refused
from argosy.job import paths

os.environ.setdefault(
    "TOKENIZERS_PARALLELISM", "false"
)  # we are parallel over processes; its threads outlive a fork badly

FILE = "tokenizer.json"
BYTES = json.dumps({"argosy": "bytes", "version": 1}) + "\n"
END = "<|endoftext|>"
ENDS = (END, "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>", "<|im_end|>", "[SEP]")
LARGEST_FILE = 128 * 1024 * 1024
MOST_IDS = 1_000_000
_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer(ABC):
    """Text to ids and back. `vocabulary` ids, of which `end` marks the end of a document."""

    vocabulary: int
    end: int
    bytes_of: NDArray[np.int64]  # [vocabulary]: UTF-8 bytes that each id stands for, 0 for marks

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without marks: what looks like a mark in the text is text."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD, marks are left out."""

    def encode_many(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """The ids of each of `texts`."""
        return [np.array(self.encode(text), np.int32) for text in texts]

    @property
    def marks(self) -> tuple[str, ...]:
        """The texts of the marks among the ids, as a chat template writes them."""
        return ()

    @property
    def opening(self) -> tuple[int, ...]:
        """The ids that its file puts before every text. Prepared text has none; a model trained elsewhere expects them."""
        return ()

    def encode_marked(self, text: str) -> list[int]:
        """The ids of `text`, in which what looks like a mark is one."""
        return self.encode(text)


class Bytes(Tokenizer):
    """Ids 0 to 255 are the bytes of the UTF-8 text, 256 is the end mark."""

    def __init__(self) -> None:
        self.vocabulary, self.end = 257, 256
        self.bytes_of = np.array([1] * 256 + [0], np.int64)

    def encode(self, text: str) -> list[int]:
        """See Tokenizer."""
        return list(text.encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        """See Tokenizer."""
        return bytes(int(number) for number in ids if number < 256).decode("utf-8", "replace")

    def encode_many(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """See Tokenizer."""
        return [np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32) for text in texts]


class Pieces(Tokenizer):
    """A tokenizer of the `tokenizers` library. `where` names it in errors; Refused when the file is broken or hostile."""

    def __init__(self, content: str, where: str):
        self._tokenizer = _parse(content, where)
        # A stranger's file may cut text off, or fill each text up to a length of 10^12.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        marks = {token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special}
        end = next((mark for mark in ENDS if mark in marks), None)
        if end is None:
            end = END
            self._tokenizer.add_special_tokens([END])
        self._tokenizer.encode_special_tokens = True
        self._marks = (*sorted(marks), *(() if end in marks else (end,)))
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocabulary = max(vocabulary.values()) + 1
        if not 2 <= self.vocabulary <= MOST_IDS:
            raise Refused(
                f"this tokenizer's largest id is {self.vocabulary - 1}; ids below {MOST_IDS:,} are taken.", where=where
            )
        self.end = vocabulary[end]
        self.bytes_of = _bytes_of(self._tokenizer, self.vocabulary)

    @property
    def content(self) -> str:
        """The tokenizer as text, with the end mark it was given."""
        text: str = self._tokenizer.to_str()
        return text

    def encode(self, text: str) -> list[int]:
        """See Tokenizer."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    @property
    def marks(self) -> tuple[str, ...]:
        """See Tokenizer."""
        return self._marks

    @property
    def opening(self) -> tuple[int, ...]:
        """See Tokenizer."""
        plain, whole = self.encode("a"), list(self._tokenizer.encode("a", add_special_tokens=True).ids)
        places = [n for n in range(len(whole) - len(plain) + 1) if whole[n : n + len(plain)] == plain]
        return tuple(whole[: places[0]]) if places else ()

    def encode_marked(self, text: str) -> list[int]:
        """See Tokenizer."""
        self._tokenizer.encode_special_tokens = False
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
            return ids
        finally:
            self._tokenizer.encode_special_tokens = True

    def decode(self, ids: Sequence[int]) -> str:
        """See Tokenizer."""
        kept = [int(number) for number in ids if number < self.vocabulary]
        text: str = self._tokenizer.decode(kept, skip_special_tokens=True)
        return text

    def encode_many(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """See Tokenizer."""
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in found]


def train_bpe(texts: Iterator[str], vocabulary: int) -> str:
    """A byte-level BPE tokenizer of at most `vocabulary` ids, trained on `texts`, as the text of its file.

    The 256 bytes and the end mark are among the ids, so every text can be written. The same texts give the same file,
    whatever the number of threads. Source: Sennrich et al. 2016; over bytes, Radford et al. 2019.
    """
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = Library(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    content: str = made.to_str()
    return content


def open_tokenizer(path: Path | str) -> Tokenizer:
    """The tokenizer "bytes", or that of a file, a folder, an hf:// address. Refused when there is none."""
    if str(path) == "bytes":
        return Bytes()
    found = located(path) if isinstance(path, str) else path
    return parse(read_file(found / FILE if found.is_dir() else found), str(path))


def located(spec: str, base: Path = Path()) -> Path:
    """The file or folder that `data.tokenizer` means, seen from `base`; of a model of the Hub it is fetched. Raises Refused."""
    text = paths.expand(spec)
    if text.startswith("hf://"):
        from argosy.data.sources import hub

        return hub.tokenizer(text)
    return base / text


def read_file(path: Path) -> str:
    """The content of a tokenizer.json. Refused where it cannot be one."""
    do = 'Name a tokenizer.json, or say "bytes" or { train = "bpe", vocabulary = 2048 }.'
    return paths.content(path, most=LARGEST_FILE, do=do)


def parse(content: str, where: str) -> Tokenizer:
    """The tokenizer that `content` describes."""
    return Bytes() if content == BYTES else Pieces(content, where)


def _broken(where: str, why: str) -> Refused:
    return Refused(
        f"this is no tokenizer: {why}.",
        where=where,
        do="Name a tokenizer.json as the `tokenizers` library or Hugging Face writes it.",
    )


def _parse(content: str, where: str) -> Any:
    from tokenizers import Tokenizer as Library

    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _broken(where, f"it is no JSON ({str(error).splitlines()[0]})") from error
    if not isinstance(tree, dict) or not isinstance(tree.get("model"), dict):
        raise _broken(where, 'it is a JSON file without a "model" table')
    try:
        made = Library.from_str(content)
        made.encode("a b\n", add_special_tokens=False)
    except BaseException as error:  # a panic of the library is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise _broken(where, str(error).splitlines()[0][:200]) from error
    if made.get_vocab_size(with_added_tokens=True) < 1:
        raise _broken(where, "its vocabulary is empty")
    return made


def _bytes_of(tokenizer: Any, vocabulary: int) -> NDArray[np.int64]:
    """Bytes of each id, from how its vocabulary is written: one letter a byte, or text with "▁" and <0x0A>."""
    from tokenizers import pre_tokenizers

    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    byte_level = "ByteLevel" in repr(tokenizer.decoder) or "ByteLevel" in repr(tokenizer.pre_tokenizer)
    added = tokenizer.get_added_tokens_decoder()
    sizes = np.zeros(vocabulary, np.int64)
    for word, number in tokenizer.get_vocab(with_added_tokens=True).items():
        if number in added:
            sizes[number] = 0 if added[number].special else len(added[number].content.encode("utf-8", "replace"))
        elif byte_level and alphabet.issuperset(word):
            sizes[number] = len(word)
        elif _FALLBACK.fullmatch(word):
            sizes[number] = 1
        else:
            sizes[number] = len(word.removeprefix("##").replace("▁", " ").encode("utf-8", "replace"))
    return sizes
