from __future__ import annotations

import re
from pathlib import Path

import pytest

from argosy.errors import Refused
from argosy.job.check import DEAD
from argosy.job.leaves import fields
from argosy.job.load import job_from, load

# (what is written, words of the message): each pair of keys contradicts, or one makes the other do nothing.
DEAD_TOGETHER = [
    (["data.mix=[{source='a'}]", "data.source=b"], "data.source does nothing with data.mix"),
    (["data.mix=[{source='a'}]", "data.license=MIT"], "data.license does nothing with data.mix"),
    (["data.mix=[{source='a'}]", "data.field=text"], "data.field does nothing with data.mix"),
    (["optim.name=adamw", "optim.momentum=0.9"], "optim.momentum does nothing with optim.name"),
    (["optim.name=adamw", "optim.newton_schulz=4"], "optim.newton_schulz does nothing with optim.name"),
    (["optim.name=lamb", "optim.momentum=0.9"], "optim.momentum does nothing with optim.name"),
    (["model.base_width=64"], 'model.base_width does nothing with model.scaling = "none"'),
    (["optim.schedule=cosine", "optim.decay=0.3"], "optim.decay does nothing with optim.schedule"),
    (["optim.schedule=constant", "optim.final=0.3"], "optim.final does nothing with optim.schedule"),
    (["model.positions=learned", "model.rope_theta=1e4"], "model.rope_theta does nothing with model.positions"),
    (["model.context=512"], 'model.context does nothing with model.positions = "rotary" (preset tiny)'),
    (["model.block.norm_bias=true"], 'model.block.norm_bias does nothing with model.block.norm = "rms" (preset tiny)'),
    (["faults.recover=false", "faults.restarts=3"], "faults.restarts does nothing with faults.recover"),
    (["observe.sample_every=never", "observe.prompts=['a']"], "observe.prompts does nothing with observe.sample_every"),
    (["observe.sample_every=never", "observe.sample_tokens=9"], "observe.sample_tokens does nothing"),
    (["observe.sample_every=never", "observe.temperature=1.0"], "observe.temperature does nothing"),
    (["evaluate.every=never", "evaluate.tokens=9999"], "evaluate.tokens does nothing with evaluate.every"),
    (
        ["evaluate.every=never", "evaluate.sets=[{name='a', source='b'}]"],
        "evaluate.sets does nothing with evaluate.every",
    ),
    (["evaluate.every=never", "evaluate.by=held-out"], "evaluate.by does nothing with evaluate.every"),
    (["evaluate.every=never", "evaluate.keep_best=true"], "evaluate.keep_best does nothing with evaluate.every"),
    (["evaluate.every=never", "evaluate.patience=2"], "evaluate.patience does nothing with evaluate.every"),
]
CONTRADICTING = [
    (["batch.tokens=1000"], "no multiple of batch.sequence = 256. Nearest: batch.tokens=768"),
    (["batch.sequence=8192"], "Nearest: batch.tokens=8192"),
    (["batch.micro=17"], "more than the 16 sequences"),
    (["train.tokens=100"], "less than one step"),
    (["model.block.heads=5"], "Nearest: model.block.heads=4"),
    (['memory.recompute=["mlp", "block"]'], "so mlp does nothing. Nearest: memory.recompute=block"),
    (["model.block.kv_heads=4"], "does not divide model.block.heads = 6. Nearest: model.block.kv_heads=3"),
    (["model.block.head_size=33"], "even head size"),
    (["model.layers=4", "model.pattern=[{}, {}, {}]"], "3 blocks, which do not divide model.layers = 4"),
    (["model.layers=4", "model.pattern=[{ heads = 5 }, {}]"], "does not divide into model.block.heads = 5"),
    (["train.master=bfloat16", "train.precision=float32"], "holds less than"),
    (["train.precision_of.head=float64"], "head = float64 has more digits than the weights, which are kept in float32"),
    (["optim.warmup=20M"], "is longer than the run"),
    (["evaluate.by=code"], "evaluate.by = code is no held-out set"),
    (["evaluate.sets=[{name='a', source='x'}, {name='a', source='y'}]"], "evaluate.sets names a twice"),
    (["evaluate.sets=[{name='held-out', source='x'}]"], "held-out is the name of the run's own documents"),
]


