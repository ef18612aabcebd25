"""The road from any source to the shards: a folder of mixed files, a mix, addresses, bad records, licences."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet as writer

from argosy.data import make as making
from argosy.data.prepare import Prepared, changed, licences, mixture, prepare, with_earlier
from argosy.data.shards import Shards
from argosy.data.sources import find
from argosy.data.tokenizer import open_tokenizer
from argosy.errors import INPUT, Refused
from argosy.job.schema import DataSection

BPE = {"train": "bpe", "vocabulary": 300}


def made(tmp_path: Path, strict: bool = False, workers: int = 1, **keys: Any) -> Prepared:
    section = DataSection.model_validate(keys)
    return prepare(section, base=tmp_path, cache=tmp_path / "cache", strict=strict, workers=workers)


def texts(prepared: Prepared) -> list[str]:
    """The text of every document, from its tokens."""
    shards, tokenizer = Shards(prepared.folder), open_tokenizer(prepared.folder)
    return [tokenizer.decode(shards.document(number).tolist()) for number in range(shards.documents)]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder as people have them: text, records of two kinds, a table, packed and plain, and a picture."""
    folder = tmp_path / "mine"
    (folder / "deep").mkdir(parents=True)
    for number in range(20):
        (folder / f"note-{number:02}.md").write_text(f"note {number} größe")
    rows = [json.dumps({"text": f"line {number}"}) for number in range(30)]
    (folder / "deep/a.jsonl.gz").write_bytes(gzip.compress("\n".join([*rows, "{broken"]).encode()))
    talk = [json.dumps({"prompt": f"ask {number}", "response": f"tell {number}"}) for number in range(10)]
    (folder / "talk.ndjson").write_text("\n".join(talk))
    writer.write_table(pyarrow.table({"text": [f"row {number}" for number in range(25)]}), folder / "t.parquet")
    (folder / "photo.jpg").write_bytes(b"x")
    return folder


def expected() -> list[str]:
    found = [f"line {number}" for number in range(30)] + [f"note {number} größe" for number in range(20)]
    return found + [f"row {number}" for number in range(25)] + [f"user: ask {n}assistant: tell {n}" for n in range(10)]


@pytest.mark.parametrize("tokenizer", ["bytes", BPE])
def test_a_folder_of_mixed_files_is_read_whole(mixed: Path, tmp_path: Path, tokenizer: Any) -> None:
    prepared = made(tmp_path, source=str(mixed), tokenizer=tokenizer)
    assert texts(prepared) == expected()
    assert prepared.files == 23
    assert prepared.bad == 1
    assert prepared.notes[2].startswith("little text is held out: 11 B, 1.2% of it (2 of 85 documents)")
    assert prepared.notes[:2] == (
        f"not read in {mixed}: 1 .jpg. {making.READS}",
        "1 of 86 records cannot be used and are passed over: deep/a.jsonl.gz:31 is not JSON: "
        "Expecting property name enclosed in double quotes at character 2",
    )


def test_several_processes_make_the_same_files_as_one(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "SMALLEST_PART", 100)
    one = made(tmp_path, source=str(mixed), tokenizer=BPE)
    two = prepare(DataSection.model_validate({"source": str(mixed), "tokenizer": BPE}), base=tmp_path,
                  cache=tmp_path / "two", workers=3)  # fmt: skip
    assert len(list(one.folder.glob("*.shard"))) > 3
    assert {path.name: path.read_bytes() for path in one.folder.iterdir()} == {
        path.name: path.read_bytes() for path in two.folder.iterdir()
    }


def test_strict_stops_at_the_first_bad_record_also_of_cached_text(mixed: Path, tmp_path: Path) -> None:
    said = r"deep/a\.jsonl\.gz:31 is not JSON: Expecting property name"
    with pytest.raises(Refused, match=said) as refused:
        made(tmp_path, strict=True, source=str(mixed))
    assert refused.value.code == INPUT
    folder = made(tmp_path, source=str(mixed)).folder
    with pytest.raises(Refused, match=said):
        made(tmp_path, strict=True, source=str(mixed))
    packed = mixed / "deep/a.jsonl.gz"
    packed.write_bytes(gzip.compress(gzip.decompress(packed.read_bytes()).removesuffix(b"\n{broken")))
    for _ in range(2):  # the same text, of other files: what is said of it is theirs
        mended = made(tmp_path, strict=True, source=str(mixed))
        assert mended.folder == folder and mended.bad == 0 and not any("broken" in note for note in mended.notes)
    assert "1 of 86 records cannot be used" in " ".join(Prepared.open(folder).notes)
    (tmp_path / "other.md").write_text(" ".join(f"other {number}" for number in range(99)))
    mix = [{"source": name, "weight": 1.0} for name in (str(mixed), "other.md")]
    for _ in range(2):
        assert made(tmp_path, strict=True, mix=mix, tokenizer="bytes").bad == 0


