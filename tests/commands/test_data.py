import json
from pathlib import Path

import pytest

from argosy.__main__ import main
from argosy.commands import data as command
from argosy.data.batch import global_batch
from argosy.data.prepare import Prepared, prepare
from argosy.data.shards import Shards
from argosy.errors import Refused
from argosy.job import leaves
from argosy.job.load import load
from argosy.job.setting import Setting
from argosy.run import folder
from argosy.run.folder import Run
from argosy.run.ledger import Ledger

LEDGER = Ledger.start(data__order=2, batch__sequence=16, batch__tokens=128).changed(5, "batch.tokens", 64, "x")


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A text of many documents; caches and runs lie in the test's own folder."""
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ARGOSY_RUNS", str(tmp_path / "runs"))
    path = tmp_path / "book.txt"
    path.write_text("".join(f"Chapter {number}\n\nA night of größe {number * 7}.\n\n" for number in range(600)))
    return path


@pytest.fixture
def run(book: Path, tmp_path: Path) -> Run:
    loaded = load("smoke", [f"data.source={book}", "data.tokenizer=bytes", "batch.sequence=16", "batch.tokens=128"])
    prepared = prepare(loaded.job.data, base=loaded.base, cache=tmp_path / "cache")
    made = folder.create(tmp_path / "runs/smoke", asked=loaded.job, text=loaded.text, origin={}, steps=20)
    plain = {key: leaves.plain(value) for key, value in leaves.leaves(loaded.job).items()}
    rows = [Setting(key, value, value, "default") for key, value in plain.items()]
    folder.settle(made, loaded.job, loaded.written, rows, prepared.folder, loaded.text)
    LEDGER.write(made.path / "ledger.jsonl")
    return made


