"""Shards in MosaicML's format, written here byte by byte as its documentation says; no line is shared with the reader."""

import gzip
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest

from argosy.data.document import File, Piece, Unreadable
from argosy.data.sources import find, mds
from argosy.errors import Refused

WIDTHS = {"int": 8, "uint16": 2}
PICKLE = b"cpytest\nfail\n(S'the pickle ran'\ntR."  # whoever opens it fails the test


def shard(columns: dict[str, str], samples: list[dict[str, bytes]]) -> bytes:
    """A shard of samples whose values are encoded already."""
    names = sorted(columns)
    sizes = [WIDTHS.get(columns[name]) for name in names]
    config = {"version": 2, "format": "mds", "compression": None, "hashes": [], "size_limit": 1 << 26}
    config |= {"column_names": names, "column_encodings": [columns[name] for name in names], "column_sizes": sizes}
    told = json.dumps(config, sort_keys=True).encode()
    bodies = []
    for sample in samples:
        varying = [len(sample[name]) for name, size in zip(names, sizes, strict=True) if size is None]
        bodies.append(struct.pack(f"<{len(varying)}I", *varying) + b"".join(sample[name] for name in names))
    first = 4 + 4 * (len(samples) + 1) + len(told)
    places = np.cumsum([first, *map(len, bodies)]).astype("<u4").tobytes()
    return struct.pack("<I", len(samples)) + places + told + b"".join(bodies)


TEXTS = shard(
    {"text": "str", "id": "int", "blob": "pkl"},
    [{"text": f"größe {n}".encode(), "id": struct.pack("<q", n), "blob": PICKLE} for n in range(20)],
)


def file_at(path: Path, field: str = "") -> File:
    return File(path, path.name, path.stat().st_size, "mds", field=field)


def read(path: Path, field: str = "") -> tuple[list[Piece], list[str]]:
    bad: list[str] = []
    found = list(mds.documents(file_at(path, field), 0, lambda place, why: bad.append(f"{place} {why}")))
    return found, bad


@pytest.mark.parametrize("suffix", ["", ".zstd", ".gz"])
def test_text_is_read_and_found_again(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"shard.00000.mds{suffix}"
    packed = {"": TEXTS, ".gz": gzip.compress(TEXTS)}.get(suffix) or pyarrow.compress(TEXTS, "zstd", asbytes=True)
    path.write_bytes(packed)
    found, bad = read(path)
    assert [piece.text.decode() for piece in found] == [f"größe {n}" for n in range(20)]
    assert bad == []
    again = list(mds.read(file_at(path), [(3, 4, 0), (17, 18, 0)], 0))
    assert [piece.text.decode() for piece in again] == ["größe 3", "größe 17"]


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("bytes", np.array([5, 6, 70_000], "<i8").tobytes()),
        ("ndarray:int32:3", np.array([5, 6, 70_000], "<i4").tobytes()),
        ("ndarray:int32", bytes([1 << 2, 3]) + np.array([5, 6, 70_000], "<i4").tobytes()),
        ("ndarray", bytes([32, 1 << 2 | 1]) + struct.pack("<H", 3) + np.array([5, 6, 70_000], "<u4").tobytes()),
    ],
)
def test_ids_are_read_however_they_are_written(tmp_path: Path, encoding: str, data: bytes) -> None:
    path = tmp_path / "a.mds"
    path.write_bytes(shard({"tokens": encoding}, [{"tokens": data}]))
    found, bad = read(path)
    assert (found[0].ids.tolist(), bad) == ([5, 6, 70_000], [])


