import json
from pathlib import Path

from argosy.data.prepare import prepare
from argosy.data.shards import Shards
from argosy.data.statistics import duplicates, lines, statistics
from argosy.job.schema import DataSection


def test_numbers_are_those_of_the_text(tmp_path: Path) -> None:
    rows = [json.dumps({"text": "x" * (number % 10 + 1)}) for number in range(30)]  # each text three times
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    pairs = [json.dumps({"prompt": f"q{n}", "chosen": "ab", "rejected": "cde"}) for n in range(8)]
    (tmp_path / "b.jsonl").write_text("\n".join([*pairs, json.dumps({"text": "x" * 7}), json.dumps({"text": "y"})]))
    mix = [{"source": "a.jsonl", "license": "MIT"}, {"source": "b.jsonl"}]
    section = DataSection.model_validate({"mix": mix, "tokenizer": "bytes"})
    shards = Shards(prepare(section, base=tmp_path, cache=tmp_path / "cache").folder)
    one, other = statistics(shards, 16)
    assert (one.documents, one.tokens, one.bytes) == (30, 3 * (55 + 10), 3 * 55)
    assert (one.duplicates, one.duplicate_tokens) == (20, 2 * (55 + 10))
    assert one.lengths == {"least": 2, "10%": 2, "median": 6, "90%": 10, "99%": 11, "most": 11}
    assert (one.counted_tokens, one.kinds, one.pairs) == (one.tokens, {}, 0)
    assert (other.documents, other.duplicates, other.pairs) == (18, 0, 8)
    # "user: q0", its end, "assistant: ", "ab" and its end: of these three tokens are learned from
    assert other.tokens == 8 * (9 + 11 + 3) + 8 * (9 + 11 + 4) + 8 + 2
    assert other.counted_tokens == 8 * 3 + 8 + 2
    assert other.kinds == {"text": 10, "user": 16 * 9, "assistant": 8 * 14 + 8 * 15}
    assert duplicates(shards) == (21, 2 * (55 + 10) + 8)
    assert one.row()["held_out_documents"] == one.held_out_documents > 0
    told = "\n".join(lines([one, other], shards, 16, ["MIT", "unknown"]))
    assert "  licence      MIT" in told
    assert "  learned from 34 tokens (9%); the others are masked" in told
    assert "all: 48 documents" in told
