"""metrics.jsonl and evaluations.jsonl are exports of the record: one line per step, ascending, whatever was killed."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from argosy.run import parquet, record
from argosy.run.archive import Archive
from argosy.run.lines import Rows, line_text, rows, table
from argosy.run.recorder import Recorder

SECOND = 1_000_000_000


@dataclass(frozen=True)
class Run:
    path: Path

    @property
    def local(self) -> Path:
        return self.path / "local"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def train(run: Run, incarnation: int, first: int, last: int, *, loaded: int | None = None, rank: int = 0) -> Recorder:
    """What a worker writes for the steps `first` to `last`; the loss tells step and incarnation."""
    recorder = Recorder(run, rank, incarnation)
    if loaded is not None:
        recorder.mark("loaded", loaded)
    for step in range(first, last + 1):
        steps(recorder, incarnation, step)
    return recorder


def steps(recorder: Recorder, incarnation: int, step: int) -> None:
    for name, value in {
        "loss": step + incarnation / 10,
        "counted": 4000,
        "bytes": 12_000,
        "tokens": 4096 * step,
        "lr": 1e-3,
        "gradient_norm": 0.1 + 0.2,
    }.items():
        recorder.scalar(name, step, value)
    recorder.step(step, step * SECOND, step * SECOND + SECOND // 2)


def read(run: Run) -> list[tuple[int, int]]:
    """(step, incarnation) of every line of metrics.jsonl, which must be whole."""
    text = (run.path / "metrics.jsonl").read_text()
    assert text.endswith("\n") or not text
    return [(row["step"], row["incarnation"]) for row in map(json.loads, text.splitlines())]


def test_speed_is_compared_with_what_the_machine_could_do(run: Run) -> None:
    archive = Archive(run)
    archive.begin(1)
    recorder = train(run, 1, 1, 0, loaded=0)
    recorder.scalar("flops_per_token", 0, 1e6)
    recorder.scalar("peak_rate", 0, 32.768e9)
    steps(recorder, 1, 1)
    recorder.scalar("gemm_rate", 1, 16.384e9)
    steps(recorder, 1, 2)
    recorder.scalar("tokens", 3, 4096 * 3)
    later = time.time_ns() + 61 * SECOND
    recorder.step(3, later, later + SECOND)
    archive.poll()
    first, second, third = rows(run.path / "metrics.jsonl")
    assert (first["mfu"], second["mfu"]) == (0.25, 0.25)  # 8,192 tokens/s of 1e6 FLOP
    assert "gemm_share" not in first
    assert second["gemm_share"] == 0.5
    assert third["mfu"] == 0.125
    assert "gemm_share" not in third  # the rate is of another minute
    assert not {"gemm_rate", "peak_rate", "flops_per_token"} & second.keys()


def test_a_line_has_the_keys_and_figures_that_were_promised(run: Run) -> None:
    archive = Archive(run)
    archive.begin(1)
    train(run, 1, 1, 2, loaded=0)
    assert [line.kind for line in archive.poll()] == ["mark", "step", "step"]
    second = rows(run.path / "metrics.jsonl")[1]
    assert second == {
        "step": 2,
        "tokens": 8192,
        "loss": 2.1,
        "bits_per_byte": 2.1 * 4000 / (math.log(2) * 12_000),
        "lr": 1e-3,
        "gradient_norm": 0.1 + 0.2,
        "seconds": 0.5,
        "tokens_per_second": 8192.0,
        "incarnation": 1,
        "time": 2.5,
    }
    assert f'"loss": {2.1:.17g}, ' in (run.path / "metrics.jsonl").read_text()
    assert archive.poll() == []


def test_rows_come_as_they_are_written(run: Run) -> None:
    archive = Archive(run)
    archive.begin(1)
    recorder = train(run, 1, 1, 3)
    assert len(archive.poll()) == 3
    steps(recorder, 1, 4)
    [line] = archive.poll()
    assert (line.kind, line.row["step"], line.row["loss"]) == ("step", 4, 4.1)
    assert read(run) == [(1, 1), (2, 1), (3, 1), (4, 1)]


def test_a_step_done_twice_keeps_the_later(run: Run) -> None:
    archive = Archive(run)
    archive.begin(1)
    train(run, 1, 1, 5, loaded=0)
    archive.begin(2)  # merges what the first left
    assert read(run) == [(n, 1) for n in range(1, 6)]
    recorder = train(run, 2, 4, 4, loaded=3)
    archive.poll()
    assert read(run) == [(1, 1), (2, 1), (3, 1), (4, 2)]
    steps(recorder, 2, 5)
    steps(recorder, 2, 6)
    archive.poll()
    assert read(run) == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2)]
    entries = parquet.entries(run, 1)
    assert entries[entries["kind"] == record.STEP]["step"].tolist() == [1, 2, 3, 4, 5], "replaced entries stay"


def test_lines_behind_the_loaded_step_go_before_a_new_one_comes(run: Run) -> None:
    archive = Archive(run)
    archive.begin(1)
    train(run, 1, 1, 5)
    archive.begin(2)
    Recorder(run, 0, 2).mark("loaded", 3)
    archive.poll()
    assert read(run) == [(1, 1), (2, 1), (3, 1)]


@pytest.mark.parametrize("left", ["all", "torn", "short", "none", "foreign"])
def test_made_anew_from_the_record_at_start(run: Run, left: str) -> None:
    """Whatever a killed parent left of the file, opening the archive makes it whole again."""
    first = Archive(run)
    first.begin(1)
    train(run, 1, 1, 5, loaded=0)
    first.begin(2)
    train(run, 2, 4, 7, loaded=3)
    first.poll()
    path = run.path / "metrics.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(
        {
            "all": whole,
            "torn": whole[:-9],
            "short": b"".join(lines[:2]),
            "none": b"",
            "foreign": b"".join(lines[:3]) + b"\0\0{]\n" + lines[4],
        }[left]
    )
    again = Archive(run)
    assert path.read_bytes() == whole
    again.begin(3)
    train(run, 3, 8, 8, loaded=7)
    again.poll()
    assert read(run)[-2:] == [(7, 2), (8, 3)]


def test_made_anew_from_parquet_when_lines_are_missing(run: Run) -> None:
    archive = Archive(run)
    archive.begin(1)
    train(run, 1, 1, 4).finish()
    train(run, 1, 1, 4, rank=1).finish()
    archive.begin(2)
    train(run, 2, 4, 6, loaded=3).finish()
    archive.poll()
    whole = (run.path / "metrics.jsonl").read_bytes()
    assert [path.name for path in archive.rotate()] == ["node-0000-inc-0001.parquet", "node-0000-inc-0002.parquet"]
    assert record.files(run.local) == []
    lines = whole.splitlines(keepends=True)
    (run.path / "metrics.jsonl").write_bytes(b"".join(lines[:2] + lines[3:]))
    Archive(run)
    assert (run.path / "metrics.jsonl").read_bytes() == whole
    (run.path / "metrics.jsonl").unlink()
    Archive(run)
    assert (run.path / "metrics.jsonl").read_bytes() == whole


def test_rotation_keeps_every_entry_once(run: Run) -> None:
    recorder = train(run, 1, 1, 3)
    before = parquet.entries(run, 1)
    archive = Archive(run)
    assert archive.rotate(running=1) == []
    path = run.local / recorder.name.file
    kept = path.read_bytes()
    [made] = archive.rotate()
    after = parquet.entries(run, 1)
    for field in ("sequence", "kind", "name", "step", "entered", "left", "value"):
        assert after[field].tolist() == before[field].tolist()
    path.write_bytes(kept)  # as if the machine had stopped between writing and removing
    assert len(parquet.entries(run, 1)) == len(before)
    archive.rotate()
    assert not path.exists() and len(parquet.entries(run, 1)) == len(before)
    import pyarrow.parquet as files

    table = files.read_table(made, columns=["value"], filters=[("kind", "=", "scalar"), ("name", "=", "loss")])
    assert table["value"].to_pylist() == [1.1, 2.1, 3.1]


def test_evaluations_are_merged(run: Run) -> None:
    archive = Archive(run)
    archive.begin(1)
    recorder = train(run, 1, 1, 2, loaded=0)
    with recorder.during("evaluate", 2):
        recorder.scalar("held_out_loss", 2, 4.5)
        recorder.scalar("held_out_bits_per_byte", 2, 2.25)
        recorder.scalar("held_out_documents", 2, 9)
        assert [line.kind for line in archive.poll()] == ["mark", "step", "step"]  # not before it is whole
    [line] = archive.poll()
    assert line.kind == "held_out"
    assert [line.row[key] for key in ("step", "tokens", "loss", "bits_per_byte", "documents")] == [
        2,
        8192,
        4.5,
        2.25,
        9,
    ]
    recorder.scalar("held_out_loss", 3, 4.0)
    recorder.mark("evaluated", 3)
    archive.poll()
    assert [row["step"] for row in rows(run.path / "evaluations.jsonl")] == [2, 3]
    whole = (run.path / "evaluations.jsonl").read_bytes()
    (run.path / "evaluations.jsonl").unlink()
    Archive(run)
    assert [row["loss"] for row in rows(run.path / "evaluations.jsonl")] == [4.5, 4.0]
    (run.path / "evaluations.jsonl").write_bytes(whole)
    archive.begin(2)
    Recorder(run, 0, 2).mark("loaded", 2)
    archive.poll()
    assert [row["step"] for row in rows(run.path / "evaluations.jsonl")] == [2]


def test_what_is_not_finite_is_null(run: Run) -> None:
    archive = Archive(run)
    archive.begin(1)
    recorder = Recorder(run, 0, 1)
    recorder.scalar("loss", 1, math.nan)
    recorder.scalar("skipped", 1, 1)
    recorder.step(1, 0, SECOND)
    archive.poll()
    [row] = rows(run.path / "metrics.jsonl")
    assert row["loss"] is None and row["bits_per_byte"] is None and row["skipped"] is True


def test_samples_are_news(run: Run) -> None:
    (run.path / "samples.jsonl").write_text('{"step": 1, "prompt": "", "text": "old"}\n')
    archive = Archive(run)
    archive.begin(2)
    with (run.path / "samples.jsonl").open("a") as file:
        file.write('{"step": 5, "prompt": "a", "text": "new"}\n{"step": 5, "prompt": "b", "te')
    assert [line.row["text"] for line in archive.poll()] == ["new"]
    with (run.path / "samples.jsonl").open("a") as file:
        file.write('xt": "late"}\n')
    assert [line.row["text"] for line in archive.poll()] == ["late"]
    (run.path / "samples.jsonl").write_text(
        '{"step": 1, "text": "o", "incarnation": 1}\n{"step": 2, "text": "redone"}\n'
    )
    assert [line.row["text"] for line in archive.poll()] == ["redone"], "the worker cut the file and wrote on"


def test_rows_keep_one_line_per_step(tmp_path: Path) -> None:
    kept = Rows(tmp_path / "x.jsonl")
    kept.put({"step": step, "incarnation": 1, "loss": float(step)} for step in (1, 2, 3, 5))
    kept.put([{"step": 3, "incarnation": 2, "loss": 0.5}])
    assert kept.steps == [1, 2, 3] and kept.last["loss"] == 0.5
    assert Rows(kept.path).steps == [1, 2, 3]
    assert line_text({"loss": 0.1, "text": "é\n"}) == b'{"loss": 0.10000000000000001, "text": "\\u00e9\\n"}\n'


def evaluated(recorder: Recorder, step: int, losses: dict[int, float], best: bool) -> None:
    """What rank 0 writes about an evaluation of several sets."""
    recorder.phase("evaluate", step, step * SECOND, step * SECOND + SECOND)
    for number, loss in losses.items():
        recorder.scalar("held_out_loss", step, loss, number)
        recorder.scalar("held_out_documents", step, 3 + number, number)
        recorder.scalar("held_out_tokens", step, 100, number)
    recorder.scalar("held_out_best", step, best)
    recorder.mark("evaluated", step)


def test_named_sets_stand_in_one_line_also_when_it_is_made_anew(run: Run) -> None:
    archive = Archive(run, ["code", "prose"], "prose")
    archive.begin(1)
    recorder = train(run, 1, 1, 2, loaded=0)
    evaluated(recorder, 2, {0: 2.5, 1: 1 / 3, 2: math.nan, 3: 9.0}, True)
    recorder.finish()
    assert "held_out" in [line.kind for line in archive.poll()]
    archive.close()
    text = (run.path / "evaluations.jsonl").read_bytes()
    [row] = rows(run.path / "evaluations.jsonl")
    assert (row["loss"], row["documents"], row["best"], row["by"]) == (2.5, 3, True, "prose")
    assert row["sets"]["code"] == {"loss": 1 / 3, "bits_per_byte": None, "documents": 4, "held_out_tokens": 100}
    assert row["sets"]["prose"]["loss"] is None and list(row["sets"]) == ["code", "prose", "set 3"]
    for _ in range(2):  # from the record as it was written, and once it is Parquet
        (run.path / "evaluations.jsonl").unlink()
        (run.path / "metrics.jsonl").unlink()
        Archive(run, ["code", "prose"], "prose").rotate()
        assert (run.path / "evaluations.jsonl").read_bytes() == text


def test_parquet_of_before_there_were_numbers_is_read(run: Run) -> None:
    import pyarrow.parquet as files

    train(run, 1, 1, 3, loaded=0).finish()
    [path] = Archive(run).rotate()
    before = parquet.entries(run, 1)
    table = files.read_table(path)
    files.write_table(table.drop_columns(["extra"]), path)
    assert (parquet.entries(run, 1) == before).all()
    train(run, 1, 1, 2, rank=1).finish()  # what another rank left late is added to the old file
    Archive(run).rotate()
    assert (parquet.entries(run, 1) == before).all() and len(parquet.entries(run, 1, 1))
    assert "extra" in files.read_schema(path).names


def test_a_column_of_whole_numbers_has_the_type_of_any_other(tmp_path: Path) -> None:
    import pyarrow as pa

    parts = []
    for name, loss in (("a", 2.0), ("b", 2.5)):
        kept = Rows(tmp_path / f"{name}.jsonl")
        kept.put(
            [
                {"step": 1, "loss": loss, "lr": 1.0, "mfu": 1.0, "tokens": 8},
                {"step": 2, "loss": None, "lr": 1.0, "mfu": 0.5},
            ]
        )
        parts.append(table(rows(tmp_path / f"{name}.jsonl")))
    both = pa.concat_tables(parts)
    assert both.column("loss").to_pylist() == [2.0, None, 2.5, None]
    types = {field.name: str(field.type) for field in both.schema}
    assert types == {"step": "int64", "loss": "double", "lr": "double", "mfu": "double", "tokens": "int64"}