def test_strict_stops_at_a_file_of_records_that_cannot_be_read_also_of_cached_text(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for number in range(20):
        (tmp_path / f"mine/note-{number}.md").write_text(f"note {number}")
    (tmp_path / "mine/t.parquet").write_bytes(b"no table")
    for _ in range(2):
        with pytest.raises(Refused, match=r"t\.parquet is no Parquet file that can be read") as refused:
            made(tmp_path, strict=True, source="mine")
        assert refused.value.code == INPUT
        assert len(texts(made(tmp_path, source="mine"))) == 20
    (tmp_path / "mine/t.parquet").unlink()
    (tmp_path / "mine/picture.md").write_bytes(b"\xff\xfe")  # no file of records: told and passed over
    assert len(texts(made(tmp_path, strict=True, source="mine"))) == 20


def test_a_file_without_a_usable_record_names_the_fields_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"title": "x", "id": 3}\n' * 5)
    with pytest.raises(Refused) as refused:
        made(tmp_path, source="a.jsonl")
    assert refused.value.text.startswith(
        'data.source = "a.jsonl": none of the 5 records there can be used; the first: a.jsonl:1 has no field with text or a'
        ' chat; it has "title", "id". Name the field with the text: --data.field NAME.'
    )
    with pytest.raises(Refused, match=r'has no field "body"; it has "title", "id"'):
        made(tmp_path, source="a.jsonl", field="body")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"title": f"word {number}"}) + "\n" for number in range(5)))
    assert texts(made(tmp_path, source="b.jsonl", field="title")) == [f"word {number}" for number in range(5)]


def test_another_field_is_another_text(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"text {number}", "body": f"body {number}"}) for number in range(9)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    assert texts(made(tmp_path, source="a.jsonl"))[0] == "text 0"
    assert texts(made(tmp_path, source="a.jsonl", field="body"))[0] == "body 0"


def test_patterns_name_files(mixed: Path, tmp_path: Path) -> None:
    assert texts(made(tmp_path, source=str(mixed / "note-1*.md"))) == [
        f"note {number} größe" for number in range(10, 20)
    ]
    assert [file.name for file in find("mine/**/*.gz", tmp_path).files] == ["deep/a.jsonl.gz"]
    with pytest.raises(Refused, match="no file has a name like that"):
        find("mine/*.zst", tmp_path)


def test_licences_that_are_not_allowed_are_refused(mixed: Path, tmp_path: Path) -> None:
    mix = [{"source": str(mixed), "license": "MIT"}, {"source": "python"}]
    section = DataSection.model_validate({"mix": mix, "licences": ["mit"]})
    with pytest.raises(Refused) as refused:
        prepare(section, base=tmp_path, cache=tmp_path / "cache")
    assert refused.value.text == (
        'data.source = "python": its licence is PSF-2.0, which data.licences does not allow. Found: data.licences = mit. '
        'Leave it out, or say its licence where you know it: data.license = "...".'
    )
    assert not list((tmp_path / "cache").rglob("*.shard"))
    assert made(tmp_path, source=str(mixed), license="MIT", licences=["MIT"]).bytes
    with pytest.raises(Refused, match="its licence is unknown"):
        made(tmp_path, source=str(mixed), licences=["MIT"])


@pytest.fixture
def two(mixed: Path, tmp_path: Path) -> list[dict[str, Any]]:
    (tmp_path / "other.jsonl").write_text("".join(json.dumps({"text": f"other {n}"}) + "\n" for n in range(50)))
    return [{"source": str(mixed), "weight": 3.0, "license": "MIT"}, {"source": "other.jsonl"}]


