import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from argosy.data.document import File, Piece, Unreadable
from argosy.data.sources import jsonl
from argosy.data.sources.streams import PACKED


def file_at(path: Path, field: str = "") -> File:
    return File(path, path.name, path.stat().st_size, "jsonl", field=field)


def read(path: Path) -> tuple[list[str], list[str]]:
    """The texts of a file, and what was said of the others."""
    bad: list[str] = []
    found = [
        piece.text.decode()
        for piece in jsonl.documents(file_at(path), 0, lambda place, why: bad.append(f"{place} {why}"))
    ]
    return found, bad


def test_lines_are_documents_and_bad_ones_are_told_with_their_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"text": "one"}\r\n\n  \n{"text": 2}\n{"text" "x"}\n{"title": "x"}\n{"text": "\xff"}\n' + b'[' * 100_000
        + b'\n{"text": "last, without an end"}'
    )  # fmt: skip
    found, bad = read(path)
    assert found == ["one", "last, without an end"]
    assert bad[:4] == [
        'a.jsonl:4 has a number in "text", no text',
        "a.jsonl:5 is not JSON: Expecting ':' delimiter at character 9",
        'a.jsonl:6 has no field with text or a chat; it has "title"',
        "a.jsonl:7 is not UTF-8: byte 11 of the line is 0xff",
    ]
    assert bad[4].startswith("a.jsonl:8 is not JSON")
    assert len(bad) == 5


@pytest.mark.parametrize("suffix", ["", *PACKED])
def test_every_document_is_found_again_alone(tmp_path: Path, suffix: str) -> None:
    rows = [json.dumps({"text": f"größe {number} " * (number % 5 + 1)}) for number in range(200)]
    rows[50] = json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"})
    rows[60] = "not json"
    content = "\n".join(rows).encode()
    path = tmp_path / f"a.jsonl{suffix}"
    packed = {"": content, ".gz": gzip.compress(content)}.get(suffix) or pyarrow.compress(content, "zstd", asbytes=True)
    path.write_bytes(packed)
    file = file_at(path)
    whole = list(jsonl.documents(file, 0, lambda place, why: None))
    assert len(whole) == 200
    some_rows = [(piece.begin, piece.end, piece.which) for piece in whole[40:70]]
    found = list(jsonl.read(file, some_rows, 0))
    assert [(one.begin, one.text, one.which, one.pair) for one in found] == [
        (one.begin, one.text, one.which, one.pair) for one in whole[40:70]
    ]
    (only,) = jsonl.read(file, [(whole[51].begin, whole[51].end, 1)], 0)
    assert (only.which, only.chat) == (1, whole[51].chat)


def test_of_a_packed_file_only_the_lines_that_are_wanted_are_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(json.dumps({"text": f"line {n}"}) for n in range(50)).encode()))
    whole = list(jsonl.documents(file_at(path), 0, lambda place, why: None))
    parsed, seen = jsonl.parsed, []

    def watched(line: bytes, field: str, begin: int) -> Iterator[Piece]:
        seen.append(begin)
        yield from parsed(line, field, begin)

    monkeypatch.setattr(jsonl, "parsed", watched)
    rows = [(piece.begin, piece.end, 0) for piece in whole[40:42]]
    assert list(jsonl.read(file_at(path), rows, 0)) == whole[40:42]
    assert seen == [row[0] for row in rows]


def test_two_packed_files_joined_are_read_as_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "one"}\n') + gzip.compress(b'{"text": "two"}\n'))
    assert read(path) == (["one", "two"], [])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{}".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        (b"{}\n\0\0", "is binary, not JSON records"),
        (b'[\n  {"text": "a"},\n  {"text": "b"}\n]\n', "is one JSON list, not one record a line"),
    ],
)
def test_a_file_of_something_else_is_told(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(Unreadable, match=says):
        read(path)


def test_a_packed_file_that_was_cut_off_is_told(tmp_path: Path) -> None:
    content = gzip.compress(b"".join(b'{"text": "%d"}\n' % number for number in range(10_000)))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(Unreadable, match="cannot be read"):
        read(path)


def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "LONGEST", 3_000_000)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"{" * 40_000_000, 1))
    with pytest.raises(Unreadable, match="has a line 1 of more than 2 MiB"):
        read(path)


LINES = [b'{"text":"a"}', b'{"text":"\xc3\xbc\xe2\x82\xac"}', b"", b"x", b"\r"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=some.lists(some.sampled_from(LINES), max_size=30), block=some.integers(1, 20))
def test_lines_do_not_depend_on_how_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: list[bytes], block: int
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(content))
    with monkeypatch.context() as patch:
        expected = [json.loads(line)["text"] for line in content if line.strip() not in (b"", b"x")]
        bad = [number for number, line in enumerate(content, 1) if line == b"x"]
        patch.setattr(jsonl, "AT_ONCE", block)
        found, told = read(path)
    assert found == expected
    assert [int(one.split(":")[1].split()[0]) for one in told] == bad
