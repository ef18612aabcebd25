from __future__ import annotations

import re
import shlex
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_machines import a_machine

from argosy.errors import Refused
from argosy.job.load import load
from argosy.job.schema import Job, LayoutSection
from argosy.layout.layout import Layout
from argosy.plan import layouts
from argosy.plan.prepared import PreparedFacts
from argosy.plan.settle import refuse_layout, settle


def test_how_many_workers() -> None:
    laptop = load("laptop").job
    assert layouts.workers(laptop, a_machine()) == 2
    assert layouts.workers(laptop, a_machine(devices=8)) == 8
    assert layouts.workers(laptop, a_machine(devices=1)) == 1
    assert layouts.workers(laptop, a_machine(), asked=5) == 5
    assert layouts.workers(laptop, a_machine(), asked=0) == 0
    assert layouts.workers(laptop, a_machine(), world=3) == 3
    assert layouts.workers(load("laptop", ["layout.shape=replicate2 dp2"]).job, a_machine()) == 4
    for arguments in ({"asked": -1}, {"asked": 2, "world": 3}):
        with pytest.raises(Refused):
            layouts.workers(laptop, a_machine(), **arguments)


def test_no_such_device() -> None:
    laptop = load("laptop").job
    with pytest.raises(Refused, match="no such device: 7") as caught:
        layouts.workers(laptop, replace(a_machine(), missing=("7",)))
    assert caught.value.where == "CUDA_VISIBLE_DEVICES"
    with pytest.raises(Refused, match="--workers 9 needs 9 devices"):
        layouts.workers(laptop, a_machine(devices=8), asked=9)
    with pytest.raises(Refused, match="needs 4 devices"):
        layouts.workers(load("laptop", ["layout.shape=dp4"]).job, a_machine(devices=2))


def test_automatic_layouts() -> None:
    laptop = load("laptop").job
    assert layouts.chosen(laptop, 2, accelerated=False, written={})[0] == Layout(dp_replicate=2)
    assert layouts.chosen(laptop, 8, accelerated=True, written={})[0] == Layout(dp_shard=8)
    named = load("laptop", ["layout.shape=replicate2"]).job
    assert layouts.chosen(named, 4, accelerated=False, written={})[0] == Layout(dp_replicate=2, dp_shard=2)


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(Refused, match="makes 3 ranks, there are 2 workers"):
        layouts.chosen(load("laptop", ["layout.shape=dp3"]).job, 2, accelerated=False, written={})


def test_the_section_says_virtual_stages_and_the_order_of_the_axes() -> None:
    section = LayoutSection(shape="tp2 pp2", virtual=2, order="tp replicate dp cp pp")
    layout = layouts.of(section, 4, micro=3)
    assert (layout.virtual, layout.micro) == (2, 3)
    assert layout.group(0, "pp") == [0, 1] and layout.group(0, "tp") == [0, 2]
    with pytest.raises(Refused, match="must name each axis once"):
        layouts.of(LayoutSection(shape="tp2", order="tp pp"), 2)


def in_force(*overrides: str, workers: int) -> Job:
    facts = PreparedFacts(257, 100_000, 10, 2, 1.0)
    return settle(load("laptop", overrides), a_machine(), {}, facts, workers).job


def test_a_layout_in_force_has_its_micro_batches() -> None:
    """Of 16 sequences: 8 for each of two data ranks, by threes; 16 for a pipeline."""
    for shape, micro, batches in (("replicate2", 3, 3), ("pp2", 3, 6), ("pp2", 16, 1)):
        job = in_force(f"layout.shape={shape}", f"batch.micro={micro}", workers=2)
        layout = layouts.in_force(job, 2)
        assert (layout.text(), layout.micro) == (shape, batches)
    assert layouts.in_force(job, 4, "pp2 dp2").text() == "pp2 dp2"


def test_an_evaluation_keeps_every_rank_of_a_pipeline_busy() -> None:
    """Eight micro-batches at once for two ranks, unless it has fewer; one for each rank that reads its own where none waits."""
    for shape, tokens, rows in (
        ("replicate2", 65_536, 2 * 2),
        ("pp2", 65_536, 2 * 8),
        ("pp2", 2 * 3 * 256, 2 * 3),
        ("pp2", 1, 2),
    ):
        words = (f"layout.shape={shape}", "batch.micro=2", f"evaluate.tokens={tokens}")
        job = in_force(*words, workers=2)
        assert layouts.rows_at_once(job, layouts.in_force(job, 2)) == rows, (shape, tokens)


