"""Whatever a file of a stranger holds is read, never run: a planted pickle ends in one sentence, or is passed over.

Checkpoints, shards and tokenizers have the same test where they are read: tests/checkpoint, tests/data.
"""

from __future__ import annotations

import pickle  # allowed: to plant what must never run
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet_files
import pytest

from argosy.commands import runs
from argosy.data import shards
from argosy.data.prepare import Prepared
from argosy.errors import INPUT, Refused
from argosy.job import leaves
from argosy.job.load import load
from argosy.job.setting import Setting
from argosy.observe import report
from argosy.run import folder, parquet, record, rule
from argosy.run.archive import Archive
from argosy.run.folder import Run
from argosy.run.lines import rows


class Hostile:
    """Unpickled anywhere, it leaves a file behind."""

    def __init__(self, trace: Path):
        self.trace = str(trace)

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.trace),)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    loaded = load("smoke")
    made = folder.create(tmp_path / "run", asked=loaded.job, text=loaded.text, origin={})
    settings = [Setting(key, None, leaves.plain(value), "default") for key, value in leaves.leaves(loaded.job).items()]
    folder.settle(made, loaded.job, loaded.written, settings, tmp_path / "prepared", loaded.text)
    return made


def refused(action: Callable[[], object], place: str) -> None:
    with pytest.raises(Refused) as told:
        action()
    assert told.value.code == INPUT and place in told.value.text and "\n" not in told.value.text


def run_json(run: Run, planted: bytes) -> None:
    (run.path / "run.json").write_bytes(planted)
    refused(run.info, "run.json")
    assert rule.look(run.path).kind == "broken"
    assert runs.row(run).state == "unreadable"


def settings_json(run: Run, planted: bytes) -> None:
    (run.path / "settings.json").write_bytes(planted)
    refused(run.job, "settings.json")
    assert rule.look(run.path).kind == "broken"


def job_file(run: Run, planted: bytes) -> None:
    for begin in (b"", b"x = "):
        (run.path / "job.toml").write_bytes(begin + planted)
        refused(lambda: load(str(run.path / "job.toml")), "job.toml")


def ledger(run: Run, planted: bytes) -> None:
    (run.path / "ledger.jsonl").write_bytes(planted + b"\n")
    refused(run.ledger, "ledger.jsonl")


def lines_of_a_run(run: Run, planted: bytes) -> None:
    """The page and the screen make do without them; the record, which is the truth, writes metrics.jsonl anew."""
    files = [run.path / f"{name}.jsonl" for name in ("metrics", "evaluations", "samples", "journal")]
    for file in (*files, run.local / "saved.jsonl"):
        file.write_bytes(planted + b"\n")
        assert rows(file) == []
    assert "<html" in report.page(run)
    Archive(run).close()
    assert files[0].read_bytes() == b""


def record_file(run: Run, planted: bytes) -> None:
    (run.local / record.Name(1, 0).file).write_bytes(planted.ljust(4096, b"."))
    refused(lambda: parquet.entries(run, 1), "record-rank-0000-inc-0001-000.bin")


def rotated_record(run: Run, planted: bytes) -> None:
    file = run.path / "record/node-0000-inc-0001.parquet"
    file.parent.mkdir()
    file.write_bytes(planted)
    refused(lambda: parquet.entries(run, 1), file.name)
    # In the right form: with a type of its own, whose making is what older readers unpickled.
    kind = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": planted}
    fields = [arrow.field(name, arrow.int64(), metadata=kind) for name in parquet.COLUMNS]
    values = [arrow.array([0])] * len(fields)
    parquet_files.write_table(arrow.table(values, schema=arrow.schema(fields, metadata=kind)), file)
    with suppress(Refused):
        parquet.entries(run, 1)


def prepared_text(run: Run, planted: bytes) -> None:
    (run.path / shards.FACTS).write_bytes(planted)
    refused(lambda: Prepared.open(run.path), shards.FACTS)
    refused(lambda: shards.Shards(run.path), shards.FACTS)


PLACES = [run_json, settings_json, job_file, ledger, lines_of_a_run, record_file, rotated_record, prepared_text]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("protocol", [0, 4], ids=["as text", "as bytes"])
def test_a_hostile_pickle_never_runs(
    run: Run, tmp_path: Path, place: Callable[[Run, bytes], None], protocol: int
) -> None:
    trace = tmp_path / "trace"
    planted = pickle.dumps(Hostile(trace), protocol)  # allowed: to plant what must never run
    place(run, planted)
    assert not trace.exists()
    pickle.loads(planted)  # allowed: shows that the plant works where somebody does run it
    assert trace.exists()


@pytest.mark.parametrize("place", PLACES)
def test_brackets_without_end_are_no_bug_of_ours(run: Run, place: Callable[[Run, bytes], None]) -> None:
    place(run, b"[" * 100_000)
