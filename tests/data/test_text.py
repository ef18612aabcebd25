import gzip
import os
from itertools import pairwise
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from argosy.data.document import File
from argosy.data.make import copied, notes
from argosy.data.scan import scan
from argosy.data.sources import find, text
from argosy.errors import INPUT, Refused


def file_at(path: Path) -> File:
    return File(path, path.name, path.stat().st_size)


def whole(path: Path, size: int = text.LARGEST) -> bytes:
    return b"".join(piece.text for piece in text.documents(file_at(path), size))


def lay(folder: Path, *names: str) -> None:
    """Make files of these names."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")


def test_a_folder_is_read_with_everything_below_it(tmp_path: Path) -> None:
    lay(tmp_path, "b.txt", "a/x.md", "a/deep/y.rst", "z.py", "UPPER.TXT", "packed.txt.gz", "packed.md.zst")
    lay(
        tmp_path,
        "p.pdf",
        "q.pdf",
        "photo.jpg",
        "README",
        ".hidden.txt",
        ".git/x.txt",
        "__pycache__/x.py",
        "env/lib/x.py",
    )
    (tmp_path / "env/pyvenv.cfg").write_text("")
    (tmp_path / "nothing.txt").write_text("")
    found = find(str(tmp_path), Path("/"))
    assert [file.name for file in found.files] == sorted(
        ["b.txt", "a/x.md", "a/deep/y.rst", "z.py", "UPPER.TXT", "packed.txt.gz", "packed.md.zst", "README"]
    )
    assert found.passed_over == {".pdf": 2, ".jpg": 1, "empty": 1}


def test_what_has_no_suffix_is_read_where_it_begins_as_text(tmp_path: Path) -> None:
    """104 of somebody's 188 files were a README, a copyright or METADATA, and none of them was read."""
    contents = {
        "README": b"read me",
        "copyright": b"(c) 2026",
        "NOTICE.gz": gzip.compress(b"text too"),
        "program": b"\x7fELF\x02\x01\0\0",
        "latin": "Grüße".encode("latin-1"),
        "wide": "Grüße".encode("utf-16"),
        "broken.gz": b"no archive",
        "odd": b"a" + "é".encode() * text.KIB * 4,  # where the look ends, a character is cut
        "nothing": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    found = find(str(tmp_path), Path("/"))
    assert [file.name for file in found.files] == ["NOTICE.gz", "README", "copyright", "odd"]
    assert {file.kind for file in found.files} == {"text"}
    assert found.passed_over == {"": 5}
    assert b"".join(piece.text for piece in text.documents(found.files[0], text.LARGEST)) == b"text too"


def test_runs_among_the_text_are_passed_over_and_told(tmp_path: Path) -> None:
    lay(
        tmp_path,
        "a.txt",
        "runs/one/run.json",
        "runs/one/job.toml",
        "runs/one/log.txt",
        "runs/one/log/worker.txt",
        "mine/run.json",
        "mine/b.md",
    )
    found = find(str(tmp_path), Path("/"))
    assert [file.name for file in found.files] == ["a.txt", "mine/b.md"]
    (tmp_path / "a.txt").write_text("another text")
    whole = scan(found, 0.02, lambda *_: None)
    assert f"run folders of Argosy in {tmp_path}: 1 passed over" in notes(whole, 0.02)
    assert find(str(tmp_path / "runs/one"), Path("/")).files, "a run that is named itself is read"


def test_links_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.txt").write_text("text")
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "a")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "missing")
    found = find(str(tmp_path), Path("/"))
    assert [file.name for file in found.files] == ["a/x.txt"]
    assert found.unread == ["gone.txt cannot be read: No such file or directory"]


def test_relative_paths_and_home_are_seen_from_the_right_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").write_text("text")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (
        find("notes.txt", tmp_path).files == find("~/notes.txt", Path("/")).files == [file_at(tmp_path / "notes.txt")]
    )


