"""The only place that resolves "auto" and what was left out: (job as asked, machine, data) -> settings in force. Pure.

Order: model, batch, length, numbers, optimizer, layout, micro-batch, memory and disk. Each value gets its origin and reason;
what measurement decided in an unfinished run is taken from there (`kept`), what is derived is derived again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from argosy import quantities
from argosy.cluster.here import Machine
from argosy.errors import Refused
from argosy.job import leaves, presets
from argosy.job.load import Loaded
from argosy.job.schema import BlockSection, Job, ModelSection, layers
from argosy.job.setting import Setting
from argosy.layout import legal
from argosy.layout.asked import without_effect
from argosy.layout.layout import Layout
from argosy.plan import bytes as memory
from argosy.plan import classes, derive, fit, flops, layouts, precision, seconds
from argosy.plan.draft import Draft
from argosy.plan.prepared import PreparedFacts

UNKNOWN = PreparedFacts(2, 0, 0, 0, 0.0)  # nothing was looked at
COMPILE_EARNS = 20.0  # seconds of compiled training from which compiling pays: eager takes more than twice as long


@dataclass(frozen=True)
class Prediction:
    """What the run will cost. memory_bytes is one worker's peak, disk_bytes the most the run folder needs at once."""

    step_seconds: float
    tokens_per_second: float
    memory_bytes: int
    disk_bytes: int
    seconds: float
    parameters: int = 0
    flops_per_token: float = 0.0
    basis: str = ""  # what the seconds come from, in words


@dataclass(frozen=True)
class Settled:
    """The job in force and how it came about."""

    job: Job
    settings: list[Setting]
    notes: list[str]
    plan: Prediction


def settle(
    loaded: Loaded,
    machine: Machine,
    probed: Mapping[str, Any],
    prepared: PreparedFacts,
    workers: int,
    kept: Mapping[str, Setting] | None = None,
    folder: Path | None = None,
    read: tuple[int, int] = (0, 0),
    local: int | None = None,
) -> Settled:
    """The job in force over `workers` ranks (0 = one, in this process), its settings, notes and prediction.

    kept: settings of the unfinished run that is continued. folder: where the run will lie, for the disk's free space.
    read: (steps, tokens) of this run before its batch.tokens last changed. local: how many of the workers a launcher
    started on one machine, at most, where they share its memory; None = there is none, and all are on this one.
    Refused where the data does not fit the model, the workers not the layout, or memory or disk would not suffice.
    """
    draft = Draft(loaded, kept or {}, dict(leaves.leaves(loaded.job)), read=read, launched=local is not None)
    world = max(1, workers)
    accelerated = bool(machine.devices)
    _model(draft, prepared)
    _layout(draft, world, accelerated)
    _numbers(draft, probed, world, accelerated)
    _length(draft, probed, world, accelerated)
    _optimizer(draft)
    _compile(draft, probed, machine, world)
    layout = layouts.of(draft.job().layout, world)
    fit.settle_memory(draft, layout, machine, world, max(1, world if local is None else local))
    job = draft.job()
    legal.check(replace(layouts.asked(job, layout, loaded.written), launched=draft.launched))
    if job.batch.ramp is not None:  # its first steps have the fewest micro-batches
        first = job.batch.model_copy(update={"tokens": job.batch.ramp.start})
        asked = layouts.asked(job.model_copy(update={"batch": first}), layout, loaded.written)
        legal.check(replace(asked, launched=draft.launched))
    plan = _prediction(job, layout, probed, machine, world)
    place = folder or Path.cwd()
    fit.refuse_unwritable(place, plan.disk_bytes, machine.disk_free(place))
    fit.check_disk(job, plan.disk_bytes, machine.disk_free(place), fit.kept(place))
    return Settled(job, draft.settings(), draft.notes, plan)


