"""What a layout is tried with: a table of options, the rules that make a draw legal, and the tolerances.

Pure, and without torch. A case is a plain mapping from option to value, so it can be printed, sent to ranks and made smaller;
`job_of` writes it as the job it stands for. Sizes are as small as they can be with every part of the model in them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argosy.job.schema import Job

Case = dict[str, Any]

TURNED = "tp cp dp replicate pp"  # the order of axes over ranks the other way round
SEQUENCE = 12  # tokens of a sequence, or one more
RANKS = 8  # most ranks of a draw
HIDDEN = 40

# The first value of each is the plainest: what a failing case is reduced to where that keeps it failing.
OPTIONS: Mapping[str, Sequence[Any]] = {
    "pp": (1, 2, 4, 3),
    "tp": (1, 2, 4, 3),
    "shard": (1, 2, 4, 3),
    "replicate": (1, 2, 3),
    "order": ("usual", "turned"),  # of the axes over ranks
    "zero": (0, 2, 1, 3),  # 0: nothing is sharded
    "secondary": (0, 2),
    "sequence": (False, True),  # sequence parallel
    "schedule": ("none", "1f1b", "gpipe", "interleaved"),
    "virtual": (1, 2),  # stages of a rank
    "stages": ("even", "front", "back", "ends"),  # where the pipeline has more layers; "ends": none at an end
    "recompute": ("none", "block", "attention", "mlp", "norm"),
    "micros": (1, 2, 3, 4, 6),  # micro-batches of a rank, more or fewer than stages
    "micro": (1, 2),  # sequences of a micro-batch
    "length": (SEQUENCE, SEQUENCE + 1),  # tokens of a sequence; 13 are cut unevenly by every tp
    "uneven": (False, True),  # one sequence less than ranks could take: some have fewer, or a shorter last micro-batch
    "layers": (1, 2, 3, 4, 5),
    "heads": ("4/4", "4/2", "4/1", "6/3", "6/2"),  # query heads / key and value heads
    "head_size": (4, 6),
    "norm": ("rms", "layer"),
    "parallel": (False, True),
    "placement": ("pre", "post", "peri"),  # of norms
    "qk_norm": ("none", "head", "full"),
    "activation": ("swiglu", "gelu", "gelu_tanh"),
    "positions": ("rotary", "learned"),
    "scaling": ("none", "llama3", "yarn", "linear"),  # of rotary angles
    "softcap": (0.0, 2.0),  # of scores and of logits
    "z_loss": (0.0, 0.05),
    "tied": (False, True),
    "window": ("none", "all", "every other"),
    "vocabulary": (32, 31, 29),
    "biases": (False, True),
    "dropout": (0.0, 0.2),
    "packed": (False, True),  # several documents in a row
    "clip": (0.0, 0.05),
    "update": ("sgd", "adamw", "muon", "lamb"),
    "mup": (False, True),  # first weights and rates by width, for a model four times as wide as its base
    "loss_chunk": (1024, 5),
}

# Of these a larger value makes a draw slower: where several would do, the smallest is drawn.
DEAR = frozenset(("pp", "tp", "shard", "replicate", "micros", "micro", "layers"))


def _rows(shard: int, replicate: int, micros: int, micro: int, uneven: bool) -> int:
    """Sequences of the global batch; 0 where one less is no other split, or leaves a rank without any."""
    data, each = shard * replicate, micros * micro
    return data * each - uneven if not uneven or (each > 1 and data * micro > 1) else 0


@dataclass(frozen=True)
class Rule:
    """`holds(*values of options)` for every legal case."""

    options: tuple[str, ...]
    holds: Callable[..., bool]


RULES = (
    Rule(("pp", "tp", "shard", "replicate"), lambda pp, tp, shard, replicate: pp * tp * shard * replicate <= RANKS),
    Rule(("shard", "zero"), lambda shard, zero: (zero == 0) == (shard == 1)),
    Rule(("shard", "zero", "secondary"), lambda shard, zero, secondary: not secondary or (zero == 3 and shard == 4)),
    Rule(("tp", "secondary"), lambda tp, secondary: tp == 1 or not secondary),
    Rule(("virtual", "secondary"), lambda virtual, secondary: virtual == 1 or not secondary),
    Rule(("tp", "sequence"), lambda tp, sequence: tp > 1 or not sequence),
    Rule(("tp", "heads"), lambda tp, heads: int(heads[0]) % tp == 0),
    Rule(("pp", "schedule"), lambda pp, schedule: (schedule == "none") == (pp == 1)),
    Rule(("schedule", "virtual"), lambda schedule, virtual: (schedule == "interleaved") == (virtual > 1)),
    Rule(("pp", "stages"), lambda pp, stages: pp > 1 or stages == "even"),
    Rule(("pp", "virtual", "layers"), lambda pp, virtual, layers: pp * virtual <= layers <= max(2, pp * virtual + 1)),
    Rule(
        ("pp", "virtual", "layers", "stages"),
        lambda pp, v, layers, stages: stages in ("even", "ends") or layers > pp * v,
    ),
    Rule(
        ("pp", "tp", "shard", "replicate", "order"),
        lambda *values: values[-1] == "usual" or sum(degree > 1 for degree in values[:-1]) > 1,
    ),
    Rule(("pp", "schedule", "micros"), lambda pp, schedule, micros: schedule != "interleaved" or micros >= pp),
    Rule(("pp", "micros"), lambda pp, micros: micros <= 4 or pp == 4),
    Rule(("shard", "replicate", "micros", "micro", "uneven"), lambda *sizes: not sizes[-1] or _rows(*sizes) > 0),
    Rule(("tied", "mup"), lambda tied, mup: not (tied and mup)),
    Rule(("parallel", "placement"), lambda parallel, placement: not parallel or placement == "pre"),
    Rule(("positions", "scaling"), lambda positions, scaling: positions == "rotary" or scaling == "none"),
    Rule(("layers", "window"), lambda layers, window: window != "every other" or layers % 2 == 0),
)
# What can stand in a job file too: there a micro-batch has no more sequences than the step.
WRITABLE: tuple[Rule, ...] = (
    *RULES,
    Rule(("shard", "replicate", "micros", "micro", "uneven"), lambda *sizes: _rows(*sizes) >= sizes[3]),
)


def legal(case: Mapping[str, Any], rules: Sequence[Rule] = RULES) -> bool:
    """Whether every rule holds whose options `case` names."""
    return all(
        rule.holds(*(case[name] for name in rule.options))
        for rule in rules
        if all(name in case for name in rule.options)
    )


@dataclass(frozen=True)
class Tolerance:
    """Largest differences allowed: of loss and norm relative to themselves, of tensors to the tensor's largest element.

    A gradient is held against its tensor's largest one, and the change of a weight over the steps against its tensor's largest
    change; each at least against `floor` of the largest of the whole model, since some are zero by mathematics (the bias of
    a key) and are left with the noise of what they are the sum of.
    """

    loss: float
    gradient: float
    norm: float
    weight: float
    floor: float
    why: str


TOLERANCES: Mapping[str, Tolerance] = {
    "float64": Tolerance(
        1e-10, 1e-10, 1e-10, 1e-10, 1e-3, "only the order of additions differs: 1e-16 each, a few thousand of them"
    ),
    "float32": Tolerance(
        1e-6, 1e-4, 1e-5, 1e-4, 1e-3, "the same at 6e-8 each; where sums cancel a hundred times that is left"
    ),
    "bfloat16": Tolerance(
        5e-3, 0.1, 2e-2, 0.1, 5e-2, "activations keep 8 bits: 4e-3 each, over some ten products in a row"
    ),
}


def plain(options: Mapping[str, Sequence[Any]] = OPTIONS) -> Case:
    """The case of all first values: one rank."""
    return {name: values[0] for name, values in options.items()}


def ranks_of(case: Mapping[str, Any]) -> int:
    """How many ranks a case has."""
    return int(case["pp"] * case["tp"] * case["shard"] * case["replicate"])


def rows_of(case: Mapping[str, Any]) -> int:
    """Sequences of the global batch."""
    return _rows(*(case[name] for name in ("shard", "replicate", "micros", "micro", "uneven")))


def layers_listed(case: Mapping[str, Any]) -> tuple[int, ...]:
    """Layers of each stage, () where they are even: one for all but the first or last, which takes what is left.

    "ends": none for the first stage, which embeds, and where there are more than two none for the last, which predicts.
    """
    stages, layers = case["pp"] * case["virtual"], case["layers"]
    if case["stages"] == "even":
        return ()
    if case["stages"] == "ends":
        inner = max(1, stages - 2)
        return (0, layers - inner + 1, *[1] * (inner - 1), *[0] * (stages > 2))
    listed = [1] * stages
    listed[0 if case["stages"] == "front" else -1] += layers - stages
    return tuple(listed)


def job_of(case: Mapping[str, Any], precision: str = "float64") -> Job:
    """The job, in force, that a case stands for."""
    from argosy.job.schema import Job

    master = "float64" if precision == "float64" else "float32"
    return Job.model_validate(
        {
            "name": "parity",
            "model": _model(case),
            "batch": {
                "sequence": case["length"],
                "tokens": rows_of(case) * case["length"],
                "micro": case["micro"],
            },
            "train": {
                "seed": 5,
                "steps": 3,
                "precision": precision,
                "master": master,
                "reduce": master,
                "compile": False,
            },
            "optim": _optim(case),
            "layout": _layout(case),
            "memory": {"recompute": case["recompute"], "loss_chunk": case["loss_chunk"]},
        }
    )


SCALINGS: Mapping[str, Any] = {
    "none": "none",
    "linear": {"kind": "linear", "factor": 3.0},
    "llama3": {"kind": "llama3", "factor": 4.0, "original": 8, "low": 0.5, "high": 1.2},
    "yarn": {"kind": "yarn", "factor": 4.0, "original": 8, "fast": 1.2, "slow": 0.1},
}


def _model(case: Mapping[str, Any]) -> dict[str, Any]:
    heads, kv_heads = (int(count) for count in case["heads"].split("/"))
    window = {"none": 0, "all": 5, "every other": 0}[case["window"]]
    block = {
        "heads": heads,
        "kv_heads": kv_heads,
        "head_size": case["head_size"],
        "hidden": HIDDEN,
        "activation": case["activation"],
        "parallel": case["parallel"],
        "norm": case["norm"],
        "norm_placement": case["placement"],
        "norm_epsilon": 1e-5,
        "norm_bias": case["biases"] and case["norm"] == "layer",
        "qk_norm": case["qk_norm"],
        "qkv_bias": case["biases"],
        "attention_bias": case["biases"],
        "mlp_bias": case["biases"],
        "window": window,
        "softcap": case["softcap"],
        "dropout": case["dropout"],
    }
    model = {
        "layers": case["layers"],
        "width": 4 * 6,
        "vocabulary": case["vocabulary"],
        "positions": case["positions"],
        "tied": case["tied"],
        "softcap": case["softcap"],
        "z_loss": case["z_loss"],
        "block": block,
    }
    rotary = {"rope_theta": 1e4, "rope_scaling": SCALINGS[case["scaling"]]}
    model |= {"scaling": "mup", "base_width": 6} if case["mup"] else {}
    model |= rotary if case["positions"] == "rotary" else {"context": case["length"]}
    return model | ({"pattern": [{**block, "window": 5}, block]} if case["window"] == "every other" else {})


def _optim(case: Mapping[str, Any]) -> dict[str, Any]:
    # A large epsilon: AdamW otherwise turns gradients that are zero but for rounding into whole steps.
    made = {"lr": 0.05, "schedule": "constant", "warmup": 0, "epsilon": 1e-3, "clip": case["clip"] or "none"}
    if case["update"] == "muon":
        return made | {"name": "muon", "momentum": 0.9, "newton_schulz": 5}
    return made | {"name": "lamb" if case["update"] == "lamb" else "adamw"}


def _layout(case: Mapping[str, Any]) -> dict[str, Any]:
    degrees = {"pp": case["pp"], "replicate": case["replicate"], "dp": case["shard"], "tp": case["tp"]}
    shape = " ".join(f"{word}{degree}" for word, degree in degrees.items() if degree > 1) or "dp1"
    section: dict[str, Any] = {"shape": shape, "sequence": case["sequence"], "secondary": case["secondary"]}
    section |= {"order": TURNED} if case["order"] == "turned" else {}
    section |= {"zero": case["zero"]} if case["zero"] else {}
    if case["pp"] > 1:
        section |= {"schedule": case["schedule"], "virtual": case["virtual"], "stages": layers_listed(case)}
    return section
