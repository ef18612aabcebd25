"""Set-up says what to install, keeps a torch that is there, and does nothing twice."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import bootstrap
import pytest

ROOT = Path(bootstrap.ROOT)


def having(*programs: str):
    """A `which` of a machine that has only these programs."""
    return lambda name: f"/usr/bin/{name}" if name in programs else None


def test_an_old_python_hands_over_to_the_newest_good_one() -> None:
    assert bootstrap.find_python((3, 11)) is None
    assert bootstrap.find_python((3, 9), having("python3.11", "python3.13", "python3.9")) == "/usr/bin/python3.13"
    with pytest.raises(bootstrap.Stop, match=r"this is 3\.9.*\n?.*apt-get install python3\.11-venv") as stop:
        bootstrap.find_python((3, 9), having("python3.9", "apt-get"))
    assert stop.value.code == 2


@pytest.mark.parametrize(
    "missing, manager, text",
    [
        ("venv", "apt-get", "sudo apt-get install python3.11-venv"),
        ("g++", "apt-get", "sudo apt-get install g++"),
        ("git", "apt-get", "sudo apt-get install git"),
        ("headers", "apt-get", "sudo apt-get install python3.11-dev"),
        ("g++", "dnf", "sudo dnf install gcc-c++"),
        ("g++", "pacman", "sudo pacman -S gcc"),
        ("git", "brew", "brew install git"),
        ("git", None, "Install git with your system's package manager"),
    ],
)
def test_one_missing_part_is_named_with_its_one_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, manager: str | None, text: str
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    programs = [name for name in ("g++", "git", manager) if name and name != missing]
    (tmp_path / "Python.h").touch()
    include = tmp_path / "none" if missing == "headers" else tmp_path
    found = bootstrap.missing_parts(
        True, True, having(*programs), lambda name: missing != "venv" or name != "ensurepip", str(include)
    )
    assert found == [missing]
    assert text in bootstrap.how_to_install(found, having(*programs), minor=11)


def test_another_compiler_will_do_and_venv_is_not_asked_for_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    nothing = bootstrap.missing_parts(False, False, having("clang++", "git"), lambda name: False, str(tmp_path))
    assert nothing == []


def test_a_torch_that_is_there_is_kept_whatever_the_pins_say() -> None:
    ours = bootstrap.constraints({"torch": "2.14.1", "numpy": "1.26.4"}, borrowed=False)
    assert "torch==2.14.1" in ours
    assert not any(line.startswith("torch==2.13") for line in ours)
    assert not any(line.startswith("numpy==1.26") for line in ours)

    theirs = bootstrap.constraints({"torch": "2.12.0a0+nv25", "numpy": "1.26.4", "argosy": "0.1.0"}, borrowed=True)
    assert {"torch==2.12.0a0+nv25", "numpy==1.26.4"} <= set(theirs)
    assert sum(line.startswith("numpy==") for line in theirs) == 1
    assert not any(line.startswith("argosy") for line in theirs)

    fresh = bootstrap.constraints({}, borrowed=False)
    assert "torch==2.13.0" in fresh


@pytest.mark.parametrize("version, usable", [("2.11.0", True), ("2.13.0+cpu", True), ("3.0", True), ("2.9.1", False)])
def test_a_torch_that_is_too_old_is_none(version: str, usable: bool) -> None:
    assert (bootstrap.usable_torch({"torch": version}) == version) is usable


def test_the_active_environment_is_used_when_it_has_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(**variables: str) -> tuple[str, bool]:
        return bootstrap.choose_environment(variables, str(tmp_path), running="")

    own = str(tmp_path / ".venv")
    lab = tmp_path / "lab"
    versions = {bootstrap.python_of(str(lab)): {"torch": "2.12.0"}}
    monkeypatch.setattr(bootstrap, "installed", lambda python: versions.get(python, {}))
    assert choose() == (own, False)
    assert choose(VIRTUAL_ENV=str(lab)) == (str(lab), True)
    assert choose(VIRTUAL_ENV=str(tmp_path / "without-torch")) == (own, False)
    assert choose(VIRTUAL_ENV=str(lab), ARGOSY_VENV=str(tmp_path / "said")) == (str(tmp_path / "said"), False)
    assert bootstrap.choose_environment({}, str(tmp_path), running=str(lab)) == (str(lab), True)


def test_the_stamp_holds_until_something_it_depends_on_changes(tmp_path: Path) -> None:
    root, prefix = tmp_path / "checkout", tmp_path / "venv"
    (prefix / "bin").mkdir(parents=True)
    root.mkdir()
    for name in ("pyproject.toml", "constraints.txt", "bootstrap.py"):
        (root / name).write_text(name)
    assert bootstrap.read_stamp(str(prefix), str(root)) == ""
    bootstrap.write_stamp(str(prefix), "dev", str(root))
    assert bootstrap.read_stamp(str(prefix), str(root)) == "", "there is no program yet"
    for name in ("argosy", "python"):
        (prefix / "bin" / name).touch()
    assert bootstrap.read_stamp(str(prefix), str(root)) == "dev"
    (root / "constraints.txt").write_text("torch==2.14.0")
    assert bootstrap.read_stamp(str(prefix), str(root)) == ""
    (prefix / bootstrap.STAMP).write_text("{")
    assert bootstrap.read_stamp(str(prefix), str(root)) == ""


def test_every_requirement_has_a_pin() -> None:
    pinned = {bootstrap.name_of(line) for line in bootstrap.constraints({}, borrowed=False)}
    wanted = {bootstrap.name_of(line) for line in bootstrap.requirements("dev")}
    assert wanted - pinned == set()
    assert "torch" in {bootstrap.name_of(line) for line in bootstrap.requirements("core")}


def test_name_and_size_are_said_before_a_download(tmp_path: Path) -> None:
    wheel = tmp_path / "a wheel.whl"
    wheel.write_bytes(b"x" * 1234)
    assert bootstrap.sizes([wheel.as_uri(), (tmp_path / "none.whl").as_uri()]) == [1234, None]
    text = bootstrap.describe([("torch", "2.13.0", 192_000_000), ("sympy", "1.14", 6_000_000), ("jinja2", "3", None)])
    assert text == "torch 2.13.0 (192 MB), 2 smaller: sympy, jinja2 (6 MB, some of unknown size). In all 198 MB."


def test_the_second_time_is_a_look_at_the_stamp(tmp_path: Path) -> None:
    """`bootstrap.py setup` on an environment that is ready starts no other program."""
    prefix = tmp_path / "venv"
    (prefix / "bin").mkdir(parents=True)
    for name in ("argosy", "python"):
        (prefix / "bin" / name).touch()
    bootstrap.write_stamp(str(prefix), "dev")
    answer = subprocess.run(
        [sys.executable, "-S", str(ROOT / "bootstrap.py"), "setup"],
        env={**os.environ, "ARGOSY_VENV": str(prefix)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


def test_nonsense_shows_the_usage() -> None:
    answer = subprocess.run([sys.executable, str(ROOT / "bootstrap.py"), "tarin"], capture_output=True, text=True)
    assert answer.returncode == 2
    assert "train" in answer.stdout


@pytest.mark.parametrize("lent", ["2.12.0", None])
def test_an_interpreter_with_torch_lends_it_to_the_new_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lent: str | None
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(bootstrap, "installed", lambda python: {"torch": lent} if lent else {})
    monkeypatch.setattr(bootstrap.subprocess, "call", lambda command, **_: commands.append(command) or 0)
    bootstrap.make_environment(str(tmp_path / "venv"))
    (command,) = commands
    assert ("--system-site-packages" in command) is bool(lent)
    assert str(tmp_path / "venv") in command


def test_an_environment_that_sees_the_machines_packages_is_treated_as_borrowed(tmp_path: Path) -> None:
    assert not bootstrap.sees_others(str(tmp_path))
    (tmp_path / "pyvenv.cfg").write_text("include-system-site-packages = true\n")
    assert bootstrap.sees_others(str(tmp_path))


def test_an_older_python_can_read_the_program() -> None:
    """Else it could not say that it is too old."""
    ast.parse((ROOT / "bootstrap.py").read_text(), feature_version=(3, 7))