def refuse_layout(
    loaded: Loaded, accelerated: bool, workers: int, prepared: PreparedFacts = UNKNOWN, launched: bool = False
) -> Job:
    """Refused where `settle` would refuse the layout, whatever the data: asked before any process starts.

    launched: a launcher set the number of `workers`.

    Returns the job with its model section and its layout.shape in force. No rule of layouts asks for the vocabulary, but
    the layers that a pipeline's stages get do: who wants to know them says what is `prepared`.
    """
    draft = Draft(loaded, {}, dict(leaves.leaves(loaded.job)), launched=launched)
    _model(draft, prepared)
    _layout(draft, max(1, workers), accelerated)
    return draft.job()


def _model(draft: Draft, prepared: PreparedFacts) -> None:
    """Fill the shape from the preset, the vocabulary from the tokenizer, and what follows from other numbers."""
    asked = draft.loaded.job.model
    model, given = presets.filled(asked, draft.loaded.shape), draft.loaded.shape
    name = asked.preset or ("" if given else presets.DEFAULT)
    if name:
        draft.put("model.preset", name, "" if asked.preset else "default")
    for key, value in leaves.leaves_of(model, "model.").items():
        if draft.values[key] in (None, ()) and value not in (None, ()):
            draft.put(key, value, "first weights" if key in given and not asked.preset else f"preset {name}")
    if model.vocabulary is None:
        draft.put("model.vocabulary", prepared.vocabulary, "derived", "the tokenizer's")
    elif model.vocabulary < prepared.vocabulary:
        raise Refused(
            f"model.vocabulary = {model.vocabulary} is smaller than the tokenizer's {prepared.vocabulary}.",
            where=draft.loaded.written.get("model.vocabulary", f"preset {name}" if name else "first weights"),
            do=f"Use model.vocabulary={prepared.vocabulary}, or another data.tokenizer.",
        )
    sequence = draft.loaded.job.batch.sequence
    if model.positions == "learned":
        if model.context is None:
            draft.put("model.context", sequence, "derived", "batch.sequence")
        elif model.context < sequence:
            raise Refused(
                f"batch.sequence = {sequence} is longer than the model.context = {model.context} positions it learns.",
                where=draft.loaded.written.get("batch.sequence", draft.loaded.written.get("model.context", "default")),
                do=f"Use batch.sequence={model.context}, or model.context={sequence}.",
            )
    elif model.rope_theta is None:
        draft.put("model.rope_theta", 10000.0, "default")
    else:
        draft.values["model.context"] = None
    if model.positions == "learned":
        draft.values["model.rope_theta"] = draft.values["model.rope_scaling"] = None
    if model.scaling == "mup" and model.base_width is None:
        draft.put("model.base_width", derive.BASE_WIDTH, "derived", "the laptop job's, for which the rates were found")
    plain = {"model.rope_scaling": "none", "model.softcap": 0.0, "model.z_loss": 0.0, "model.scaling": "none"}
    for key, value in plain.items():
        if draft.values[key] is None and (key != "model.rope_scaling" or model.positions != "learned"):
            draft.put(key, value, "default")
    _blocks(draft, model)


def _blocks(draft: Draft, model: ModelSection) -> None:
    """Make the block and every block of the pattern whole."""
    default = whole(model, model.block)
    for name, value in default:
        key = f"model.block.{name}"
        if draft.values[key] is None:
            why = {"kv_heads": "as many as heads", "head_size": "width / heads"}.get(name, "")
            draft.put(key, value, "derived", why or ("from width" if name == "hidden" else ""))
    if model.pattern:
        found = tuple(whole(model, block) for block in layers(model)[: len(model.pattern)])
        draft.values["model.pattern"] = found


def whole(model: ModelSection, block: BlockSection) -> BlockSection:
    """`block` with nothing left out; what no preset said gets the value of a Llama-like block."""
    plain = {
        "activation": "swiglu", "parallel": False, "norm": "rms", "norm_epsilon": 1e-5, "norm_bias": False,
        "norm_placement": "pre", "qk_norm": "none", "qkv_bias": False, "attention_bias": False, "mlp_bias": False,
        "window": 0, "softcap": 0.0, "dropout": 0.0,
    }  # fmt: skip
    said = {name: value for name, value in block if value is not None}
    filled = BlockSection(**{**plain, **said})
    return filled.model_copy(
        update={
            "kv_heads": filled.kv_heads or filled.heads,
            "head_size": flops.head_size(model, filled),
            "hidden": flops.hidden(model, filled),
            "norm_bias": bool(filled.norm_bias) and filled.norm == "layer",
        }
    )


