"""A config.json into our model section and back, by a family's rules. Pure, no torch: the parent of a run reads shapes here.

In: the table that a config.json holds, which may come from anybody. Out: the shape as dotted keys below `model`, every value
checked by the job's own schema; or, from a model of ours, the config.json that a family writes for it. What a family cannot
say about a model is refused by its key, never left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from argosy.errors import Refused
from argosy.exchange.mapping import Rules, families, family_of
from argosy.exchange.source import CONFIG, Source
from argosy.job import leaves
from argosy.job.load import job_from
from argosy.job.schema import BlockSection, ModelSection, RopeScaling, layers
from argosy.plan.settle import whole

NO_DEFAULT = "none"  # of model.rope_scaling
# Our word for a number of rope scaling -> theirs.
_SCALING: Mapping[str, Mapping[str, str]] = {
    "linear": {"factor": "factor"},
    "llama3": {"factor": "factor", "original": "original_max_position_embeddings", "low": "low_freq_factor",
               "high": "high_freq_factor"},
    "yarn": {"factor": "factor", "original": "original_max_position_embeddings", "fast": "beta_fast", "slow": "beta_slow",
             "attention": "attention_factor"},
}  # fmt: skip
_PLAIN = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
# What transformers reads for a model of any class, and what it has to be here: layers that are alike but for their windows,
# and tokens that see none after them.
_EVERY: Mapping[str, tuple[Any, ...]] = {"is_causal": (True,), "per_layer_config": (None, {})}
SILENT = (0, 0.0, False, "pre", "none")  # what None means in jobs in force of before there was a choice
# Keys of the model that trained weights no longer ask for, or that `written` has a way of its own for.
_ELSEWHERE = frozenset((
    "preset", "init", "z_loss", "scaling", "base_width", "block.dropout",
    "rope_theta", "rope_scaling", "block.window", "pattern",
))  # fmt: skip
SLIDING, FULL = "sliding_attention", "full_attention"


def described(source: Source) -> tuple[Rules, dict[str, Any], dict[str, Any]]:
    """(rules, shape, config.json) of the model in `source`. Refused where no rules are there for it, or they cannot say it."""
    config, where = source.config, str(source.folder / CONFIG)
    if "auto_map" in config and not any(config.get("model_type") == one.model_type for one in families().values()):
        raise Refused(
            "this model is code of its own (auto_map), which is never run here.", where=where,
            do="Where it is a decoder as the others are, a file of rules is enough: docs/how-to/models.md.",
        )  # fmt: skip
    rules = family_of(config.get("model_type"), where)
    return rules, shape(rules, config, where), config


def shape(rules: Rules, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The model that `config` describes, as dotted keys below "model". Refused, by their key, for what we cannot be."""
    if config.get("quantization_config"):
        raise Refused(
            "its weights are quantised, and only whole ones can be trained.",
            where=where,
            do="Take the model that it was made from.",
        )
    config = _named(rules, config, where)
    found: dict[str, Any] = {}
    for key, rule in rules.keys.items():
        value = config.get(key, rule.absent)
        if value is None:
            if key in config and rule.absent is not None and not rule.optional:
                raise Refused(f"{key} is null.", where=where)
            if not rule.optional:
                raise Refused(f"{key} is missing.", where=where, do=f"Every model of the family {rules.family} has it.")
            continue
        if not isinstance(value, bool | int | float | str):
            raise Refused(f"{key} is no plain value.", where=where, found=str(value)[:60])
        if rule.values:
            if str(value) not in rule.values:
                known = ", ".join(rule.values)
                raise Refused(f"{key} = {str(value)[:60]!r} is not known here; {known} are.", where=where)
            value = rule.values[str(value)]
        found |= dict.fromkeys(rule.ours, value)
    for key, allowed in (*_EVERY.items(), *rules.must.items()):
        value = config.get(key, allowed[0])
        if value not in allowed:
            known = " or ".join(str(one).lower() for one in allowed)
            raise Refused(f"{key} = {str(value)[:60]} is not known here; {known} is.", where=where)
    found |= rules.fixed
    if rules.rotary:
        found["rope_theta"], found["rope_scaling"] = _rope(rules, config, where)
    if rules.windows is not None:
        found |= _windows(rules, config, found.get("layers"), where)
    return _checked(found, where)