@pytest.mark.parametrize("tokenizer", ["bytes", BPE])
def test_a_mix_has_one_tokenizer_and_a_folder_for_each_source(two: list[Any], tmp_path: Path, tokenizer: Any) -> None:
    prepared = made(tmp_path, mix=two, tokenizer=tokenizer)
    assert texts(prepared) == [*expected(), *(f"other {number}" for number in range(50))]
    shards = Shards(prepared.folder)
    assert [part.documents for part in shards.parts] == [85, 50]
    assert prepared.facts.tokens == shards.train_tokens == sum(part.facts.tokens for part in prepared.parts)
    section = DataSection.model_validate({"mix": two})
    rows = mixture(section, prepared)
    assert [(row["weight"], row["license"], row["digest"]) for row in rows] == [
        (3.0, "MIT", prepared.parts[0].folder.name), (1.0, "unknown", prepared.parts[1].folder.name)]  # fmt: skip
    assert licences(section, prepared) == f"{two[0]['source']}: MIT; other.jsonl: unknown"
    assert prepared.bad == 1
    assert made(tmp_path, mix=two, tokenizer=tokenizer) == prepared


def test_other_weights_prepare_nothing_anew(two: list[Any], tmp_path: Path) -> None:
    first = made(tmp_path, mix=two, tokenizer=BPE)
    heard: list[str] = []
    section = DataSection.model_validate({"mix": [{**two[0], "weight": 0.1}, two[1]], "tokenizer": BPE})
    again = prepare(
        section, base=tmp_path, cache=tmp_path / "cache", progress=lambda what, done, total: heard.append(what)
    )
    assert (again, heard) == (first, [])


def test_a_source_is_the_same_alone_and_in_a_mix_with_its_tokenizer(two: list[Any], tmp_path: Path) -> None:
    """A run that began with one source and takes in another goes on in the first where it stood: by its digest."""
    alone = made(tmp_path, source="other.jsonl", tokenizer=BPE)
    file = tmp_path / "run-tokenizer.json"
    file.write_bytes(alone.tokenizer.read_bytes())
    mixed = made(tmp_path, mix=two, tokenizer=str(file))
    assert mixed.parts[1].folder == alone.folder
    assert mixed.parts[0].folder != alone.folder


def test_what_a_run_read_before_stays_with_it(two: list[Any], tmp_path: Path) -> None:
    first, second = made(tmp_path, source=two[0]["source"]), made(tmp_path, source="other.jsonl")
    both = with_earlier(second, [first.digest, second.digest], lambda *_: None)
    assert [part.digest for part in Shards(both.folder).parts] == [second.digest, first.digest]
    assert with_earlier(second, [second.digest], lambda *_: None) is second
    section = DataSection.model_validate({"source": "other.jsonl"})
    assert not changed(section, tmp_path, both.folder)
    (tmp_path / "other.jsonl").write_text('{"text": "new"}\n')
    assert changed(section, tmp_path, both.folder)
    (first.folder / "prepared.json").unlink()
    assert with_earlier(second, [first.digest], lambda *_: None) is second, "what is gone is not needed to go on"


def test_a_mix_of_one_text_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"{n}"}) + "\n" for n in range(9)))
    mix = [{"source": "a.jsonl"}, {"source": str(tmp_path / "a.jsonl")}]
    assert len(made(tmp_path, mix=mix).parts) == 2, "two names are two sources"
    with pytest.raises(Refused, match=r"data\.mix names the same text twice"):
        made(tmp_path, mix=[mix[0], mix[0]])


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_addresses_are_read_through_file_systems(mixed: Path, tmp_path: Path, scheme: str) -> None:
    if scheme == "memory":
        import fsspec

        system = fsspec.filesystem("memory")
        system.put(str(mixed), f"/{tmp_path.name}", recursive=True)
        address = f"memory://{tmp_path.name}"
    else:
        address = f"file://{mixed}"
    prepared = made(tmp_path, source=address)
    assert sorted(texts(prepared)) == sorted(expected())
    assert prepared.source == address
    one = made(tmp_path, source=f"{address}/t.parquet")
    assert len(texts(one)) == 25
    some = made(tmp_path, source=f"{address}/note-*.md")
    assert len(texts(some)) == 20
    with pytest.raises(Refused, match=rf'data\.source = "{scheme}://.*/nowhere": there is no such file'):
        made(tmp_path, source=f"{address}/nowhere")


def test_an_address_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"addresses with quux:// are not known here"):
        made(tmp_path, source="quux://bucket/x")


def test_ids_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"input_ids": [n, 300]}) + "\n" for n in range(9)))
    with pytest.raises(Refused, match=r"made by another tokenizer\. Found: the id 300, where the tokenizer has 257"):
        made(tmp_path, source="a.jsonl", tokenizer="bytes")
    with pytest.raises(Refused, match="made by somebody else's tokenizer, which is needed to read them"):
        made(tmp_path, source="a.jsonl", tokenizer=BPE)
    assert not list((tmp_path / "cache/prepared").glob("*/prepared.json"))
