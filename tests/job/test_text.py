from __future__ import annotations

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from argosy.job.text import job_text, toml

scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**62), 2**62),
    st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False),
    st.text(st.characters(exclude_categories=("Cs",))),
)


@given(st.one_of(scalars, st.lists(scalars, max_size=3), st.dictionaries(st.sampled_from("abc"), scalars, max_size=3)))
def test_values_read_back(value: object) -> None:
    assert tomllib.loads(f"x = {toml(value)}")["x"] == value


def test_tables_follow_the_schema() -> None:
    text = job_text({"optim.lr": 1e-3, "name": "a", "model.block.heads": 2, "model.layers": 3, "train.tokens": None})
    assert (
        text
        == '#:schema ./job.schema.json\nname = "a"\n\n[model]\nlayers = 3\n\n[model.block]\nheads = 2\n\n[optim]\nlr = 0.001\n'
    )