@pytest.mark.parametrize(("words", "expected"), [*DEAD_TOGETHER, *CONTRADICTING], ids=lambda value: str(value)[:40])
def test_dead_and_contradicting_keys_are_refused_naming_both(words: list[str], expected: str) -> None:
    with pytest.raises(Refused) as caught:
        load("laptop", words)
    assert expected in caught.value.text
    assert caught.value.where == "command line"
    assert caught.value.do


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (['model.rope_scaling={kind="yarn", factor=2.0}'], "kind = yarn needs original"),
        (['model.rope_scaling={kind="linear", factor=2.0, low=1.0}'], "low does nothing with kind = linear"),
        (['model.rope_scaling={kind="llama3", factor=2.0, original=8, low=4.0}'], "low must be less than high"),
        (['model.rope_scaling={kind="linear", factor=0.5}'], "at least 1"),
        (["model.block.parallel=true", "model.block.norm_placement=post"], "the parallel block has one norm"),
        (["model.scaling=mup", "model.tied=true"], "trains the head at another rate than the embedding"),
        (
            ["model.positions=learned", 'model.rope_scaling={kind="linear", factor=2.0}'],
            "model.rope_scaling does nothing with",
        ),
    ],
)
def test_what_new_keys_refuse(words: list[str], expected: str) -> None:
    with pytest.raises(Refused, match=re.escape(expected)):
        load("smoke", words)


def test_first_weights_bring_their_shape_and_drop_what_lower_levels_said() -> None:
    assert load("smoke").job.model.layers is not None
    started = load("smoke", ["model.init=runs/x", "model.vocabulary=300"])
    assert started.job.model.layers is None
    assert started.job.model.vocabulary == 300
    assert load("smoke", ["model.init=random"]).job.model.layers is not None


def test_every_rule_of_the_table_is_tried_and_names_keys_that_exist() -> None:
    tried = {(key.partition("=")[0], text) for words, text in DEAD_TOGETHER for key in words}
    for rule in DEAD:
        assert {*rule.keys, rule.because} <= set(fields())
        assert any(rule.because in text and key in rule.keys for key, text in tried), rule


def test_a_later_level_may_change_the_subject() -> None:
    parent = {"optim.name": "muon", "optim.momentum": 0.9, "observe.prompts": ["a"], "optim.decay": 0.2}
    assert job_from(parent).job.optim.momentum == 0.9
    loaded = load("laptop", ["observe.sample_every=never"])  # laptop.toml says prompts
    assert loaded.job.observe.prompts == ("",)
    assert "observe.prompts" not in loaded.written
    assert load("laptop", ["model.preset=gpt2-124m", "model.block.norm_bias=false"]).job.model.block.norm_bias is False


def test_what_the_default_says_is_never_dead() -> None:
    job = load("laptop", ["optim.name=adamw", "optim.schedule=constant", "evaluate.every=never"]).job
    assert (job.optim.momentum, job.optim.decay, job.evaluate.tokens) == (None, None, 65_536)


# No leaf takes any of these; each is written as on the command line.
ABSURD = ["inf", "nan", "-inf", "1e400", "-5GB", "1e30GB", "1e99", "-1", "", "yes", "1e-9s", "[1]", "{a=1}"]
TEXTS = (
    "name",
    "model.init",
    "data.",
    "layout.shape",
    "layout.order",
    "model.preset",
)  # any word is a text: only "" is none
LEFT_TO_PYDANTIC = ("Input", "input", "String", "string", "parse", "should", "valid ", "match", "validation")


