"""Seconds and peak memory to bring a model of a billion parameters in, beside transformers loading it.

`python benchmarks/exchange.py [--rounds 5] [--quick]`

Weights are random, bfloat16, in files of 1 GB, made once; files lie in the page cache. Contestants, each a process of its own:
`argosy import` without its check (writes a run: float32, checksummed, synced); filling a decoder of ours in float32, as a rank
of a run that starts from the folder does; `transformers` loading the same into float32. Needs some 12 GB of disk.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure

FILL = """
import sys
from pathlib import Path
from argosy.exchange.huggingface import begin, look
from argosy.exchange.source import Source
from argosy.model.decoder import Decoder
source = Source(Path(sys.argv[1]), "")
decoder = Decoder(look(source).model).to_empty(device="cpu")
begin(source, decoder, dict(decoder.named_parameters()))
"""
THEIRS = """
import sys
import torch
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
"""
MAKE = """
import sys
from pathlib import Path
import torch
from argosy.exchange.config import complete, shape, written
from argosy.exchange.huggingface import shapes_of, tensors_of
from argosy.exchange.mapping import families
from argosy.exchange.send import _file, _files
import json
folder, wide = Path(sys.argv[1]), json.loads(sys.argv[2])
rules = families()["qwen3"]
model = complete(shape(rules, wide, ""))
wanted = tensors_of(rules, model, shapes_of(model)).theirs()
files, places = _files(wanted, "BF16", 10**9), {}
for number, names in enumerate(files, 1):
    name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
    make = lambda one: torch.empty(wanted[one], dtype=torch.bfloat16).normal_(0, 0.02)
    _file(folder / name, {one: wanted[one] for one in names}, "BF16", make)
    places |= dict.fromkeys(names, name)
(folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
config = written(rules, model, {}, context=4096, kind="bfloat16", where="")
(folder / "config.json").write_text(json.dumps(config))
"""
BILLION = {
    "model_type": "qwen3", "vocab_size": 100_000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 16,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
}  # fmt: skip
SMALL = {
    **BILLION,
    "vocab_size": 1_000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "head_dim": 8,
}
IMPORT, FILLED, LOADED = "argosy import", "a rank's weights from the folder", "transformers, float32"


def timed(command: list[str], gone: Path | None = None) -> measure.Taken:
    """Seconds and peak resident bytes of one process; what it wrote is removed."""
    if gone is not None:
        shutil.rmtree(gone, ignore_errors=True)
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(said.decode()[-4000:])
    return time.perf_counter() - began, {"bytes": usage.ru_maxrss * 1024}


def main() -> None:
    """Read the options, measure, print, and write the page unless it was quick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round of a tiny model, nothing written")
    options = parser.parse_args()
    config = SMALL if options.quick else BILLION
    table = measure.Table("exchange", "seconds")
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name) / "model", Path(name) / "run"
        folder.mkdir()
        subprocess.run([sys.executable, "-c", MAKE, str(folder), json.dumps(config)], check=True)
        stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        table.settings = {
            "what": "seconds of a process, its start and imports included",
            "model": f"{stored / 2e9:.2f} billion parameters, random, {stored / 1e9:.2f} GB of bfloat16 in files of 1 GB",
        }
        bring = [sys.executable, "-m", "argosy", "import", str(folder), "--out", str(out), "--no-check"]
        contestants = {
            IMPORT: functools.partial(timed, bring, out),
            FILLED: functools.partial(timed, [sys.executable, "-c", FILL, str(folder)]),
            LOADED: functools.partial(timed, [sys.executable, "-c", THEIRS, str(folder)]),
        }
        measure.alternate(table, contestants, 1 if options.quick else options.rounds)
    peaks = {
        one: measure.spread([sample.details["bytes"] for sample in table.samples if sample.contestant == one])[0]
        for one in contestants
    }
    lines = ["### exchange", "", *measure.markdown(table), ""]
    lines.append(
        "- peak resident memory (medians): " + ", ".join(f"{one} {peak / 1e9:.2f} GB" for one, peak in peaks.items())
    )
    ratio = table.ratio(FILLED, LOADED)[0]
    lines.append(measure.verdict("a rank's weights beside transformers", ratio, 1.0, at_least=False))
    measure.finish(table, lines, write=not options.quick)


if __name__ == "__main__":
    main()
