"""What a model is asked to go on from: texts, or chats by the model's template; from the command line, Python or a file.

In: strings, lists of messages, or a file of them. Out: `Prompt`, ids for the model and a text for people.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from argosy.data.chat import Template
from argosy.data.document import Bad
from argosy.data.sources.records import CHATS, TEXTS, message
from argosy.data.tokenizer import Tokenizer
from argosy.errors import Refused
from argosy.exchange.source import CONFIG
from argosy.job import paths

Asked: TypeAlias = str | Sequence[Mapping[str, Any]]  # a text, or the messages of a chat
PROMPTS = ("prompt", *TEXTS)  # fields of a record that hold a text to go on from
GENERATION = "generation_config.json"  # of an imported model: the ids that end an answer stand there
LARGEST = 64 * 1024 * 1024  # bytes of a file of prompts


@dataclass(frozen=True)
class Prompt:
    """One text to go on from: its `ids`, none of them missing; `shown` to people before what follows; `key` names its draws."""

    shown: str
    ids: tuple[int, ...]
    key: str


def prompt(asked: Asked, tokenizer: Tokenizer, template: Template, opening: Sequence[int] = ()) -> Prompt:
    """`asked` as ids. A text without a token begins a document: the model sees the end mark of the one before.

    opening: the ids that every text begins with; a chat template writes its own.

    Refused where a text is no UTF-8, where a message is none, or where the template fails.
    """
    if isinstance(asked, str):
        ids = [*opening, *tokenizer.encode(readable(asked))] or [tokenizer.end]
        return Prompt(asked, tuple(ids), asked)
    try:
        messages = [message(one, number) for number, one in enumerate(asked, 1)]
        if not messages:
            raise Bad("has no message")
        segments = template.prompt(messages)
    except Bad as error:
        raise Refused(f"this chat {error}.", do='Give messages: [{"role": "user", "content": "..."}].') from None
    chat: list[int] = [] if template.source else list(opening)
    for segment in segments:
        chat += (tokenizer.encode_marked if segment.marked else tokenizer.encode)(readable(segment.text))
        chat += [tokenizer.end] if segment.ended else []
    said = "".join(f"{one['role']}: {one['content']}\n" for one in messages) + "assistant: "
    return Prompt(said, tuple(chat or [tokenizer.end]), json.dumps(messages, sort_keys=True, default=str))


def readable(text: str) -> str:
    """`text`, Refused where bytes of the command line or of a pipe were none."""
    if text.encode("utf-8", "replace").decode() != text:
        raise Refused("the text to continue is no UTF-8.", found=repr(text[:80]))
    return text


def ends(tokenizer: Tokenizer, template: Template, folder: Path | None) -> tuple[int, ...]:
    """The ids after which nothing follows: the tokenizer's end, the template's, and those that came with the run's weights.

    folder: where these lie; None where the run has ids of its own, in which theirs mean nothing.
    """
    found = {tokenizer.end}
    if template.eos_token in tokenizer.marks:
        found.update(tokenizer.encode_marked(template.eos_token))
    files = [] if folder is None else [folder / GENERATION, folder / CONFIG]
    for file in files:  # the second holds where the first says nothing
        said = _table(file).get("eos_token_id")
        ids = said if isinstance(said, list) else [said]
        marks = {one for one in ids if type(one) is int and 0 <= one < tokenizer.vocabulary}
        if marks:
            return tuple(sorted(found | marks))
    return tuple(sorted(found))


def _table(path: Path) -> dict[str, Any]:
    """The table of somebody else's file; an empty one where it is none: what it does not say is not needed."""
    try:
        found = json.loads(paths.content(path)) if path.is_file() else None
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


def read(path: Path) -> list[Asked]:
    """The prompts of a file: each line of a text file; each record of .jsonl; of .json one record or a list of them.

    A record is a text, a list of messages, or a table with one of them. Refused for what is none, with its place.
    """
    text = paths.content(path, most=LARGEST)
    kind = path.suffix.lower()
    if kind not in (".json", ".jsonl"):
        found: list[Asked] = [line for _, line in _lines(text)]
    elif kind == ".jsonl":
        found = [_record(_parsed(line, f"{path}:{number}"), f"{path}:{number}") for number, line in _lines(text)]
    else:
        table = _parsed(text, str(path))
        several = isinstance(table, list) and not _is_message(table[0] if table else None)
        found = [_record(one, f"{path}, entry {n}") for n, one in enumerate(table, 1)] if several else []
        found = found or ([] if several else [_record(table, str(path))])
    if not found:
        raise Refused("there is no prompt in this file.", where=str(path))
    return found


def _lines(text: str) -> list[tuple[int, str]]:
    """The lines that are not empty, with their numbers. A line separator of Unicode (U+2028) ends none."""
    return [(number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(f"this is no JSON: {str(error)[:80]}.", where=where) from None


def _is_message(one: object) -> bool:
    return isinstance(one, dict) and ("role" in one or "from" in one)


def _record(record: Any, where: str) -> Asked:
    """The text or chat of one record."""
    if isinstance(record, str):
        return record
    if isinstance(record, dict):
        for name in (*CHATS, *PROMPTS):
            value = record.get(name)
            if isinstance(value, str) and name not in CHATS:
                return value
            if isinstance(value, list) and _is_message(value[0] if value else None):
                return value
    elif isinstance(record, list) and _is_message(record[0] if record else None):
        return record
    raise Refused(
        "this is no prompt.",
        where=where,
        found=json.dumps(record, ensure_ascii=False)[:80],
        do='Write a text, a list of messages, or a table with "prompt" or "messages".',
    )
