"""What a start says and refuses about named held-out sets, a larger vocabulary, and code of one's own. No worker, no torch."""

from __future__ import annotations

import io
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from argosy.cluster.here import machine
from argosy.commands import conduct, inherit, job
from argosy.commands.inherit import First
from argosy.errors import Refused
from argosy.job.load import load
from argosy.observe import progress
from argosy.run.folder import Run


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ARGOSY_RUNS", raising=False)
    monkeypatch.delenv("ARGOSY_LOCAL", raising=False)
    for name in ("text", "other"):
        (tmp_path / name).mkdir()
        for number in range(20):
            (tmp_path / name / f"{number}.txt").write_text(f"{name} number {number} of {number * number}\n" * 20)
    (tmp_path / "mine.py").write_text("class Model: ...\ndef loss(model, batch): ...\n")
    return tmp_path


def begun(*overrides: str, out: io.StringIO | None = None, **options: Any) -> Run:
    """All that `argosy train` does before it starts workers."""
    words = ["data.source=text", "data.cache=cache", "train.precision=float32", *overrides]
    wanted = conduct.Wanted("smoke", words, **options)
    screen = progress.screen("plain", out or io.StringIO())
    with ExitStack() as stack:
        loaded = wanted.loaded()
        asked, verdict = conduct.judged(wanted, loaded, 2)
        start = conduct.Start(wanted, loaded, verdict, machine(), 2, screen)
        conduct.hold(stack, start, asked)
        conduct.ready(start)
        run = conduct.keep(start)
        conduct.header(start)
    return run


SETS = "evaluate.sets=[{name='b', source='other'}, {name='a', source='text/3.txt'}]"


def test_sets_are_prepared_with_the_runs_own_tokenizer_and_kept(place: Path) -> None:
    from argosy.data.held import sets
    from argosy.data.shards import Shards

    (place / "text/3.txt").write_text("\n\n".join(f"paragraph {number} of a letter" for number in range(99)))
    trained = "data.tokenizer={ train = 'bpe', vocabulary = 300 }"
    run = begun(SETS, trained)
    found = run.held_sets()
    assert [name for name, _ in found] == ["b", "a"]
    for _, folder in found:
        assert (folder / "tokenizer.json").read_bytes() == (run.path / "tokenizer.json").read_bytes()
    own, other, single = sets(run, Shards(run.prepared()))
    assert len(other.documents) == other.shards.documents >= 20 and len(single.documents) >= 2
    assert len(own.documents) < 20
    assert begun(trained).held_sets() == [], "the same run goes on without them"
    with pytest.raises(Refused, match=r"evaluate.sets, b: .*gone"):
        begun(trained, "evaluate.sets=[{name='b', source='gone'}]")


def test_a_larger_vocabulary_is_told_and_a_smaller_one_refused() -> None:
    job = load("smoke", ["model.vocabulary=300"]).job
    shape = {"model.vocabulary": 257, "model.context": 64}
    assert inherit.resized(First(run=Path("x"), shape=shape), job) == [
        "the vocabulary grows from 257 to 300 rows: 43 are initialised anew, as model.init has none"
    ]
    learned = replace(First(run=Path("x")), shape={**shape, "model.vocabulary": 300})
    longer = load("smoke", ["model.vocabulary=300", "model.positions=learned", "model.context=128"]).job
    assert inherit.resized(learned, longer) == [
        "the table of positions grows from 64 to 128 rows: 64 are initialised anew, as model.init has none"
    ]
    with pytest.raises(Refused, match=r"model.vocabulary = 300 is less than the 301 rows"):
        inherit.resized(First(run=Path("x"), shape={"model.vocabulary": 301}), job)
    assert inherit.resized(First(), job) == []
    assert inherit.resized(First(shape=shape, begun=Path("x")), job) == [], (
        "a run that goes on has had its first weights"
    )


def test_code_that_has_changed_is_told(place: Path) -> None:
    out = io.StringIO()
    run = begun("train.loss=mine.py:loss", out=out)
    assert run.info()["parts"][0]["name"] == f"{place}/mine.py:loss"
    begun("train.loss=mine.py:loss", out=out)
    assert "has changed" not in out.getvalue()
    (place / "mine.py").write_text("def loss(model, batch): return 0\n")
    begun("train.loss=mine.py:loss", out=out)
    assert "mine.py:loss has changed since the run was last started" in out.getvalue()


def test_a_run_of_a_class_of_its_own_gives_weights_only_to_a_job_that_names_one(place: Path) -> None:
    parent = begun("model.class=mine.py:Model")
    (parent.checkpoints / "step-000001").mkdir()
    (parent.checkpoints / "step-000001/manifest.json").touch()
    loaded = load("smoke", [f"model.init={parent.path.resolve()}"])
    with pytest.raises(Refused, match=r"which your job must name for itself.*model.class = .*mine.py:Model"):
        inherit.first(loaded)
    named = load("smoke", [f"model.init={parent.path.resolve()}", "model.class=mine.py:Model"])
    found = inherit.first(named)
    assert found.run == parent.path.resolve() and "model.class" not in found.shape


@pytest.mark.parametrize(
    "words, why",
    [
        (
            ["model.class=mine.py:Model", "layout.shape=tp2"],
            "model.class = .* is code of your own, which tp2 cannot share out",
        ),
        (["model.class=mine.py:Model", "layout.shape=pp2"], "which pp2 cannot share out.*go to dp"),
        (["train.loss=mine.py:loss", "layout.shape=pp2"], "train.loss = .* which pp2 cannot share out"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_before_the_start(words: list[str], why: str) -> None:
    with pytest.raises(Refused, match=f"command line: .*{why}|{why}"):
        begun(*words)


def test_what_cannot_be_found_is_refused_before_anything_is_made(place: Path) -> None:
    for words in (["model.class=mine.py:Modle"], ["train.callbacks=['gone.py:X']"], ["data.source=mine.py:texts"]):
        with pytest.raises(Refused) as caught:
            conduct.lead(conduct.Wanted("smoke", ["data.cache=cache", *words], quiet=True))
        assert caught.value.code == 2 and "command line" in caught.value.text
        with pytest.raises(Refused) as checked:
            job.check(["smoke", "data.cache=cache", *words])
        assert checked.value.text == caught.value.text
    with pytest.raises(Refused, match=r"evaluate.sets, b: .*gone"):
        job.check(["smoke", "data.cache=cache", "evaluate.sets=[{name='b', source='gone'}]"])
    assert not (place / "runs").exists() and not (place / "cache").exists()
