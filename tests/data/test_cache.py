"""How prepared text is named, found again, kept and locked in the cache."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from argosy.data import prepare as preparation
from argosy.data.prepare import Prepared, prepare
from argosy.errors import Refused
from argosy.job.schema import DataSection

BPE = {"train": "bpe", "vocabulary": 300}


def made(source: Path, cache: Path, progress: Any = None, **keys: Any) -> Prepared:
    section = DataSection.model_validate({"source": str(source), **keys})
    return prepare(section, base=Path("/"), cache=cache, progress=progress)


def test_the_second_time_no_text_is_read(notes: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    first = made(notes, tmp_path / "cache", progress=lambda what, done, total: heard.append(what))
    assert set(heard) == {"reading", "tokens"}
    heard.clear()
    assert made(notes, tmp_path / "cache", progress=lambda what, done, total: heard.append(what)) == first
    assert heard == []
    (notes / "note-00.txt").touch()  # a new time, the same text: read again, made never
    assert made(notes, tmp_path / "cache", progress=lambda what, done, total: heard.append(what)) == first
    assert set(heard) == {"reading"}


def test_another_text_tokenizer_or_share_is_another_folder(notes: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    folders = {
        made(notes, cache).folder,
        made(notes, cache, tokenizer=BPE).folder,
        made(notes, cache, held_out=0.3).folder,
    }
    (notes / "note-00.txt").write_text("other words\n")
    folders.add(made(notes, cache).folder)
    assert len(folders) == 4


def test_a_cache_that_cannot_be_written_is_refused(notes: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Refused, match=r"prepared text cannot be kept there.*--data.cache FOLDER"):
        made(notes, tmp_path / "file" / "cache")


def test_a_new_cache_is_for_its_owner_alone_and_a_shared_one_stays_shared(notes: Path, tmp_path: Path) -> None:
    made(notes, tmp_path / "new/cache")
    assert (tmp_path / "new/cache").stat().st_mode & 0o777 == 0o700
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o755)
    made(notes, tmp_path / "shared")
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o755


def test_a_folder_that_lost_its_facts_is_made_anew(notes: Path, tmp_path: Path) -> None:
    prepared = made(notes, tmp_path / "cache")
    (prepared.folder / "prepared.json").write_text("{")
    with pytest.raises(Refused, match="damaged"):
        Prepared.open(prepared.folder)
    (prepared.folder / "prepared.json").unlink()
    assert made(notes, tmp_path / "cache") == prepared


def test_a_run_finds_its_text_where_the_cache_moved_to(notes: Path, tmp_path: Path) -> None:
    prepared = made(notes, tmp_path / "cache")
    (tmp_path / "cache").rename(tmp_path / "moved")
    moved = tmp_path / "moved/prepared" / prepared.folder.name
    assert preparation.locate(prepared.folder, tmp_path / "moved") == moved
    with pytest.raises(Refused, match="the prepared text of this run is gone"):
        preparation.locate(prepared.folder, tmp_path / "elsewhere")


def test_the_cache_is_where_job_or_environment_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path / "said"))
    assert preparation.cache_folder(DataSection(), tmp_path) == tmp_path / "said"
    assert preparation.cache_folder(DataSection(cache="here"), tmp_path) == tmp_path / "here"


def test_a_held_lock_is_waited_for_and_told(notes: Path, tmp_path: Path) -> None:
    """While another process holds the lock this one says so; it goes on when that process ends."""
    folder = made(notes, tmp_path / "cache").folder
    (notes / "note-00.txt").touch()
    program = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", program, str(folder.with_suffix(".lock"))]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        holder.stdout.readline()
        heard: list[str] = []

        def progress(what: str, done: int, total: int) -> None:
            heard.append(what)
            if what.startswith("waiting") and holder.stdin is not None:
                holder.stdin.close()

        assert made(notes, tmp_path / "cache", progress=progress).folder == folder
    assert heard[-1] == "waiting for another process that prepares the same text"
