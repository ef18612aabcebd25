from __future__ import annotations

import os
from pathlib import Path

import pytest

from argosy.errors import Refused
from argosy.job.load import job_from, load, shipped, split
from argosy.job.schema import Trained


def write(folder: Path, text: str, name: str = "my.toml") -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(name: str | None, *overrides: str) -> str:
    with pytest.raises(Refused) as caught:
        load(name, overrides)
    assert caught.value.code == 2
    return caught.value.text


@pytest.mark.parametrize("name", shipped())
def test_shipped_jobs_are_jobs(name: str) -> None:
    loaded = load(name)
    assert loaded.job.name == name
    assert loaded.chain[-1] == f"{name}.toml"
    assert loaded.written["name"].startswith(f"{name}.toml:")


def test_without_a_name_it_is_the_laptop_job() -> None:
    assert load().job == load("laptop").job


def test_both_spellings_of_an_override() -> None:
    words = [
        "--optim.lr",
        "3e-4",
        "model.layers=6",
        "--train.seed=7",
        "--train.deterministic",
        "observe.prompts=['a', \"b\"]",
    ]
    loaded = load("laptop", [*words, "--data.tokenizer", "{ train = 'bpe', vocabulary = 512 }", "train.steps=1.2K"])
    job = loaded.job
    assert (job.optim.lr, job.model.layers, job.train.seed, job.train.deterministic) == (3e-4, 6, 7, True)
    assert job.observe.prompts == ("a", "b")
    assert job.data.tokenizer == Trained(train="bpe", vocabulary=512)
    assert job.train.steps == 1200
    assert loaded.written["optim.lr"] == loaded.written["train.deterministic"] == "command line"


def test_words_of_a_command_line_are_a_job_and_overrides() -> None:
    assert split(["--optim.lr", "1e-3", "laptop", "train.steps=3"]) == ("laptop", ["optim.lr=1e-3", "train.steps=3"])
    assert split(["--train.deterministic", "smoke"]) == ("smoke", ["train.deterministic=true"])
    assert split(["--train.deterministic", "false", "smoke"]) == ("smoke", ["train.deterministic=false"])
    assert split(["a/b=c.toml"]) == ("a/b=c.toml", [])
    assert split([]) == (None, [])
    for words, expected in (
        (["laptop", "smoke"], "smoke is neither an option nor KEY=VALUE"),
        (["--optim.lr"], "--optim.lr has no value"),
        (["--optim.lr", "train.steps=3"], "--optim.lr has no value"),
        (["--layers", "6"], "Did you mean --model.layers?"),
        (["--frobnicate", "6"], "--frobnicate is no option and no key"),
    ):
        with pytest.raises(Refused) as caught:
            split(words)
        assert expected in caught.value.text


def test_units_and_bare_words() -> None:
    job = load("smoke", ["name=2026-11-21", "checkpoint.every=10 min", "memory.limit=8 GiB", "data.held_out=3%"]).job
    assert (job.name, job.checkpoint.every, job.memory.limit, job.data.held_out) == (
        "2026-11-21",
        "10 min",
        8 << 30,
        0.03,
    )
    assert load("smoke", ["name=7"]).job.name == "7"
    assert load("smoke", ["checkpoint.every=7"]).job.checkpoint.every == 7
    assert load("smoke", ["optim.clip=none"]).job.optim.clip is None


def test_a_child_replaces_what_its_parent_says(tmp_path: Path) -> None:
    write(tmp_path, 'extends = "laptop"\n[optim]\nlr = 1e-3\n[model]\nblock = { window = 32 }\n', "base.toml")
    child = write(tmp_path, 'extends = "./base.toml"\nname = "child"\n[optim]\nlr = 2e-3\n', "child.toml")
    loaded = load(child)
    assert loaded.chain == ["laptop.toml", "base.toml", "child.toml"]
    assert loaded.job.optim.lr == 2e-3
    assert loaded.written["optim.lr"] == "child.toml:4"
    assert loaded.written["model.block.window"] == "base.toml:5"
    assert loaded.written["batch.sequence"].startswith("laptop.toml:")
    assert "extends" not in loaded.written


