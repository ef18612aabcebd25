"""What a model is asked to go on from: texts, chats by the model's template, files of both; and what ends an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from argosy.data.chat import Template
from argosy.data.tokenizer import Bytes, Tokenizer, parse, train_bpe
from argosy.errors import Refused
from argosy.evaluate.prompts import ends, prompt, read

MARKED = Template(
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    eos_token="<|im_end|>",
)
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def pieces() -> Tokenizer:
    """A byte-pair tokenizer with a mark of its own for the end of an answer."""
    table = json.loads(train_bpe(iter(["hello there, said the user to the assistant"] * 9), 300))
    number = max(one["id"] for one in table["added_tokens"]) + max(table["model"]["vocab"].values()) + 1
    mark = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    table["added_tokens"].append({"id": number, "content": "<|im_end|>", **mark})
    return parse(json.dumps(table), "test")


def test_a_text_is_its_tokens_and_an_empty_one_begins_a_document() -> None:
    assert prompt("hi", Bytes(), Template()).ids == tuple(b"hi")
    assert prompt("", Bytes(), Template()).ids == (256,)
    assert prompt("hi", Bytes(), Template(), (3, 4)).ids == (3, 4, *b"hi") and prompt(
        "", Bytes(), Template(), (3,)
    ).ids == (3,)
    assert prompt(HELLO, Bytes(), Template(), (3,)).ids[:2] == (3, ord("u"))
    assert prompt(HELLO, Bytes(), MARKED, (3,)).ids[0] == ord("<"), "a template writes its own"
    with pytest.raises(Refused, match="no UTF-8"):
        prompt("\udcff", Bytes(), Template())


def test_a_chat_is_written_by_the_template_up_to_the_answer(pieces: Tokenizer) -> None:
    plain = prompt([*HELLO, {"from": "gpt", "value": "well"}, *HELLO], Bytes(), Template())
    text = b"user: hello\x00assistant: well\x00user: hello\x00assistant: "
    assert plain.ids == tuple(256 if byte == 0 else byte for byte in text)
    assert plain.shown == "user: hello\nassistant: well\nuser: hello\nassistant: "
    made = prompt(HELLO, pieces, MARKED)
    assert list(made.ids) == pieces.encode_marked("<|user|>hello<|im_end|><|assistant|>")
    assert made.ids.count(pieces.encode_marked("<|im_end|>")[0]) == 1
    for chat, why in (
        ([], "has no message"),
        ([{"role": "priest", "content": "x"}], 'the role "priest"'),
        ([{"role": "user"}], "no text"),
    ):
        with pytest.raises(Refused, match=why):
            prompt(chat, Bytes(), Template())
    with pytest.raises(Refused, match="this chat does not suit the chat template"):
        prompt(HELLO, Bytes(), Template("{{ raise_exception('only after noon') }}"))


def test_an_answer_ends_with_the_marks_of_tokenizer_template_and_weights(pieces: Tokenizer, tmp_path: Path) -> None:
    [mark] = pieces.encode_marked("<|im_end|>")
    assert ends(Bytes(), Template(), tmp_path) == (256,)
    assert ends(pieces, MARKED, tmp_path) == tuple(sorted({pieces.end, mark}))
    for said, wanted in (([5, 7], {5, 7}), (9, {9}), ([True, -1, 10**9, "5"], set()), (None, set())):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": said}))
        assert set(ends(Bytes(), Template(), tmp_path)) == {256} | wanted
    for text in ("[1", "[1]", '"x"', "[" * 100_000):
        (tmp_path / "generation_config.json").write_text(text)
        assert ends(Bytes(), Template(), tmp_path) == (256,)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [11, 10**9]}))  # where the other says nothing
    assert ends(Bytes(), Template(), tmp_path) == (11, 256)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 12}))
    assert ends(Bytes(), Template(), tmp_path) == (12, 256) and ends(Bytes(), Template(), None) == (256,)


CHAT: list[dict[str, Any]] = [{"role": "user", "content": "so?"}]
FILES: dict[str, tuple[str, list[Any]]] = {
    "lines.txt": ("one\n\n  two\n", ["one", "  two"]),
    "separators.txt": ("one\u2028more\r\ntwo\x0cmore", ["one\u2028more", "two\x0cmore"]),
    "separators.jsonl": ('"one\u2028more"\r\n\n{"prompt": "two\x85more"}', ["one\u2028more", "two\x85more"]),
    "records.jsonl": (
        "\n".join(map(json.dumps, ["one", {"prompt": "two"}, {"messages": CHAT}, CHAT, {"text": "three"}])),
        ["one", "two", CHAT, CHAT, "three"],
    ),
    "chat.json": (json.dumps(CHAT), [CHAT]),
    "several.json": (json.dumps(["one", CHAT, {"conversations": CHAT}]), ["one", CHAT, CHAT]),
    "table.json": (json.dumps({"messages": CHAT}), [CHAT]),
}


@pytest.mark.parametrize("name", FILES)
def test_prompts_are_read_from_files(name: str, tmp_path: Path) -> None:
    text, wanted = FILES[name]
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert read(tmp_path / name) == wanted


@pytest.mark.parametrize(
    "name, text, why",
    [
        ("a.txt", "\n \n", "no prompt in this file"),
        ("a.json", "[]", "no prompt in this file"),
        ("a.jsonl", '"one"\n{"prompt"', "a.jsonl:2: this is no JSON"),
        ("a.jsonl", '"one"\n{"wish": "x"}', "a.jsonl:2: this is no prompt"),
        ("a.json", '["one", 3]', "entry 2: this is no prompt"),
        ("a.json", "7", "a.json: this is no prompt"),
    ],
)
def test_what_is_no_prompt_is_refused_with_its_place(name: str, text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(Refused, match=why):
        read(tmp_path / name)
    with pytest.raises(Refused, match="cannot be read"):
        read(tmp_path / "missing.txt")
