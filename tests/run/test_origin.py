"""Where a run comes from, and that no secret is kept."""

from __future__ import annotations

import subprocess

import pytest

from argosy.run import origin

CANARY = "sk-0123456789abcdef"


@pytest.mark.parametrize(
    "text",
    [
        f'API_KEY = "{CANARY}"',
        f"api_key: '{CANARY}'",
        f"export HF_TOKEN={CANARY}",
        f'+    password="{CANARY}",',
        f"https://me:{CANARY}@host.org/data",
        f"s3://bucket/x?X-Amz-Signature={CANARY}&y=1",
        f"argosy train --hub.token {CANARY}",
        f'"secret": "{CANARY}"',
    ],
)
def test_secrets_are_masked(text):
    masked = origin.mask(text)
    assert CANARY not in masked
    assert origin.MASK in masked


@pytest.mark.parametrize(
    "text",
    [
        "tokens = 4096",
        'tokenizer = "bytes"',
        "keys = [1, 2]",
        "--train.tokens 1.3M",
        "https://example.org/a?page=2",
        "monkey = 3",
        "for key in table:",
    ],
)
def test_what_is_no_secret_stays(text):
    assert origin.mask(text) == text


def test_the_environment_is_a_white_list():
    kept = origin.environment(
        {
            "HOME": "/home/me",
            "AWS_SECRET_ACCESS_KEY": CANARY,
            "OMP_NUM_THREADS": "1",
            "NCCL_TOKEN": CANARY,
            "TORCH_HOME": f"https://me:{CANARY}@host/x",
        }
    )
    assert set(kept) == {"OMP_NUM_THREADS", "NCCL_TOKEN", "TORCH_HOME"}
    assert CANARY not in str(kept)


def test_commit_and_uncommitted_changes(tmp_path):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *words], cwd=tmp_path, check=True)

    git("init", "-q")
    (tmp_path / "a.py").write_text("x = 1\n")
    git("add", "a.py")
    git("commit", "-qm", "one")
    commit, changed = origin.code(tmp_path)
    assert commit is not None and len(commit) == 40
    (tmp_path / "installed").mkdir()
    assert origin.code(tmp_path / "installed") == (None, "")
    assert changed == ""
    (tmp_path / "a.py").write_text(f'x = 2\nAPI_KEY = "{CANARY}"\n')
    commit_again, changed = origin.code(tmp_path)
    assert commit_again == commit
    assert "+x = 2" in changed and CANARY not in changed
    run = tmp_path / "run"
    run.mkdir()
    origin.keep_patch(run, tmp_path)
    assert "+x = 2" in (run / "diff.patch").read_text()


def test_outside_of_a_checkout_there_is_no_commit(tmp_path):
    assert origin.code(tmp_path) == (None, "")


def test_origin_holds_versions_and_a_masked_command():
    found = origin.origin(["argosy", "train", f"hub.token={CANARY}", f"--hub.token={CANARY}"])
    assert found["torch"] and found["python"] and found["versions"]["numpy"]
    assert CANARY not in found["command"].split()[-1]
