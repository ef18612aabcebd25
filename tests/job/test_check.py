from __future__ import annotations

import pytest

from argosy.errors import Refused
from argosy.job.check import DEAD
from argosy.job.leaves import fields
from argosy.job.load import job_from, load

# (what is written, words of the message): each pair of keys contradicts, or one makes the other do nothing.
DEAD_TOGETHER = [
    (["optim.name=adamw", "optim.momentum=0.9"], "optim.momentum does nothing with optim.name"),
    (["optim.name=adamw", "optim.newton_schulz=4"], "optim.newton_schulz does nothing with optim.name"),
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
]


@pytest.mark.parametrize(("words", "expected"), [*DEAD_TOGETHER, *CONTRADICTING], ids=lambda value: str(value)[:40])
def test_dead_and_contradicting_keys_are_refused_naming_both(words: list[str], expected: str) -> None:
    with pytest.raises(Refused) as caught:
        load("laptop", words)
    assert expected in caught.value.text
    assert caught.value.where == "command line"
    assert caught.value.do


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
        (["model.=3"], "model is a table, not a value. Found: 3. Its keys: model.preset, model.init"),
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