@pytest.mark.parametrize(
    "content, says",
    [
        (b"abc\xff\n", "is not UTF-8: byte 3 is 0xff"),
        (b"abc\xc3", "is not UTF-8: byte 3 is 0xc3"),
        ("Grüße".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        (b"\x89PNG\r\n\0\0\0", "is binary, not text"),
        (b"x" * 100_000 + b"\0", "is binary, not text"),
    ],
)
def test_one_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "mine.txt").write_bytes(content)
    with pytest.raises(Refused) as refused:
        scan(find("mine.txt", tmp_path), 0.02, lambda *_: None)
    assert refused.value.text.startswith(f'data.source = "mine.txt": this file {says}.')
    assert refused.value.code == INPUT


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    """Here because it went: a right that is missing would be none to root."""
    (tmp_path / "mine.txt").write_text("one line\n")
    found = find("mine.txt", tmp_path)
    (tmp_path / "mine.txt").unlink()
    with pytest.raises(Refused, match=r'data.source = "mine.txt": this file cannot be read: No such file') as refused:
        scan(found, 0.02, lambda *_: None)
    assert refused.value.code == INPUT


@pytest.mark.parametrize(
    "name, content", [("x.txt.gz", b"no gzip at all"), ("x.txt.zst", b"no zstd at all"), ("y.gz", b"")]
)
def test_broken_packing_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Refused, match=f'data.source = "{name}"'):
        scan(find(name, tmp_path), 0.02, lambda *_: None)


def test_missing_empty_and_odd_sources_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("one line")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Refused, match="there is no such file or folder"):
        find("missing", tmp_path)
    with pytest.raises(Refused, match="this is neither a file nor a folder"):
        find("pipe", tmp_path)
    with pytest.raises(Refused, match=r'data.source = "empty.txt": this file is empty'):
        scan(find("empty.txt", tmp_path), 0.02, lambda *_: None)
    with pytest.raises(Refused, match=r"too little text.*Found: 8 bytes"):
        scan(find("short.txt", tmp_path), 0.02, lambda *_: None)
    (tmp_path / "alike.txt").write_text(("a" * 511 + "\n") * 64)
    with pytest.raises(Refused, match=r"Found: 32,768 bytes in 32 pieces, 1 of them different"):
        scan(find("alike.txt", tmp_path), 0.02, lambda *_: None)


def test_copies_that_are_held_out_are_told(tmp_path: Path) -> None:
    (tmp_path / "five.txt").write_text("".join(f"{number % 5}" * 255 + "\n" for number in range(40)))
    found = scan(find("five.txt", tmp_path), 0.02, lambda *_: None)
    assert copied(found, 0.02) == [
        "the text repeats itself: 15 of 20 documents are copies of others; copies stay together, "
        "and so 20% are held out, not 2%"
    ]


def test_a_folder_with_nothing_readable_says_what_was_there(tmp_path: Path) -> None:
    for number in range(312):
        (tmp_path / f"{number}.pdf").write_bytes(b"%PDF")
    for number in range(4):
        (tmp_path / f"{number}.docx").write_bytes(b"PK")
    with pytest.raises(Refused) as refused:
        scan(find(str(tmp_path), Path("/")), 0.02, lambda *_: None)
    assert "0 text files there. Found: 312 .pdf, 4 .docx." in refused.value.text
    assert "Argosy reads .txt .md" in refused.value.text
    (tmp_path / "binary.txt").write_bytes(b"\0\1\2")
    with pytest.raises(Refused, match=r"312 \.pdf, 4 \.docx, 1 unreadable; the first: binary.txt is binary"):
        scan(find(str(tmp_path), Path("/")), 0.02, lambda *_: None)


def test_in_a_folder_what_is_no_text_is_passed_over_and_told(notes: Path) -> None:
    before = scan(find(str(notes), Path("/")), 0.02, lambda *_: None)
    (notes / "latin.txt").write_bytes("Gr\xfc\xdfe\n".encode("latin-1") * 10)
    (notes / "a.txt.gz").write_bytes(b"broken")
    found = find(str(notes), Path("/"))
    after = scan(found, 0.02, lambda *_: None)
    assert len(after.documents) == len(before.documents) == 80
    assert sorted(after.source.unread)[1] == "latin.txt is not UTF-8: byte 2 is 0xfc"
    assert len(after.source.unread) == 2


