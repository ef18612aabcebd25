"""The house's own lint rules find what they are for, and nothing in what is right."""

from pathlib import Path

import pytest

import forbidden


def findings(root: Path, where: str, text: str) -> list[str]:
    path = root / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return [one.rule for one in forbidden.check(path, root)]


TRAIN = "src/argosy/train/sample.py"
RUN = "src/argosy/run/sample.py"


@pytest.mark.parametrize(
    "where, text, rule",
    [
        (TRAIN, "import torch\ntorch._dynamo.reset()\n", "private torch"),
        (TRAIN, "import torch._dynamo as dynamo\n", "private torch"),
        (TRAIN, "from torch._inductor import config\n", "private torch"),
        (TRAIN, "from torch.distributed import _functional_collectives as f\n", "private torch"),
        (TRAIN, "import torch.distributed as dist\ndist._get_process_group_name(None)\n", "private torch"),
        (TRAIN, "def local(t):\n    return t._local_tensor\n", "private torch"),
        (TRAIN, "def gather(group, t):\n    group.all_gather_single(t)\n", "private torch"),
        (TRAIN, "import torch\nif torch.__version__ > '2.12':\n    pass\n", "private torch"),
        (TRAIN, "import torch\nx = torch.load('x.pt', weights_only=True)\n", "pickle"),
        (TRAIN, "from torch import load\n", "pickle"),
        (TRAIN, "import torch\ntorch.save({}, 'x.pt')\n", "pickle"),
        (TRAIN, "import torch.distributed.checkpoint as dcp\ndcp.load({})\n", "pickle"),
        (RUN, "import pickle\n", "pickle"),
        (RUN, "from pickle import loads\n", "pickle"),
        (RUN, "def read():\n    import marshal\n", "pickle"),
        (RUN, "import numpy as np\nnp.load('x.npy', allow_pickle=True)\n", "pickle"),
        (RUN, "import numpy as np\nyes = True\nnp.load('x.npy', allow_pickle=yes)\n", "pickle"),
        (RUN, "import yaml\nyaml.load('x')\n", "pickle"),
        (RUN, "value = eval('1')\n", "pickle"),
        (RUN, "exec('x = 1')\n", "pickle"),
        ("tools/sample.py", "exec('x = 1')\n", "pickle"),
        (RUN, "import torch\n", "torch"),
        (RUN, "from torch import nn\n", "torch"),
        (RUN, "class A:\n    import torch\n", "torch"),
        ("src/argosy/commands/sample.py", "import torch\n", "torch"),
        ("src/argosy/commands/sample.py", "from argosy.train import worker\n", "torch"),
        ("src/argosy/commands/sample.py", "import argosy.model.decoder\n", "torch"),
        ("src/argosy/prove/parity.py", "from argosy.device.device import Device\n", "torch"),
        ("src/argosy/checkpoint/snapshot.py", "import torch\n", "torch"),
        ("src/argosy/checkpoint/store.py", "from safetensors.torch import save_file\n", "torch"),
        ("src/argosy/checkpoint/store.py", "from argosy.checkpoint.load import load\n", "torch"),
        (RUN, "x = 1\n" * 400, "size"),
        (RUN, "class A:\n    def f(self):\n" + "        x = 1\n" * 59, "size"),
        (RUN, "def f():\n    def inner():\n" + "        x = 1\n" * 59 + "    return inner\n", "size"),
    ],
)
def test_a_breach_is_found(tmp_path: Path, where: str, text: str, rule: str) -> None:
    assert rule in findings(tmp_path, where, text)


@pytest.mark.parametrize(
    "where, text",
    [
        ("src/argosy/device/torch_versions.py", "import torch\ntorch._dynamo.reset()\nv = torch.__version__\n"),
        ("tests/device/test_torch_versions.py", "import torch\ntorch._dynamo.reset()\n"),
        (TRAIN, "import torch\n\n\ndef f(model):\n    model.eval()\n    return torch.__version__, model._parts\n"),
        (TRAIN, "from argosy.device import torch_versions\n"),
        (RUN, "import numpy as np\nnp.load('x.npy', allow_pickle=False)\n"),
        (RUN, "def f():\n    import torch\n    return torch\n"),
        (RUN, "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n"),
        ("src/argosy/commands/sample.py", "def f():\n    from argosy.train import worker\n    return worker\n"),
        ("src/argosy/commands/sample.py", "from argosy.checkpoint.store import commit\n"),
        ("src/argosy/commands/sample.py", "from argosy.checkpoint import manifest\n"),
        ("src/argosy/prove/reference.py", "import torch\nfrom torch import nn\n"),
        ("tests/run/test_sample.py", "import pickle  # allowed: plants a hostile file\n"),
        (RUN, "x = 1\n" * 399),
        (RUN, "def f():\n" + "    x = 1\n" * 58),
        ("tests/run/test_sample.py", "x = 1\n" * 400),
    ],
)
def test_what_is_right_is_left_alone(tmp_path: Path, where: str, text: str) -> None:
    assert findings(tmp_path, where, text) == []


def test_only_tests_may_ask_for_an_exception(tmp_path: Path) -> None:
    assert findings(tmp_path, RUN, "import pickle  # allowed: because\n") == ["pickle"]


def test_the_program_names_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sample.py"
    path.write_text("import json\nimport shelve\n")
    assert forbidden.main([str(path)]) == 1
    out = capsys.readouterr().out
    assert f"{path}:2: pickle: shelve" in out
    assert "1 found in 1 files" in out
    path.write_text("import json\n")
    assert forbidden.main([str(path)]) == 0