@pytest.mark.parametrize(
    ("overrides", "workers", "words"),
    [
        (["layout.shape=tp4"], 4, "tp4 must divide the 6 query heads"),
        (["layout.shape=pp64"], 64, "pp64 makes 64 stages of"),
        (["layout.shape=cp2"], 2, "this version has no context parallelism"),
        (["layout.shape=pp2", "layout.schedule=interleaved"], 2, "needs at least two stages a rank"),
        (["layout.shape=replicate2", "layout.schedule=gpipe"], 2, "layout.schedule does nothing with"),
        (["layout.shape=dp2", "layout.sequence=false"], 2, "layout.sequence does nothing with"),
    ],
)
def test_a_job_is_asked_all_rules_before_anything_starts(overrides: list[str], workers: int, words: str) -> None:
    facts = PreparedFacts(257, 100_000, 10, 2, 1.0)
    with pytest.raises(Refused, match=words) as caught:
        settle(load("laptop", overrides), a_machine(), {}, facts, workers)
    assert caught.value.code == 2


DEGREES = st.dictionaries(st.sampled_from(["pp", "replicate", "dp", "tp"]), st.integers(1, 6), min_size=1)
BESIDE = st.dictionaries(
    st.sampled_from(["schedule=gpipe", "schedule=interleaved", "virtual=2", "virtual=3", "zero=3", "zero=1", "secondary=2",
                     "secondary=1", "sequence=false", "stages=[1,1,1]", "stages=[3]", "order=tp cp dp replicate pp"]),
    st.none(), max_size=3,
)  # fmt: skip


def followed(words: dict[str, str], do: str) -> dict[str, str]:
    """`words` after the first thing that a refusal tells to do."""
    if removed := re.match(r"Remove ([a-z.]+), ", do):
        return {key: value for key, value in words.items() if key != removed[1]}
    first = re.sub(r" --workers \d+", "", do.removeprefix("Nearest: ").removesuffix(".").split(", or ")[0])
    if out := re.fullmatch("leave (.*) out", first):
        return {key: value for key, value in words.items() if key not in out[1].split(" and ")}
    typed, _, out_too = first.partition(" without ")
    changed = words | dict(word.split("=", 1) for word in shlex.split(typed))
    return {key: value for key, value in changed.items() if key not in out_too.split(" and ")}


@settings(max_examples=60)
@given(DEGREES, BESIDE, st.sampled_from([2, 3, 4, 6]))
def test_whatever_shape_is_typed_is_taken_or_explained_until_it_is(
    degrees: dict[str, int], beside: dict[str, None], layers: int
) -> None:
    """By the job's own reader and the run's own rules: who does what the errors say ends with a layout that trains."""
    words = {"layout.shape": " ".join(f"{axis}{degree}" for axis, degree in degrees.items())}
    words |= {f"layout.{key}": value for key, _, value in (one.partition("=") for one in beside)}
    for _ in range(12):
        loaded = load("laptop", [f"model.layers={layers}", *(f"{key}={value}" for key, value in words.items())])
        try:
            refuse_layout(loaded, False, layouts.named(loaded.job.layout.shape))
            break
        except Refused as refused:
            words = followed(words, refused.do)
    else:
        raise AssertionError(words)


def test_without_a_pipeline_there_is_one_stage_of_all_layers() -> None:
    """What is said of stages then does nothing, and one worker still trains: also where it says more stages than layers."""
    words = ["layout.schedule=interleaved", "layout.virtual=4", "layout.stages=[1,2]", "model.layers=3"]
    found = settle(load("laptop", words), a_machine(), {}, PreparedFacts(257, 100_000, 10, 2, 1.0), 1)
    assert sum("there is no pipeline" in note for note in found.notes) == 3
    layout = layouts.of(found.job.layout, 1)
    assert layouts.stage_layers(found.job, layout) == (range(3),)
