"""The texts around a run: its title, the block before the first step, the block after the last. Pure functions of facts."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

from argosy.job.schema import Job, LayoutSection
from argosy.job.setting import Setting
from argosy.layout.layout import Layout
from argosy.observe.progress import EndFacts, StartFacts
from argosy.observe.summary import Compared, Summary
from argosy.quantities import bytes_text, count_text, seconds_text
from argosy.run.folder import Run


class Machine(Protocol):
    """What a title says of a machine; `cluster.here.Machine` is one."""

    @property
    def cores(self) -> int:
        """Cores that may be used."""

    @property
    def memory_bytes(self) -> int:
        """Memory in bytes."""

    @property
    def devices(self) -> Sequence[Any]:
        """Accelerators, each with a `name`."""


class Prediction(Protocol):
    """What a run will cost; `plan.settle.Prediction` is one."""

    @property
    def seconds(self) -> float:
        """All steps."""

    @property
    def tokens_per_second(self) -> float:
        """All workers together."""

    @property
    def memory_bytes(self) -> int:
        """One worker's peak."""

    @property
    def disk_bytes(self) -> int:
        """The run folder at most."""

    @property
    def parameters(self) -> int:
        """Of the model."""

    @property
    def basis(self) -> str:
        """What the seconds come from, in words."""


def title(machine: Machine) -> str:
    """Versions and machine in one line."""
    names = [device.name for device in machine.devices]
    devices = f"{len(names)} x {names[0]}" if len(names) > 1 else names[0] if names else "no GPU"
    cores = f"{machine.cores} CPU core{'s' * (machine.cores != 1)}"
    parts = [
        f"argosy {_version('argosy')}",
        f"torch {_version('torch')}",
        f"Python {platform.python_version()}",
        f"{platform.system()}, {cores}, {bytes_text(machine.memory_bytes)}",
        devices,
    ]
    return " · ".join(parts)


def start(
    job: Job,
    settings: Sequence[Setting],
    prediction: Prediction,
    *,
    run: str,
    data: str,
    documents: int,
    tokens: int,
    held_out: int,
    workers: int,
    threads: int,
    backend: str,
    because: str = "",
    decays: int | None = None,
    notes: Sequence[str] = (),
) -> StartFacts:
    """The block before the first step.

    run: "runs/laptop (new)". data: `Prepared.summary`; documents, tokens: what is trained on; held_out: documents kept
    back. backend: "gloo" or "nccl". because: who says how many threads, where it is not the cores. decays: the step from
    which "wsd" falls, where the ledger says more than the job.
    """
    why = {setting.key: setting.why for setting in settings}
    steps, all_tokens = int(job.train.steps or 0), int(job.train.tokens or 0)
    lines = [
        ("Run", f"{run}\nCtrl-C saves and stops; the same command goes on"),
        ("Model", _model(job, prediction.parameters)),
        (
            "Data",
            f"{data}\n{held_out:,} of {documents + held_out:,} document{'s' * (documents + held_out != 1)} held out",
        ),
        ("Batch", _batch(job, steps, all_tokens, tokens)),
        ("Optim", _optim(job, steps, decays)),
        ("Layout", _layout(job, workers, threads, backend, because)),
        ("Numbers", _numbers(job, why)),
        (
            "Expect",
            f"≈{seconds_text(prediction.seconds)} of steps, ≈{float(f'{prediction.tokens_per_second:.2g}'):,.0f} tokens/s"
            f"{f' ({prediction.basis})' if prediction.basis else ''}, "
            f"{bytes_text(prediction.memory_bytes)} per worker, {bytes_text(prediction.disk_bytes)} on disk"
            + _timed(settings),
        ),
    ]
    return StartFacts(tuple(lines), tuple(notes), steps)


def _timed(settings: Sequence[Setting]) -> str:
    """That the number of steps is a prediction, where a time was asked for."""
    known = {setting.key: setting for setting in settings}
    time, steps = known.get("train.time"), known.get("train.steps")
    if time is None or steps is None or not isinstance(time.asked, int | float):
        return ""
    return f"\n{steps.used:,} steps are {steps.why}; start, compiling and evaluation come on top"


def _model(job: Job, parameters: int) -> str:
    model, block = job.model, job.model.block
    heads = f"{block.heads} heads" + (
        f" ({block.kv_heads} for keys)" if block.kv_heads not in (None, block.heads) else ""
    )
    text = f"{model.preset or 'own'}: {model.layers} layers x {model.width}, {heads}, {parameters:,} parameters"
    more = [
        word for word, said in (("parallel block", block.parallel), (f"window {block.window}", block.window)) if said
    ]
    more += [f"starts from {model.init}"] if model.init != "random" else []
    return ", ".join([text, *more])


def _batch(job: Job, steps: int, all_tokens: int, tokens: int) -> str:
    sequences = job.batch.tokens // job.batch.sequence
    share = all_tokens / tokens if tokens else 0.0
    read = f"{share:.2g} of the data once" if share <= 1 else f"the data {share:.1f} times"
    ramp = job.batch.ramp
    grown = "" if ramp is None else f", from {ramp.start:,} on over the first {count_text(ramp.tokens)}"
    return (
        f"{sequences} sequence{'s' * (sequences != 1)} x {job.batch.sequence:,} = {job.batch.tokens:,} tokens{grown}; "
        f"{steps:,} steps = {count_text(all_tokens)} tokens = {read}"
    )


