from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plan_machines import FACTS, SLOW_HALF, a_machine, setting

from argosy.errors import Refused
from argosy.job.leaves import fields, plain
from argosy.job.load import load
from argosy.job.schema import Job
from argosy.plan import bytes as memory
from argosy.plan import fit, layouts
from argosy.plan.settle import Settled, settle

NOT_IN_FORCE = {
    "extends",
    "model.class",
    "model.base_width",
    "model.context",
    "data.field",
    "data.cache",
    "batch.ramp",
    "train.time",
    "train.loss",
    "checkpoint.bandwidth",
    "evaluate.patience",
}


def test_every_value_is_concrete_and_says_where_it_comes_from(settled: Any) -> None:
    found = settled()
    assert [one.key for one in found.settings] == list(fields())
    for one in found.settings:
        assert one.origin, one
        assert (one.used is None) == (one.key in NOT_IN_FORCE), one
        assert one.used != "auto", one
    assert Job.model_validate_json(found.job.model_dump_json()) == found.job
    assert setting(found, "optim.name").origin.startswith("laptop.toml:")
    assert setting(found, "optim.beta1").origin == "default"
    assert setting(found, "model.width").origin == "preset tiny"
    assert setting(found, "model.vocabulary").used == 2048
    assert setting(found, "layout.shape").used == "replicate2"


def test_it_is_pure(settled: Any) -> None:
    assert settled() == settled()


def test_what_is_in_force_settles_to_itself(settled: Any) -> None:
    found = settled("model.layers=4", "model.pattern=[{ window = 64 }, {}]")
    assert [block.window for block in found.job.model.pattern] == [64, 0]
    assert all(value is not None for block in found.job.model.pattern for _, value in block)


@pytest.mark.parametrize(
    ("rates", "used", "why"),
    [
        ((140.0, 32.0), "float32", "bfloat16 is 4.4x slower on this CPU: 32 against 140 GFLOP/s, measured"),
        (
            (35.0, 139.0),
            "bfloat16",
            "bfloat16 is 4.0x faster than float32 on this CPU: 139 against 35 GFLOP/s, measured",
        ),
        ((100.0, 120.0), "float32", "bfloat16 is only 1.2x faster on this CPU: 120 against 100 GFLOP/s, measured"),
    ],
)
def test_precision_is_measured_and_says_why(settled: Any, rates: tuple[float, float], used: str, why: str) -> None:
    found = settled(probed={"gemm": dict(zip(("float32", "bfloat16"), rates, strict=True))})
    one = setting(found, "train.precision")
    assert (one.asked, one.used, one.origin, one.why) == ("auto", used, "measured", why)
    assert found.job.train.master == found.job.train.reduce == "float32"


def test_float64_is_float64_throughout(settled: Any) -> None:
    train = settled("train.precision=float64").job.train
    assert train.precision == train.master == train.reduce == "float64"


def test_what_was_measured_is_kept_and_what_is_derived_is_derived_again(settled: Any) -> None:
    first = settled("train.time=3 min")
    kept = {one.key: one for one in first.settings}
    faster = {"gemm": {"float32": 400.0, "bfloat16": 4000.0}}
    again = settled("train.time=3 min", probed=faster, kept=kept)
    assert again.job == first.job
    shorter = settled("train.steps=50", probed=faster, kept=kept)
    assert shorter.job.train.precision == "float32"
    assert shorter.job.train.steps == 50
    assert (shorter.job.optim.lr, shorter.job.optim.warmup) == (first.job.optim.lr, first.job.optim.warmup)
    assert sum("as the run began" in note for note in shorter.notes) == 2
    shortest = settled("train.steps=10", probed=faster, kept=kept)  # shorter than that warm-up
    assert shortest.job.optim.warmup == 4096
    asked = {one.key: one.asked for one in shorter.settings}
    assert asked["optim.lr"] is None  # what the run rule compares: nobody asked for another rate
    longer = settled("train.time=6 min", probed=faster, kept=kept)
    assert longer.job.train.steps != first.job.train.steps


