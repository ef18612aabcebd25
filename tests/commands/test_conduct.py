"""What happens between the job file and the first worker: judged, prepared, settled, kept. No worker, no torch."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from argosy.checkpoint import store
from argosy.checkpoint.manifest import Grid, Manifest, Sidecar, checksum
from argosy.checkpoint.plan import node_file
from argosy.checkpoint.slots import Ready, SavePlan, Slots
from argosy.cluster.here import Machine, Trial, machine
from argosy.commands import conduct
from argosy.commands.conduct import Start, Wanted
from argosy.commands.train import interrupted
from argosy.errors import MACHINE, TERMINATED, Refused
from argosy.fleet.clerk import SCHEDULERS, Clerk
from argosy.fleet.driver import Outcome
from argosy.fleet.journal import read
from argosy.job.load import load
from argosy.job.schema import Job
from argosy.layout.layout import Layout
from argosy.observe import progress, report
from argosy.run import folder, requests, rule
from argosy.run.folder import Run
from argosy.run.ledger import Entry, Ledger, append

CANARY = "-".join(("canary", "9876543210"))  # not as it is searched for: a run keeps the diff of this very file


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ARGOSY_RUNS", raising=False)
    monkeypatch.delenv("ARGOSY_LOCAL", raising=False)
    monkeypatch.setenv("TORCH_TOKEN", CANARY)
    monkeypatch.setenv("HF_TOKEN", CANARY)
    (tmp_path / "text").mkdir()
    for number in range(30):
        (tmp_path / f"text/{number}.txt").write_text(f"line {number}\n" * 50)
    return tmp_path


def begun(
    *overrides: str,
    out: io.StringIO | None = None,
    here: Machine | None = None,
    workers: int = 2,
    local: int | None = None,
    **options,
) -> Run:
    """All that `argosy train` does before it starts workers."""
    words = ["data.source=text", "data.cache=cache", "train.precision=float32", *overrides]
    wanted = Wanted("smoke", words, **options)
    screen = progress.screen("plain", out or io.StringIO())
    with ExitStack() as stack:
        loaded = wanted.loaded()
        asked, verdict = conduct.judged(wanted, loaded, workers)
        start = Start(wanted, loaded, verdict, here or machine(), workers, screen, local=local)
        conduct.hold(stack, start, asked)
        conduct.ready(start)
        run = conduct.keep(start)
        conduct.header(start)
    return run


def save(run: Run, step: int) -> None:
    """A whole checkpoint that holds no tensor."""
    place = run.checkpoints / f"step-{step:06d}"
    place.mkdir()
    layout, name = node_file([], Layout(), [1], 0), "node-0000-inc-0001.safetensors"
    (place / name).write_bytes(layout.header)
    sidecar = Sidecar(step, 1, layout.bytes, checksum(layout.header), ())
    (place / name).with_suffix(".json").write_bytes(sidecar.text())
    facts = {"version": 1, "step": step, "incarnation": 1, "argosy": "", "torch": "", "created": 0.0, "facts": {}}
    grid = Grid(degrees={}, nodes=(1,))
    store.commit(place, Manifest(**facts, grid=grid, tensors=(), files=(store.file_of(name, sidecar),)))


def damage(run: Run, step: int) -> None:
    (run.checkpoints / f"step-{step:06d}/node-0000-inc-0001.safetensors").write_bytes(b"")


def damage_bits(run: Run, step: int) -> None:
    file = run.checkpoints / f"step-{step:06d}/node-0000-inc-0001.safetensors"
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])


def test_a_new_run_holds_what_everybody_needs(place):
    out = io.StringIO()
    run = begun(out=out)
    assert run.path == Path("runs/smoke")
    job = run.job()
    assert (job.train.steps, job.layout.shape, job.train.precision) == (20, "replicate2", "float32")
    assert isinstance(job.batch.micro, int)
    assert run.ledger().at(1, "batch.tokens") == job.batch.tokens
    assert run.prepared().is_dir()
    info = run.info()
    for key in ("predicted", "probed", "machine", "data", "versions", "command", "environment"):
        assert info[key], key
    assert load(str(run.path / "job.toml")).job == run.asked()
    assert "runs/smoke (new)" in out.getvalue()
    assert (place / "runs/latest").resolve() == run.path.resolve()
    assert run.path.stat().st_mode & 0o777 == 0o700, "samples and tokenizer tell what was read"


@pytest.mark.parametrize(
    "told, words", [(None, "2 workers of 4 threads:"), (3, "2 workers of 3 threads (OMP_NUM_THREADS):")]
)
def test_threads_are_printed_and_kept(place, told, words):
    out = io.StringIO()
    run = begun(out=out, here=replace(machine(), cores=8, told=told))
    assert words in " ".join(out.getvalue().split())
    assert run.info()["threads"] == (told or 4)


def test_a_node_of_several_shares_its_own_cores_among_its_own_workers(place, monkeypatch):
    asked, out = [], io.StringIO()
    monkeypatch.setattr(Trial, "ask", lambda trial, request: asked.append(request) or {"failed": "nobody was asked"})
    run = begun(out=out, here=replace(machine(), cores=8, told=None), workers=8, local=2)
    assert [(one["workers"], one["threads"]) for one in asked] == [(2, 4)], "as many as will work beside each other"
    assert "8 workers of 4 threads: replicate8" in " ".join(out.getvalue().split())
    assert (run.info()["threads"], run.info()["workers"]) == (4, 8)


def test_no_secret_is_kept(place):
    run = begun()
    for file in run.path.rglob("*"):
        if file.is_file():
            assert CANARY.encode() not in file.read_bytes(), file


def test_the_same_command_goes_on_and_keeps_what_was_measured(place):
    first = begun()
    save(first, 7)
    before = first.setting("train.compile")
    out = io.StringIO()
    second = begun(out=out)
    assert "not as it was" not in out.getvalue()
    assert second.path == first.path
    assert second.setting("train.compile") == before
    assert second.info()["id"] == first.info()["id"]


def test_a_change_stands_in_the_ledger_once(place):
    save(begun(), 7)
    for _ in range(2):  # killed right afterwards, and given again
        run = begun("batch.tokens=512", change=True)
    assert run.ledger().at(7, "batch.tokens") == 1024
    assert run.ledger().at(8, "batch.tokens") == 512
    assert len(run.ledger().entries) == 7
    assert run.job().batch.tokens == 512


def test_a_change_taken_back_and_made_again_is_in_force(place):
    save(begun(), 7)
    for tokens in (512, 1024, 512):  # none of them trained up to its first checkpoint
        run = begun(f"batch.tokens={tokens}", change=True)
        assert run.ledger().at(8, "batch.tokens") == run.job().batch.tokens == tokens


def test_a_change_that_was_killed_before_it_was_settled_is_taken_back(place):
    run = begun()
    save(run, 7)
    append(run.path / "ledger.jsonl", [Entry(8, "batch.tokens", 1024, 512, "--change")])
    assert begun().ledger().at(8, "batch.tokens") == 1024


def announce(run: Run, step: int) -> None:
    """What a start that was killed before the snapshot process took its state leaves behind: one that holds no tensor."""
    slots = Slots(run.path, run.local)
    slots.write_plan(SavePlan(1, Layout(), (1,), 0, (), "", ""))
    slots.announce(Ready(1, step, 0, str(slots.slot(0, 1, 0, 64)[0]), 0.0, {"step": step}))
    slots.close()


def test_a_change_is_dated_behind_what_a_killed_start_left_in_memory(place):
    run = begun()
    save(run, 7)
    announce(run, 9)
    for _ in range(2):
        run = begun("batch.tokens=512", change=True)
    assert run.newest_step() == 9
    assert [run.ledger().at(step, "batch.tokens") for step in (9, 10)] == [1024, 512]
    Slots(run.path, run.local).clear()


def test_a_run_whose_checkpoints_lost_their_files_is_refused_before_the_start(place):
    run = begun()
    for step in (1, 2):
        save(run, step)
        next((run.checkpoints / f"step-{step:06d}").glob("*.safetensors")).unlink()
    with pytest.raises(Refused, match="none of the 2 checkpoints of this run is whole") as refused:
        begun()
    assert refused.value.code == 2
    announce(run, 3)  # in memory still: nothing is lost
    begun()
    Slots(run.path, run.local).clear()


@pytest.mark.parametrize("broken", [damage, damage_bits])
def test_a_change_is_dated_by_the_newest_checkpoint_that_is_whole(place, broken):
    run, out = begun(), io.StringIO()
    save(run, 7)
    save(run, 9)
    broken(run, 9)
    run = begun("batch.tokens=512", change=True, out=out)
    assert run.newest_step() == 7
    assert [run.ledger().at(step, "batch.tokens") for step in (7, 8)] == [1024, 512]
    assert "step 7 is used instead" in " ".join(out.getvalue().split())


def test_a_checkpoint_that_lost_its_file_is_not_the_one_it_goes_on_from(place):
    run, out = begun(), io.StringIO()
    save(run, 7)
    save(run, 9)
    next((run.checkpoints / "step-000009").glob("*.safetensors")).unlink()
    assert begun(out=out).newest_step() == 7
    said = " ".join(out.getvalue().split())
    assert "goes on after step 7 of" in said and "is missing; it is set aside" in said
    told = [line for line in read(run.path / "journal.jsonl") if line["what"] == "damaged"]
    assert len(told) == 1 and "is missing; it is set aside" in told[0]["sentence"]


def test_what_is_said_of_a_damaged_checkpoint_does_not_foretell_what_memory_still_holds(place):
    run, out = begun(), io.StringIO()
    save(run, 7)
    save(run, 9)
    next((run.checkpoints / "step-000009").glob("*.safetensors")).unlink()
    announce(run, 11)  # the start goes on from this one, once it is written
    begun(out=out)
    assert "used instead" not in out.getvalue() and "it is set aside" in " ".join(out.getvalue().split())
    Slots(run.path, run.local).clear()


def test_who_asks_while_checkpoints_are_sorted_out_is_heard(place):
    run = begun()
    save(run, 7)
    save(run, 9)
    damage_bits(run, 9)
    words = ["data.source=text", "data.cache=cache", "train.precision=float32", "batch.tokens=512"]
    wanted, screen = Wanted("smoke", words, change=True), progress.screen("quiet", io.StringIO())
    screen.note = lambda text: requests.ask(run, "stop")  # it is told while the folder counts as busy already
    with ExitStack() as stack:
        loaded = wanted.loaded()
        asked, verdict = conduct.judged(wanted, loaded, 2)
        conduct.hold(stack, Start(wanted, loaded, verdict, machine(), 2, screen), asked)
        assert requests.asked(run) == {"stop"}


def test_a_run_that_reads_its_text_in_another_order_does_not_go_on(place):
    run = begun()
    save(run, 7)
    file = run.path / "ledger.jsonl"
    file.write_text("".join(line for line in file.read_text().splitlines(True) if "data.order" not in line))
    with pytest.raises(Refused, match="in an order that this version of Argosy does not know"):
        begun()


def test_another_length_leaves_the_rate_once_there_is_a_checkpoint(place):
    first = begun().job().optim
    again = begun("train.steps=200").job().optim  # nothing was trained yet
    assert (again.lr, again.warmup) != (first.lr, first.warmup)
    save(Run("runs/smoke"), 7)
    out = io.StringIO()
    longer = begun("train.steps=900", out=out).job().optim
    assert (longer.lr, longer.warmup) == (again.lr, again.warmup)
    assert f"optim.lr stays {again.lr}" in " ".join(out.getvalue().split())


def test_a_changed_batch_leaves_the_length_in_tokens(place):
    save(begun("train.tokens=20480"), 7)
    for _ in range(2):
        run = begun("train.tokens=20480", "batch.tokens=512", change=True)
        assert (run.job().train.steps, run.job().train.tokens) == (7 + (20480 - 7 * 1024) // 512, 20480)


def test_a_fork_has_its_parents_checkpoint_ledger_and_name(place):
    parent = begun()
    save(parent, 7)
    fork = begun("batch.tokens=512", fork=True)
    assert fork.path == Path("runs/smoke-2")
    assert fork.newest_step() == 7
    assert fork.info()["parents"] == [{"id": parent.info()["id"], "path": "runs/smoke", "step": 7}]
    assert fork.ledger().at(7, "batch.tokens") == 1024
    assert fork.ledger().at(8, "batch.tokens") == 512
    assert Ledger.read(parent.path / "ledger.jsonl").at(8, "batch.tokens") == 1024


TRAINED = "data.tokenizer={ train = 'bpe', vocabulary = 280 }"


def test_a_run_goes_on_with_the_text_it_began_with(place):
    first = begun(TRAINED)
    save(first, 7)
    prepared, pieces = first.prepared(), (first.path / "tokenizer.json").read_bytes()
    (place / "text/0.txt").write_text("something else altogether\n" * 50)
    out = io.StringIO()
    second = begun(TRAINED, out=out)
    assert "text is not as it was: the run keeps to the text that it began with" in " ".join(out.getvalue().split())
    assert second.prepared() == prepared
    assert second.info()["data"]["digest"] == prepared.name
    assert (second.path / "tokenizer.json").read_bytes() == pieces
    begun(TRAINED, run=Path("new"))  # a new run takes the text as it is now
    assert Run("new").prepared() != prepared
    shutil.rmtree(prepared)
    with pytest.raises(Refused, match="not the one that this run was trained on") as caught:
        begun(TRAINED)
    assert prepared.name in caught.value.found


def test_text_that_is_gone_is_prepared_again_where_it_is_the_same(place):
    first = begun(TRAINED)
    save(first, 7)
    shutil.rmtree("cache")
    assert begun(TRAINED).prepared() == first.prepared()
    assert first.prepared().is_dir()


def test_weights_keep_the_tokenizer_they_were_trained_with(place):
    parent = begun(TRAINED)
    save(parent, 7)
    pieces = (parent.path / "tokenizer.json").read_bytes()
    (place / "other").mkdir()
    for number in range(30):
        (place / f"other/{number}.txt").write_text(f"quite different words {number}\n" * 50)
    fork = begun(TRAINED, "data.source=other", fork=True)
    assert (fork.path / "tokenizer.json").read_bytes() == pieces
    assert fork.prepared() != parent.prepared()
    save(fork, 8)
    out = io.StringIO()
    begun(TRAINED, "data.source=other", run=fork.path, out=out)
    assert "not as it was" not in out.getvalue()
    shutil.rmtree("cache")  # and it is prepared again with them
    assert begun(TRAINED, "data.source=other", run=fork.path).prepared() == fork.prepared()
    started = begun(TRAINED, "data.source=other", f"model.init={parent.path.resolve()}", run=Path("started"))
    assert (started.path / "tokenizer.json").read_bytes() == pieces
    alone = begun(TRAINED, "data.source=other", run=Path("alone"))
    assert (alone.path / "tokenizer.json").read_bytes() != pieces


def test_a_fork_begins_at_the_newest_checkpoint_that_is_whole(place):
    parent = begun()
    save(parent, 7)
    save(parent, 9)
    damage(parent, 9)
    out = io.StringIO()
    fork = begun("batch.tokens=512", fork=True, out=out)
    assert fork.newest_step() == 7
    assert fork.info()["parents"][0]["step"] == 7
    assert fork.ledger().at(8, "batch.tokens") == 512
    assert "from step 7 of" in out.getvalue() and "step 7 is used instead" in " ".join(out.getvalue().split())
    damage(parent, 7)
    with pytest.raises(Refused, match="none of the 2 checkpoints") as caught:
        begun(fork=True, run=parent.path)
    assert caught.value.code == MACHINE


def test_a_fork_that_was_killed_while_it_was_made_is_no_run(place, monkeypatch):
    parent = begun()
    save(parent, 7)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(folder, "settle", killed)
        begun(fork=True)
    assert (Path("runs/smoke-2/checkpoints/step-000007/manifest.json")).is_file()
    assert rule.look(Path("runs/smoke-2")).kind == "foreign"
    assert begun().path == parent.path  # nothing goes on with half a fork
    assert begun(fork=True).path == Path("runs/smoke-3")


def test_wishes_count_from_the_moment_the_run_is_busy(place):
    run = begun()
    requests.ask(run, "save")  # of an earlier start
    wanted = Wanted("smoke", ["data.source=text", "data.cache=cache", "train.precision=float32"])
    screen = progress.screen("plain", io.StringIO())
    with ExitStack() as stack:
        loaded = wanted.loaded()
        asked, verdict = conduct.judged(wanted, loaded, 2)
        start = Start(wanted, loaded, verdict, machine(), 2, screen)
        conduct.hold(stack, start, asked)
        assert requests.asked(run) == set()
        requests.ask(run, "stop")  # while it is being prepared
        conduct.ready(start)
        Clerk(conduct.keep(start), screen).tick()
    assert requests.asked(run) == {"stop"}
    assert requests.told(run).stop


def test_a_copy_gets_an_id_of_its_own_and_a_moved_run_keeps_it(place):
    first = begun()
    save(first, 7)
    first.update_info(place=str(first.path.resolve()))
    shutil.copytree(first.path, "twin")
    twin = begun(run=Path("twin"))
    assert twin.info()["id"] != first.info()["id"]
    assert twin.info()["parents"][0]["id"] == first.info()["id"]
    shutil.rmtree("twin")
    shutil.move("runs/smoke", "moved")
    assert begun(run=Path("moved")).info()["id"] == Run("moved").info()["id"]


def test_a_refused_start_leaves_nothing(place):
    with pytest.raises(Refused):
        conduct.lead(Wanted("smoke", ["data.source=nowhere", "data.cache=cache"]))
    assert not Path("runs").exists()


def test_a_folder_that_cannot_be_made(place):
    Path("runs").touch()
    with pytest.raises(Refused, match="cannot be kept there"):
        begun()


def test_a_job_can_be_a_table_or_a_tree(place):
    table = Wanted({"extends": "smoke", "optim": {"lr": 0.5}}, ["train.steps=7"]).loaded()
    assert (table.job.optim.lr, table.job.train.steps) == (0.5, 7)
    tree = Wanted(Job(name="mine")).loaded()
    assert tree.job.name == "mine"


def test_somebody_was_faster(place):
    wanted = Wanted("smoke", ["data.source=text", "data.cache=cache"])
    loaded = wanted.loaded()
    asked, verdict = conduct.judged(wanted, loaded, 2)
    start = Start(wanted, loaded, verdict, machine(), 2, progress.screen("quiet", io.StringIO()))
    folder.create(verdict.path, asked=loaded.job, text=loaded.text, origin={})
    with ExitStack() as stack, pytest.raises(Refused, match="just made a run"):
        conduct.hold(stack, start, asked)


def test_a_page_that_fails_leaves_a_finished_training_finished(monkeypatch):
    run, out = begun(), io.StringIO()

    def fails(*arguments):
        raise ValueError(f"no number; HF_TOKEN={CANARY}")

    monkeypatch.setattr(report, "write", fails)
    monkeypatch.setattr(conduct.words, "end", fails)
    outcome = Outcome(0, "finished", 20)
    start = SimpleNamespace(screen=progress.screen("plain", out))
    assert conduct.last_words(start, run, outcome) is outcome
    assert "note: the page was not written: ValueError: no number" in out.getvalue()
    kept = (run.path / "crash.txt").read_text()
    assert kept.count("Traceback") == 2
    assert CANARY not in kept


@pytest.mark.parametrize(
    "name, requeue, code",
    [
        ("SIGINT", False, 130),
        ("SIGTERM", False, 143),
        ("SIGTERM", True, 75),
        ("SIGTERM", "torchrun", 75),
        ("SIGUSR1", False, 75),
    ],
)
def test_a_signal_before_the_first_worker_leaves_with_its_own_code(name, requeue, code, monkeypatch, capsys):
    for scheduler in SCHEDULERS:
        monkeypatch.delenv(scheduler, raising=False)
    if requeue == "torchrun":
        ranks = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
        for variable, value in {**ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
            monkeypatch.setenv(variable, value)
        requeue = False
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as left, interrupted(requeue):
        signal.raise_signal(number)
    assert left.value.code == code
    assert signal.getsignal(number) == before
    said = capsys.readouterr().err
    assert f"stopped by {'Ctrl-C' if name == 'SIGINT' else name} while nothing was being trained" in said


MIX = 'data.mix=[{ source = "text", weight = 3.0, license = "MIT" }, { source = "more" }]'


def more(place: Path) -> None:
    (place / "more").mkdir()
    for number in range(20):
        (place / f"more/{number}.txt").write_text(f"other {number}\n" * 40)


def test_a_mix_is_an_entry_of_the_ledger_and_may_change(place):
    from argosy.data.order import rows_at
    from argosy.data.shards import Shards

    more(place)
    run = begun("data.tokenizer=bytes")
    save(run, 7)
    (alone,) = run.ledger().at(1, "data.mix")
    assert (alone["source"], alone["weight"], alone["digest"]) == (str(place / "text"), 1.0, run.prepared().name)
    before = [rows_at(step, 1, run.ledger(), Shards(run.prepared())) for step in range(1, 8)]
    mixed = ["data.tokenizer=bytes", MIX]
    with pytest.raises(Refused, match=r"data\.mix .*--change"):
        begun_with_mix(*mixed)
    for _ in range(2):  # killed right afterwards, and given again
        run = begun_with_mix(*mixed, change=True)
    assert [(row["weight"], row["license"]) for row in run.ledger().at(8, "data.mix")] == [
        (3.0, "MIT"),
        (1.0, "unknown"),
    ]
    assert run.ledger().at(8, "data.mix")[0]["digest"] == alone["digest"], "it goes on where it stood"
    assert sum(entry.key == "data.mix" for entry in run.ledger().entries) == 2
    shards = Shards(run.prepared())
    assert [rows_at(step, 1, run.ledger(), shards) for step in range(1, 8)] == before
    info = run.info()["data"]
    assert info["license"] == f"{place / 'text'}: MIT; {place / 'more'}: unknown"
    assert [row["weight"] for row in info["mix"]] == [3.0, 1.0]
    save(run, 9)
    run = begun("data.source=more", "data.tokenizer=bytes", change=True)
    (last,) = run.ledger().at(10, "data.mix")
    assert last["digest"] == info["mix"][1]["digest"]
    kept = {part.digest for part in Shards(run.prepared()).parts}
    assert kept == {alone["digest"], last["digest"]}, "what it read before stays known"
    out = io.StringIO()
    again = begun("data.source=more", "data.tokenizer=bytes", out=out)
    assert again.prepared() == run.prepared()
    assert "not as it was" not in out.getvalue()
    assert len(again.ledger().entries) == len(run.ledger().entries)


def begun_with_mix(*overrides: str, **options) -> Run:
    """As `begun`, without a source beside the mix."""
    words = ["data.cache=cache", "train.precision=float32", *overrides]
    wanted = Wanted("smoke", words, **options)
    with ExitStack() as stack:
        loaded = wanted.loaded()
        asked, verdict = conduct.judged(wanted, loaded, 2)
        start = Start(wanted, loaded, verdict, machine(), 2, progress.screen("plain", io.StringIO()))
        conduct.hold(stack, start, asked)
        conduct.ready(start)
        run = conduct.keep(start)
        conduct.header(start)
    return run


def test_a_trained_tokenizer_stays_when_the_mix_changes(place):
    more(place)
    run = begun("data.tokenizer={ train = 'bpe', vocabulary = 300 }")
    save(run, 7)
    tokenizer = (run.path / "tokenizer.json").read_bytes()
    run = begun_with_mix("data.tokenizer={ train = 'bpe', vocabulary = 300 }", MIX, change=True)
    assert (run.path / "tokenizer.json").read_bytes() == tokenizer
    first, later = run.ledger().at(7, "data.mix"), run.ledger().at(8, "data.mix")
    assert later[0]["digest"] == first[0]["digest"]


def test_a_batch_grows_by_the_tokens_that_were_read(place):
    run = begun("batch.ramp={ start = 256, by = 256, tokens = 6144 }", "train.tokens=20480", "batch.tokens=1024")
    ledger, job = run.ledger(), run.job()
    sizes = [ledger.at(step, "batch.tokens") for step in range(1, job.train.steps + 1)]
    assert sizes == sorted(sizes)
    assert sorted(set(sizes)) == [256, 512, 768, 1024]
    read = [sum(sizes[:step]) for step in range(len(sizes))]
    for before, size in zip(read, sizes, strict=True):
        assert size == min(1024, 256 + 256 * (before // 2048)) or before % 2048 < 1024, "keyed by tokens"
    assert 20480 <= sum(sizes) < 20480 + 1024
    assert job.train.tokens == sum(sizes)


def test_a_run_that_ends_while_its_batch_grows_reads_what_it_reads(place):
    run = begun("batch.ramp={ start = 256, by = 256, tokens = 6144 }", "train.steps=10", "batch.tokens=1024")
    sizes = [run.ledger().at(step, "batch.tokens") for step in range(1, 11)]
    assert (run.job().train.steps, run.job().train.tokens) == (10, sum(sizes))
    assert sizes == [256] * 8 + [512] * 2


def test_a_ramp_cannot_change_in_the_middle(place):
    save(begun(), 7)
    with pytest.raises(Refused, match=r"--change cannot change batch\.ramp"):
        begun("batch.ramp={ start = 256, by = 256, tokens = 6144 }", change=True)
    with pytest.raises(Refused, match=r"--change cannot change batch\.packing"):
        begun("batch.packing=best-fit", change=True)


def test_padding_is_printed_where_documents_are_kept_whole(place):
    out = io.StringIO()
    begun("batch.packing=best-fit", out=out)
    assert "best-fit packing leaves" in out.getvalue()


UNHEARD = """
import signal
from argosy.commands.train import interrupted
with interrupted():
    signal.raise_signal(signal.SIGTERM)
