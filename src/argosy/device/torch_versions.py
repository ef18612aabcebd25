"""Every private or version-bound name of torch that Argosy uses, each behind a public function of ours.

A lint rule bans such names elsewhere, so that a new torch is a change to this file. Knows nothing of the other rooms.
Written for 2.11 to 2.13.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch._dynamo
import torch._inductor.config
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Placement, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.pipelining import PipelineStage


def flash_forward_cpu(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of q, k, v [B, H, S, K] on a CPU: the output and the log-sum-exp [B, H, S].

    Without a `mask` it is causal; a mask is added to the scores and must have q's type (the operator reads float64's
    mask wrongly otherwise, without an error).
    """
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, mask is None, attn_mask=mask, scale=scale
    )
    return out, lse


def flash_backward_cpu(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `flash_forward_cpu` with respect to q, k, v."""
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, k, v, out, lse, 0.0, mask is None, attn_mask=mask, scale=scale
    )
    return dq, dk, dv


def flash_forward_cuda(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int, window: int, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Causal attention of documents laid end to end, q [T, H, K], k and v [T, G, K], on a GPU.

    `offsets` [documents + 1] int32 are the documents' borders. Gives output, log-sum-exp and the two generator states
    that the backward wants though there is no dropout.
    """
    left = window - 1 if window else -1
    out, lse, state, unused, _ = torch.ops.aten._flash_attention_forward(
        q, k, v, offsets, offsets, longest, longest, 0.0, True, False,
        scale=scale, window_size_left=left, window_size_right=0,
    )  # fmt: skip
    return out, lse, state, unused


def flash_backward_cuda(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: Tensor,
    longest: int,
    window: int,
    scale: float,
    state: Tensor,
    unused: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `flash_forward_cuda` with respect to q, k, v."""
    left = window - 1 if window else -1
    dq, dk, dv = torch.ops.aten._flash_attention_backward(
        grad, q, k, v, out, lse, offsets, offsets, longest, longest, 0.0, True, state, unused,
        scale=scale, window_size_left=left, window_size_right=0,
    )  # fmt: skip
    return dq, dk, dv


def version(tensor: Tensor) -> int:
    """How often `tensor` was written in place: the same tensor with the same number holds the same values."""
    return int(tensor._version)


def compile_strictly() -> None:
    """Make torch.compile fail loudly where it would fall back to eager: too many shapes is a bug of ours.

    Eight recompilations is torch's limit per code object; a pattern of blocks, training and evaluation together may
    rightly need more, so the limit is raised, and passing it is an error.
    """
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.accumulated_recompile_limit = 1024
    torch._dynamo.config.fail_on_recompile_limit_hit = True


def remember_instructions() -> None:
    """Have torch.compile's look at the processor remembered: which vector instructions it may use takes it over a second.

    For each kind torch builds a tiny library once, and loads it into a fresh interpreter in every process that compiles. That
    it could be loaded here is kept in a file beside the library, and believed as long as both are unchanged.
    """
    from torch._inductor import cpu_vec_isa

    kind: Any = cpu_vec_isa.VecISA
    probe = getattr(kind, "_probe_load", None)
    if probe is None or hasattr(probe, "remembers"):  # an older torch probes in another way
        return

    def remembered(isa: object, library: str) -> bool:
        """What `probe` says, asked once for each library and machine."""
        note = Path(f"{library}.loads")
        with suppress(OSError):
            found = os.stat(library)
            words = f"{found.st_size} {found.st_mtime_ns} {platform.node()} {torch.__version__}\n"
            if note.is_file() and note.read_text(encoding="utf-8") == words:
                return True
            if not probe(isa, library):
                return False
            note.write_text(words, encoding="utf-8")  # a torn one is no match
            return True
        return bool(probe(isa, library))

    remembered.remembers = True  # type: ignore[attr-defined]
    kind._probe_load = remembered


_LIMITS = ("recompile_limit", "accumulated_recompile_limit", "fail_on_recompile_limit_hit")


def compile_settings() -> dict[str, Any]:
    """What torch.compile was told, by name: its limits, and how many processes may compile ("compile_threads")."""
    found = {name: getattr(torch._dynamo.config, name) for name in _LIMITS}
    return {**found, "compile_threads": torch._inductor.config.compile_threads}


@contextmanager
def compile_settings_restored() -> Iterator[None]:
    """Afterwards torch.compile has the limits and the number of processes that it had before."""
    before = compile_settings()
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(torch._dynamo.config if name in _LIMITS else torch._inductor.config, name, value)


def compile_threads(threads: int) -> None:
    """How many processes torch.compile may start for compiling; 1 compiles in this process."""
    torch._inductor.config.compile_threads = threads


def compiled_frames() -> int:
    """How many frames torch.compile has compiled in this process, recompilations included."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def forget_compiled() -> None:
    """Drop every compiled frame and its counters (tests count from here)."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def multiply_all(tensors: list[Tensor], by: float | Tensor) -> None:
    """Multiply every tensor in place, in one call. `by` may be a scalar on their device."""
    if isinstance(by, Tensor) and all(tensor.dtype == torch.float32 for tensor in tensors):
        by = by.to(torch.float32)  # as a number would be; of another type, CUDA would take them one by one
    torch._foreach_mul_(tensors, by)


def interpolate_all(targets: list[Tensor], towards: list[Tensor], share: float) -> None:
    """Targets += share x (towards - targets), in place, in one call."""
    torch._foreach_lerp_(targets, towards, share)


def compiler_path() -> str | None:
    """The C++ compiler that torch.compile would use on a CPU; None where there is none that works."""
    import torch._inductor.cpp_builder as builder

    try:
        return str(builder.get_cpp_compiler())
    except Exception:  # torch raises several kinds, all of which mean: none
        return None


def cut_dim(placement: Placement) -> int | None:
    """The dimension that `placement` cuts a tensor along; None where it does not cut."""
    return placement.dim if isinstance(placement, (Shard, _StridedShard)) else None


def cut_last(placement: Placement) -> bool:
    """Whether `placement` cuts what the plain ones leave: `fully_shard`'s, over a tensor that other ranks cut already."""
    return isinstance(placement, _StridedShard)


def gather_into(found: Tensor, own: Tensor, group: dist.ProcessGroup | None) -> None:
    """Fill `found` [ranks x n, ...] with what each rank of `group` has as `own` [n, ...], in the order of ranks."""
    newer = getattr(dist, "all_gather_single", None)  # 2.13 renamed it
    (newer or dist.all_gather_into_tensor)(found, own, group=group)


def pipeline_stage(
    module: nn.Module, index: int, stages: int, group: dist.ProcessGroup, between: tuple[torch.dtype, int], micro: int
) -> PipelineStage:
    """Torch's stage `index` of `stages` for up to `micro` micro-batches, ready without a message or a trial run.

    Only its forward and backward of a micro-batch are used. Torch's own schedules would find shapes by running the model, take
    a vote over the ranks, and keep one receive buffer per micro-batch for good: here shapes are given, on `meta`, and whoever
    runs the stage hands it each tensor (`set_local_fwd_input`, `set_local_bwd_input`). `between`: type and number of dimensions
    of what flows from stage to stage.
    """
    from torch.distributed.pipelining import (
        PipelineStage,
    )  # its imports cost start-up time, and most layouts have no pipeline

    kind, dims = between
    example = torch.empty([1] * dims, dtype=kind, device="meta", requires_grad=True)
    meta = torch.device("meta")
    stage = PipelineStage(module, index, stages, meta, input_args=example, output_args=example, group=group)
    stage.has_backward = True
    if hasattr(
        stage, "_inference_mode"
    ):  # 2.13: shapes given or inferred is agreed on by a vote; they are given everywhere
        from torch.distributed.pipelining._utils import InferenceMode

        stage._inference_mode = InferenceMode.STATIC
        stage._prepare_forward_infra(micro, (), has_backward=True)
    else:
        stage._prepare_forward_infra(micro, (example,) if index == 0 else ())
    stage._prepare_backward_infra(micro)
    return stage


def reshard_over(module: FSDPModule, mesh: DeviceMesh) -> None:
    """After its forward pass let `module`, which gives its weights back then, keep a shard over `mesh`'s second dimension.

    torch does this itself for a number of ranks, but makes the groups by a barrier of the whole world.
    """
    from torch.distributed.fsdp._fully_shard._fsdp_common import HSDPMeshInfo

    info = HSDPMeshInfo(mesh, shard_mesh_dim=1, replicate_mesh_dim=0)
    state = module._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)  # one at most before 2.13
    for group in [state._fsdp_param_group] if groups is None else groups:
        if group is None:
            continue
        group.post_forward_mesh_info = info
        for parameter in group.fsdp_params:
            parameter.post_forward_mesh_info = info
            parameter._init_sharded_post_forward_param_metadata(torch.empty(parameter._orig_size, device="meta"))


def partial_sums(module: FSDPModule) -> bool:
    """Whether `module` still holds gradients that were summed over shards and wait for their sum over copies."""
    state = module._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)  # one at most before 2.13
    found = [state._fsdp_param_group] if groups is None else groups
    return any(group is not None and group._partial_reduce_output is not None for group in found)