def test_parents_in_a_circle_and_missing_ones_are_refused(tmp_path: Path) -> None:
    write(tmp_path, 'extends = "b.toml"\n', "a.toml")
    write(tmp_path, '\nextends = "a.toml"\n', "b.toml")
    assert "leads back" in refused("a.toml")
    write(tmp_path, 'extends = "latop"\n', "c.toml")
    assert "c.toml:1: latop is no job file and no shipped job. Did you mean laptop?" in refused("c.toml")
    write(tmp_path, 'extends = ["laptop"]\n', "d.toml")
    assert "d.toml:1: extends names one parent" in refused("d.toml")


def test_length_is_one_choice_by_level(tmp_path: Path) -> None:
    path = write(tmp_path, 'extends = "laptop"\n[train]\ntime = "3 min"\n')
    assert load(path).job.train.model_dump(include={"tokens", "steps", "time"}) == {
        "tokens": None,
        "steps": None,
        "time": 180,
    }
    assert load(path, ["train.steps=9"]).job.train.time is None
    assert "my.toml:3: train.tokens and train.steps both say" in refused(
        write(tmp_path, "[train]\ntokens = 9999\nsteps = 3\n")
    )
    assert "both say how long" in refused("laptop", "train.steps=1", "train.time=3 min")


def test_a_preset_replaces_the_shape_of_lower_levels_only(tmp_path: Path) -> None:
    path = write(tmp_path, '[model]\npreset = "tiny"\nlayers = 6\ninit = "random"\nblock = { window = 64 }\n')
    assert load(path).job.model.layers == 6
    later = load(path, ["model.preset=gpt2-124m"]).job.model
    assert (later.layers, later.block.window, later.init) == (None, None, "random")
    both = load(path, ["model.preset=gpt2-124m", "model.layers=3"]).job.model
    assert (both.preset, both.layers) == ("gpt2-124m", 3)


def test_a_licence_belongs_to_its_text() -> None:
    assert load("laptop").job.data.license == "PSF-2.0"
    assert load("laptop", ["data.source=/x"]).job.data.license == "unknown"


