"""What is wrong with a job before any machine is looked at: unknown, contradictory and dead keys. Knows no file format.

A key is *dead* when another key of the same job makes it do nothing. Written on the same level as that key, or a later one,
it is an error naming both; written by a parent, it is dropped in silence, because the child changed the subject.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from argosy import quantities
from argosy.errors import Refused
from argosy.job import leaves, presets, rules
from argosy.job.schema import BlockSection, Job, layers

COMMAND_LINE = "command line"  # origin of what no file said
_PRECISE = {"bfloat16": 0, "float32": 1, "float64": 2}


@dataclass(frozen=True)
class Dead:
    """`keys` do nothing when the value of `because` fulfils `kills`."""

    keys: tuple[str, ...]
    because: str
    kills: Callable[[Any], bool]


def _is(*values: object) -> Callable[[Any], bool]:
    return lambda value: value in values


_MUON = ("optim.momentum", "optim.newton_schulz")
_EVALUATIONS = ("evaluate.tokens", "evaluate.sets", "evaluate.by", "evaluate.keep_best", "evaluate.patience")
_SAMPLES = ("observe.prompts", "observe.sample_tokens", "observe.temperature")
DEAD = (
    Dead(_MUON, "optim.name", _is("adamw", "lamb")),
    Dead(("model.base_width",), "model.scaling", _is("none", None)),
    Dead(("optim.decay",), "optim.schedule", _is("cosine", "constant")),
    Dead(("optim.final",), "optim.schedule", _is("constant")),
    Dead(("model.rope_theta", "model.rope_scaling"), "model.positions", _is("learned")),
    Dead(("model.context",), "model.positions", _is("rotary")),
    Dead(("model.block.norm_bias",), "model.block.norm", _is("rms")),
    Dead(("faults.restarts",), "faults.recover", _is(False)),
    Dead(_SAMPLES, "observe.sample_every", _is("never")),
    Dead(_EVALUATIONS, "evaluate.every", _is("never")),
    Dead(("data.source", "data.license", "data.field"), "data.mix", bool),
)


def _in_force(key: str, values: Mapping[str, Any]) -> Any:
    """The value of `key` as written, else the preset's, else the default's."""
    if key in values:
        return values[key]
    shape = presets.shape(values.get("model.preset")) if key.startswith("model.") else {}
    return shape[key] if key in shape else leaves.fields()[key].get_default()


def _origin(key: str, values: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    if key in origins:
        return origins[key]
    return f"preset {values.get('model.preset') or presets.DEFAULT}" if key.startswith("model.") else "default"


def overruled(values: Mapping[str, Any], ranks: Mapping[str, int]) -> list[str]:
    """Keys that a later level killed: what a parent said about something the child has replaced."""
    found = []
    for rule in DEAD:
        cause = rule.because if rule.because in ranks else "model.preset" if rule.because.startswith("model.") else None
        if cause is None or cause not in ranks or not _kills(rule, values):
            continue
        found += [key for key in rule.keys if key in ranks and ranks[key] < ranks[cause]]
    return list(dict.fromkeys(found))


def _kills(rule: Dead, values: Mapping[str, Any]) -> bool:
    try:
        return rule.kills(_in_force(rule.because, values))
    except (ValueError, TypeError):
        return False  # the value is no value at all, which validation says better


def check(job: Job, values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    """Refused for the first dead key or contradiction in `job`; `values` and `origins` hold what was written."""
    for rule in DEAD:
        for key in rule.keys:
            if key in values and _kills(rule, values):
                found = _in_force(rule.because, values)
                cause = f"{rule.because} = {_toml('none' if found is None else found)}"
                raise Refused(
                    f"{key} does nothing with {cause} ({_origin(rule.because, values, origins)}).",
                    where=origins[key],
                    do=f"Remove {key}, or change {rule.because}.",
                )
    _numbers(job, origins)
    _batch(job, origins)
    rules.check(job, origins)
    _recompute(job, origins)
    _shape(presets.filled(job.model), origins)


def _numbers(job: Job, origins: Mapping[str, str]) -> None:
    train, optim = job.train, job.optim
    if "auto" not in (train.master, train.precision) and _PRECISE[train.master] < _PRECISE[train.precision]:
        raise Refused(
            f"train.master = {train.master} holds less than train.precision = {train.precision}.",
            where=origins.get("train.master", "default"),
            do="Give the master weights at least the type of the matrix products.",
        )
    kept = train.master if train.master != "auto" else "float64" if train.precision == "float64" else "float32"
    for name, kind in train.precision_of:
        key = f"train.precision_of.{name}"
        if kind != "auto" and _PRECISE[kind] > _PRECISE[kept]:
            raise Refused(
                f"{key} = {kind} has more digits than the weights, which are kept in {kept} (train.master).",
                where=origins.get(key, "default"),
                do=f"Use {key}={kept}, or train.master={kind}.",
            )
    if optim.warmup and train.tokens and optim.warmup > train.tokens:
        raise Refused(
            f"optim.warmup = {quantities.count_text(optim.warmup)} tokens is longer than the run of "
            f"{quantities.count_text(train.tokens)}.",
            where=origins.get("optim.warmup", "default"),
            do="Shorten it, or leave it out: it is then derived.",
        )


def _batch(job: Job, origins: Mapping[str, str]) -> None:
    batch = job.batch
    # The later of the two levels is to blame: the command line, else the table's main key.
    written = [key for key in ("batch.tokens", "batch.sequence") if key in origins]
    blamed = sorted(written, key=lambda key: origins[key] != COMMAND_LINE)
    if batch.tokens % batch.sequence:
        below = batch.tokens // batch.sequence * batch.sequence
        nearest = below if below else batch.sequence
        raise Refused(
            f"batch.tokens = {batch.tokens} is no multiple of batch.sequence = {batch.sequence}.",
            where=origins[blamed[0]] if blamed else "default",
            do=f"Nearest: batch.tokens={nearest}.",
        )
    if isinstance(batch.micro, int) and batch.micro > batch.tokens // batch.sequence:
        raise Refused(
            f"batch.micro = {batch.micro} is more than the {batch.tokens // batch.sequence} sequences of a step.",
            where=origins.get("batch.micro", "default"),
            do=f"Nearest: batch.micro={batch.tokens // batch.sequence}, or leave it out.",
        )
    if job.train.tokens and job.train.tokens < batch.tokens:
        raise Refused(
            f"train.tokens = {job.train.tokens} is less than one step of batch.tokens = {batch.tokens}.",
            where=origins.get("train.tokens", "default"),
            do=f"At least train.tokens={batch.tokens}.",
        )


def _recompute(job: Job, origins: Mapping[str, str]) -> None:
    """Whoever computes a whole block again computes its operators again."""
    listed = job.memory.recompute
    if "block" in listed and len(listed) > 1:
        others = " and ".join(part for part in dict.fromkeys(listed) if part != "block")
        raise Refused(
            f'memory.recompute: "block" computes all of a block again{f", so {others} does nothing" if others else ""}.',
            where=origins.get("memory.recompute", "default"),
            do="Nearest: memory.recompute=block, or the operators alone.",
        )


def _shape(model: Any, origins: Mapping[str, str]) -> None:
    """Refused where the numbers of the model do not divide."""

    def refuse(key: str, what: str, do: str) -> Refused:
        """A refusal that says who wrote `key`, or what it follows from."""
        said = next(
            (origins[name] for name in (key, "model.width", "model.pattern", "model.preset") if name in origins), ""
        )
        return Refused(what, where=said, do=do)

    if model.pattern and model.layers % len(model.pattern):
        raise refuse(
            "model.pattern",
            f"model.pattern has {len(model.pattern)} blocks, which do not divide model.layers = {model.layers}.",
            "Give a pattern whose length divides the layers.",
        )
    if model.scaling == "mup" and model.tied:
        raise refuse(
            "model.scaling",
            'model.scaling = "mup" trains the head at another rate than the embedding; here they are one (model.tied = true).',
            "Use model.tied=false, or leave model.scaling out.",
        )
    for block in layers(model):
        _heads(block, model.width, model.positions == "rotary", refuse)
        if block.parallel and block.norm_placement not in (None, "pre"):
            raise refuse(
                "model.block.norm_placement",
                f"the parallel block has one norm, before both parts; model.block.norm_placement = {block.norm_placement} "
                "asks for another.",
                'Use model.block.norm_placement="pre", or model.block.parallel=false.',
            )


def _heads(block: BlockSection, width: int, rotary: bool, refuse: Callable[[str, str, str], Refused]) -> None:
    heads = block.heads or 1
    if block.head_size is None and width % heads:
        raise refuse(
            "model.block.heads",
            f"model.width = {width} does not divide into model.block.heads = {heads}.",
            f"Nearest: model.block.heads={_divisor(width, heads)}, or give model.block.head_size.",
        )
    size = block.head_size or width // heads
    kv_heads = block.kv_heads or heads
    if heads % kv_heads:
        raise refuse(
            "model.block.kv_heads",
            f"model.block.kv_heads = {kv_heads} does not divide model.block.heads = {heads}.",
            f"Nearest: model.block.kv_heads={_divisor(heads, kv_heads)}.",
        )
    if rotary and size % 2:
        raise refuse(
            "model.block.head_size" if block.head_size else "model.block.heads",
            f"rotary positions need an even head size; width {width} and {heads} heads give {size}.",
            f"Give model.block.head_size={size + 1}, or model.positions=learned.",
        )


def _divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` not above `limit`."""
    return max(divisor for divisor in range(1, min(number, limit) + 1) if number % divisor == 0)