def _named(rules: Rules, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`config` with every key under its own name. Refused where two names of one key say different things."""
    found = {name: value for name, value in config.items() if name not in rules.aliases}
    for name in config.keys() & rules.aliases.keys():
        key = rules.aliases[name]
        if found.setdefault(key, config[name]) != config[name]:
            raise Refused(f"{name} and {key} are one thing, and differ.", where=where)
    return found


def complete(table: Mapping[str, Any]) -> ModelSection:
    """The model section in force for a shape as `shape` gives it: nothing left out."""
    model = ModelSection.model_validate(leaves.nested(dict(table)))
    return model.model_copy(
        update={
            "block": whole(model, model.block),
            "pattern": tuple(whole(model, block) for block in layers(model)[: len(model.pattern)]),
            "rope_scaling": model.rope_scaling or (NO_DEFAULT if model.positions == "rotary" else None),
            "softcap": model.softcap or 0.0,
            "z_loss": model.z_loss or 0.0,
        }
    )


def written(
    rules: Rules, model: ModelSection, base: Mapping[str, Any], *, context: int, kind: str, where: str
) -> dict[str, Any]:
    """The config.json of `model` (in force) as `rules` write it; what `base` says and still holds stays as it is.

    context: the longest sequence, where neither `base` nor the model says it. kind: the type of the weights, as torch calls
    it. Refused with the key where the family cannot say what the model is.
    """
    blocks = layers(model)
    _fits(rules, model, blocks, where)
    made = _named(rules, base, where) if base.get("model_type") == rules.model_type else {}
    before = _leaves(complete(shape(rules, made, where))) if made else None
    now = _leaves(model)
    made["model_type"], made["architectures"] = rules.model_type, [rules.architecture]
    for key, rule in rules.keys.items():
        value = now[rule.ours[0]]
        if before is not None and all(before[one] == value for one in rule.ours):
            continue
        if rule.values:
            value = next(word for word, ours in rule.values.items() if ours == value)
        made[key] = value
    for key, allowed in rules.must.items():
        made.setdefault(key, allowed[0])
    said = made.get(rules.context) if rules.context else None
    longest = max(said if isinstance(said, int) else 0, context)
    turned = before is None or any(before[key] != now[key] for key in ("rope_theta", "rope_scaling"))
    # A scaling that does not tell the length of the earlier training means the longest sequence: the old one, which goes.
    if rules.rotary and (turned or (longest != said and isinstance(model.rope_scaling, RopeScaling))):
        _write_rope(made, model)
    if rules.windows is not None and (before is None or _sizes(before) != [block.window or 0 for block in blocks]):
        _write_windows(rules, made, [block.window or 0 for block in blocks])
    if rules.context:
        made[rules.context] = longest
    made["dtype" if "dtype" in made else "torch_dtype"] = kind
    made.pop("auto_map", None)  # code of somebody's own, which did not come along
    return made


def _checked(found: dict[str, Any], where: str) -> dict[str, Any]:
    """`found`, which the job's schema and checks take. Refused in their words, but with the place of config.json."""
    try:
        job_from({"model": leaves.nested(found)})
    except Refused as refused:
        raise Refused(refused.what, where=where, found=refused.found) from None
    return found


def _rope(rules: Rules, config: Mapping[str, Any], where: str) -> tuple[float, Any]:
    """Theta, and the scaling as the job writes it or "none": from rope_parameters, or rope_theta and rope_scaling."""
    said, other = config.get("rope_parameters") or {}, config.get("rope_scaling")
    if other and said and not _same(other, said, config.get("rope_theta", rules.rotary)):
        raise Refused("rope_parameters and rope_scaling are one thing, and differ.", where=where, do="Remove one.")
    said = said or other or {}
    if not isinstance(said, Mapping) or any(isinstance(value, Mapping) for value in said.values()):
        raise Refused("its rotary angles differ from layer to layer, which no model here can.", where=where)
    theta = said.get("rope_theta", config.get("rope_theta"))
    theta = rules.rotary if theta is None else theta
    part = said.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if part not in (None, 1, 1.0):
        raise Refused(f"partial_rotary_factor = {str(part)[:20]}: only whole heads are turned here.", where=where)
    kind = said.get("rope_type", said.get("type", "default"))
    if not _number(theta):
        raise Refused("rope_theta is no number.", where=where, found=str(theta)[:60])
    if kind in ("default", None):
        return float(theta), NO_DEFAULT
    if kind not in _SCALING:
        raise Refused(f"rope_type = {str(kind)[:60]!r} is not known here; {', '.join(_SCALING)} are.", where=where)
    if kind == "yarn" and theta == 1:
        raise Refused("rope_theta = 1 turns all pairs alike, and YaRN then has no ramp.", where=where)
    names = _SCALING[kind]
    for key, value in said.items():
        wrong = value is not True if key == "truncate" else value is not None  # "truncate": null is to round nothing
        if key not in (*names.values(), *_PLAIN) and wrong:
            raise Refused(f"{str(key)[:60]} of rope_type = {kind} is not known here.", where=where)
    found = {ours: said[theirs] for ours, theirs in names.items() if said.get(theirs) is not None}
    longest = config.get(rules.context) if rules.context else None
    if "original" in names:
        found["original"] = config.get("original_max_position_embeddings") or found.get("original") or longest
    if "factor" not in found and kind == "yarn" and _number(longest) and _number(found["original"]):
        found["factor"] = longest / max(1, found["original"])
    if "factor" not in found:
        raise Refused(f"rope_type = {kind} has no factor.", where=where)
    return float(theta), {"kind": kind, **found}


def _same(one: object, other: object, theta: object) -> bool:
    """Whether two tables of rotary angles say the same, where `theta` holds for one that does not tell it."""
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return False
    return {"rope_theta": theta, **one} == {"rope_theta": theta, **other}


def _number(value: object) -> bool:
    """Whether `value` is a number that a float can hold: JSON has integers without end."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e300


def _write_rope(made: dict[str, Any], model: ModelSection) -> None:
    """Theta and scaling, in the form that the table already has; a new one gets the one that every version reads."""
    scaling = model.rope_scaling
    said: dict[str, Any] = {}
    made.pop("original_max_position_embeddings", None)  # which would hold instead of the one in the table
    if isinstance(scaling, RopeScaling):
        values = leaves.plain(scaling)
        assert isinstance(values, dict)
        said = {"rope_type": scaling.kind}
        said |= {theirs: values[ours] for ours, theirs in _SCALING[scaling.kind].items() if ours in values}
        if scaling.kind == "llama3":  # which they must have
            said = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, **said}
    if "rope_parameters" in made:
        made["rope_parameters"] = {"rope_type": "default", **said, "rope_theta": model.rope_theta}
        made.pop("rope_scaling", None)
        return
    made["rope_theta"], made["rope_scaling"] = model.rope_theta, said or None


def _windows(rules: Rules, config: Mapping[str, Any], count: object, where: str) -> dict[str, Any]:
    """The window of the block, and the pattern where layers differ."""
    rule = rules.windows
    assert rule is not None
    size = config.get(rule.size, rule.absent)
    if rule.switch:
        switch = config.get(rule.switch, False)
        if not isinstance(switch, bool):
            raise Refused(f"{rule.switch} is neither true nor false.", where=where, found=str(switch)[:60])
        size = size if switch else None
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise Refused(f"{rule.size} is no number of tokens.", where=where, found=str(size)[:60])
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 10_000:
        raise Refused("the number of layers is none.", where=where, found=str(count)[:60])
    kinds, first = config.get(rule.kinds) if rule.kinds else None, 0
    if kinds is None and rule.first:
        first = config.get(rule.first, 28)
        if not isinstance(first, int) or isinstance(first, bool):
            raise Refused(f"{rule.first} is no number of layers.", where=where, found=str(first)[:60])
    if kinds is None:
        kinds = [SLIDING if size is not None and layer >= first else FULL for layer in range(count)]
    if not isinstance(kinds, list) or len(kinds) != count or any(one not in (SLIDING, FULL) for one in kinds):
        raise Refused(f"{rule.kinds} is no list of {count} times {FULL!r} or {SLIDING!r}.", where=where)
    if size is None and SLIDING in kinds:
        raise Refused(f"{rule.kinds} asks for windows, and {rule.size} gives them no size.", where=where)
    sizes = [size if one == SLIDING else 0 for one in kinds]
    if len(set(sizes)) == 1:
        return {"block.window": sizes[0]}
    period = next(p for p in range(1, count + 1) if count % p == 0 and sizes == sizes[:p] * (count // p))
    return {"block.window": 0, "pattern": [{"window": one} for one in sizes[:period]]}


def _write_windows(rules: Rules, made: dict[str, Any], sizes: Sequence[int]) -> None:
    rule = rules.windows
    assert rule is not None
    most = max(sizes)
    if most or not rule.switch:
        made[rule.size] = most or None
    if rule.switch:
        made[rule.switch] = bool(most)
    if rule.first:
        made[rule.first] = next((layer for layer, one in enumerate(sizes) if one), len(sizes))
    if rule.kinds:
        made[rule.kinds] = [SLIDING if one else FULL for one in sizes]


def _leaves(model: ModelSection) -> dict[str, object]:
    return leaves.leaves_of(model)


def _sizes(before: Mapping[str, Any]) -> list[int]:
    model = ModelSection.model_validate(leaves.nested({k: v for k, v in before.items() if k != "init"}))
    return [block.window or 0 for block in layers(model)]


def _fits(rules: Rules, model: ModelSection, blocks: Sequence[BlockSection], where: str) -> None:
    """Refused where the family cannot say what `model` is: a key that it fixes, or layers that differ."""
    now = _leaves(model)
    cannot = f"the family {rules.family} cannot say"

    def values_of(key: str) -> list[Any]:
        """What `key` is in every layer, or of the model as a whole."""
        name = key.removeprefix("block.")
        return [getattr(block, name) for block in blocks] if key.startswith("block.") else [now[key]]

    for key, value in rules.fixed.items():
        for one in values_of(key):
            if one != value and not (one is None and value in SILENT):
                raise Refused(f"{cannot} model.{key} = {one}: with it that is always {value}.", where=where)
    said = {*rules.fixed, *(one for rule in rules.keys.values() for one in rule.ours), *_ELSEWHERE}
    usual = {"block.head_size": (model.width or 0) // (model.block.heads or 1), "block.kv_heads": model.block.heads}
    for key in sorted(now.keys() - said):  # what it has no word for has to be as it is where nobody says a word
        for one in values_of(key):
            if one is not None and one not in SILENT and one != usual.get(key):
                raise Refused(f"{cannot} model.{key} = {one}.", where=where)
    for key, rule in rules.keys.items():
        values = {_hashable(now[one]) for one in rule.ours if not one.startswith("block.")}
        values |= {getattr(block, one[6:]) for one in rule.ours if one.startswith("block.") for block in blocks}
        if len(values) != 1:
            raise Refused(f"{cannot} that model.{rule.ours[0]} is {_several(values)}: it has one {key}.", where=where)
        if rule.values and next(iter(values)) not in rule.values.values():
            raise Refused(f"{cannot} model.{rule.ours[0]} = {next(iter(values))}.", where=where)
    sizes = [block.window or 0 for block in blocks]
    if rules.windows is None:
        if any(sizes):
            raise Refused(f"{cannot} model.block.window = {max(sizes)}.", where=where)
    elif len({size for size in sizes if size}) > 1 or (not rules.windows.kinds and len(set(sizes)) > 1):
        raise Refused(f"{cannot} that windows are {_several(set(sizes))}.", where=where)


def _hashable(value: object) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _several(values: set[Any]) -> str:
    return " and ".join(sorted(map(str, values)))
