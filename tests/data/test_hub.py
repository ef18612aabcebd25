"""Data sets of the Hub, fetched by its own client from a small Hub of our own on this machine."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from argosy.data.sources import hub
from argosy.data.sources.text import READS
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
from argosy.data.prepare import prepare
from argosy.data.shards import Shards
from argosy.errors import Refused
from argosy.job.schema import DataSection
told = []
for source in sys.argv[2:]:
    try:
        made = prepare(DataSection(source=source), base=Path("/"), cache=Path(sys.argv[1]))
        shards = Shards(made.folder)
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
    assert whole[4] == [
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
