import contextlib
import json
import resource
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from argosy.data import make as making
from argosy.data.document import digest
from argosy.data.encode import Plan
from argosy.data.pool import _Pool
from argosy.data.prepare import Prepared, prepare
from argosy.data.shards import Shards
from argosy.data.tokenizer import open_tokenizer, train_bpe
from argosy.errors import INPUT, MACHINE, Refused
from argosy.job.schema import DataSection

BPE = {"train": "bpe", "vocabulary": 300}


def helpers() -> list[psutil.Process]:
    """The living helpers of this process. Children of other tests may be ending at any moment."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is one, too
            if "argosy.data.encode" in child.cmdline():
                found.append(child)
    return found


def section(source: Path, **keys: Any) -> DataSection:
    return DataSection.model_validate({"source": str(source), **keys})


def made(source: Path, cache: Path, workers: int = 1, progress: Any = None, **keys: Any) -> Prepared:
    return prepare(section(source, **keys), base=Path("/"), cache=cache, workers=workers, progress=progress)


def content(prepared: Prepared) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in prepared.folder.iterdir()}


def text_of(prepared: Prepared) -> dict[str, str]:
    """The text of every document by file, from its tokens."""
    shards, tokenizer = Shards(prepared.folder), open_tokenizer(prepared.folder)
    found: dict[str, str] = {}
    for number in range(shards.documents):
        name, _, _ = shards.place(number)
        tokens = shards.document(number).tolist()
        assert tokens.index(tokenizer.end) == len(tokens) - 1
        found[name] = found.get(name, "") + tokenizer.decode(tokens)
    return found


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "SMALLEST_PART", 1500)


def run_python(program: str, *arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Another process that prepares: `program` finds argv, `section`, `prepare` and small parts ready."""
    start = """
        import os, sys
        from pathlib import Path
        from argosy.data import make as making
        from argosy.data.prepare import prepare
        from argosy.errors import Refused
        from argosy.job.schema import DataSection
        making.SMALLEST_PART = 1500
    """
    words = [sys.executable, "-c", textwrap.dedent(start) + textwrap.dedent(program), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=240, **options)


@pytest.mark.parametrize("tokenizer", ["bytes", BPE])
def test_every_document_is_there_to_the_last_byte(notes: Path, tmp_path: Path, tokenizer: Any) -> None:
    prepared = made(notes, tmp_path / "cache", tokenizer=tokenizer)
    assert text_of(prepared) == {path.name: path.read_text() for path in notes.iterdir()}
    shards = Shards(prepared.folder)
    facts = prepared.facts
    assert prepared.files == shards.documents == facts.documents + facts.held_out_documents == 80
    assert facts.tokens == shards.train_tokens
    assert facts.vocabulary == shards.vocabulary == (257 if tokenizer == "bytes" else 300)
    assert facts.bytes_per_token == prepared.bytes / int(shards.lengths.sum())
    assert int(shards.bytes_of[shards.document(3)].sum()) == (notes / shards.place(3)[0]).stat().st_size
    assert prepared.summary.startswith(f"{notes}: 80 files, 53 KiB → ")
    assert [note.partition(":")[0] for note in prepared.notes] == ["little text is held out"]