def new_group(ranks: Sequence[int], name: str, timeout: timedelta) -> dist.ProcessGroup:
    """The group of `ranks`, this one among them, under `name`: only they call this, and meet under keys that begin with it.

    Torch's own name for such a group would count the groups that a rank is in already; ranks in a different number of them,
    as the ends and the middle of a pipeline are, would wait for each other under different names.
    """
    from torch.distributed import distributed_c10d

    named = distributed_c10d._process_group_name
    distributed_c10d._process_group_name = lambda *_, **__: name  # type: ignore[assignment]
    try:
        made = dist.new_group(list(ranks), timeout=timeout, use_local_synchronization=True)
    finally:
        distributed_c10d._process_group_name = named
    if not isinstance(made, dist.ProcessGroup):
        raise RuntimeError(f"this rank is no member of the group {list(ranks)}")
    return made


def forget_meshes() -> None:
    """Drop what DTensor remembers of device meshes, in this thread: before a mesh is made, and after its groups are gone.

    It takes two meshes for one where ranks, shape and names of dimensions are the same, whatever their groups. A result that it
    remembers bears the mesh of the first time, and a collective over that would run in a group that is gone, or, its name
    having been given anew, in another one.
    """
    from torch.distributed.tensor import _redistribute

    propagator = DTensor._op_dispatcher.sharding_propagator
    remembering = [
        getattr(propagator, "propagate_op_sharding", None),
        getattr(propagator, "_propagate_tensor_meta_cached", None),
        getattr(_redistribute, "_gen_transform_infos", None),
    ]
    # Versions differ in which of these there are, and in whether the cache is the function or inside it.
    for cached in remembering:
        clear = getattr(cached, "cache_clear", None) or getattr(getattr(cached, "cache", None), "cache_clear", None)
        if clear is not None:
            clear()
    for owner, name in (
        (torch._C, "_clear_DTensor_sharding_propagator_cache"),
        (_redistribute, "clear_redistribute_planner_cache"),
    ):
        if hasattr(owner, name):
            getattr(owner, name)()


