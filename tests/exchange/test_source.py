"""What a stranger's folder may hold: headers that lie, indices that lead elsewhere, pickles, tensors that do not belong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from argosy.errors import Refused
from argosy.exchange.source import COMPANIONS, ELSEWHERE, WEIGHTS, Entry, Source, find, header, is_source

GOOD = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def file(path: Path, rows: object, data: bytes = b"\0" * 24, claimed: int | None = None) -> Path:
    """A safetensors file with this header, as text or table, and these bytes."""
    text = rows if isinstance(rows, bytes) else json.dumps(rows).encode()
    path.write_bytes((len(text) if claimed is None else claimed).to_bytes(8, "little") + text + data)
    return path


def test_a_whole_file_is_read_as_its_own_library_reads_it(folders: Callable[[str], Path]) -> None:
    from safetensors import safe_open

    for path in folders("llama").glob("*.safetensors"):
        found = header(path)
        with safe_open(path, "numpy") as known:
            assert set(found) == set(known.keys())
            for name, entry in found.items():
                whole = known.get_tensor(name)
                assert entry.shape == whole.shape and bytes(entry.rows(0, whole.shape[0])) == whole.tobytes()
                assert bytes(entry.rows(1, whole.shape[0])) == whole[1:].tobytes()


HEADERS: dict[str, tuple[Any, str]] = {
    "no json": (b"{", "no JSON"),
    "deep": (b"[" * 100_000, "no JSON"),
    "a list": ([], "no table"),
    "twice": (b'{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"a":{}}', "stands twice"),
    "no row": ({"a": 3}, "has not dtype"),
    "a key more": ({"a": {**GOOD, "x": 1}}, "has not dtype"),
    "type": ({"a": {**GOOD, "dtype": "PICKLE"}}, "unknown type 'PICKLE'"),
    "type is a list": ({"a": {**GOOD, "dtype": ["F32"]}}, "unknown type"),
    "negative shape": ({"a": {**GOOD, "shape": [-2, -3]}}, "has the shape"),
    "true as a size": ({"a": {**GOOD, "shape": [True, 6]}}, "has the shape"),
    "a broken size": ({"a": {**GOOD, "shape": [2.0, 3]}}, "has the shape"),
    "many dimensions": ({"a": {**GOOD, "shape": [1] * 30}}, "has the shape"),
    "overflow": ({"a": {**GOOD, "shape": [1 << 40, 1 << 40]}}, "has 24 bytes for"),
    "absurd size": ({"a": {**GOOD, "shape": [1 << 60]}}, "has the shape"),
    "negative offset": ({"a": {**GOOD, "data_offsets": [-24, 0]}}, "lies at"),
    "backwards": ({"a": {**GOOD, "data_offsets": [24, 0]}}, "lies at bytes 24 to 0"),
    "beyond": ({"a": {**GOOD, "data_offsets": [0, 48]}}, "lies at bytes 0 to 48 of 24"),
    "too few bytes": ({"a": {**GOOD, "shape": [2, 2]}}, "has 24 bytes for F32 [2, 2]"),
    "overlap": ({"a": GOOD, "b": GOOD}, "overlap"),
    "gap": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [20, 24]}}, "gap at byte"),
    "rest": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "20 bytes after its last tensor"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_lies_is_refused(tmp_path: Path, name: str) -> None:
    rows, expected = HEADERS[name]
    path = file(tmp_path / "model.safetensors", rows)
    with pytest.raises(Refused) as caught:
        header(path)
    assert expected in caught.value.text and caught.value.where == str(path) and caught.value.code == 2


def test_absurd_lengths_take_no_memory(tmp_path: Path) -> None:
    for claimed in (1 << 63, 10**12, 101 << 20, 25):
        path = file(tmp_path / "model.safetensors", b"", claimed=claimed)
        with pytest.raises(Refused, match="its header claims"):
            header(path)
    path.write_bytes(b"\x01")
    with pytest.raises(Refused, match="no whole safetensors"):
        header(path)
    with pytest.raises(Refused, match="missing"):
        header(tmp_path / "none.safetensors")


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = file(tmp_path / "model.safetensors", {"a": GOOD})
    entry = header(path)["a"]
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(Refused, match="ends before its tensors do"):
        entry.rows(0, 2)
    assert isinstance(entry, Entry)


@pytest.mark.parametrize(
    "index, expected",
    [
        ({}, "no weight_map"),
        ({"weight_map": {"a": "../../../etc/passwd"}}, "no safetensors file of its folder"),
        ({"weight_map": {"a": "/etc/passwd.safetensors"}}, "no safetensors file of its folder"),
        ({"weight_map": {"a": ["x"]}}, "no safetensors file of its folder"),
        ({"weight_map": {"a": "missing.safetensors"}}, "missing"),
        ({"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}, "does not hold b"),
        ({"weight_map": {"a": "two.safetensors", "c": "one.safetensors"}}, "a is in two files"),
        ([], "no table"),
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path, index: object, expected: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    for name in ("one", "two"):
        file(tmp_path / f"{name}.safetensors", {"a": GOOD})
    with pytest.raises(Refused, match=expected):
        Source(tmp_path, "").entries()


def test_pickles_are_refused_unread(tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "model.pt"):
        path = tmp_path / name
        path.write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
        with pytest.raises(Refused, match="runs what is in it"):
            find(str(path))
        with pytest.raises(Refused, match=f"runs what is in it.*{name}"):
            Source(tmp_path, "").entries()
        path.unlink()
    with pytest.raises(Refused, match="holds no weights"):
        Source(tmp_path, "").entries()
    assert is_source(str(tmp_path / "x.bin"))


def test_what_is_no_folder_of_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for text, expected in (
        (str(tmp_path / "nowhere"), "no such folder"),
        (str(tmp_path / "file"), "this is a file"),
        ("hf://a", "no name of a model"),
        ("hf://a/b/c", "no name of a model"),
        ("hf://../../etc/x", "no name of a model"),
        ("hf://datasets/a/b", "a data set"),
    ):
        with pytest.raises(Refused, match=expected):
            find(text)
    with pytest.raises(Refused, match=r"has no config\.json"):
        _ = Source(tmp_path, "").config
    (tmp_path / "config.json").write_text("{" * 10, encoding="utf-8")
    with pytest.raises(Refused, match="no JSON"):
        _ = Source(tmp_path, "").config
    (tmp_path / "config.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(Refused, match="no table"):
        _ = Source(tmp_path, "").config
    assert not is_source(str(tmp_path / "nowhere")) and is_source(str(tmp_path)) and is_source("hf://a/b")


def test_what_is_fetched_is_each_weight_once() -> None:
    from huggingface_hub.utils import filter_repo_objects

    there = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json", "tokenizer.json"]
    more = ["consolidated.safetensors", "consolidated-00001-of-2.safetensors", "original/params.json", "pytorch_model.bin",
            "modeling_mine.py", "fp16/model.safetensors", "onnx/config.json"]  # fmt: skip
    found = filter_repo_objects(
        [*there, *more], allow_patterns=[*WEIGHTS, *COMPANIONS], ignore_patterns=list(ELSEWHERE)
    )
    assert sorted(found) == sorted(there)


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for models that are gated, missing, or of another revision."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        word = next((word for word in ("gated", "missing", "other") if word in self.path), "")
        code, reason = {
            "gated": (403, "GatedRepo"),
            "missing": (404, "RepoNotFound"),
            "other": (404, "RevisionNotFound"),
        }.get(word, (500, ""))
        body = b'{"error": "no"}'
        self.send_response(code)
        self.send_header("X-Error-Code", reason)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def asked(name: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`argosy import NAME` in a process of its own: the client reads its settings when it is loaded."""
    known = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    command = [sys.executable, "-m", "argosy", "import", name, "--out", str(folder / "out")]
    home = {"HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    return subprocess.run(command, env=known | home, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("hf://org/gated", "it is gated: accept its terms at https://huggingface.co/org/gated, then `hf auth login`"),
        ("hf://org/missing", "the hub has no such model, or it is private"),
        ("hf://org/model@other", "it has no revision other"),
    ],
)
def test_the_hub_says_no_in_one_sentence(hub: str, tmp_path: Path, name: str, expected: str) -> None:
    done = asked(name, tmp_path, HF_ENDPOINT=hub)
    assert done.returncode == 2 and expected in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def test_without_a_network_one_sentence(tmp_path: Path) -> None:
    done = asked("hf://org/model", tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and "not in its cache" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()
