import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from argosy.data import shards
from argosy.data.prepare import prepare
from argosy.data.tokenizer import open_tokenizer
from argosy.errors import Refused
from argosy.job.schema import DataSection

MakeShards = Callable[..., shards.Shards]
FIXTURE = Path(__file__).parent / "fixtures" / "prepared-1"


def test_documents_are_numbered_over_all_files(make_shards: MakeShards, tokens_of: Callable[..., np.ndarray]) -> None:
    lengths = [5, 9, 1, 300, 7, 8, 2]
    found = make_shards(lengths, held=(2, 5), files=3)
    assert found.lengths.tolist() == lengths
    assert found.train_documents.tolist() == [0, 1, 3, 4, 6]
    assert sorted(found.held_documents.tolist()) == [2, 5]
    assert found.train_tokens == sum(lengths) - 9
    for number, length in enumerate(lengths):
        assert found.document(number).tolist() == tokens_of(number, length).tolist()
        assert found.place(number)[0] == f"folder/{number}.txt"
    assert found.part(3, 10, 20).tolist() == tokens_of(3, 300)[10:20].tolist()


def test_version_1_is_read_for_ever() -> None:
    """The fixture was written by the first version of this format and is never made again."""
    found = shards.Shards(FIXTURE)
    tokenizer = open_tokenizer(FIXTURE)
    assert (found.documents, found.vocabulary, found.source) == (3, 257, "fixture")
    assert tokenizer.decode(found.document(0).tolist()) == "Roses are red.\n"
    assert tokenizer.decode(found.document(1).tolist()) == "Violets are blue, größer.\n"
    assert found.train_documents.tolist() == [0, 2]
    assert found.held_documents.tolist() == [1]
    assert found.place(1) == ("poems/b.txt", 0, 28)
    assert found.part(2, 0, 4, "mask").tolist() == [0, 0, 1, 1]
    assert found.part(2, 0, 4, "kinds").tolist() == [1, 1, 2, 2]
    assert found.files[0].pairs is not None
    assert found.files[0].pairs.tolist() == [-1, -1, 7]
    assert found.bytes_of.tolist() == [1] * 256 + [0]


@pytest.mark.parametrize(
    "name, content, says",
    [
        (shards.FACTS, None, "there is no prepared text"),
        (shards.FACTS, b"{", "this is damaged"),
        (shards.FACTS, b"[]", "format version"),
        (shards.FACTS, json.dumps({"version": 3}).encode(), "format version 3, this Argosy reads 1 and 2"),
        (shards.FACTS, json.dumps({"version": 1, "shards": ["../x"]}).encode(), "names no shards"),
        ("part-00000.shard", None, "this shard cannot be read"),
        (
            "part-00000.shard",
            b"\x80\x04cos\nsystem\n(S'x'\ntR.".ljust(600),
            "no shard of Argosy",
        ),  # allowed: hostile pickle
    ],
)
def test_a_damaged_folder_is_refused(make_shards: MakeShards, name: str, content: bytes | None, says: str) -> None:
    folder = make_shards([5, 5]).folder
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(Refused, match=says) as refused:
        shards.Shards(folder)
    assert str(folder) in refused.value.text


def test_bytes_of_must_fit_the_vocabulary(make_shards: MakeShards) -> None:
    found = make_shards([5, 5])
    np.zeros(3, "<i4").tofile(found.folder / shards.TOKEN_BYTES)
    with pytest.raises(Refused, match="3 entries where the vocabulary has 257"):
        _ = found.bytes_of


def test_one_side_without_documents_is_refused(make_shards: MakeShards) -> None:
    with pytest.raises(Refused, match="no document is left"):
        make_shards([5, 5], held=(0, 1))


def test_bytes_of_are_what_was_written(notes: Path, tmp_path: Path) -> None:
    """With them overwritten a run said 9e-8 bits per byte, and nothing was said of it."""
    section = DataSection.model_validate({"source": str(notes)})
    folder = prepare(section, base=Path("/"), cache=tmp_path / "cache").folder
    right, path = shards.read_token_bytes(folder, 257), folder / shards.TOKEN_BYTES
    facts = json.loads((folder / shards.FACTS).read_text())
    whole = path.read_bytes()
    old = {name: value for name, value in facts.items() if name != shards.BYTES_SUM}
    for told in (facts, old):  # old: made before there was a checksum
        (folder / shards.FACTS).write_text(json.dumps(told))
        path.write_bytes(whole)
        assert (shards.read_token_bytes(folder) == right).all()
        for content in (b"\7" * len(whole), whole[:-4] + b"\1\0\0\0"):
            path.write_bytes(content)
            with pytest.raises(Refused, match="this is damaged") as refused:
                shards.read_token_bytes(folder)
            assert refused.value.where == str(path)


def test_a_mix_is_as_sound_as_its_first_source(make_mix: Callable[..., shards.Shards]) -> None:
    mixed = make_mix(([5, 5], (0,)), ([6, 6], (0,)))
    assert mixed.bytes_of.sum() == 256
    (mixed.folder / shards.TOKEN_BYTES).write_bytes(b"\7" * 4 * 257)
    with pytest.raises(Refused, match="this is damaged"):
        shards.read_token_bytes(mixed.folder)
