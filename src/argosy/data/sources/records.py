"""From one record (a JSON table, a row) to documents: its text, its conversation, or the two answers of a pair. No torch.

Without a named field the record's own shape decides: `chosen` and `rejected` are a pair; `messages` or `conversations` a
chat; `prompt` with `completion`, and the like, one question and its answer; else the first of `text`, `content`, ... is text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from argosy.data.document import Bad, Chat, Piece, digest

TEXTS = ("text", "content", "markdown", "body", "document", "completion")
CHATS = ("messages", "conversations", "conversation", "dialog")
ANSWERS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
)
IDS = ("input_ids", "tokens", "token_ids")
# How files spell who speaks, and what we call it.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}


def wanted(names: Sequence[str], field: str) -> list[str]:
    """Of a table's columns `names`, those that `pieces` would look at."""
    known = {field} if field else {*TEXTS, *CHATS, *IDS, *(name for pair in ANSWERS for name in pair)}
    known |= {"chosen", "rejected", "prompt", "system", "input", "tools"} if not field else {"tools"}
    return [name for name in names if name in known]


def pieces(record: Any, field: str, begin: int, end: int) -> Iterator[Piece]:
    """The documents of one record, found at `begin` to `end`. Raises Bad."""
    if isinstance(record, str):
        record, field = {"text": record}, "text"
    if not isinstance(record, Mapping):
        raise Bad(f"is no table but {_kind(record)}")
    if not field and "chosen" in record and "rejected" in record:
        yield from _pair(record, begin, end)
        return
    value = _value(record, field)
    tools = record.get("tools")
    if isinstance(value, str):
        yield _text(value, begin, end)
    elif isinstance(value, Chat):
        yield _chat(Chat(value.messages, True, tuple(tools) if isinstance(tools, list) else ()), begin, end)
    else:
        yield _ids(value, begin, end)


def _value(record: Mapping[str, Any], field: str) -> Any:
    """The text, chat or ids of `record`. Raises Bad."""
    if field:
        if field not in record:
            raise Bad(f'has no field "{field}"; it has {_names(record)}')
        return _spoken(record[field], field)
    for name in CHATS:
        if record.get(name) is not None:
            return _conversation(record[name], name)
    for question, answer in ANSWERS:
        if record.get(question) is not None and record.get(answer) is not None:
            return _answered(record, question, answer)
    for name in TEXTS:
        if record.get(name) is not None:
            return _spoken(record[name], name)
    for name in IDS:
        if record.get(name) is not None:
            return record[name]
    raise Bad(f"has no field with text or a chat; it has {_names(record)}")


def _spoken(value: Any, field: str) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return _conversation(value, field)
    if field in IDS and not isinstance(value, Mapping | bool | int | float) and value is not None:
        return value
    raise Bad(f'has {_kind(value)} in "{field}", no text')


def _text(value: str, begin: int, end: int) -> Piece:
    try:
        text = value.encode("utf-8")
    except UnicodeEncodeError:
        raise Bad("holds half of a surrogate pair, which is no text") from None
    if not text:
        raise Bad("is empty")
    return Piece(begin, end, text)


def _ids(value: Any, begin: int, end: int) -> Piece:
    import numpy as np

    try:
        ids = np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        raise Bad("holds token ids that are no numbers") from None
    if ids.dtype.kind not in "iu" or ids.ndim != 1:
        raise Bad("holds token ids that are no list of whole numbers")
    if not len(ids):
        raise Bad("is empty")
    if int(ids.min()) < 0 or int(ids.max()) >= 2**31:
        raise Bad(f"holds the id {int(ids.min() if ids.min() < 0 else ids.max())}, which no tokenizer has")
    ids = ids.astype("<u4")
    return Piece(begin, end, ids.tobytes(), ids=ids)


def _conversation(value: Any, name: str) -> Chat:
    """The chat in `value`. Raises Bad."""
    if not isinstance(value, list):
        raise Bad(f'has {_kind(value)} in "{name}", no list of messages')
    messages = tuple(message(one, number) for number, one in enumerate(value, 1))
    if not any(message["role"] == "assistant" for message in messages):
        raise Bad("has no message of an assistant, so there is nothing to learn from it")
    return Chat(messages)