def let_go_of_groups(mesh: DeviceMesh) -> None:
    """Drop the groups that `mesh`, a root, keeps for the compiler: they are left, and it may be remembered for long."""
    getattr(mesh, "_pg_registry", {}).clear()


def forget_micro_batch(stage: PipelineStage, micro: int) -> None:
    """Let go of what `stage` was handed for a micro-batch that is done: torch would keep it until the next step's comes."""
    stage.fwd_cache.pop(micro, None)
    stage.bwd_cache.pop(micro, None)
    for info in (*stage.args_recv_info[micro], *stage.grad_recv_info.get(micro, ())):
        info.buffer = None


Heard = Callable[[str, Sequence[Any], Any], None]  # (operator as "c10d.send", its arguments, what it gave)


class _Operators(TorchDispatchMode):
    """Tells `note` of every operator on plain tensors, once it is done."""

    def __init__(self, note: Heard):
        super().__init__()  # type: ignore[no-untyped-call]
        self.note = note

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it then becomes operators on this rank's own tensors, which come here
        found = function(*args, **(kwargs or {}))
        self.note(str(function).rpartition(".")[0], args, found)
        return found


@contextmanager
def hearing(note: Heard) -> Iterator[None]:
    """Meanwhile `note` hears of every operator that this thread runs, below autograd, modules and DTensors.

    For tests and benchmarks: it costs much, and what torch.compile has not compiled yet stays eager meanwhile.
    """
    with _Operators(note):
        yield


def group_given(given: Any) -> dist.ProcessGroup:
    """The group that an operator was given: as itself, by name, or in the box that operators take."""
    if isinstance(given, str):
        return dist.distributed_c10d._resolve_process_group(given)  # type: ignore[arg-type]
    return given if isinstance(given, dist.ProcessGroup) else dist.ProcessGroup.unbox(given)


def memory_tracker() -> Any:
    """`MemTracker`, a context manager that counts every storage this thread makes; modules may be called again and again.

    `get_tracker_snapshot("current" or "peak")` tells bytes by device and kind. What is not compiled yet stays eager meanwhile.
    """
    from torch.distributed._tools.mem_tracker import MemTracker

    class Counting(MemTracker):
        """The tracker, which forgets a module when it is called again."""

        def _pre_fw_hook(self, module: nn.Module, inputs: Any) -> None:
            if not self._mod_tracker.is_bw:  # torch refuses a second call of the outermost module
                self.memory_tracking.pop(module, None)
            super()._pre_fw_hook(module, inputs)

    return Counting()


def scatter_buffers(root: FSDPModule) -> int:
    """Bytes of what the last reduce-scatter under `root` was made from: kept until the next one, or the end of a step."""
    context: Any = root._get_fsdp_state()._comm_ctx
    kept = getattr(context, "reduce_scatter_states", None)  # one at most before 2.13
    kept = [context.reduce_scatter_state] if kept is None else kept
    return sum(one.reduce_scatter_input.untyped_storage().nbytes() for one in kept if one is not None)


def inductor(graph: Any, inputs: Any) -> Any:
    """The usual backend of torch.compile, for one that wants to know what it is given."""
    from torch._inductor.compile_fx import compile_fx

    return compile_fx(graph, inputs)
