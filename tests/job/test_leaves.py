from __future__ import annotations

import pytest

from argosy.job import leaves
from argosy.job.schema import Job


def test_leaves_are_in_the_order_that_toml_wants() -> None:
    keys = list(leaves.fields())
    assert keys[:3] == ["version", "extends", "name"]
    assert keys.index("model.pattern") < keys.index("model.block.heads") < keys.index("data.source")
    assert {"data.tokenizer", "model.pattern", "observe.prompts"} <= set(keys)
    assert list(leaves.leaves(Job())) == keys


def test_flat_and_nested_are_inverse() -> None:
    table = {"name": "x", "model": {"layers": 3, "block": {"heads": 2}}, "data": {"tokenizer": {"train": "bpe"}}}
    flat = leaves.flat(table)
    assert flat == {"name": "x", "model.layers": 3, "model.block.heads": 2, "data.tokenizer": {"train": "bpe"}}
    assert leaves.nested(flat) == table


def test_every_leaf_says_what_it_is() -> None:
    for key, field in leaves.fields().items():
        assert field.description, key


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("optim.learning_rate", "optim.lr"), ("train.presicion", "train.precision"), ("batch_size", "batch.tokens"),
        ("model.heads", "model.block.heads"), ("train.tokens_", "train.tokens"), ("optim.wieght_decay", "optim.weight_decay"),
        ("checkpoint.intervall", None), ("observe.wandb", None), ("model.n_layer", "model.layers"),
    ],
)  # fmt: skip
def test_the_nearest_key(wrong: str, right: str | None) -> None:
    assert leaves.nearest(wrong) == right


def test_every_alias_leads_to_a_key() -> None:
    assert set(leaves.ALIASES.values()) <= set(leaves.fields())