def _optim(job: Job, steps: int, decays: int | None) -> str:
    optim, per_step = job.optim, job.batch.tokens
    words: list[str] = ["muon + adamw" if optim.name == "muon" else optim.name]
    lr = optim.lr or 0.0
    words.append(f"lr {lr:g}" + (f" → {lr * optim.final:g}" if optim.schedule != "constant" else ""))
    if optim.warmup and job.batch.ramp is not None:
        words.append(f"warm-up {count_text(optim.warmup)} tokens")
    elif optim.warmup:
        words.append(f"warm-up {max(1, round(optim.warmup / per_step)):,} steps")
    if optim.schedule == "wsd" and optim.decay:
        words.append(f"decay from step {decays or round(steps * (1 - optim.decay)):,}")
    elif optim.schedule == "cosine":
        words.append("half a cosine")
    if optim.rewarm:
        words.append(f"up again over {count_text(optim.rewarm)} tokens after a fork")
    words.append(f"weight decay {optim.weight_decay:g}")
    words.append(f"clip {optim.clip:g}" if optim.clip else "no clipping")
    return ", ".join(words)


def _layout(job: Job, workers: int, threads: int, backend: str, because: str = "") -> str:
    told = f" ({because})" if because else ""
    each = f"{threads} thread{'s' * (threads != 1)}{told}"
    if workers == 0:
        text = "in this process, no workers" + (f", {each}" if told else "")
    else:
        text = f"{workers} worker{'s' * (workers != 1)} of {each}: {job.layout.shape}"
        text += f", ZeRO-{job.layout.zero}" if Layout.parse(job.layout.shape).dp_shard > 1 else ""
        text += (f" over {backend}" if workers > 1 else "") + f", {job.batch.micro} sequences at once"
    unusual = _unusual(job)
    return "\n".join([text, ", ".join(unusual)] if unusual else [text])


def _unusual(job: Job) -> list[str]:
    """What of the layout acts and is not as it is when nobody asks, in words."""
    asked, usual, layout = job.layout, LayoutSection(), Layout.parse(job.layout.shape)
    found = []
    if asked.order != usual.order and sum(degree > 1 for degree in layout.degrees) > 1:
        found.append(f"axes in the order {asked.order}")
    if layout.pp > 1 and asked.schedule != usual.schedule:
        found.append(asked.schedule + (f" with {asked.virtual} stages a rank" if asked.virtual > 1 else ""))
    if layout.pp > 1 and asked.stages:
        found.append(f"stages of {' + '.join(map(str, asked.stages))} layers")
    if layout.tp > 1 and not asked.sequence:
        found.append("sequences whole on every tensor rank")
    if layout.dp_shard > 1 and asked.secondary:
        found.append(f"a second shard over {asked.secondary} ranks")
    if job.memory.recompute:
        found.append(f"backward recomputes {', '.join(job.memory.recompute)}")
    return found


def _numbers(job: Job, why: Mapping[str, str]) -> str:
    reason = why.get("train.precision", "")
    text = f"{job.train.precision}" + (f" ({reason})" if reason else "")
    others = [f"{name} in {kind}" for name, kind in job.train.precision_of if kind not in ("auto", job.train.precision)]
    text = "; ".join([text, *others, f"weights kept in {job.train.master}"])
    reason = why.get("train.compile", "")
    return text + ("; blocks compiled" if job.train.compile else f"; not compiled{f' ({reason})' if reason else ''}")


def end(run: Run) -> EndFacts:
    """The block after the last step, from the run folder alone."""
    summary = Summary(run)
    account = summary.account
    word = {"finished": "Done", "stopped": "Stopped", "failed": "Failed"}.get(summary.state, "So far")
    of = f" of {summary.steps:,}" if summary.step != summary.steps else ""
    sentence = (
        f"{word}: {summary.step:,}{of} steps, {count_text(summary.tokens)} tokens in {seconds_text(account.total)}."
    )
    saved = int(summary.info.get("step") or 0)
    if summary.state == "stopped" and saved < summary.step:
        sentence += f" Nothing is saved since step {saved:,}." if saved else " Nothing is saved."
    lines = [("Held out", held_out(summary))] if held_out(summary) else []
    if isinstance(summary.info.get("early"), str) and summary.info["early"] and summary.state == "finished":
        lines.append(("Early", summary.info["early"]))
    lines += sets(summary)
    if summary.tokens_per_second:
        lines.append(("Speed", speed(summary)))
    if summary.compared:
        lines.append(
            ("Predicted", " · ".join(compared(item) for item in summary.compared if item.name in ("step", "memory")))
        )
    if account.total:
        shares = [f"{name} {share:.0%}" for name, share in account.shares if share >= 0.005]
        lines.append(("Time went", " · ".join(shares)))
    if summary.faults:
        lost = account.seconds.get("recovery", 0.0) + account.seconds.get("lost", 0.0)
        lines.append(
            ("Faults", f"{len(summary.faults)}, which cost {seconds_text(lost)}; no step is missing or counted twice")
        )
    return EndFacts(sentence, tuple(lines), _sample(summary), tuple(_commands(summary)))