def _layout(draft: Draft, world: int, accelerated: bool) -> None:
    """The shape in force. Refused where it breaks a rule or where somebody wrote a key that does nothing in it."""
    job = draft.loaded.job
    written = draft.loaded.written
    try:
        layout, why = layouts.chosen(draft.job(), world, accelerated, written, draft.launched)
    except Refused as refused:
        refused.where = refused.where or written.get("layout.shape", "")
        raise
    origin = "this machine" if job.layout.shape == "auto" else ""
    draft.put("layout.shape", layout.text() if world > 1 else "dp1", origin, why)
    asked = replace(layouts.asked(draft.job(), layout, draft.loaded.written), launched=draft.launched)
    legal.check(asked)
    for wrong in without_effect(asked):
        if job.layout.shape != "auto" and world > 1:
            raise Refused(wrong.what, where=draft.loaded.written[wrong.key], do=wrong.do)
        draft.dead(wrong.key, wrong.what.rstrip("."))
    layouts.refuse_own(job, layout, draft.loaded.written)
    if getattr(job.model, "class") is not None:
        draft.notes.append("model.class: size, memory and time are predicted for the plain decoder of these numbers")


def _numbers(draft: Draft, probed: Mapping[str, Any], world: int, accelerated: bool) -> None:
    train = draft.loaded.job.train
    if train.precision == "auto" and not draft.measured("train.precision", "default"):
        draft.put("train.precision", *precision.chosen(_for_speed(draft), probed, world, accelerated))
    elif train.precision == "bfloat16":
        slower = precision.slower(_for_speed(draft), probed, world)
        if slower:
            draft.notes.append(f"train.precision = bfloat16 is {slower}")
    kind = str(draft.values["train.precision"])
    if train.master == "auto":
        double = kind == "float64"
        draft.put(
            "train.master", "float64" if double else "float32", "derived", "updates need more digits than products"
        )
    if train.reduce == "auto":
        draft.put("train.reduce", draft.values["train.master"], "derived", "the master's")
    for name, kind in classes.of_classes(_for_speed(draft).train).items():
        if getattr(train.precision_of, name) == "auto":
            why = f"at least {classes.LEAST[name]}" if name in classes.LEAST else "as train.precision"
            draft.put(f"train.precision_of.{name}", kind, "derived", why)
    if train.deterministic and not accelerated:
        draft.dead("train.deterministic", "train.deterministic = true changes nothing on a CPU: its runs repeat anyway")