def test_packed_files_hold_the_same_text(tmp_path: Path) -> None:
    content = ("Wörter und mehr\n\n" * 5000).encode()
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content))
    (tmp_path / "a.txt.zst").write_bytes(pyarrow.compress(content, "zstd", asbytes=True))
    plain = list(text.documents(file_at(tmp_path / "a.txt"), 4096))
    for name in ("a.txt.gz", "a.txt.zst"):
        assert list(text.documents(file_at(tmp_path / name), 4096)) == plain
    assert len(plain) > 10


def test_a_mark_of_byte_order_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfabc")
    assert list(text.documents(file_at(tmp_path / "a.txt"), 4096)) == [text.Piece(3, 6, b"abc")]


TEXTS = some.text(some.sampled_from("ab \n\nüß€😀"), max_size=3000)


@settings(deadline=None, max_examples=60)
@given(TEXTS, some.sampled_from([256, 300, 512]))
def test_pieces_are_the_whole_file_in_order(tmp_path_factory: pytest.TempPathFactory, content: str, size: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.txt"
    path.write_bytes(content.encode())
    pieces = list(text.documents(file_at(path), size))
    assert b"".join(piece.text for piece in pieces) == content.encode()
    assert [piece.begin for piece in pieces[1:]] == [piece.end for piece in pieces[:-1]]
    assert all(len(piece.text) <= 2 * size for piece in pieces)
    assert all(len(piece.text) > size // 2 for piece in pieces[:-1])
    rows = [(piece.begin, piece.end, 0) for piece in pieces]
    assert list(text.again(file_at(path), rows, size)) == pieces
    assert all(piece.begin < after.begin for piece, after in pairwise(pieces))


def test_cuts_prefer_blank_lines_then_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a" * 280 + b"\n" + b"b" * 100 + b"\n\n" + b"c" * 2000)
    pieces = [piece.text for piece in text.documents(file_at(path), 256)]
    assert pieces[0].endswith(b"b\n\n")
    path.write_bytes(b"a" * 280 + b"\n" + b"b" * 3000)
    assert next(text.documents(file_at(path), 256)).text.endswith(b"a\n")


def test_what_is_appended_does_not_move_earlier_cuts(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    lines = [f"line {number} {'x' * (number % 50)}\n" + "\n" * (number % 3 == 0) for number in range(400)]
    path.write_text("".join(lines[:300]))
    before = list(text.documents(file_at(path), 256))
    path.write_text("".join(lines))
    assert list(text.documents(file_at(path), 256))[: len(before) - 2] == before[:-2]


def test_few_files_are_cut_into_about_64_documents_many_are_not() -> None:
    def files(number: int, size: int, name: str = "x.txt") -> list[File]:
        return [File(Path(name), name, size)] * number

    assert text.piece_size(files(64, 10)) == text.LARGEST
    assert text.piece_size(files(1, 64 * 5000)) == 4096
    assert text.piece_size(files(1, 64 * 5000, "x.txt.gz")) == 4 * 4096
    assert text.piece_size(files(1, 10**12)) == text.LARGEST
    assert text.piece_size(files(1, 100)) == text.SMALLEST


def test_memory_stays_bounded_for_a_file_of_any_size(tmp_path: Path) -> None:
    """A packed file of 64 MiB of one letter is 64 kB on disk; its pieces come one at a time, none above 2 MiB."""
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"a" * (64 * 1024 * 1024), 1))
    sizes = [len(piece.text) for piece in text.documents(file_at(path), text.LARGEST)]
    assert sum(sizes) == 64 * 1024 * 1024
    assert max(sizes) <= 2 * text.LARGEST