def test_lengths(settled: Any) -> None:
    assert settled("train.tokens=1.3M").job.train.steps == 318
    assert settled("train.tokens=1.3M").job.train.tokens == 318 * 4096
    found = settled("train.time=3 min")
    assert found.plan.seconds == pytest.approx(180, rel=0.01)
    assert found.job.train.time is None
    assert setting(found, "train.steps").origin == "measured"
    silent = settled(job="smoke").job.train
    assert (silent.steps, silent.tokens) == (20, 20 * 1024)


def test_a_length_in_tokens_stays_when_the_batch_changes_on_the_way(settled: Any) -> None:
    read = 200, 200 * 4096
    for tokens, steps in ((8192, 200 + 60), (2048, 200 + 240)):
        found = settled("train.tokens=1310720", f"batch.tokens={tokens}", read=read).job.train
        assert (found.steps, found.tokens) == (steps, 1310720)
    timed = settled("train.time=3 min")
    kept = {one.key: one for one in timed.settings}
    changed = settled("train.time=3 min", "batch.tokens=2048", kept=kept, read=(10, 10 * 4096)).job.train
    assert changed.tokens == timed.job.train.tokens
    assert changed.steps == 10 + 2 * (timed.job.train.steps - 10)
    assert settled("train.tokens=409600", "batch.tokens=8192", read=read).job.train.steps == 200  # read long ago


def test_a_job_that_says_no_length_gets_one(settled: Any, tmp_path: Any) -> None:
    path = tmp_path / "j.toml"
    path.write_text("[model]\npreset = 'tiny'\n")
    found = settled(job=str(path))
    assert found.job.train.tokens == pytest.approx(20 * found.plan.parameters, rel=0.01)
    assert "20 tokens for each" in setting(found, "train.steps").why


def test_the_tokenizer_must_fit_the_model(settled: Any) -> None:
    with pytest.raises(Refused, match="smaller than the tokenizer's 2048"):
        settled("model.vocabulary=2047")
    assert settled("model.vocabulary=4096").job.model.vocabulary == 4096
    assert settled(facts=replace(FACTS, vocabulary=257)).job.model.vocabulary == 257


def test_learned_positions(settled: Any) -> None:
    assert settled("model.positions=learned").job.model.context == 256
    assert settled("model.positions=learned").job.model.rope_theta is None
    with pytest.raises(Refused, match=r"longer than the model\.context"):
        settled("model.preset=gpt2-124m", "batch.sequence=2048", "model.vocabulary=50257")


def test_micro_batches(settled: Any) -> None:
    assert settled().job.batch.micro == 8
    assert settled(workers=1).job.batch.micro == 16
    assert settled(workers=3).job.batch.micro == 6
    assert settled("batch.micro=2").job.batch.micro == 2
    assert settled("batch.tokens=1M", "batch.sequence=1000").job.batch.micro < 20
    assert settled("model.layers=64", machine=a_machine(memory=3 << 30)).job.batch.micro < 8


def test_a_kept_micro_batch_that_no_longer_fits_is_chosen_anew(settled: Any) -> None:
    words = ("batch.sequence=2048", "batch.tokens=32768")
    kept = {one.key: one for one in settled(*words).settings}
    assert kept["batch.micro"].used == 8
    assert settled(*words, kept=kept).job.batch.micro == 8
    small = settled(*words, kept=kept, machine=a_machine(memory=3 << 30))
    assert small.job.batch.micro < 8
    assert (
        f"batch.micro = 8 does not fit into the memory that is free now; using {small.job.batch.micro}" in small.notes
    )


def test_workers_that_have_nothing_to_do_are_refused(settled: Any) -> None:
    with pytest.raises(Refused, match="32 data-parallel ranks share 16 sequences"):
        settled(workers=32)


def test_a_machine_without_a_compiler(settled: Any) -> None:
    bare = a_machine(compiler=None)
    probed = {"gemm": {"float32": 100.0}, "compile": False}
    assert settled(machine=bare, probed=probed).job.train.compile is False
    found = settled("train.compile=true", machine=bare, probed=probed)
    assert found.job.train.compile is False
    assert found.notes == ["train.compile = true cannot be done here: no C++ compiler is found; using false"]
    with pytest.raises(Refused, match="cannot be done here") as caught:
        settled("train.compile=true", machine=bare, probed=probed, strict=True)
    assert caught.value.where == "command line"