"""


def test_a_terminal_that_is_gone_takes_the_exit_code_of_its_signal_along(monkeypatch):
    for scheduler in SCHEDULERS:
        monkeypatch.delenv(scheduler, raising=False)
    reading, writing = os.pipe()
    os.close(reading)  # as of a terminal that was closed: whatever is written to it fails
    left = subprocess.run([sys.executable, "-c", UNHEARD], stderr=writing, check=False)
    os.close(writing)
    assert left.returncode == TERMINATED


@pytest.mark.parametrize("named", [True, False])
def test_a_run_that_another_start_finished_meanwhile_is_done(place, named):
    run = begun()
    save(run, 20)
    words = ["data.source=text", "data.cache=cache", "train.precision=float32"]
    wanted = Wanted("smoke", words, run=run.path if named else None)
    out = io.StringIO()
    with ExitStack() as stack:
        loaded = wanted.loaded()
        asked, verdict = conduct.judged(wanted, loaded, 2)
        assert verdict.action == "continue"
        run.update_info(state="finished")  # what it waits for at the lock
        start = Start(wanted, loaded, verdict, machine(), 2, progress.screen("plain", out))
        conduct.hold(stack, start, asked)
        assert start.verdict.action == "finished"
        outcome, made = conduct.nothing_to_do(start.verdict, start.screen)
    assert (outcome.code, outcome.state, outcome.step, made.path) == (0, "finished", 20, run.path)
    assert "nothing to do" in out.getvalue() and not Path("runs/smoke-2").exists()


@pytest.mark.parametrize("words", [("batch.tokens=2048",), ("train.steps=15",)])
def test_a_finished_run_to_which_no_step_is_left_stays_as_it_is(place, words):
    run = begun("train.steps=20", "batch.tokens=1024")
    save(run, 20)
    run.update_info(state="finished")
    before = {file: (run.path / file).read_bytes() for file in ("ledger.jsonl", "settings.json", "run.json")}
    asked = {"train.steps": "20", "batch.tokens": "1024", **dict(word.split("=") for word in words)}
    with pytest.raises(Refused, match=r"finished at step 20, .* nothing left to train") as caught:
        begun(*(f"{key}={value}" for key, value in asked.items()), change=True, run=run.path)
    assert caught.value.code == 2
    assert before == {file: (run.path / file).read_bytes() for file in before}
    longer = begun("train.steps=30", "batch.tokens=2048", change=True, run=run.path)
    assert longer.job().train.steps == 30 and longer.ledger().at(21, "batch.tokens") == 2048