def test_show_tells_every_token_of_the_global_batch(run: Run, book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is told, read from the file itself, is what the batch holds: all of it, in order, and nothing else."""
    shards, seed, text = Shards(run.prepared()), run.job().train.seed, book.read_bytes()
    starts = {shards.place(number)[1] for number in range(shards.documents)}
    for step, tokens in ((1, 128), (4, 128), (5, 64), (20, 64)):
        assert main(["data", "show", str(run.path), "--step", str(step), "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert all(set(row) == {"source", "document", "begin", "end"} for row in rows)
        assert {row["source"] for row in rows} == {str(book)}
        told: list[int] = []
        for row in rows:
            begin = int(row["document"].partition("@")[2] or 0)
            end = min((start for start in starts if start > begin), default=len(text))
            told += [*text[begin:end], 256][row["begin"] : row["end"]]
        assert told == global_batch(step, seed, LEDGER, shards).tokens.ravel().tolist()
        assert len(told) == tokens


def test_show_is_readable(run: Run) -> None:
    shown = command.show(run.path, 2)
    assert shown.startswith(
        "Step 2 reads 128 tokens as 8 sequences of 16, after 128 of the run, in epoch 1.\n\n"
        "── sequence 1, place 0: book.txt"
    )
    assert "A night of gr" in shown
    assert "größe" in shown


def test_show_needs_the_run_folder_and_the_cache_wherever_it_moved(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = command.show(run.path, 3, as_json=True)
    (tmp_path / "cache").rename(tmp_path / "moved")
    (tmp_path / "book.txt").unlink()
    with pytest.raises(Refused, match="the prepared text of this run is gone"):
        command.show(run.path, 3)
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path / "moved"))
    assert command.show(run.path, 3, as_json=True) == before


@pytest.mark.parametrize("step", [0, -1, 21])
def test_steps_that_do_not_exist_are_refused(run: Run, step: int) -> None:
    with pytest.raises(Refused, match=r"there is no such step\. Found: .* has steps 1 to 20"):
        command.show(run.path, step)


def test_prepare_takes_a_job_and_keys_as_train_does(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "prepare", "smoke", "--data.source", str(book), "data.tokenizer=bytes", "--workers", "1"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    prepared = Prepared.open(Path(lines[-1]))
    assert lines[0] == prepared.summary
    assert lines[1] == f"{prepared.facts.held_out_documents} of {Shards(prepared.folder).documents} documents held out"


def test_bad_text_is_one_sentence_and_exit_code_2(
    tmp_path: Path, book: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book.write_bytes(b"abc\xff")
    assert main(["data", "prepare", "smoke", "--data.source", str(book)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: data.source = "{book}": this file is not UTF-8: byte 3 is 0xff')
    assert error.count("\n") == 1


def test_stats_are_told_of_a_run_and_of_a_job(run: Run, book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "stats", str(run.path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["sources"]
    shards = Shards(run.prepared())
    assert (row["documents"], row["tokens"]) == (shards.documents, int(shards.lengths.sum()))
    assert row["source"] == str(book)
    words = ["data", "stats", "smoke", "--data.source", str(book), "data.tokenizer=bytes", "data.license=MIT"]
    assert main([*words, "--workers", "1"]) == 0
    told = capsys.readouterr().out
    assert "  licence      MIT\n" in told
    assert f"  documents    {shards.documents:,}, " in told
    assert "  duplicates   0 documents, 0 tokens, by exact hash\n" in told
    assert "best-fit " in told


def test_stats_name_every_file_that_was_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "good.txt").write_text("".join(f"word {number}\n\n" for number in range(400)))
    for name in ("a", "b", "c"):
        (folder / f"{name}.txt").write_bytes(b"\xff")
    words = ["data", "stats", "smoke", "--data.source", str(folder), "data.tokenizer=bytes", "--workers", "1"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["passed_over"] == [f"{name}.txt is not UTF-8: byte 0 is 0xff" for name in ("a", "b", "c")]
    short = "; ".join(told["passed_over"][:2]) + "; and 1 more file: passed over. `argosy data stats --json` names all"
    assert short in told["notes"]


def test_strict_is_an_option_of_prepare(tmp_path: Path, book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"words {number}"}) + "\n" for number in range(50)) + "{oops\n")
    words = ["data", "prepare", "smoke", "--data.source", str(path), "data.tokenizer=bytes", "--workers", "1"]
    assert main([*words, "--strict"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: data.source = "{path}": a.jsonl:51 is not JSON: Expecting property name')
    assert error.count("\n") == 1
    assert main(words) == 0
    assert "note: 1 of 51 records cannot be used and are passed over: a.jsonl:51 is not JSON" in capsys.readouterr().out


def test_show_names_sources_and_padding(tmp_path: Path, book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "b.jsonl"
    other.write_text("".join(json.dumps({"text": f"words {number}"}) + "\n" for number in range(50)))
    mix = f'data.mix=[{{ source = "{book}" }}, {{ source = "{other}" }}]'
    loaded = load("smoke", [mix, "data.tokenizer=bytes", "batch.sequence=16", "batch.tokens=128"])
    prepared = prepare(loaded.job.data, base=loaded.base, cache=tmp_path / "cache")
    made = folder.create(tmp_path / "runs/mixed", asked=loaded.job, text=loaded.text, origin={}, steps=20)
    plain = {key: leaves.plain(value) for key, value in leaves.leaves(loaded.job).items()}
    rows = [Setting(key, value, value, "default") for key, value in plain.items()]
    folder.settle(made, loaded.job, loaded.written, rows, prepared.folder, loaded.text)
    named = [{"digest": part.digest, "weight": 1.0} for part in Shards(prepared.folder).parts]
    start = {"data__order": 2, "data__mix": named, "batch__sequence": 16, "batch__tokens": 128}
    Ledger.start(**start, batch__packing="best-fit").write(made.path / "ledger.jsonl")
    shown = command.show(made.path, 2)
    assert f"in epoch 1 of {book} and 1 of {other}." in shown or f"in epoch 1 of {other} and 1 of {book}." in shown
    assert f"place 0: {other}: b.jsonl@" in shown
    assert "places of padding" in shown
    rows = json.loads(command.show(made.path, 2, as_json=True))
    assert {row["source"] for row in rows} == {str(book), str(other)}