def unknown(keys: list[str], values: Mapping[str, Any], origins: Mapping[str, str]) -> Refused:
    """The refusal of keys that do not exist, each with the one that was probably meant."""
    return together([_unknown(key, values[key], origins[key]) for key in keys])


def _sections() -> list[str]:
    """All tables of a job file."""
    return list(dict.fromkeys(key.rpartition(".")[0] for key in leaves.fields() if "." in key))


def _unknown(key: str, value: Any, where: str) -> Refused:
    table = key.rstrip(".")
    if table in _sections() and not isinstance(value, Mapping):
        known = ", ".join(name for name in leaves.fields() if name.rpartition(".")[0] == table)
        return Refused(f"{table} is a table, not a value.", where=where, found=repr(value), do=f"Its keys: {known}.")
    leaf = next((known for known in leaves.fields() if key.startswith(known + ".")), None)
    while where == COMMAND_LINE and isinstance(value, Mapping) and len(value) == 1 and not leaf:
        name, value = next(iter(value.items()))  # what was written as one dotted key
        key = f"{key}.{name}"
    guess = leaves.nearest(key)
    if leaf:
        return Refused(f"{leaf} is a value, not a table.", where=where, do=f"Write {leaf} = ...")
    if isinstance(value, Mapping) and (sections := get_close_matches(key, _sections(), 1)):
        guess = f"[{sections[0]}]"
    do = f"Did you mean {guess}?" if guess else "`argosy job schema` lists all keys."
    return Refused(f"{key} is not a key.", where=where, do=do)