def test_chats_are_json_columns(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path = tmp_path / "a.mds"
    path.write_bytes(shard({"messages": "json"}, [{"messages": json.dumps(talk).encode()}]))
    assert read(path)[0][0].chat.messages == tuple(talk)


def test_a_pickled_column_is_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.mds"
    path.write_bytes(shard({"text": "pkl"}, [{"text": PICKLE}]))
    assert read(path)[1] == [
        'a.mds, sample 1 has a pickled column "text", which is never opened: it could run any program'
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: raw[:5], "ends within its header"),
        (lambda raw: struct.pack("<I", 2**32 - 1) + raw[4:], "says that it has 4,294,967,295 samples"),
        (lambda raw: raw[:-3], "does not have the"),
        (lambda raw: raw[:8] + struct.pack("<I", 2**31) + raw[12:], "does not have the"),
        (lambda raw: raw.replace(b'"column_names"', b'"column_nanes"'), "does not say which columns"),
        (lambda raw: raw.replace(b"[null, 8, null]", b"[null,1e9999,8]"), "does not say which columns"),
        (
            lambda raw: raw.replace(b'"text"', b'"tixt"'),
            r'has no column with text, a chat or ids; it has "blob" \(pkl\)',
        ),
    ],
)
def test_hostile_headers_are_one_sentence(tmp_path: Path, change: Any, says: str) -> None:
    path = tmp_path / "a.mds"
    path.write_bytes(change(TEXTS))
    with pytest.raises(Unreadable, match=says):
        read(path)


def test_sizes_that_lead_out_of_a_sample_are_told(tmp_path: Path) -> None:
    raw = bytearray(shard({"text": "str"}, [{"text": b"abc"}, {"text": b"def"}]))
    raw[-7:-3] = struct.pack("<I", 2**31)
    path = tmp_path / "a.mds"
    path.write_bytes(raw)
    found, bad = read(path)
    assert [piece.text for piece in found] == [b"abc"]
    assert bad == ['a.mds, sample 2 ends within its column "text"']


def test_a_folder_of_shards_is_read_where_it_lies(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"shard.{number:05d}.mds").write_bytes(TEXTS)
    (tmp_path / "shard.00001.mds.zstd").write_bytes(pyarrow.compress(TEXTS, "zstd", asbytes=True))
    (tmp_path / "README.md").write_text("not meant")
    names = [{"raw_data": {"basename": f"shard.{number:05d}.mds"}, "zip_data": None} for number in range(3)]
    (tmp_path / "index.json").write_text(json.dumps({"version": 2, "shards": names}))
    found = find(str(tmp_path), Path("/"))
    assert [(file.name, file.kind) for file in found.files] == [
        ("shard.00000.mds", "mds"), ("shard.00001.mds", "mds")]  # fmt: skip
    assert found.unread == ["shard.00002.mds is named by index.json and not there"]
    assert found.passed_over == {".md": 1}
    (tmp_path / "index.json").write_text('{"shards": [{"raw_data": {"basename": "a"}, "zip_data": {"basename": [1]}}]}')
    assert find(str(tmp_path), Path("/")).unread == ["a is named by index.json and not there"]


def test_a_plain_shard_is_read_a_sample_at_a_time_and_a_packed_one_has_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            found = super().read(size)
            sizes.append(len(found))
            return found

    raw = shard({"text": "str"}, [{"text": bytes([97 + n]) * 5000} for n in range(20)])
    path = tmp_path / "a.mds"
    path.write_bytes(raw)
    monkeypatch.setattr(mds, "unpacked", lambda file: Watched(raw))
    assert len(read(path)[0]) == 20
    assert max(sizes) < 6000 < len(raw)
    packed = tmp_path / "a.mds.gz"
    packed.write_bytes(b"x")
    monkeypatch.setattr(mds, "LARGEST", len(raw))
    assert len(read(packed)[0]) == 20
    monkeypatch.setattr(mds, "LARGEST", len(raw) - 1)
    with pytest.raises(Unreadable, match="MiB unpacked; plain it can be read in parts"):
        read(packed)


def test_a_shard_that_becomes_shorter_while_it_is_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.mds"
    path.write_bytes(shard({"text": "str"}, [{"text": bytes([97 + n]) * 500_000} for n in range(9)]))
    pieces = mds.documents(file_at(path), 0, lambda place, why: None)
    next(pieces)
    with path.open("r+b") as file:
        file.truncate(600_000)
    with pytest.raises(Unreadable, match="became shorter while it was read"):
        list(pieces)


def test_shards_beside_megatrons_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mds").write_bytes(TEXTS)
    (tmp_path / "b.idx").write_bytes(b"MMIDIDX\0\0")
    (tmp_path / "b.bin").write_bytes(b"")
    with pytest.raises(Refused, match="MDS and Megatron's files cannot be one source"):
        find(str(tmp_path), Path("/"))
