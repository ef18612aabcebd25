from __future__ import annotations

from argosy.job.lines import line, lines

TEXT = '''# comment
name = "a"   # x = 1

[model]
layers = 4
"odd = key" = 1
block.heads = 2
pattern = [
  { window = 3 },   # y = 2
  {},
]

  [ model . block ]
kv_heads = """
x = 1
[optim]
"""

[[pool]]
nodes = 1
'''


def test_every_key_has_its_line() -> None:
    found = lines(TEXT)
    assert found == {
        ("name",): 2, ("model",): 4, ("model", "layers"): 5, ("model", "odd = key"): 6, ("model", "block"): 7,
        ("model", "block", "heads"): 7, ("model", "pattern"): 8, ("model", "block", "kv_heads"): 14,
        ("pool",): 19, ("pool", "nodes"): 20,
    }  # fmt: skip


def test_a_key_inside_a_value_is_on_the_value_s_line() -> None:
    found = lines(TEXT)
    assert line(found, ("model", "pattern", "window")) == 8
    assert line(found, ("optim", "lr")) is None


def test_only_what_toml_calls_a_line_end_is_one() -> None:
    text = "# a\u2028b\x85c\r\nname = 'x\u2028y'\r\n[model]\r\nlayers = [\r\n 1,\r\n]\r\nheads = 2\r\n"
    assert lines(text) == {("name",): 2, ("model",): 3, ("model", "layers"): 4, ("model", "heads"): 7}