def test_short_runs_are_not_compiled(settled: Any) -> None:
    assert settled().job.train.compile is True
    assert settled("train.steps=3").job.train.compile is False


def test_what_has_no_effect_on_this_machine_is_a_note(settled: Any) -> None:
    assert "repeat anyway" in settled("train.deterministic=true").notes[0]
    assert "4.4x slower here" in settled("train.precision=bfloat16").notes[0]
    assert settled("train.precision=bfloat16").job.train.precision == "bfloat16"
    assert "nothing is sharded" in settled("layout.zero=3").notes[0]
    for words in (["train.deterministic=true"], ["layout.zero=3"]):
        with pytest.raises(Refused, match="--strict refuses"):
            settled(*words, strict=True)
    with pytest.raises(Refused, match=r"layout\.zero does nothing with layout\.shape"):
        settled("layout.zero=3", "layout.shape=replicate2")


def test_devices_shard(settled: Any) -> None:
    found = settled(machine=a_machine(devices=2), probed={"gemm": {"float32": 4e4, "bfloat16": 7e5}, "compile": True})
    assert (found.job.layout.shape, found.job.train.precision) == ("dp2", "bfloat16")


def test_not_enough_memory_names_overrides_that_suffice(settled: Any) -> None:
    small = a_machine(memory=3500 << 20)
    with pytest.raises(Refused, match="not enough memory: a worker needs about") as caught:
        settled("batch.sequence=4096", "batch.tokens=8192", "model.layers=24", "memory.loss_chunk=4096", machine=small)
    assert "memory.loss_chunk=128" in caught.value.do
    assert caught.value.code == 2
    lines = [line.split("  ")[1] for line in caught.value.do.splitlines()[1:] if "not enough alone" not in line]
    assert {"--workers 1", "model.layers=12", "batch.sequence=2048"} <= set(lines)
    base = ["batch.sequence=4096", "batch.tokens=8192", "model.layers=24", "memory.loss_chunk=4096"]
    for line in lines:
        alone = line == "--workers 1"
        settled(*base, *([] if alone else line.split()), machine=small, workers=1 if alone else 2)


def test_overrides_that_help_go_with_the_layout_that_was_written(settled: Any) -> None:
    """A shape takes the keys along that would then do nothing, and one worker the shape: none of them is refused for that."""
    base = ["layout.shape=pp2", "layout.schedule=gpipe", "model.layers=24", "batch.sequence=1024"]
    base += ["batch.tokens=16384", "batch.micro=4"]  # gpipe keeps four of them at once
    job = settled(*base, machine=a_machine(memory=64 << 30)).job
    limit = memory.peak(job, layouts.of(job.layout, 2), 4).total * 3 // 4
    with pytest.raises(Refused, match="not enough memory") as caught:
        settled(*base, machine=a_machine(memory=memory.beside(job) + 2 * limit))
    written = [
        re.match(r" +(.*?) +[0-9.,]+ [A-Za-z]+( \(not enough alone\))?$", line) for line in caught.value.do.splitlines()
    ]
    ways = [found[1] for found in written if found is not None]
    assert {
        '--workers 1 layout.shape="dp1" without layout.schedule',
        'layout.shape="dp2" layout.zero=3 without layout.schedule',
    } <= set(ways)
    for way in ways:
        said, _, out = way.partition(" without ")
        typed, workers = said.removeprefix("--workers 1").split(), 1 if said.startswith("--workers 1") else 2
        gone = [*out.split(" and "), *(word.split("=")[0] for word in typed)]
        left = [word for word in base if word.split("=")[0] not in gone]
        settled(*left, *typed, "memory.limit=99 GB", workers=workers, strict=True)


