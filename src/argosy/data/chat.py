"""A chat as text: who speaks becomes a kind, and only what an assistant says is counted. No torch.

The template is the one that came with the tokenizer, else a plain one: each message as `role: content` and the end mark. A
template is a stranger's program: it runs in a sandbox that can reach nothing, on the messages alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from argosy.data.document import Bad, Chat
from argosy.data.sources.streams import first_line
from argosy.errors import Refused
from argosy.job import paths

FILE = "chat.json"  # in a prepared folder and in a run
KINDS = ("text", "system", "user", "assistant", "tool")  # a token's kind is the place of its word here
LONGEST = 64 * 1024 * 1024  # characters that one chat may become


class Segment(NamedTuple):
    """A stretch of a chat's text, of one speaker."""

    text: str
    kind: int  # a place in KINDS
    counted: bool  # learned from
    marked: bool = False  # what looks like a mark of the tokenizer is one
    ended: bool = False  # the end mark follows


@dataclass(frozen=True)
class Template:
    """How a chat is written; `source` "" = the plain way. `where` names it in errors."""

    source: str = ""
    bos_token: str = ""
    eos_token: str = ""
    where: str = ""

    @staticmethod
    def of(path: Path) -> Template:
        """The template beside the tokenizer at `path` (file or folder), or in a prepared folder. Refused where it is broken."""
        folder = path if path.is_dir() else path.parent
        if (folder / FILE).is_file():
            table, where = _table(folder / FILE), str(folder / FILE)
            kept, first, last = (_mark(table.get(name)) for name in ("source", "bos_token", "eos_token"))
            return Template(kept, first, last, where)
        config = _table(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
        where = str(folder / "tokenizer_config.json")
        source: Any = config.get("chat_template")
        if (folder / "chat_template.jinja").is_file():
            where = str(folder / "chat_template.jinja")
            source = paths.content(folder / "chat_template.jinja")
        if isinstance(source, list):  # several, by name
            named = {str(one.get("name")): one.get("template") for one in source if isinstance(one, dict)}
            source = named.get("default")
        if not isinstance(source, str) or not source:
            return Template()
        found = Template(source, _mark(config.get("bos_token")), _mark(config.get("eos_token")), where)
        found.check()
        return found

    @property
    def content(self) -> str:
        """The text of its file."""
        table = {"source": self.source, "bos_token": self.bos_token, "eos_token": self.eos_token}
        return json.dumps(table, sort_keys=True) + "\n"

    def check(self) -> None:
        """Refused where the template is none."""
        if self.source:
            _compiled(self)

    def segments(self, chat: Chat, marks: Sequence[str] = ()) -> list[Segment]:
        """The chat in stretches. Raises Bad where the template fails on it, or where a message holds one of `marks`."""
        if not self.source:
            return _plain(chat)
        for message in chat.messages:
            for mark in marks:
                if mark and mark in str(message["content"]):
                    raise Bad(f"holds the tokenizer's mark {mark} in what is said")
        return self._written(chat)

    def prompt(self, messages: Sequence[dict[str, Any]]) -> list[Segment]:
        """Messages up to where an assistant would speak next. Raises Bad where the template fails."""
        if not self.source:
            plain = _plain(Chat(tuple(messages)))
            return [*plain, Segment("assistant: ", KINDS.index("assistant"), False)]
        text = self._render(Chat(tuple(messages)), len(messages), True)
        return [Segment(text, KINDS.index("text"), False, True)]

    def _written(self, chat: Chat) -> list[Segment]:
        """By rendering the chat up to each message: what comes with a message is its own."""
        whole, count = self._render(chat, len(chat.messages)), len(chat.messages)
        found: list[Segment] = []
        done = ""
        for number, message in enumerate(chat.messages):
            assistant = message["role"] == "assistant"
            after = whole if number + 1 == count else self._render(chat, number + 1)
            asked = self._render(chat, number, True) if assistant else done
            if not (asked.startswith(done) and after.startswith(asked) and whole.startswith(after)):
                return self._last(chat, whole)
            kind = KINDS.index(message["role"])
            found.append(Segment(asked[len(done) :], kind, False, True))
            found.append(Segment(after[len(asked) :], kind, assistant and chat.counted, True))
            done = after
        return [segment for segment in found if segment.text]

    def _last(self, chat: Chat, whole: str) -> list[Segment]:
        """Of a template that writes earlier answers otherwise than the last one: all of it, and only the last is counted."""
        last = max(number for number, message in enumerate(chat.messages) if message["role"] == "assistant")
        asked, after = self._render(chat, last, True), self._render(chat, last + 1)
        if not (after.startswith(asked) and whole.startswith(after)):
            raise Bad("comes out of the chat template in another order than it was said")
        kind = KINDS.index("assistant")
        found = [
            Segment(asked, KINDS.index("user"), False, True),
            Segment(after[len(asked) :], kind, chat.counted, True),
            Segment(whole[len(after) :], KINDS.index("user"), False, True),
        ]
        return [segment for segment in found if segment.text]

    def _render(self, chat: Chat, count: int, asking: bool = False) -> str:
        """The first `count` messages; asking: up to where the assistant's answer begins. Raises Bad."""
        if not count:  # most templates cannot be asked for what stands before an assistant that speaks first
            return ""
        try:
            text: str = _compiled(self).render(
                messages=list(chat.messages[:count]),
                tools=list(chat.tools) or None,
                add_generation_prompt=asking,
                bos_token=self.bos_token,
                eos_token=self.eos_token,
            )
            text.encode("utf-8")  # a template may write half of a surrogate pair, which is no text
        except Refused:
            raise
        except Exception as error:  # a template may fail in any way that a program may
            raise Bad(f"does not suit the chat template: {first_line(error)}") from None
        if len(text) > LONGEST:
            raise Bad("becomes too long by the chat template")
        return text


def _plain(chat: Chat) -> list[Segment]:
    found = []
    for message in chat.messages:
        kind, assistant = KINDS.index(message["role"]), message["role"] == "assistant"
        said = str(message["content"])
        if message.get("tool_calls"):
            said += json.dumps(message["tool_calls"], ensure_ascii=False, default=str)  # a table's dates are no JSON
        found.append(Segment(f"{message['role']}: ", kind, False))
        found.append(Segment(said, kind, assistant and chat.counted, ended=True))
    return found


_KNOWN: dict[Template, Any] = {}


def _compiled(template: Template) -> Any:
    """The template, ready to render. Refused where it is no template."""
    if template not in _KNOWN:
        import jinja2
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """Marks what an assistant generates; it is written as it stands."""

            tags = {"generation"}

            def parse(self, parser: Any) -> Any:
                """What stands between the marks."""
                next(parser.stream)
                return parser.parse_statements(("name:endgeneration",), drop_needle=True)

        def refuse(message: object) -> None:
            """What a template calls where it cannot render a chat."""
            raise jinja2.exceptions.TemplateError(str(message))

        def now(form: str) -> str:
            """The date for templates that ask for one."""
            return datetime(2024, 1, 1, tzinfo=UTC).strftime(form)  # the same text on every day

        extensions = [loopcontrols, Generation]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = now
        try:
            _KNOWN[template] = environment.from_string(template.source)
        except (jinja2.exceptions.TemplateError, RecursionError, ValueError) as error:
            raise Refused(
                "this chat template cannot be read.",
                where=template.where,
                found=first_line(error),
                do="Mend it, or remove it: chats are then written as `role: content` and the end mark.",
            ) from None
    return _KNOWN[template]


def _tojson(value: Any, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _mark(value: Any) -> str:
    """A mark as tokenizer_config.json writes it: text, or a table with it."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _table(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(paths.content(path))
    except (ValueError, RecursionError) as error:
        raise Refused("this is no JSON.", where=str(path), found=first_line(error)) from None
    if not isinstance(table, dict):
        raise Refused("this is no JSON table.", where=str(path))
    return table