def held_out(summary: Summary) -> str:
    """The held-out result in words: the newest, from which first, the best; "" where nothing was evaluated."""
    rows = [row for row in summary.evaluations if row.get("loss") is not None]
    if not rows:
        return ""
    last, first, best = rows[-1], rows[0], summary.best or rows[-1]
    key, unit = ("bits_per_byte", "bits/byte") if last.get("bits_per_byte") is not None else ("loss", "nats per token")
    text = f"{last[key]:.3f} {unit}"
    if len(rows) > 1 and first.get(key) is not None:
        place = "the best so far" if best is last else f"best at step {best['step']:,}"
        place += f" by {best['by']}" if best.get("sets") and best.get("by") else ""
        text += f" (from {first[key]:.3f} at step {first['step']:,}; {place})"
    return text + (f", loss {last['loss']:.3f} per token" if key != "loss" else "")


def sets(summary: Summary) -> list[tuple[str, str]]:
    """(name, words) of each named held-out set: its newest figure, from which first, and its best."""
    told = []
    for name, rows in summary.sets.items():
        bits = all(row["bits_per_byte"] is not None for row in rows)
        key, unit = ("bits_per_byte", "bits/byte") if bits else ("loss", "nats per token")
        known = [(int(row["step"]), float(row[key])) for row in rows if row[key] is not None]
        if not known:
            continue
        (begun, first), (_, last), (at, best) = known[0], known[-1], min(known, key=lambda one: one[1])
        more = f" (from {first:.3f} at step {begun:,}; best {best:.3f} at step {at:,})" if len(known) > 1 else ""
        told.append((name, f"{last:.3f} {unit}{more}"))
    return told


def speed(summary: Summary) -> str:
    """Tokens per second, and how near that is to what the model's own matrix products reach, and to the devices' peak."""
    text = f"{summary.tokens_per_second:,.0f} tokens/s"
    if summary.gemm_share:
        share = f"{summary.gemm_share:.0%}" if summary.gemm_share >= 0.01 else "less than 1%"
        text += f" = {share} of the speed of its matrix products alone, {timed(summary)}"
    return text + (f"; {summary.mfu:.0%} of the device's peak" if summary.mfu else "")


def timed(summary: Summary) -> str:
    """When the matrix products were timed, and by whom."""
    if int(summary.info.get("workers") or 1) == 1:
        return "timed between steps"
    devices = (summary.info.get("machine") or {}).get("devices")
    return "timed on one rank while the others wait" if devices else "timed on all ranks at once"


def compared(item: Compared) -> str:
    """ "step 0.482 s → 0.478 s (-1%)"."""
    return (
        f"{item.name} {amount(item.predicted, item.unit)} → {amount(item.measured, item.unit)} ({item.difference:+.0%})"
    )


def amount(value: float, unit: str) -> str:
    """A figure with its unit."""
    if unit == "bytes":
        return bytes_text(value)
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def _sample(summary: Summary) -> str:
    """What the model last wrote to a prompt; one with a prompt is preferred."""
    if not summary.samples:
        return ""
    last = [row for row in summary.samples if row["step"] == summary.samples[-1]["step"]]
    row = next((row for row in last if row.get("prompt")), last[0])
    return f"{row.get('prompt', '')}{row['text']}"


def _commands(summary: Summary) -> list[tuple[str, str]]:
    """What can be done next, as commands that exist."""
    path = summary.run.path
    found = []
    if (path / "report.html").exists():
        found.append(("Page", str(path / "report.html")))
    if summary.state == "finished":
        prompts = [
            str(prompt) for prompt in summary.used("observe.prompts", ()) if str(prompt).isprintable() and prompt
        ]
        quoted = prompts[0].replace("'", "") if prompts else ""
        if summary.own:
            return found
        found.append(("Try", f"argosy sample {path}" + (f" '{quoted}'" if quoted else "")))
        found.append(("Longer", f"{_again(summary, 'longer')} --train.time '30 min'"))
        if (summary.info.get("data") or {}).get("source") == "python":
            found.append(("Your text", f"{_again(summary, 'notes')} --data.source ~/notes"))
    elif summary.info.get("command"):
        found.append(("Go on", str(summary.info["command"])))
    return found


def _again(summary: Summary, other: str) -> str:
    """The command that trains the job of this run in another folder: short where it was a shipped job as it is."""
    name, given = (
        str(summary.info.get("name")),
        str(summary.info.get("command", "")).removeprefix("argosy train").strip(),
    )
    if given in ("", name):
        return f"argosy train {shlex.quote(name)}"
    path = summary.run.path
    return f"argosy train {shlex.quote(f'{path}/job.toml')} --run {shlex.quote(f'{path}-{other}')}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
