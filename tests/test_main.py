"""The program: help without torch, refusals in one sentence, bugs in a file; and the package as notebooks see it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import pytest

from argosy import __main__ as program
from argosy.errors import Refused

HELP = """
import contextlib, io, sys
from argosy.__main__ import main, program
import typer

def walk(command, words):
    yield words
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, [*words, name])

asked = list(walk(typer.main.get_command(program()), []))
for words in asked:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main([*words, "--help"])
    assert code == 0, words
    assert "Usage" in out.getvalue(), words
assert len(asked) > 5
heavy = {"torch", "pyarrow", "tokenizers", "safetensors"} & set(sys.modules)
assert not heavy, heavy
print(*(" ".join(words) for words in asked), sep="\\n")
"""


def test_the_help_of_every_command_needs_no_torch():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"train", "runs", "runs rm", "stop", "save"} <= set(done.stdout.splitlines())


def test_every_command_stands_in_a_known_section(capsys):
    assert program.main(["--help"]) == 0
    shown = capsys.readouterr().out
    places = [shown.index(section) for section in program.SECTIONS if section in shown]
    assert places == sorted(places)
    assert "Nothing is sent anywhere" in " ".join(shown.split())


def test_version(capsys):
    assert program.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("argosy ")


@pytest.mark.parametrize(
    "words, said",
    [
        (["train", "no-such-job"], "no-such-job"),
        (["train", "smoke", "--optim.learning_rate", "3"], "optim.lr"),
        (["train", "smoke", "laptop"], "laptop"),
        (["runs", "rm", "no-such-run"], "no-such-run"),
        (["nothing"], "nothing"),
        (["runs", "rm"], "RUN"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert program.main(words) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert said in shown.err
    assert "Traceback" not in shown.err
    assert not list(tmp_path.iterdir()), "something was left behind"


def test_bare_it_is_its_help_and_no_error(capsys):
    assert program.main([]) == 2
    assert capsys.readouterr().err == ""


def test_a_reader_that_leaves_is_no_bug():
    code = (
        "import sys; from argosy.__main__ import main; sys.stdout = open(1, 'w', 1); sys.exit(main(['job', 'schema']))"
    )
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_bug_is_told_in_a_file_without_secrets(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert program._wrong(ValueError('api_key="canary-0123456"'), debug=False) == 1
    (crash,) = tmp_path.iterdir()
    assert str(crash) in capsys.readouterr().err
    text = crash.read_text()
    assert "ValueError" in text and "numpy" in text
    assert "canary" not in text


def test_closed_standard_streams_are_occupied(tmp_path):
    code = "import os, sys; from argosy.__main__ import main; main(['runs']); os.open(sys.argv[1], os.O_CREAT | os.O_RDWR)\n"
    code += "assert os.fstat(0).st_rdev == os.stat(os.devnull).st_rdev"
    command = ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-c", code, str(tmp_path / "file")]
    assert subprocess.run(command, capture_output=True, check=False, cwd=tmp_path).returncode == 0


def test_a_refusal_keeps_its_code():
    assert Refused("no.", code=3).code == 3


PACKAGE = """
import sys
import argosy
assert not {"torch", "pydantic", "numpy"} & set(sys.modules), "import argosy is not free"
assert argosy.Job.__name__ == "Job" and argosy.Run.__name__ == "Run"
assert callable(argosy.train)
import argosy.train as room
import argosy.evaluate
assert room is argosy.train and callable(argosy.train) and callable(argosy.evaluate)
assert room is sys.modules["argosy.train"] and room.__path__
assert {"Job", "Run", "train", "fit", "sample", "evaluate"} <= set(dir(argosy))
try:
    argosy.nothing
except AttributeError as error:
    assert "nothing" in str(error)
else:
    raise AssertionError
try:
    argosy.train("no-such-job")
except argosy.Refused as refused:
    assert refused.code == 2
assert "torch" not in sys.modules
print("good")
"""


def test_the_package_loads_on_first_use_and_its_rooms_can_be_called():
    done = subprocess.run([sys.executable, "-c", PACKAGE], capture_output=True, text=True, check=False)
    assert done.stdout == "good\n", done.stderr