@pytest.mark.parametrize("key", [key for key in fields() if key not in ("extends", "version")])
def test_no_leaf_takes_an_absurd_value_and_the_refusal_is_in_our_words(key: str) -> None:
    for value in ABSURD if not key.startswith(TEXTS) or key == "data.held_out" else [""]:
        if (key, value) in (("data.license", ""), ("layout.stages", "[1]")):  # what each may well say
            continue
        with pytest.raises(Refused) as caught:
            load("smoke", [f"{key}={value}"])
        assert not [word for word in LEFT_TO_PYDANTIC if word in caught.value.text.partition("(")[0]], caught.value.text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train.precision=half"], "write 'auto' or 'float64', 'float32' or 'bfloat16'. (train.precision: Type of"),
        (["name=a/b"], "write letters, digits"),
        (["model.pattern=[{windw=3}]"], "windw is not a key; did you mean window? ("),
        (["--train.compile", "yes"], "--train.compile yes: write true or false."),
        (["optim.warmup=3%"], "'3%' is no count; write it whole, or with K, M, B or T"),
        (["--MODEL.LAYERS", "3"], "Did you mean model.layers?"),
        (["model.=3"], "model is a table, not a value. Found: 3. Its keys: model.class, model.preset, model.init"),
        (["optim.lrr=1", "batch.sequence=x"], "Did you mean optim.lr?\ncommand line: batch.sequence"),
    ],
)
def test_what_a_refusal_says(words: list[str], expected: str) -> None:
    with pytest.raises(Refused) as caught:
        load("smoke", words)
    assert expected in caught.value.text


def test_what_is_meant_is_read() -> None:
    assert load("smoke", ["model.layers=3", "model.layers=4"]).notes == (
        "model.layers is given twice, the last counts: 4",
    )
    job = load("smoke", ["model.layers=2e0", "checkpoint.every=1h30m", "train.time=1 h 30 min"]).job
    assert (job.model.layers, job.checkpoint.every, job.train.time) == (2, "1h30m", 5400)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data.mix=[{ source = 'a', weight = 0 }]"], "the weights of data.mix sum to nothing."),
        (["data.mix=[{ source = 'a' }, { source = 'a' }]"], "a twice. Give it once, with the sum of the weights."),
        (["data.mix=[{ source = 'a', weight = -1 }]"], "write at least 0"),
        (["data.mix=[{ weight = 1 }]"], "source is missing"),
        (["data.mix=[{ source = 'a', wait = 1 }]"], "wait is not a key"),
        (["data.mix=[{ source = 'a' }]", "data.source=b"], "data.source does nothing with data.mix"),
        (["batch.ramp={ start = 100, by = 64, tokens = 4096 }"], "must be multiples of batch.sequence"),
        (["batch.ramp={ start = 2048, by = 128, tokens = 4096 }"], "which is not less than batch.tokens = 1024"),
        (["batch.ramp={ start = 256, by = 512, tokens = 4096 }"], "does not divide the growth from 256 to 1024"),
        (["batch.ramp={ start = 256, by = 256, tokens = '1M' }", "train.tokens=65536"], "the run has 65536"),
        (["batch.ramp={ start = 256 }"], "by is missing"),
        (["batch.packing=tight"], "write 'greedy' or 'best-fit'"),
    ],
)
def test_what_is_said_of_mixes_ramps_and_packing(words: list[str], expected: str) -> None:
    with pytest.raises(Refused) as caught:
        load("smoke", words)
    assert expected in caught.value.text


def test_a_source_on_the_command_line_replaces_the_mix_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text(
        '[[data.mix]]\nsource = "notes"\nweight = 2\n[[data.mix]]\nsource = "python"\nlicense = "PSF-2.0"\n'
    )
    job = load(str(file)).job
    assert [(one.source, one.weight, one.license) for one in job.data.mix] == [
        (str(tmp_path / "notes"), 2.0, "unknown"),
        ("python", 1.0, "PSF-2.0"),
    ]
    job = load(str(file), ["data.source=/x"]).job
    assert (job.data.source, job.data.mix) == ("/x", ())
    again = tmp_path / "again.toml"
    again.write_text(load(str(file)).text)
    assert load(str(again)).job == load(str(file)).job
