import json
from pathlib import Path

import pytest

from argosy.run.ledger import Entry, Ledger, append

START = Ledger.start(batch__sequence=256, batch__tokens=4096)


def test_the_value_in_force_is_the_last_one_before_the_step() -> None:
    ledger = START.changed(100, "batch.tokens", 8192, "--change").changed(200, "batch.tokens", 512, "--change")
    found = [ledger.at(step, "batch.tokens") for step in (1, 99, 100, 199, 200, 10**9)]
    assert found == [4096, 4096, 8192, 8192, 512, 512]
    assert ledger.at(150, "batch.sequence") == 256
    assert ledger.entries[-1].old == 8192
    with pytest.raises(KeyError):
        ledger.at(1, "data.mix")


def test_changes_are_the_steps_of_the_asked_keys_ascending_from_zero() -> None:
    ledger = START.changed(100, "batch.tokens", 8192, "x").changed(150, "batch.sequence", 128, "x")
    assert ledger.changes(["batch.tokens"]) == [0, 100]
    assert ledger.changes(["batch.tokens", "batch.sequence"]) == [0, 100, 150]


def test_writing_appends_and_reading_gives_the_same_digest(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    START.write(path)
    first = path.read_bytes()
    later = START.changed(7, "batch.tokens", 1024, "--change")
    later.write(path)
    assert path.read_bytes().startswith(first)
    assert Ledger.read(path) == later
    assert Ledger.read(path).digest == later.digest != START.digest
    assert [json.loads(line)["version"] for line in path.read_text().splitlines()] == [1, 1, 1]


def test_a_line_torn_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    START.write(path)
    whole = path.read_bytes()
    append(path, [Entry(9, "batch.tokens", 4096, 512, "x")])
    for length in range(len(whole) + 1, path.stat().st_size):
        torn = tmp_path / "torn.jsonl"
        torn.write_bytes(path.read_bytes()[:length])
        assert Ledger.read(torn) == START
        START.changed(7, "batch.tokens", 1024, "x").write(
            torn
        )  # and what is appended later stands on a line of its own
        assert Ledger.read(torn).at(9, "batch.tokens") == 1024


def test_version_1_is_read_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text(
        '{"from_step": 0, "key": "batch.tokens", "new": 4096, "old": null, "reason": "start", "version": 1}\n'
        '{"from_step": 5, "key": "batch.tokens", "new": 512, "old": 4096, "reason": "--change", "version": 1}\n'
    )
    ledger = Ledger.read(path)
    assert (ledger.at(4, "batch.tokens"), ledger.at(5, "batch.tokens")) == (4096, 512)
    assert ledger.digest == "f6778e752a1b5d2c89f0a5faac2f60b5"