def test_paths_start_at_the_file_that_says_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("TEXTS", "/data/texts")
    monkeypatch.setenv("MY_TOKEN", "hush")
    path = write(
        tmp_path, '[data]\nsource = "texts"\ntokenizer = "~/t.json"\ncache = "${TEXTS}/cache"\n', "jobs/my.toml"
    )
    data = load(path).job.data
    assert (data.source, data.tokenizer, data.cache) == (
        str(tmp_path / "jobs/texts"),
        "/home/me/t.json",
        "/data/texts/cache",
    )
    assert load(path, ["data.source=texts"]).job.data.source == str(tmp_path / "texts")
    assert load(path, ["data.source=python"]).job.data.source == "python"
    assert (
        load(path, ["data.source=/x/${MY_TOKEN}/y"]).job.data.source == "/x/${MY_TOKEN}/y"
    )  # the name is kept, not the value
    assert "data.source: ${NOWHERE} is not set" in refused(path, "data.source=${NOWHERE}/x")
    assert load(path, ["name=a"]).job.name == "a"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[optim]\n\nlearning_rate = 1\n", "my.toml:3: optim.learning_rate is not a key. Did you mean optim.lr?"),
        ("[optm]\nlr = 1\n", "my.toml:1: optm is not a key. Did you mean [optim]?"),
        ("layers = 4\n", "my.toml:1: layers is not a key. Did you mean model.layers?"),
        ("[model]\nblock = { headz = 3 }\n", "my.toml:2: model.block.headz is not a key. Did you mean model.block.heads?"),
        ("[model]\npattern = [{ windw = 3 }]\n", "windw is not a key; did you mean window?"),
        ("optim = 3\n", "my.toml:1: optim is a table, not a value"),
        ("[name]\nx = 3\n", "my.toml:1: name = {'x': 3}: write a text"),
        ("[train]\nsteps = true\n", "my.toml:2: train.steps = true: True is no count"),
        ("[model]\nlayers = \"6\"\n", 'my.toml:2: model.layers = "6": write a whole number'),
        ("[model]\nlayers = 6.5\n", "write a whole number"),
        ("[model]\nlayers = 0\n", "model.layers = 0"),
        ("[train]\nprecision = \"int8\"\n", "'float32'"),
        ("[checkpoint]\nbandwidth = 100\n", "(bits)"),
        ("[observe]\nlog_every = 10\n", 'as "90 s"'),
        ('[evaluate]\nevery = "5 min"\n', "goes by the clock, which only checkpoint.every can"),
        ('[observe]\nsample_every = "5 min"\n', "goes by the clock"),
        ("[checkpoint]\nevery = 0\n", "my.toml:2: checkpoint.every = 0"),
        ("[data]\ntokenizer = { train = \"bpe\" }\n", "vocabulary is missing"),
        ("name = \"../x\"\n", "my.toml:1: name"),
        ("[model]\nlayers = 4\nlayers = 5\n", "my.toml"),
        ("[model\n", "my.toml:1: this is no TOML"),
        ("tokens = 1.3M\n", "my.toml:1: this is no TOML"),
        ("version = 2\n", "my.toml:1: this Argosy reads job files of version 1"),
        ("version = \"1\"\n", "version"),
        ("[model]\npreset = \"tinny\"\n", "Did you mean tiny?"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_with_their_line(tmp_path: Path, text: str, expected: str) -> None:
    write(tmp_path, text)
    assert expected in refused("my.toml")


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    text = refused(write(tmp_path, "[optim]\nlrr = 1\nnme = 2\n"))
    assert "my.toml:2" in text
    assert "my.toml:3" in text
    text = refused(write(tmp_path, "[optim]\nlr = -1\nbeta1 = 2\n"))
    assert "my.toml:2" in text
    assert "my.toml:3" in text


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "bin.toml").write_bytes(b'name = "\xff\xfe"')
    assert "bin.toml: this is no UTF-8 text. Found: byte 8 is" in refused("bin.toml")
    os.mkfifo(tmp_path / "pipe")
    assert "pipe: this is no regular file" in refused("pipe")
    assert "/dev/zero: this is no regular file" in refused("/dev/zero")
    (tmp_path / "long.toml").touch()
    os.truncate(tmp_path / "long.toml", 20 << 30)
    assert "long.toml: this file is too large" in refused("long.toml")
    (tmp_path / "run").mkdir()
    assert "run is a folder" in refused("run")
    write(tmp_path, "", "run/job.toml")
    assert "Give the file: run/job.toml" in refused("run")
    assert "is no job file" in refused("nothing.toml")
    assert load(write(tmp_path, "\ufeffname = 'bom'\r\n[train]\r\nsteps = 3\r\n")).written["train.steps"] == "my.toml:3"


def test_overrides_that_belong_into_a_file() -> None:
    assert "extends belongs into a job file" in refused("laptop", "extends=smoke")
    assert "is neither an option" in refused("laptop", "smoke")


def test_a_loaded_job_as_text_is_the_same_job(tmp_path: Path) -> None:
    shape = ["model.layers=4", "model.pattern=[{ window = 64 }, {}]"]
    one = load("laptop", [*shape, "optim.clip=none", "data.source=x y", "train.time=3 min"])
    two = load(write(tmp_path, one.text, "again.toml"))
    assert two.job == one.job
    assert one.text.startswith("#:schema")


def test_jobs_from_python(tmp_path: Path) -> None:
    loaded = job_from({"extends": "smoke", "train": {"steps": 3}, "optim.lr": 1e-3, "model": {"layers": None}})
    assert (loaded.job.train.steps, loaded.job.optim.lr, loaded.job.model.layers) == (3, 1e-3, 2)
    assert job_from({"train": {"steps": 3}}, ["--optim.lr", "3e-4", "train.time=90 s"]).job.train.steps is None
    assert job_from({"data": {"source": "texts"}}).job.data.source == str(tmp_path / "texts")
    with pytest.raises(Refused, match=r"Did you mean optim\.lr"):
        job_from({"optim": {"learning_rate": 1}})