def test_what_a_reader_holds_counts_before_the_start(settled: Any) -> None:
    """With the smallest job a batch of 400M tokens was started, and its reader took all memory of the machine."""
    said = {}
    for machine in (a_machine(memory=24 << 30), a_machine(memory=24 << 30, devices=2)):
        with pytest.raises(Refused, match=r"not enough memory: batches of batch\.tokens = 400,000,000 need") as caught:
            settled("batch.tokens=400000000", "batch.sequence=256", "train.steps=2", machine=machine)
        assert (caught.value.code, caught.value.where) == (2, "command line")
        said[bool(machine.devices)] = way = caught.value.do.split()[-1]
        found = settled(way, "batch.sequence=256", "train.steps=2", machine=machine).job
        assert memory.reader(found) < 24 << 30 < memory.reader(found) * 4  # no shorter than it must be
    assert said[False].startswith("batch.tokens=")
    job = settled("batch.tokens=16777216", "train.steps=2").job
    need = memory.peak(job, layouts.of(job.layout, 2), 1).total
    tight = a_machine(memory=memory.beside(job) + 2 * need - (1 << 20))  # the reader fits, and then the workers do not
    with pytest.raises(Refused, match="beside the workers") as caught:
        settled("batch.tokens=16777216", "train.steps=2", machine=tight)
    settled(caught.value.do.split()[-1], "train.steps=2", machine=tight)
    assert settled(
        "batch.tokens=16777216", "train.steps=2", "batch.micro=1", workers=4, local=1, machine=tight
    ).job  # a ring on each of four


def test_a_place_that_takes_no_file_is_told_from_a_full_disk(tmp_path: Path) -> None:
    """/proc says that it has no room: it has none for anybody."""
    fit.refuse_unwritable(tmp_path / "runs/one", need=10, free=0)  # a full disk is told by check_disk
    fit.refuse_unwritable(tmp_path / "file", need=10, free=10)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Refused, match=r"a run cannot be kept there.*file takes no file") as refused:
        fit.refuse_unwritable(tmp_path / "file" / "one", need=10, free=0)
    assert refused.value.code == 2


def test_a_written_limit_counts(settled: Any) -> None:
    with pytest.raises(Refused, match="may take") as caught:
        settled("memory.limit=300 MB")
    assert caught.value.where == "command line"
    assert settled("memory.limit=3 GB").job.memory.limit == 3 * 10**9


def test_only_the_workers_of_this_machine_share_its_memory(settled: Any) -> None:
    need = settled("batch.micro=4", workers=4).plan.memory_bytes
    limit = [f"memory.limit={2 * need}", "batch.micro=4"]
    with pytest.raises(Refused, match="4 workers share it") as caught:
        settled(*limit, workers=4)
    assert "--workers 1" in caught.value.do
    assert settled(*limit, workers=4, local=2).plan.memory_bytes == need  # the other two are on another machine
    with pytest.raises(Refused, match="3 workers share it") as caught:
        settled(*limit, workers=4, local=3)
    assert "--workers 1" not in caught.value.do  # whoever starts them on several machines starts them all


def test_not_enough_disk(settled: Any) -> None:
    machine = a_machine()
    object.__setattr__(machine, "disk", 50_000_000)
    with pytest.raises(Refused, match="not enough disk: the run needs about") as caught:
        settled(machine=machine)
    assert "checkpoint.keep=1" in caught.value.do
    settled("checkpoint.keep=1", machine=machine)


def test_checkpoints_that_lie_there_need_no_room_again(tmp_path: Path) -> None:
    machine, loaded = a_machine(), load("laptop", ())

    def settled() -> Settled:
        return settle(loaded, machine, SLOW_HALF, FACTS, 2, folder=tmp_path)

    need = settled().plan.disk_bytes
    object.__setattr__(machine, "disk", need // 2)
    folder = tmp_path / "checkpoints/step-000010"
    folder.mkdir(parents=True)
    with (folder / "data").open("wb") as file:
        file.truncate(need - need // 2)
    assert settled().plan.disk_bytes == need
    with (folder / "data").open("wb") as file:
        file.truncate(need // 4)
    with pytest.raises(Refused, match=r"not enough disk.* are free beside .* of its own checkpoints"):
        settled()


def test_settings_are_plain_json(settled: Any) -> None:
    for one in settled("model.layers=4", "model.pattern=[{ window = 64 }, {}]").settings:
        assert plain(one.used) == one.used
        assert plain(one.asked) == one.asked
