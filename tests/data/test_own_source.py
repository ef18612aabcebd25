"""A data source of one's own: what it gives is what is trained on; made once; what it must not give is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from argosy.data.prepare import prepare
from argosy.data.shards import Shards
from argosy.data.tokenizer import open_tokenizer
from argosy.errors import Refused
from argosy.job.schema import DataSection

GIVEN = """
from pathlib import Path

def documents():
    with Path({log!r}).open("a") as file:
        file.write("called\\n")
    for number in range({count}):
        yield f"document {{number}} tells of {{number * number}} ships"
    yield {{"messages": [{{"role": "user", "content": "how many?"}}, {{"role": "assistant", "content": "nine ships"}}]}}
"""


def section(file: Path, name: str = "documents", **more: Any) -> DataSection:
    return DataSection(source=f"{file}:{name}", **more)


def test_its_documents_are_trained_on_and_it_is_asked_once(tmp_path: Path) -> None:
    file, log, cache = tmp_path / "mine.py", tmp_path / "log", tmp_path / "cache"
    file.write_text(GIVEN.format(log=str(log), count=20))
    made = prepare(section(file), base=tmp_path, cache=cache)
    shards = Shards(made.folder)
    tokenizer = open_tokenizer(made.folder)
    texts = {tokenizer.decode(shards.document(number).tolist()) for number in range(shards.documents)}
    assert {f"document {number} tells of {number * number} ships" for number in range(20)} < texts
    assert len(texts) == 21 and any("nine ships" in text for text in texts)
    assert shards.masked, "the chat's mask"
    assert made.source == "mine.py:documents"
    assert prepare(section(file), base=tmp_path, cache=cache).folder == made.folder
    assert log.read_text() == "called\n"
    file.write_text(GIVEN.format(log=str(log), count=30))
    import sys

    for name in [name for name in sys.modules if name.startswith("argosy_part_") and name.endswith("_mine")]:
        del sys.modules[name]  # another process would have run the file anew
    again = prepare(section(file), base=tmp_path, cache=cache)
    assert again.facts.documents + again.facts.held_out_documents == 31
    assert log.read_text() == "called\ncalled\n"


def test_it_may_be_one_of_a_mix(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(GIVEN.format(log=str(tmp_path / "log"), count=20))
    (tmp_path / "text").mkdir()
    for number in range(5):
        (tmp_path / "text" / f"{number}.txt").write_text(f"plain text number {number}\n")
    mix = ({"source": f"{file}:documents", "weight": 2.0}, {"source": str(tmp_path / "text")})
    made = prepare(DataSection.model_validate({"mix": mix}), base=tmp_path, cache=tmp_path / "cache")
    assert len(made.parts) == 2 and made.parts[0].source == "mine.py:documents"


@pytest.mark.parametrize(
    "code, why",
    [
        ("documents = 5", "this is no function. Found: a int"),
        ("def documents(): return 'one text'", "gives no documents. Found: a str"),
        ("def documents(): return 7", "gives no documents. Found: a int"),
        ("def documents(): yield from ()", "gave no document"),
        (
            "def documents():\n    yield 'a'\n    raise OSError('the shelf is empty')",
            "failed: OSError: the shelf is empty",
        ),
        ("def documents():\n    yield 'a'\n    yield 5", "document 2 of this source is neither a text nor a record"),
        ("def documents(): yield {'text': {1, 2}}", "document 1 of this source cannot be kept as JSON"),
        ("def documents(): yield '\\udcff'", "document 1 of this source cannot be kept as JSON"),
        ("def documents(needed): yield 'a'", "failed: TypeError"),
    ],
)
def test_what_it_must_not_give_is_refused_and_leaves_nothing(code: str, why: str, tmp_path: Path) -> None:
    file, cache = tmp_path / "mine.py", tmp_path / "cache"
    file.write_text(code + "\n")
    with pytest.raises(Refused, match=why) as caught:
        prepare(section(file), base=tmp_path, cache=cache)
    assert caught.value.code == 2 and "mine.py:documents" in caught.value.text
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_what_is_kept_is_jsonl(tmp_path: Path) -> None:
    file, cache = tmp_path / "mine.py", tmp_path / "cache"
    file.write_text(GIVEN.format(log=str(tmp_path / "log"), count=3))
    prepare(section(file), base=tmp_path, cache=cache)
    [kept] = (cache / "own").iterdir()
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    assert rows[0] == {"text": "document 0 tells of 0 ships"} and rows[-1]["messages"][1]["content"] == "nine ships"
