"""Files in object stores, through the file systems that reach them: here against a small store of our own on this machine."""

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

import fsspec
import pytest
from fsspec import AbstractFileSystem

from argosy.data.document import File, Unreadable
from argosy.data.prepare import prepare
from argosy.data.scan import fingerprint
from argosy.data.shards import Shards
from argosy.data.sources import documents, find, streams
from argosy.errors import Refused
from argosy.job.schema import DataSection


class Store(BaseHTTPRequestHandler):
    """What Amazon's protocol needs for reading: heads, ranges and lists."""

    protocol_version = "HTTP/1.1"
    things: dict[str, bytes] = {}

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        length = headers.pop("length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        _, _, key = path.partition("/")
        if not key or key in self.things:
            size = str(len(self.things.get(key, b"")))
            self.answer(200, length=size, ETag='"e"', Last_Modified="Mon, 01 Jan 2024 00:00:00 GMT")
        else:
            self.answer(404)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path).strip("/")
        bucket, _, key = path.partition("/")
        if key:
            self.send_thing(key)
            return
        asked = parse_qs(parts.query)
        prefix, cut = asked.get("prefix", [""])[0], asked.get("delimiter", [""])[0]
        keys = sorted(key for key in self.things if key.startswith(prefix))
        folders = sorted(
            {prefix + key[len(prefix) :].split(cut)[0] + cut for key in keys if cut and cut in key[len(prefix) :]}
        )
        keys = [key for key in keys if not cut or cut not in key[len(prefix) :]]
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified><ETag>e</ETag>"
            f"<Size>{len(self.things[key])}</Size></Contents>"
            for key in keys
        ) + "".join(f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in folders)
        told = f"<Name>{bucket}</Name><KeyCount>{len(keys) + len(folders)}</KeyCount><IsTruncated>false</IsTruncated>{entries}"
        self.answer(200, f'<?xml version="1.0"?><ListBucketResult>{told}</ListBucketResult>'.encode())

    def send_thing(self, key: str) -> None:
        if key not in self.things:
            self.answer(404, b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>')
            return
        body, asked = self.things[key], self.headers.get("Range")
        if not asked:
            self.answer(200, body)
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        begin, end = int(first), min(int(last or len(body)), len(body) - 1)
        told = f"bytes {begin}-{end}/{len(body)}"
        self.answer(206, body[begin : end + 1], Content_Range=told, ETag='"e"')


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a bucket; what is in it is Store.things."""
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "me"),
        ("AWS_SECRET_ACCESS_KEY", "hush"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(name, value)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    end = quote(f"127.0.0.1:{server.server_address[1]}", safe="")
    Store.things = {}
    yield f"?scheme=http&endpoint_override={end}&region=us-east-1"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_bucket_is_read_like_a_folder(store: str, tmp_path: Path) -> None:
    Store.things = {f"mine/note-{number:02}.txt": f"note {number}".encode() for number in range(12)}
    Store.things |= {"mine/deep/a.jsonl": b'{"text": "line"}\n', "mine/photo.jpg": b"x", "other/b.txt": b"no"}
    address = f"s3://bucket/mine{store}"
    found = find(address, tmp_path)
    assert [file.name for file in found.files] == ["deep/a.jsonl", *(f"note-{number:02}.txt" for number in range(12))]
    assert found.passed_over == {".jpg": 1}
    section = DataSection.model_validate({"source": address})
    prepared = prepare(section, base=tmp_path, cache=tmp_path / "cache")
    assert Shards(prepared.folder).documents == 13
    before = fingerprint(found)
    Store.things["mine/note-00.txt"] = b"another note"
    assert fingerprint(find(address, tmp_path)) != before


def test_what_is_not_there_is_refused(store: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"s3://bucket/nowhere.*: there is no such file or folder"):
        find(f"s3://bucket/nowhere{store}", tmp_path)


def test_a_file_that_goes_away_is_told(store: str, tmp_path: Path) -> None:
    Store.things = {"mine/a.txt": b"text", "mine/b.txt": b"text"}
    found = find(f"s3://bucket/mine{store}", tmp_path)
    Store.things.clear()
    with pytest.raises(Unreadable, match="cannot be read"):
        streams.raw(found.files[0])


@pytest.mark.parametrize(
    ("text", "scheme"),
    [("s3://b/x", "s3"), ("HF://datasets/a/b", "hf"), ("/a/b", ""), ("a b://c", ""), ("://x", ""), ("notes", "")],
)
def test_addresses_are_told_from_paths(text: str, scheme: str) -> None:
    assert streams.scheme(text) == scheme


def test_secrets_in_an_address_are_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        find("quux://me:hush@host/x", tmp_path)
    assert "hush" not in refused.value.text
    assert streams.fixed("a/b*/c") == "a"
    assert File(Path("x"), "x", 1).url == ""


class Moody(AbstractFileSystem):
    """A store whose errors are its own, as those of HTTP clients are."""

    protocol = "moody"
    cachable = False
    lists = True

    def find(
        self, path: str, maxdepth: object = None, withdirs: bool = False, detail: bool = False, **more: object
    ) -> Any:
        if not self.lists:
            raise Gloom("no list today")
        return {name: {"name": name, "size": 9, "type": "file"} for name in ("moody/a.txt", "moody/b.jsonl")}

    def _open(self, path: str, mode: str = "rb", *words: object, **more: object) -> Any:
        if path.endswith("b.jsonl"):
            raise Gloom("no file today")
        return Broken()


class Broken(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        raise Gloom("the line went dead")


class Gloom(Exception):
    """Of no kind that Python knows."""


def test_a_stores_own_errors_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("moody", Moody, clobber=True)
    found = find("moody://x", tmp_path)
    assert [file.name for file in found.files] == ["moody/a.txt", "moody/b.jsonl"]
    for file, says in zip(found.files, ("the line went dead", "no file today"), strict=True):
        with pytest.raises(Unreadable, match=f"cannot be read: {says}"):
            list(documents(file, 1000, lambda place, why: None))
    monkeypatch.setattr(Moody, "lists", False)
    with pytest.raises(
        Refused, match=r'data\.source = "moody://x": this address cannot be read\. Found: no list today'
    ):
        find("moody://x", tmp_path)
