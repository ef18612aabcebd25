from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet as writer

from argosy.data.document import File, Piece, Unreadable
from argosy.data.sources import parquet


def file_at(path: Path, field: str = "") -> File:
    return File(path, path.name, path.stat().st_size, "parquet", field=field)


def read(file: File) -> tuple[list[Piece], list[str]]:
    bad: list[str] = []
    found = list(parquet.documents(file, 0, lambda place, why: bad.append(f"{place} {why}")))
    return found, bad


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A thousand rows in several groups; one holds nothing, and a wide column that is never looked at."""
    rows = [f"größe {number}" if number != 700 else None for number in range(1000)]
    path = tmp_path / "a.parquet"
    writer.write_table(pyarrow.table({"text": rows, "wide": [b"x" * 100] * 1000}), path, row_group_size=300)
    return path


def test_rows_are_documents_and_bad_ones_are_told(table: Path) -> None:
    found, bad = read(file_at(table))
    assert [piece.text.decode() for piece in found] == [f"größe {number}" for number in range(1000) if number != 700]
    assert bad == ['a.parquet, row 701 has no field with text or a chat; it has "text"']
    assert (found[700].begin, found[700].end) == (701, 702)


def test_rows_are_found_again_alone(table: Path) -> None:
    wanted = [(number, number + 1, 0) for number in (5, 6, 299, 300, 701, 999)]
    found = parquet.read(file_at(table), wanted, 0)
    assert [piece.text.decode() for piece in found] == [f"größe {row[0]}" for row in wanted]
    assert list(parquet.read(file_at(table), [(1000, 1001, 0)], 0)) == [], "the table was longer"


def test_chats_are_nested_columns(tmp_path: Path) -> None:
    path = tmp_path / "chat.parquet"
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    writer.write_table(pyarrow.table({"messages": [talk, talk[:1]]}), path)
    found, bad = read(file_at(path))
    assert found[0].chat.messages == tuple(talk)
    assert bad == ["chat.parquet, row 2 has no message of an assistant, so there is nothing to learn from it"]


@pytest.mark.parametrize("field", ["", "body"])
def test_a_table_without_text_names_its_columns(tmp_path: Path, field: str) -> None:
    path = tmp_path / "a.parquet"
    writer.write_table(pyarrow.table({"id": [1], "label": [2]}), path)
    with pytest.raises(Unreadable, match=r'has no column .*; it has "id", "label"'):
        read(file_at(path, field))


@pytest.mark.parametrize("change", ["cut", "head", "tail", "length", "empty", "text", "middle"])
def test_hostile_and_broken_files_are_one_sentence(table: Path, change: str) -> None:
    content = bytearray(table.read_bytes())
    if change == "cut":
        del content[len(content) // 2 :]
    elif change == "head":
        content[:4] = b"PAR2"
        content[-4:] = b"PAR2"
    elif change == "tail":
        content[-60:-8] = b"\xff" * 52
    elif change == "length":
        content[-8:-4] = (2**31 - 1).to_bytes(4, "little")  # a table of contents of two gigabytes
    elif change == "empty":
        content = bytearray()
    elif change == "text":
        content = bytearray(b"just some words\n" * 10)
    else:
        content[200:2000] = b"\xaa" * 1800
    table.write_bytes(content)
    with pytest.raises(Unreadable, match=r"is no Parquet file that can be read: .+"):
        read(file_at(table))