def message(one: Any, number: int) -> dict[str, Any]:
    """A message of a chat, the `number`th, as we call its speaker and its text. Raises Bad."""
    if not isinstance(one, Mapping):
        raise Bad(f"has {_kind(one)} as its message {number}, no table")
    who = one.get("role", one.get("from"))
    if who is None:
        raise Bad(f"has no role in its message {number}; it has {_names(one)}")
    role = ROLES.get(who.lower()) if isinstance(who, str) else None
    if role is None:
        raise Bad(f'has the role "{who}" in its message {number}; known are {", ".join(ROLES)}')
    content = one.get("content", one.get("value", one.get("text")))
    if isinstance(content, list):
        content = _joined(content, number)
    if content is None and one.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        raise Bad(f"has {_kind(content)} as the content of its message {number}, no text")
    _text(content or "-", 0, 0)
    rest = {key: value for key, value in one.items() if key not in ("role", "from", "content", "value")}
    return {"role": role, "content": content, **rest}


def _joined(parts: list[Any], number: int) -> str:
    found = []
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            raise Bad(f"has something else than text in its message {number}")
        found.append(text)
    return "".join(found)


def _answered(record: Mapping[str, Any], question: str, answer: str) -> Any:
    """A question and its answer as a chat. Raises Bad."""
    asked, told = record[question], record[answer]
    if isinstance(asked, list) and isinstance(told, list):
        return _conversation([*asked, *told], question)
    if not isinstance(asked, str) or not isinstance(told, str):
        raise Bad(f'has {_kind(asked)} in "{question}" and {_kind(told)} in "{answer}", no texts')
    more = record.get("input")
    user = f"{asked}\n\n{more}" if isinstance(more, str) and more else asked
    system = record.get("system")
    first = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
    return _conversation([*first, {"role": "user", "content": user}, {"role": "assistant", "content": told}], question)


def _pair(record: Mapping[str, Any], begin: int, end: int) -> Iterator[Piece]:
    """The chosen and the rejected answer; both have the hash of the pair, so that one is never held out alone."""
    sides = []
    for name in ("chosen", "rejected"):
        value, prompt = record[name], record.get("prompt")
        if isinstance(value, list):
            before = prompt if isinstance(prompt, list) else []
            if isinstance(prompt, str) and not _begins_with(value, prompt):
                before = [{"role": "user", "content": prompt}]
            sides.append(_conversation([*before, *value], name))
        elif isinstance(value, str) and isinstance(prompt, str):
            sides.append(_answered({"prompt": prompt, name: value}, "prompt", name))
        else:
            raise Bad(f'has {_kind(value)} in "{name}"; give messages, or texts with a "prompt"')
    whole = b"\0".join(_canonical(side) for side in sides)
    number = digest(whole) >> 1
    for which, side in enumerate(sides):
        yield Piece(begin, end, whole, which, Chat(side.messages, which == 0), None, number)


def _begins_with(messages: list[Any], prompt: str) -> bool:
    first = messages[0] if messages else None
    return isinstance(first, Mapping) and first.get("content", first.get("value")) == prompt


def _chat(chat: Chat, begin: int, end: int) -> Piece:
    return Piece(begin, end, _canonical(chat), 0, chat)


def _canonical(chat: Chat) -> bytes:
    """A chat as the same bytes whatever the order of its keys. Raises Bad."""
    try:
        words = json.dumps([chat.messages, chat.tools], ensure_ascii=False, sort_keys=True, default=str)
        return words.encode("utf-8")
    except (ValueError, TypeError, RecursionError):
        raise Bad("holds messages that are no text") from None


def _names(record: Mapping[str, Any]) -> str:
    names = [f'"{str(name)[:40]}"' for name in record]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return shown or "none"


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a text"
    return "a table" if isinstance(value, Mapping) else "a list" if isinstance(value, list | tuple) else "binary data"