def test_one_book_has_documents_to_hold_out(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text(
        "".join(f"Chapter {number}\n\nIt was a dark and stormy night, number {number}.\n\n" for number in range(900))
    )
    prepared = made(book, tmp_path / "cache")
    assert prepared.facts.documents + prepared.facts.held_out_documents > 40
    assert prepared.facts.held_out_documents >= 1
    assert text_of(prepared) == {"book.txt": book.read_text()}


@pytest.mark.usefixtures("small_parts")
def test_several_processes_make_the_same_files_as_one(notes: Path, tmp_path: Path) -> None:
    one = made(notes, tmp_path / "one", tokenizer=BPE)
    two = made(notes, tmp_path / "two", workers=3, tokenizer=BPE)
    assert content(one) == content(two)
    assert len(list(one.folder.glob("*.shard"))) > 5
    assert one.folder.name == two.folder.name


def test_held_out_documents_stay_held_out_when_text_is_added(notes: Path, tmp_path: Path) -> None:
    def held(prepared: Prepared) -> set[str]:
        shards = Shards(prepared.folder)
        return {shards.place(number)[0] for number in shards.held_documents.tolist()}

    before = held(made(notes, tmp_path / "cache", held_out=0.2))
    names = {path.name for path in notes.iterdir()}
    for number in range(40):
        (notes / f"later-{number}.txt").write_text(f"added later, number {number}\n")
    after = held(made(notes, tmp_path / "cache", held_out=0.2))
    assert before == after & names
    assert 8 <= len(before) <= 24


def test_a_tokenizer_is_trained_on_what_is_trained_on_and_nothing_else(notes: Path, tmp_path: Path) -> None:
    prepared = made(notes, tmp_path / "cache", tokenizer=BPE, held_out=0.3)
    shards = Shards(prepared.folder)
    held = {shards.place(number)[0] for number in shards.held_documents.tolist()}
    texts = {path.name: path.read_text() for path in sorted(notes.iterdir())}
    found = json.loads(prepared.tokenizer.read_text())["model"]
    unseen = train_bpe((text for name, text in texts.items() if name not in held), 300)
    assert found == json.loads(unseen)["model"]
    assert found != json.loads(train_bpe(iter(texts.values()), 300))["model"]


def test_an_empty_share_still_holds_one_document_out(notes: Path, tmp_path: Path) -> None:
    assert made(notes, tmp_path / "cache", held_out=0.0).facts.held_out_documents == 1
    assert made(notes, tmp_path / "cache", held_out=1.0).facts.documents == 1


def at_work(folder: Path) -> bool:
    """Whether a helper of anybody still makes parts below `folder`: it ends by itself when its parent is killed."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if "argosy.data.encode" in words and words[-1].startswith(str(folder)):
                return True
    return False


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.usefixtures("small_parts")
def test_a_killed_preparation_goes_on_where_it_was(notes: Path, tmp_path: Path, workers: int) -> None:
    """The process kills itself (SIGKILL) after its third part; the next one makes only the parts that are missing."""
    whole = made(notes, tmp_path / "whole")
    cache = tmp_path / "cache"
    program = """
        parts = []
        def progress(what, done, total):
            parts.append(what)
            if parts.count("tokens") == 4:
                os.kill(os.getpid(), 9)
        section = DataSection(source=sys.argv[1])
        prepare(section, base=Path("/"), cache=Path(sys.argv[2]), progress=progress, workers=int(sys.argv[3]))
    """
    assert run_python(program, notes, cache, workers).returncode == -9
    (partial,) = (cache / "prepared").glob("*.partial")
    while at_work(cache):
        time.sleep(0.02)
    before = {path.name: path.stat().st_ino for path in partial.glob("*.shard")}
    assert len(before) == 3 if workers == 1 else len(before) >= 3
    (partial / "part-00009.shard.writing").write_bytes(b"half")
    again = made(notes, cache, workers=workers)
    assert {name: (again.folder / name).stat().st_ino for name in before} == before
    assert content(again) == content(whole)
    assert not partial.exists()


@pytest.mark.usefixtures("small_parts")
def test_killed_helpers_are_replaced(notes: Path, tmp_path: Path) -> None:
    """At the first finished part all helpers are killed; many parts are left, so each is alive at that moment."""
    killed: list[int] = []

    def progress(what: str, done: int, total: int) -> None:
        if what == "tokens" and done and not killed:
            for child in helpers():
                child.kill()
                killed.append(child.pid)

    prepared = made(notes, tmp_path / "cache", workers=2, progress=progress)
    assert killed
    assert text_of(prepared) == {path.name: path.read_text() for path in notes.iterdir()}


@pytest.mark.usefixtures("small_parts")
def test_ctrl_c_leaves_no_helper_and_goes_on_later(notes: Path, tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if what == "tokens" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(notes, tmp_path / "cache", workers=2, progress=interrupt)
    assert not helpers()
    assert text_of(made(notes, tmp_path / "cache")) == {path.name: path.read_text() for path in notes.iterdir()}


def test_what_a_dead_helper_never_read_hides_no_interrupt(tmp_path: Path) -> None:
    """Closing the pipe to a process that is gone tries to send what was left in it."""
    pool = _Pool(tmp_path, Plan([], np.zeros(0), [], 1, np.zeros(0, np.uint64)), [], lambda what, done, total: None)
    child = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child.wait()
    child.stdin.write("1\n")
    pool.children.append(child)
    pool.close()
    assert child.stdin.closed and child.stdout.closed


@pytest.mark.parametrize("workers", [1, 3])
def test_a_full_disk_is_named_and_what_was_there_is_kept(notes: Path, tmp_path: Path, workers: int) -> None:
    """A limit of the size of files gives the writer what a full disk gives it: an error in the middle of a write."""
    cache = tmp_path / "cache"
    earlier = made(notes, cache, held_out=0.5)
    before = content(earlier)
    program = """
        making.SMALLEST_PART = 12_000  # five shards of 24 kB, each above the limit; the plan is below it
        try:
            prepare(DataSection(source=sys.argv[1]), base=Path("/"), cache=Path(sys.argv[2]), workers=int(sys.argv[3]))
        except Refused as error:
            print(error.text)
            sys.exit(error.code)
    """

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = run_python(program, notes, cache, workers, preexec_fn=small_files)
    assert (done.returncode, done.stderr) == (MACHINE, "")
    assert "the disk is full" in done.stdout
    (partial,) = (cache / "prepared").glob("*.partial")
    left = {path.name for path in partial.iterdir()}
    assert left - {"part-00004.shard"} == {
        "plan.json",
        "documents.bin",
        "sizes.bin",
        "tokenizer.json",
    }  # the last part is small: it may fit
    assert str(cache / "prepared") in done.stdout
    assert content(earlier) == before
    assert text_of(made(notes, cache)) == {path.name: path.read_text() for path in notes.iterdir()}


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("workers", [1, 3])
def test_what_else_goes_wrong_with_the_disk_is_one_sentence(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """A part cannot be written because a folder lies under its temporary name."""
    whole = making.encode_all

    def spoilt(folder: Path, *words: Any) -> None:
        (folder / "part-00002.shard.writing").mkdir()
        whole(folder, *words)

    monkeypatch.setattr(making, "encode_all", spoilt)
    with pytest.raises(Refused, match=r"prepared text cannot be kept there\. Found: Is a directory") as refused:
        made(notes, tmp_path / "cache", workers=workers)
    assert refused.value.code == INPUT
    assert helpers() == []


def test_too_little_disk_is_refused_before_the_start(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = making.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(making.shutil, "disk_usage", lambda path: usage._replace(free=500))
    with pytest.raises(
        Refused, match=r"not enough disk for the prepared text\. Found: 500 B free where about .* KiB"
    ) as refused:
        made(notes, tmp_path / "cache")
    assert refused.value.code == INPUT
    assert "--data.cache FOLDER" in refused.value.text


def test_two_processes_at_once_make_one_folder(notes: Path, tmp_path: Path) -> None:
    program = """
        import sys
        from pathlib import Path
        from argosy.data.prepare import prepare
        from argosy.job.schema import DataSection
        print(prepare(DataSection(source=sys.argv[1]), base=Path("/"), cache=Path(sys.argv[2])).folder)
        print("torch" in sys.modules)
    """
    words = [sys.executable, "-c", textwrap.dedent(program), str(notes), str(tmp_path / "cache")]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=240)[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert told[0] == told[1]
    assert told[0][1] == "False", "preparing must not import torch"
    assert not list((tmp_path / "cache/prepared").glob("*.partial"))
    assert text_of(Prepared.open(Path(told[0][0]))) == {path.name: path.read_text() for path in notes.iterdir()}


def test_a_file_that_changes_between_the_two_readings_is_refused(notes: Path, tmp_path: Path) -> None:
    def progress(what: str, done: int, total: int) -> None:
        if what == "tokens" and not done:
            (notes / "note-07.txt").write_text("something else\n")

    with pytest.raises(Refused, match=r"note-07.txt: this file was read once.*it has changed"):
        made(notes, tmp_path / "cache", progress=progress)
    assert "something else\n" in text_of(made(notes, tmp_path / "cache")).values()


def test_packed_files_and_passed_over_ones(notes: Path, tmp_path: Path) -> None:
    import gzip

    expected = {path.name: path.read_text() for path in notes.iterdir()}
    long = "".join(f"line {number}\n\n" for number in range(200_000))
    (notes / "long.txt.gz").write_bytes(gzip.compress(long.encode()))
    (notes / "bad.txt").write_bytes(b"\xff\xff")
    (notes / "worse.txt").write_bytes(b"\0\0")
    (notes / "photo.jpg").write_bytes(b"x")
    prepared = made(notes, tmp_path / "cache")
    assert prepared.notes[0].startswith(f"not read in {notes}: 1 .jpg. Argosy reads .txt")
    told = ("bad.txt is not UTF-8: byte 0 is 0xff", "worse.txt is binary, not text")
    assert (prepared.notes[1], prepared.unread) == (f"{'; '.join(told)}: passed over", told)
    (notes / "odd.txt").write_bytes("Grüße".encode("utf-16"))
    for again in (made(notes, tmp_path / "cache"), made(notes, tmp_path / "cache")):  # the second time nothing is read
        assert again.folder == prepared.folder
        assert again.notes[1].startswith(
            "bad.txt is not UTF-8: byte 0 is 0xff; odd.txt is UTF-16; save it as UTF-8; and 1 more"
        )
        assert again.unread == (told[0], "odd.txt is UTF-16; save it as UTF-8", told[1])
    assert text_of(prepared) == {**expected, "long.txt.gz": long}
    assert prepared.files == 81


def test_a_broken_tokenizer_is_refused_before_the_text_is_read(notes: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(Refused, match=r'data\.tokenizer = ".*tokenizer\.json": this is no tokenizer'):
        made(
            notes,
            tmp_path / "cache",
            tokenizer=str(tmp_path / "tokenizer.json"),
            progress=lambda what, done, total: heard.append(what),
        )
    assert heard == []


def test_parts_depend_on_the_text_alone_and_keep_packed_files_whole(
    notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from argosy.data.scan import scan
    from argosy.data.sources import find

    monkeypatch.setattr(making, "SMALLEST_PART", 1500)
    found = scan(find(str(notes), Path("/")), 0.02, lambda *_: None)
    parts = making.parts(found)
    assert [first for first, _ in parts] == [0, *(last for _, last in parts[:-1])]
    assert parts[-1][1] == len(found.documents)
    assert len(parts) > 5


def test_facts_are_json_for_others(notes: Path, tmp_path: Path) -> None:
    facts = json.loads((made(notes, tmp_path / "cache").folder / "prepared.json").read_text())
    assert {"version", "digest", "source", "files", "bytes", "tokens", "documents", "held_out_documents"} <= set(facts)


def test_next_to_no_text_held_out_is_told_with_the_share_that_helps(tmp_path: Path) -> None:
    """Hashes choose documents, whatever their length: of 812 KiB, 718 bytes were held out, and nothing was said of it."""
    folder = tmp_path / "mine"
    folder.mkdir()
    texts = {number: f"document {number}\n".encode() for number in range(70)}
    for number, text in texts.items():
        (folder / f"{number}.txt").write_bytes(text)
    while True:  # a long text that 5% hold out and 2% do not
        long = ("x" * 20_000 + str(len(texts))).encode()
        texts[len(texts)] = long
        if 0.02 < digest(long) / 2**64 < 0.05:
            break
    (folder / "long.txt").write_bytes(long)
    (note,) = made(folder, tmp_path / "cache").notes
    assert note.startswith("little text is held out: ")
    assert "of 71 documents), where 2% was asked for" in note
    assert "--data.held_out 5% holds out 9" in note
    assert made(folder, tmp_path / "cache", held_out=0.05).notes == ()
