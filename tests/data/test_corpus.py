import sys
import sysconfig
from pathlib import Path

import pytest

from argosy.data import corpus
from argosy.data.document import total_bytes
from argosy.errors import Refused


def test_the_running_interpreter_gives_a_corpus() -> None:
    source = corpus.python()
    names = [file.name for file in source.files]
    assert len(names) >= corpus.FEWEST
    assert total_bytes(source.files) > 5_000_000
    assert names == sorted(names)
    assert {"argparse.py", "json/decoder.py", "asyncio/base_events.py"} <= set(names)
    assert source.license == "PSF-2.0"
    assert source.version.endswith(sys.version.split()[0])


def test_no_text_holds_a_path_of_this_machine() -> None:
    prefix = sysconfig.get_paths()["stdlib"].encode()
    assert [file.name for file in corpus.python().files if prefix in file.path.read_bytes()] == []


def test_the_rules_leave_out_what_they_name(tmp_path: Path) -> None:
    kept = ["abc.py", "json/decoder.py", "site.py", "email/mime/text.py", "contest/a.py"]
    dropped = [
        "test/test_abc.py",
        "unittest/test/x.py",
        "tkinter/tests/x.py",
        "idlelib/run.py",
        "lib2to3/pgen.py",
        "encodings/cp037.py",
        "pydoc_data/topics.py",
        "html/entities.py",
        "site-packages/torch/x.py",
        "dist-packages/x.py",
        "config-3.11-x86_64-linux-gnu/python-config.py",
        "_sysconfigdata__linux_x86_64-linux-gnu.py",
        "__pycache__/abc.py",
        "abc.pyc",
    ]
    for name in kept + dropped:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n")
    (tmp_path / "empty.py").write_text("")
    assert [file.name for file in corpus.collect(tmp_path)] == sorted(kept)


def test_a_stripped_library_is_told_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "abc.py").write_text("x = 1\n")
    with pytest.raises(Refused, match=r"1 \.py files in .* where 300 or more") as refused:
        corpus.python(tmp_path)
    assert "apt install libpython3" in refused.value.text
    assert "--data.source FOLDER" in refused.value.text
