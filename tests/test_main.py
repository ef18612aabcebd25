"""The program: help without torch, refusals in one sentence, bugs in a file; and the package as notebooks see it."""

from __future__ import annotations

import io
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
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, [*words, name])

asked = list(walk(typer.main.get_command(program()), []))
for words, command in asked:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main([*words, "--help"])
    assert code == 0, words
    shown = " ".join(out.getvalue().split())
    assert "Usage" in shown, words
    said = (command.help or "").split()
    assert len(said) > 2 and " ".join(said[:4]) in shown, f"argosy {' '.join(words)} does not say what it does"
    for one in command.params:
        said = (getattr(one, "help", None) or "").split()
        assert said and said[0] in shown, f"argosy {' '.join(words)} does not say what {one.name} is"
assert len(asked) > 5
heavy = {"torch", "pyarrow", "tokenizers", "safetensors"} & set(sys.modules)
assert not heavy, heavy
print(*(" ".join(words) for words, _ in asked), sep="\\n")
"""


def test_every_command_and_each_of_its_words_is_explained_without_torch():
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
        (["report", "a" * 300], "File name too long"),
        (["job", "check", "a" * 300], "File name too long"),
        (["job", "check", "smoke", "--data.tokenizer", "a" * 300], "File name too long"),
    ],
    ids=lambda value: " ".join(word[:12] for word in value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_and_code_2(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert program.main(words) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert said in shown.err
    assert "Traceback" not in shown.err
    assert not list(tmp_path.iterdir()), "something was left behind"


def test_names_of_strangers_move_no_cursor(monkeypatch, tmp_path):
    class Screen(io.StringIO):
        def isatty(self):
            return True

    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    code = program.main(["import", str(tmp_path / "\x1b[2Jmodel"), "--out", str(tmp_path / "out")])
    monkeypatch.undo()
    assert (
        code == 2 and "\\x1b[2Jmodel: there is no such folder" in screen.getvalue() and "\x1b" not in screen.getvalue()
    )


def test_bare_it_is_its_help_and_no_error(capsys):
    assert program.main([]) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("words", [["job", "schema"], ["--help"]])
def test_a_reader_that_leaves_is_no_bug(words):
    """Also where rich writes, which puts nothing in the place of standard output then."""
    code = f"import sys; from argosy.__main__ import main; sys.stdout = open(1, 'w', 1); sys.exit(main({words}))"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


BROKEN = """
import os, sys
from argosy.__main__ import main
from argosy.commands import runs
reading, writing = os.pipe()
os.close(reading)
runs.table = lambda: os.write(writing, b"to a process that is gone")
sys.exit(main(["runs"]))
"""


def test_a_pipe_that_breaks_elsewhere_is_told(tmp_path):
    told = {"capture_output": True, "text": True, "check": False, "env": {**os.environ, "TMPDIR": str(tmp_path)}}
    done = subprocess.run([sys.executable, "-c", BROKEN], **told)
    assert done.returncode == 1
    assert "BrokenPipeError" in done.stderr and "a bug of Argosy" in done.stderr


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
    code += "assert os.fstat(0).st_rdev == os.stat(os.devnull).st_rdev and sys.stdin.read() == ''\n"
    code += "from argosy.commands.sample import piped; assert not sys.stdin.isatty() and piped() is None"
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


def test_ctrl_c_while_the_program_itself_is_loaded_is_no_traceback(tmp_path):
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")  # the moment at which it comes
    (tmp_path / "run.py").write_text(
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nfrom argosy.__main__ import main\nsys.exit(main(['runs']))\n"
    )
    done = subprocess.run([sys.executable, tmp_path / "run.py"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
