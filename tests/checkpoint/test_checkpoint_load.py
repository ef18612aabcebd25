"""Any layout into any other, every value equal, only what is needed read, every byte read verified."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from argosy.checkpoint.load import load
from argosy.checkpoint.save import specs_of
from argosy.checkpoint.store import newest, opened
from argosy.device.shards import box
from argosy.errors import MACHINE, Refused
from argosy.layout.layout import Layout
from argosy.layout.placement import inside

Values = dict[str, torch.Tensor]
LAYOUTS = (
    Layout(),
    Layout(dp_replicate=3),
    Layout(dp_shard=4),
    Layout(dp_replicate=2, dp_shard=3),
    Layout(dp_shard=2, tp=2),
)


@contextmanager
def group(rank: int, world: int) -> Iterator[None]:
    """A process group of `world` ranks in which this process is `rank` and nobody else is needed."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # allowed: no public way to be one rank of many

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def empty(values: Values, layout: Layout, sharded: set[str]) -> Values:
    """The tensors that one rank of `layout` has to fill: DTensors over a mesh named as the layout's axes."""
    axes = [axis for axis in ("dp_replicate", "dp_shard") if getattr(layout, axis) > 1]
    if not axes:
        return {name: torch.full_like(value, 0) for name, value in values.items()}
    mesh = init_device_mesh("cpu", tuple(getattr(layout, axis) for axis in axes), mesh_dim_names=tuple(axes))
    made: Values = {}
    for name, value in values.items():
        if name in sharded:
            placements = [Shard(0) if axis == "dp_shard" else Replicate() for axis in axes]
            begin, end = _box(value, mesh, placements)
            local = torch.zeros([e - b for b, e in zip(begin, end, strict=True)], dtype=value.dtype)
            made[name] = DTensor.from_local(
                local, mesh, placements, run_check=False, shape=value.shape, stride=value.stride()
            )
        else:
            made[name] = torch.zeros_like(value)
    return made


def _box(value: torch.Tensor, mesh: Any, placements: Any) -> Any:
    """The box that torch itself gives this rank: an answer that shares nothing with ours."""
    rows = [torch.arange(len(value))]
    for axis, placement in enumerate(placements):
        if isinstance(placement, Shard):
            chunks = rows[-1].chunk(mesh.size(axis)) if len(rows[-1]) else ()
            place = mesh.get_coordinate()[axis]
            rows.append(chunks[place] if place < len(chunks) else rows[-1][:0])
    mine = rows[-1]
    first = int(mine[0]) if len(mine) else len(value)
    return [first, *[0] * (value.ndim - 1)], [first + len(mine), *value.shape[1:]]


def test_a_table_that_has_grown_gets_the_rows_that_there_are(bench: Any) -> None:
    bench.save(1, {"table": torch.arange(12.0).view(4, 3), "matrix": torch.ones(2, 2)})
    found = newest(bench.run)
    assert found is not None
    larger = torch.full((6, 3), -1.0)
    load(bench.run, found, {"table": larger}, partial=True, grown=("table",))
    assert larger.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11], [-1, -1, -1], [-1, -1, -1]]
    for tensors, grown in (
        ({"table": torch.zeros(6, 3)}, ()),
        ({"table": torch.zeros(3, 3)}, ("table",)),
        ({"table": torch.zeros(6, 4)}, ("table",)),
        ({"table": torch.zeros(6, 3, dtype=torch.float64)}, ("table",)),
        ({"matrix": torch.zeros(3, 2)}, ("table",)),
    ):
        with pytest.raises(Refused, match="does not fit"):
            load(bench.run, found, tensors, partial=True, grown=grown)
    found.close()


