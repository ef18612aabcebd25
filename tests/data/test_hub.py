"""Data sets of the Hub, fetched by its own client from a small Hub of our own on this machine."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from argosy.data.sources import hub
from argosy.data.sources.text import READS
from argosy.data.tokenizer import train_bpe
from argosy.errors import Refused

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "README.md": b"a card",
    ".gitattributes": b"",
    "data/train-00000-of-00001.jsonl": b"".join(b'{"text": "line %d"}\n' % number for number in range(30)),
    "data/test-00000-of-00001.jsonl": b'{"text": "never read"}\n',
    "script.bin": b"x",
}


class Hub(BaseHTTPRequestHandler):
    """What the Hub's client asks for when it lists and fetches a data set."""

    protocol_version = "HTTP/1.1"
    asked: list[str] = []

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.asked.append(path)
        if "/me/gated" in path:
            self.answer(
                403, b"{}", X_Error_Code="GatedRepo", X_Error_Message="Access to dataset me/gated is restricted"
            )
        elif path.startswith(("/api/models/me/model", "/me/model/", "/api/models/me/bare", "/me/bare/")):
            self.answer_model(path)
        elif "/me/notes" not in path:
            self.answer(401, b"{}", X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        elif "/wrong" in path:
            self.answer(404, b"{}", X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id: wrong")
        elif path.startswith("/api/datasets/me/notes/tree/"):
            rows = [{"type": "file", "oid": "0" * 40, "size": len(body), "path": name} for name, body in FILES.items()]
            self.answer(200, json.dumps(rows).encode(), Content_Type="application/json")
        elif path.startswith("/api/datasets/me/notes"):
            told = {"id": "me/notes", "sha": COMMIT, "tags": ["license:cc0-1.0"], "private": False, "downloads": 1,
                    "likes": 1, "siblings": [{"rfilename": name} for name in FILES]}  # fmt: skip
            self.answer(200, json.dumps(told).encode(), Content_Type="application/json")
        else:
            name = path.split(f"/resolve/{COMMIT}/")[1]
            self.answer(200, FILES[name], X_Repo_Commit=COMMIT, ETag=f'"{len(name):040x}"')

    def answer_model(self, path: str) -> None:
        """me/model has a tokenizer, me/bare has none."""
        files = model() if "/me/model" in path else {"config.json": b"{}"}
        if path.startswith("/api/"):
            rows = [
                {"type": "file", "oid": f"{len(name):040x}", "size": len(body), "path": name, "rfilename": name}
                for name, body in files.items()
            ]
            whole = {
                "id": "me/x",
                "sha": COMMIT,
                "tags": [],
                "private": False,
                "downloads": 1,
                "likes": 1,
                "siblings": rows,
            }
            told = json.dumps(rows if "/tree/" in path else whole).encode()
            self.answer(200, told, Content_Type="application/json")
        else:
            name = path.split(f"/resolve/{COMMIT}/")[1]
            assert name != "model.safetensors", "weights are not asked for"
            self.answer(200, files[name], X_Repo_Commit=COMMIT, ETag=f'"{len(name):040x}"')


@cache
def model() -> dict[str, bytes]:
    """The files of a model with a chat template."""
    config = {"chat_template": "{% for m in messages %}{{ m.role }}> {{ m.content }}\n{% endfor %}"}
    made = train_bpe(iter(["line upon line of text"]), 257)
    return {"tokenizer.json": made.encode(), "tokenizer_config.json": json.dumps(config).encode(),
            "model.safetensors": b"never fetched"}  # fmt: skip


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


PROGRAM = """
import json, sys
from pathlib import Path
from argosy.data.prepare import changed, prepare
from argosy.data.shards import Shards
from argosy.data.tokenizer import open_tokenizer
from argosy.errors import Refused
from argosy.job.schema import DataSection
told = []
for source in sys.argv[2:]:
    try:
        source, _, named = source.partition(" with ")
        section = DataSection(source=source, tokenizer=named or "bytes")
        made = prepare(section, base=Path("/"), cache=Path(sys.argv[1]))
        shards = Shards(made.folder)
        if named:
            found = open_tokenizer(named)
            assert not changed(section, Path("/"), made.folder), "a run that goes on needs no network"
            told.append([found.decode(shards.document(0).tolist()), (made.folder / "chat.json").is_file(), made.tokenizer_name])
            continue
        first = bytes(int(token) for token in shards.document(0)[:-1]).decode()
        told.append([made.version, made.license, shards.documents, first, list(made.notes)])
    except Refused as error:
        told.append([error.text, error.code])
print(json.dumps(told))
"""


def fetched(home: Path, address: str, *sources: str, offline: bool = False) -> list[list[object]]:
    """What preparing each of `sources` gives in a process whose Hub is at `address`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    if offline:
        environment["HF_HUB_OFFLINE"] = "1"
    words = [sys.executable, "-c", PROGRAM, str(home / "cache"), *sources]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found: list[list[object]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_data_set_is_fetched_once_and_read_offline(tmp_path: Path, address: str) -> None:
    whole, named, gated, missing, wrong = fetched(
        tmp_path, address, "hf://datasets/me/notes", "hf://datasets/me/notes@main/data/test-00000-of-00001.jsonl",
        "hf://datasets/me/gated", "hf://datasets/me/nothing", "hf://datasets/me/notes@wrong",
    )  # fmt: skip
    assert whole[:4] == [f"revision {COMMIT[:12]}", "cc0-1.0", 30, "line 0"]
    assert whole[4][:2] == [
        "hf://datasets/me/notes: 1 files of test and validation are not read; name them to",
        f"not read in hf://datasets/me/notes: 1 .bin. {READS}",
    ]
    assert str(named[0]).startswith(
        'data.source = "hf://datasets/me/notes@main/data/test-00000-of-00001.jsonl": too little'
    )
    assert "this data set is gated: its owner lets in who has accepted the terms." in str(gated[0])
    assert "https://huggingface.co/datasets/me/gated" in str(gated[0])
    assert "there is no such data set on the Hub, or it is private." in str(missing[0])
    assert "this data set has no revision wrong." in str(wrong[0])
    assert {row[1] for row in (named, gated, missing, wrong)} == {2}
    assert all("\n" not in str(row[0]) for row in (named, gated, missing, wrong))
    before = len(Hub.asked)
    (again, gone) = fetched(
        tmp_path, address, "hf://datasets/me/notes/data/train-*", "hf://datasets/me/other", offline=True
    )
    assert again[2:4] == [30, "line 0"]
    assert "the Hub is switched off, and this data set was never fetched." in str(gone[0])
    assert len(Hub.asked) == before, "offline asks nobody"


def test_the_tokenizer_of_a_model_is_fetched_once_and_used_offline(tmp_path: Path, address: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(FILES["data/train-00000-of-00001.jsonl"])
    whole, gated, missing, bare, data_set = fetched(
        tmp_path, address,
        *(f"{tmp_path}/a.jsonl with hf://{name}" for name in ("me/model", "me/gated", "me/no", "me/bare", "datasets/me/notes")),
    )  # fmt: skip
    assert whole == ["line 0", True, "model"]
    assert 'data.tokenizer = "hf://me/gated": this model is gated' in str(gated[0])
    assert "https://huggingface.co/me/gated" in str(gated[0])
    assert "there is no such model on the Hub, or it is private." in str(missing[0])
    assert "this model has no tokenizer.json." in str(bare[0])
    assert "this is no address of a model." in str(data_set[0])
    assert {row[1] for row in (gated, missing, bare, data_set)} == {2}
    before = len(Hub.asked)
    again, gone = fetched(
        tmp_path, address, *(f"{tmp_path}/a.jsonl with hf://me/{name}" for name in ("model", "no")), offline=True
    )
    assert again == whole
    assert "the Hub is switched off, and this model was never fetched." in str(gone[0])
    assert len(Hub.asked) == before, "offline asks nobody"


def test_a_hub_out_of_reach_is_one_sentence(tmp_path: Path) -> None:
    ((text, code),) = fetched(tmp_path, "http://127.0.0.1:9", "hf://datasets/me/notes")
    assert (code, "\n" in str(text)) == (2, False)
    assert "the Hub cannot be reached." in str(text)


@pytest.mark.parametrize(
    "address", ["hf://me/notes", "hf://datasets/", "hf://datasets/a/b/c@d/e@f/", "hf://models/a/b"]
)
def test_addresses_that_are_none_are_refused(address: str) -> None:
    if address == "hf://datasets/a/b/c@d/e@f/":
        assert hub.parse(address).inner == "c@d/e@f"
        return
    with pytest.raises(Refused, match="this is no address of a data set"):
        hub.parse(address)