def invalid(error: ValidationError, values: Mapping[str, Any], origins: Mapping[str, str]) -> Refused:
    """Pydantic's errors as one refusal: a sentence per key, with its place."""
    found: dict[str, list[str]] = {}
    for one in error.errors(include_url=False):
        names = [str(part) for part in one["loc"]]
        key = next((".".join(names[:n]) for n in range(len(names), 0, -1) if ".".join(names[:n]) in values), names[0])
        found.setdefault(key, []).append(_sentence(one, names, key))
    sentences = [
        Refused(
            f"{key} = {_toml(values.get(key))}: {_joined(said)}" + "." * (not said[-1].endswith("?")),
            where=origins.get(key, ""),
            do=_about(key),
        )
        for key, said in found.items()
    ]
    return together(sentences)


def together(found: list[Refused]) -> Refused:
    """Several refusals as one: the first, and the others on lines of their own."""
    first, rest = found[0], "".join(f"\n{one.text}" for one in found[1:])
    return Refused(first.what, where=first.where, found=first.found, do=first.do + rest)


def _joined(sentences: list[str]) -> str:
    """What the kinds of a union say about one value: what is wrong with it, else which values could be written."""
    told = list(dict.fromkeys(sentences))
    wrong = [one for one in told if not one.startswith("write ")]
    return " or ".join(wrong) or "write " + " or ".join(one.removeprefix("write ") for one in told)


_MESSAGES = {
    "int_type": "write a whole number",
    "int_from_float": "write a whole number",
    "float_type": "write a number",
    "finite_number": "write a finite number",
    "string_type": "write a text",
    "string_too_short": "write a text that is not empty",
    "string_pattern_mismatch": "write letters, digits, '.', '_' and '-', at most 100, a letter or digit first",
    "bool_type": "write true or false",
    "tuple_type": "write a list",
    "model_type": "write a table",
    "missing": "{name} is missing",
    "literal_error": "write {expected}",
    "greater_than": "write more than {gt:,}",
    "greater_than_equal": "write at least {ge:,}",
    "less_than": "write less than {lt:,}",
    "less_than_equal": "write at most {le:,}",
}


def _sentence(one: Any, names: list[str], key: str) -> str:
    kind, context = one["type"], one.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "extra_forbidden":
        guess = leaves.nearest(f"model.block.{names[-1]}" if key == "model.pattern" else f"{key}.{names[-1]}")
        return f"{names[-1]} is not a key" + (f"; did you mean {guess.rsplit('.', 1)[-1]}?" if guess else "")
    if kind not in _MESSAGES:
        return str(one["msg"])
    limits = {
        name: int(value) if isinstance(value, float) and value == int(value) else value
        for name, value in context.items()
    }
    return _MESSAGES[kind].format(name=names[-1], **limits)


def _about(key: str) -> str:
    field = leaves.fields().get(key)
    text = " ".join((field.description or "").split()) if field else ""
    return f"({key}: {text})" if text else ""


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(leaves.plain(value))