def _length(draft: Draft, probed: Mapping[str, Any], world: int, accelerated: bool) -> None:
    """Exactly one way of saying the length becomes steps; tokens are what all of those read, also before a change."""
    train, batch = draft.loaded.job.train, draft.loaded.job.batch
    done, read = draft.read

    def steps_of(tokens: int) -> int:
        """After how many steps so many tokens are read."""
        return max(1, done + max(0, -(-(tokens - read) // batch.tokens)))

    if train.tokens is not None:
        each = f"{quantities.count_text(train.tokens)} tokens of {batch.tokens} a step"
        why = f"{each}, after {done:,} steps of another size" if done else each
        draft.put("train.steps", steps_of(train.tokens), "derived", why)
    elif train.time is not None:
        old = draft.kept.get("train.time")
        if old is not None and old.asked == train.time and draft.measured("train.steps"):
            known = int(str(draft.kept["train.tokens"].used))  # a change of the batch leaves the length in tokens
            draft.put("train.steps", steps_of(known), "measured")
        else:
            job = _for_speed(draft)
            one = seconds.step_seconds(job, probed, world, int(accelerated))
            steps = max(1, round(train.time / one))
            why = f"{quantities.seconds_text(train.time)} at {one:.3g} s a step, {seconds.basis(job, probed)}"
            draft.put("train.steps", steps, "measured", why)
    elif train.steps is None:
        parameters = flops.parameters(_for_speed(draft).model)
        why = f"20 tokens for each of {quantities.count_text(parameters)} parameters"
        draft.put("train.steps", steps_of(derive.tokens(parameters) - batch.tokens + 1), "derived", why)
    after = max(0, draft.values["train.steps"] - done)
    draft.put("train.tokens", read + after * batch.tokens, "" if train.tokens else "derived")
    draft.values["train.time"] = None


def _for_speed(draft: Draft) -> Job:
    return Job.model_validate(
        leaves.nested({**draft.values, "train.steps": None, "train.tokens": None, "train.time": None})
    )


def _optimizer(draft: Draft) -> None:
    job = draft.job()
    tokens = int(draft.values["train.tokens"])
    _begun_with(draft, "optim.lr", derive.lr(job, tokens))
    if job.optim.schedule == "wsd":
        draft.derived("optim.decay", derive.decay())
    warmup = draft.kept.get("optim.warmup")
    if warmup is None or int(str(warmup.used)) <= tokens:
        _begun_with(draft, "optim.warmup", derive.warmup(job, tokens))
    draft.derived("optim.warmup", derive.warmup(job, tokens))
    if job.optim.name == "muon":
        draft.derived("optim.momentum", derive.momentum())
        draft.derived("optim.newton_schulz", derive.newton_schulz())
    if int(draft.values["optim.warmup"]) > tokens:
        raise Refused(
            f"optim.warmup = {draft.values['optim.warmup']} tokens is longer than the run of {tokens}.",
            where=draft.loaded.written.get("optim.warmup", ""),
            do="Shorten it, or leave it out: it is then derived.",
        )


def _begun_with(draft: Draft, key: str, found: derive.Derived) -> None:
    """Take what was derived when the run began, else `found`: after another length the rate must not leap in mid-run."""
    if not draft.measured(key, "derived"):
        draft.derived(key, found)
    elif draft.values[key] != found.value:
        draft.notes.append(
            f"{key} stays {draft.values[key]}, as the run began; for a new run it would be {found.value}"
        )


def _compile(draft: Draft, probed: Mapping[str, Any], machine: Machine, world: int) -> None:
    asked = draft.loaded.job.train.compile
    able = bool(probed.get("compile", machine.compiler is not None or machine.devices))
    missing = "Python's headers are missing" if machine.compiler else "no C++ compiler is found"
    if asked is True and not able:
        draft.replaced("train.compile", False, f"cannot be done here: {missing}")
    elif asked == "auto" and not draft.measured("train.compile"):
        if not able:
            draft.put("train.compile", False, "this machine", missing)
            return
        job = _for_speed(draft)
        lasts = seconds.step_seconds(job, probed, world, len(machine.devices)) * int(draft.values["train.steps"])
        earns = lasts >= COMPILE_EARNS
        why = f"the run takes about {quantities.seconds_text(lasts)}"
        draft.put("train.compile", earns, "measured", why if earns else f"{why}, too short to earn it")


def _prediction(job: Job, layout: Layout, probed: Mapping[str, Any], machine: Machine, world: int) -> Prediction:
    steps = int(job.train.steps or 1)
    one = seconds.step_seconds(job, probed, world, len(machine.devices))
    device = "cuda" if machine.devices else "cpu"
    return Prediction(
        step_seconds=one,
        tokens_per_second=job.batch.tokens / one,
        memory_bytes=memory.peak(job, layout, int(job.batch.micro), device).total,
        disk_bytes=memory.disk(job, steps, world),
        seconds=one * steps,
        parameters=flops.parameters(job.model),
        flops_per_token=flops.flops_per_token(job.model, job.batch.sequence),
        basis=seconds.basis(job, probed),
    )
