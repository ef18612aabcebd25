from typing import Any

import numpy as np
import pytest

from argosy.data.document import Bad, Piece
from argosy.data.sources.records import pieces, wanted


def read(record: Any, field: str = "") -> list[Piece]:
    return list(pieces(record, field, 3, 9))


def said(piece: Piece) -> list[tuple[str, str]]:
    assert piece.chat is not None
    return [(message["role"], message["content"]) for message in piece.chat.messages]


TALK = [("system", "be kind"), ("user", "hi"), ("assistant", "hello")]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"role": role, "content": content} for role, content in TALK]},
        {"conversations": [{"from": role, "value": content} for role, content in
                           [("system", "be kind"), ("human", "hi"), ("gpt", "hello")]]},
        {"messages": [{"role": role, "content": [{"type": "text", "text": content}]} for role, content in TALK]},
        {"system": "be kind", "prompt": "hi", "completion": "hello"},
        {"system": "be kind", "instruction": "hi", "input": "", "output": "hello", "text": "not this"},
        {"prompt": [{"role": role, "content": content} for role, content in TALK[:2]],
         "completion": [{"role": "assistant", "content": "hello"}]},
    ],
)  # fmt: skip
def test_a_chat_is_found_however_it_is_spelt(record: Any) -> None:
    (piece,) = read(record)
    assert said(piece) == TALK
    assert (piece.begin, piece.end, piece.which, piece.pair) == (3, 9, 0, -1)


def test_text_is_the_named_field_or_the_first_that_looks_like_it() -> None:
    assert [piece.text for piece in read({"id": 3, "text": "größe"})] == ["größe".encode()]
    assert [piece.text for piece in read({"content": "b", "body": "c"})] == [b"b"]
    assert [piece.text for piece in read({"content": "b", "body": "c"}, "body")] == [b"c"]
    assert [piece.text for piece in read("plain words")] == [b"plain words"]
    assert said(read({"talk": [{"role": "user", "content": "q"}, {"role": "bot", "content": "a"}]}, "talk")[0]) == [
        ("user", "q"), ("assistant", "a")]  # fmt: skip
    assert read({"instruction": "a", "input": "b", "output": "c"})[0].chat.messages[0]["content"] == "a\n\nb"


def test_ids_are_kept_as_they_are() -> None:
    (piece,) = read({"input_ids": [5, 0, 70_000]})
    assert piece.ids.tolist() == [5, 0, 70_000]
    assert read({"tokens": np.array([5, 0, 70_000], np.int64)})[0].text == piece.text


def test_a_pair_is_two_documents_of_one_hash_of_which_one_is_learned_from() -> None:
    talk = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    for record in (
        talk,
        {"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}],
         "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "bad"}]},
        {"prompt": [{"role": "user", "content": "q"}], "chosen": [{"role": "assistant", "content": "good"}],
         "rejected": [{"role": "assistant", "content": "bad"}]},
    ):  # fmt: skip
        chosen, rejected = read(record)
        assert (said(chosen), said(rejected)) == (
            [("user", "q"), ("assistant", "good")], [("user", "q"), ("assistant", "bad")])  # fmt: skip
        assert (chosen.chat.counted, rejected.chat.counted) == (True, False)
        assert (chosen.which, rejected.which) == (0, 1)
        assert chosen.text == rejected.text, "held out together"
        assert chosen.pair == rejected.pair >= 0
    assert read({**talk, "rejected": "worse"})[0].pair != read(talk)[0].pair


@pytest.mark.parametrize(
    ("record", "field", "says"),
    [
        ([1], "", "is no table but a list"),
        (None, "", "is no table but nothing"),
        ({"id": 1, "title": "x"}, "", 'has no field with text or a chat; it has "id", "title"'),
        ({"id": 1, "title": "x"}, "body", 'has no field "body"; it has "id", "title"'),
        ({"text": 3}, "", 'has a number in "text", no text'),
        ({"text": ""}, "", "is empty"),
        ({"text": "\ud800"}, "", "holds half of a surrogate pair, which is no text"),
        ({"messages": "hi"}, "", 'has a text in "messages", no list of messages'),
        ({"messages": []}, "", "has no message of an assistant"),
        ({"messages": ["hi"]}, "", "has a text as its message 1, no table"),
        ({"messages": [{"content": "hi"}]}, "", 'has no role in its message 1; it has "content"'),
        ({"messages": [{"role": "king", "content": "hi"}]}, "", 'has the role "king" in its message 1; known are system'),
        ({"messages": [{"role": "assistant", "content": 3}]}, "", "has a number as the content of its message 1, no text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "", "something else than text in its message 1"),
        ({"messages": [{"role": "assistant", "content": "\udfff"}]}, "", "half of a surrogate pair"),
        ({"chosen": "a", "rejected": "b"}, "", 'has a text in "chosen"; give messages, or texts with a "prompt"'),
        ({"input_ids": [1, -2]}, "", "holds the id -2, which no tokenizer has"),
        ({"input_ids": [1, 2**40]}, "", "holds the id 1099511627776, which no tokenizer has"),
        ({"input_ids": [[1], [2]]}, "", "holds token ids that are no list of whole numbers"),
        ({"input_ids": ["a"]}, "", "holds token ids that are no list of whole numbers"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_says_why(record: Any, field: str, says: str) -> None:
    with pytest.raises(Bad) as caught:
        read(record, field)
    assert str(caught.value).startswith(says) or says in str(caught.value)


def test_columns_that_are_never_looked_at_are_not_read() -> None:
    assert wanted(["id", "text", "embedding", "prompt"], "") == ["text", "prompt"]
    assert wanted(["id", "text", "embedding"], "embedding") == ["embedding"]