@pytest.mark.parametrize("writes", LAYOUTS, ids=Layout.text)
def test_any_layout_loads_into_any_other(
    bench: Any, values: Values, specs_for: Callable[..., Any], parts: Callable[..., Any], writes: Layout
) -> None:
    specs = specs_for(values, writes)
    facts = {"tokens": 70, "ledger": {"length": 4, "digest": "ab"}}
    for rank, saver in enumerate(bench.savers(writes, specs)):
        saver.begin(7, parts(values, specs, writes, rank), facts)
    assert bench.writer().turn()
    sharded = {"model.embedding.weight", "model.norm.weight", "model.tiny.weight", "optim.large"}
    for reads in LAYOUTS:
        if reads.tp > 1:
            continue  # placements of tensor parallelism are checked by what they write
        for rank in {0, reads.world // 2, reads.world - 1}:
            with group(rank, reads.world):
                tensors = empty(values, reads, sharded)
                found = newest(bench.run)
                assert found is not None
                assert load(bench.run, found, tensors) == {**facts, "step": 7}
                for name, tensor in tensors.items():
                    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
                    whole = tuple(0 for _ in tensor.shape), tuple(tensor.shape)
                    expected = values[name][inside(box(tensor), whole)]
                    assert torch.equal(local, expected), (name, reads, rank)


def test_a_replicated_run_is_one_file_that_safetensors_reads(
    bench: Any, values: Values, specs_for: Callable[..., Any], parts: Callable[..., Any]
) -> None:
    for layout in (Layout(dp_replicate=2), Layout(dp_shard=3)):
        specs = specs_for(values, layout)
        step = layout.world
        for rank, saver in enumerate(bench.savers(layout, specs, incarnation=step)):
            saver.begin(step, parts(values, specs, layout, rank), {})
        assert bench.writer().turn()
        (file,) = bench.run.checkpoints.glob(f"step-{step:06d}/*.safetensors")
        with safe_open(file, "pt") as opened_file:
            assert set(opened_file.keys()) == set(values)
            for name, value in values.items():
                assert torch.equal(opened_file.get_tensor(name), value), name


@pytest.mark.parametrize("without", [False, True], ids=["memory", "disk"])
def test_two_nodes_write_a_file_each_and_the_first_commits(
    bench: Any, values: Values, specs_for: Callable[..., Any], parts: Callable[..., Any], without: bool
) -> None:
    """Both in one memory, as where a launcher starts two "machines" on one: their slots lie apart all the same."""
    import threading

    layout, nodes = Layout(dp_replicate=3), (1, 2)
    specs = specs_for(values, layout)
    if without:
        bench.shm = bench.shm / "missing"  # the slots lie in the run, which the nodes share
    for rank, saver in enumerate(bench.savers(layout, specs, nodes=nodes)):
        saver.begin(9, parts(values, specs, layout, rank), {})
    writers = [bench.writer(node=node) for node in range(2)]
    assert [set(writer.slots.ready()[1, 9]) for writer in writers] == [{0}, {1, 2}]
    for writer in writers:
        writer.slots.write_alone()  # neither waits for the other
    first = threading.Thread(target=writers[0].turn)
    first.start()
    assert newest(bench.run) is None, "without the second node's file it is no checkpoint"
    assert writers[1].turn()
    first.join(60)
    found = newest(bench.run)
    assert found is not None and len(found.manifest.files) == 2
    tensors = {name: torch.zeros_like(value) for name, value in values.items()}
    load(bench.run, found, tensors)
    assert all(torch.equal(tensors[name], value) for name, value in values.items())


def test_specs_of_dtensors_name_the_axes(values: Values) -> None:
    with group(1, 6):
        tensors = empty(values, Layout(dp_replicate=2, dp_shard=3), {"optim.large"})
        (spec,) = specs_of({"optim.large": tensors["optim.large"]})
    assert [(split.axis, split.dim) for split in spec.splits] == [("dp_shard", 0)]
    assert spec.shape == (1100, 512) and spec.dtype == "F32"


def test_only_the_pieces_that_are_needed_are_read(bench: Any) -> None:
    rows = {"w": torch.arange(40_000_000, dtype=torch.uint8).view(40_000, 1000)}
    folder = bench.save(1, rows)
    found = opened(folder)
    (file,) = folder.glob("*.safetensors")
    with file.open("r+b") as damaged:  # the last rows; nobody below reads them
        damaged.seek(-10, os.SEEK_END)
        damaged.write(b"\1" * 10)
    with group(0, 4):
        mesh = init_device_mesh("cpu", (4,), mesh_dim_names=("dp_shard",))
        local = torch.zeros(10_000, 1000, dtype=torch.uint8)
        part = DTensor.from_local(local, mesh, [Shard(0)], run_check=False)
        load(bench.run, found, {"w": part})
    assert torch.equal(local, rows["w"][:10_000])


def test_a_disk_that_does_not_answer_costs_no_checkpoint(bench: Any) -> None:
    folder = bench.save(1, {"w": torch.ones(100)})
    found = opened(folder)
    (file,) = folder.glob("*.safetensors")
    bytes_ = file.read_bytes()
    file.unlink()
    file.mkdir()  # it opens, and reading it is an error for any user
    with pytest.raises(Refused, match="cannot be read") as refused:
        load(bench.run, found, {"w": torch.zeros(100)})
    assert refused.value.code == MACHINE
    file.rmdir()
    file.write_bytes(bytes_)
    after = newest(bench.run)
    assert after is not None and after.step == 1


def test_damaged_bytes_are_found_and_the_checkpoint_set_aside(bench: Any) -> None:
    bench.save(1, {"w": torch.ones(100)})
    folder = bench.save(2, {"w": torch.ones(100)}, incarnation=2)
    found = opened(folder)
    (file,) = folder.glob("*.safetensors")
    with file.open("r+b") as damaged:
        damaged.seek(-1, os.SEEK_END)
        damaged.write(b"\7")
    with pytest.raises(Refused, match=r"tensor w is damaged at byte .* passes it over") as refused:
        load(bench.run, found, {"w": torch.zeros(100)}, partial=True)
    assert refused.value.code == MACHINE and (folder / "manifest.json").exists()  # who only looks changes nothing
    with pytest.raises(Refused, match=r"tensor w is damaged at byte .* set aside") as refused:
        load(bench.run, found, {"w": torch.zeros(100)})
    assert refused.value.code == MACHINE
    after = newest(bench.run)
    assert after is not None and after.step == 1


@pytest.mark.parametrize(
    "asked, sentence",
    [
        (
            {"w": torch.zeros(3, dtype=torch.float64)},
            r"tensor w does not fit: the job makes F64 \[3\]. Found: F32 \[3\]",
        ),
        ({"w": torch.zeros(4)}, r"tensor w does not fit: the job makes F32 \[4\]"),
        ({"w": torch.zeros(3), "v": torch.zeros(1)}, "it does not hold v"),
        ({}, "it also holds w"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(bench: Any, asked: Values, sentence: str) -> None:
    found = opened(bench.save(1, {"w": torch.ones(3)}))
    with pytest.raises(Refused, match=sentence):
        load(bench.run, found, asked)


def test_a_part_of_a_checkpoint_can_be_asked_for(bench: Any) -> None:
    found = opened(bench.save(1, {"model.w": torch.ones(3), "optim.w": torch.ones(3)}))
    wanted = {"model.w": torch.zeros(3)}
    load(bench.run, found, wanted, partial=True)
    assert torch.equal(wanted["model.w"], torch.ones(3))


def test_layouts_differ() -> None:
    assert all(a != b for a, b in itertools.combinations(LAYOUTS, 2))
