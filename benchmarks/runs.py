"""Real runs of Argosy for benchmarks: `argosy train` as a user types it, with text made for the purpose, and its record read.

Also what the other contestants need to be the same: the model section in force, and text of which every sequence is one
document, so that the attention mask of all contestants is the plain causal one.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SIZES = {
    "2M": {"overrides": ["model.layers=4"], "vocabulary": 2048},
    "tiny": {"overrides": ["model.layers=2", "model.width=32", "model.block.heads=1"], "vocabulary": 512},
    "14M": {"overrides": ["model.layers=6", "model.width=384"], "vocabulary": 8192},
}
# What --quick makes of the laptop job: it shows that a benchmark works, and measures nothing.
SMALL = [
    "model.layers=2",
    "model.width=32",
    "model.block.heads=1",
    "data.tokenizer=bytes",
    "batch.sequence=64",
    "batch.tokens=256",
    "observe.sample_every=never",
]
QUIET = ["checkpoint.every=never", "evaluate.every=never", "observe.sample_every=never"]


def program(name: str) -> str:
    """A program of this environment."""
    return str(Path(sys.executable).parent / name)


def environment(**changes: str) -> dict[str, str]:
    """This process's variables without those that steer Argosy or the number of threads, and with `changes`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ARGOSY_", "OMP_"))}
    return {**kept, **changes}


def section(overrides: Sequence[str], vocabulary: int, sequence: int = 256) -> dict[str, Any]:
    """The model section in force of the laptop job with these overrides."""
    from argosy.cluster.here import machine
    from argosy.job.load import load
    from argosy.plan.prepared import PreparedFacts
    from argosy.plan.settle import settle

    own = [*overrides, "train.steps=10", "train.precision=float32"]
    loaded = load(
        "laptop",
        own if any(word.startswith("batch.sequence") for word in own) else [*own, f"batch.sequence={sequence}"],
    )
    probed = {"gemm": {"float32": 100.0, "bfloat16": 100.0}, "torch": "", "devices": []}
    settled = settle(loaded, machine(), probed, PreparedFacts(vocabulary, 1_000_000, 100, 10, 3.0), workers=1)
    return settled.job.model.model_dump(mode="json")


def precision(run: Path) -> str:
    """The type in which a real run computes."""
    from argosy.run.folder import Run

    return str(Run(run).job().train.precision)


def text(folder: Path, sequence: int, vocabulary: int) -> list[str]:
    """Write 64 documents of exactly one sequence each and a tokenizer for them; the overrides that use them.

    Fewer would be cut into pieces; more would be read in several lanes, whose borders cut documents.
    """
    import numpy as np
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    words = [f"w{number}" for number in range(vocabulary - 1)]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    documents = folder / "text"
    documents.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    random = np.random.default_rng(0)
    for number in range(64):
        chosen = random.integers(0, vocabulary - 1, sequence - 1)  # the end mark is the last token
        (documents / f"{number:05d}.txt").write_text(" ".join(words[one] for one in chosen))
    return [f"data.source={documents}", f"data.tokenizer={folder / 'tokenizer.json'}", f"batch.sequence={sequence}"]


def train(run: Path, overrides: Sequence[str], workers: int, job: str = "laptop") -> list[str]:
    """The command line of a run of the laptop job into `run`."""
    command = [program("argosy"), "train", job, "--run", str(run), "--workers", str(workers)]
    return [*command, *overrides]


def complete(command: Sequence[str], **variables: str) -> float:
    """Run a command to its end and return its seconds; its output is shown when it fails."""
    began = time.monotonic()
    answer = subprocess.run(command, env=environment(**variables), capture_output=True, text=True)
    if answer.returncode != 0:
        print(answer.stdout[-4000:], answer.stderr[-4000:], sep="\n", file=sys.stderr)
        raise SystemExit(f"{' '.join(map(str, command))} ended with {answer.returncode}")
    return time.monotonic() - began


def rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file that are whole; none when it is not there."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines if line]


def steady(metrics: Sequence[dict[str, Any]], warm: int) -> list[float]:
    """Seconds from the end of one step to the end of the next, without the first `warm`."""
    times = [row["time"] for row in metrics]
    return [later - earlier for earlier, later in itertools.pairwise(times)][warm:]


def first_step(run: Path, incarnation: int) -> tuple[float, dict[str, float]] | None:
    """(time of the end of the first step of an incarnation, seconds of each part until then), None before it ended.

    Parts are the phases of rank 0's record; what lies before the first entry is left to the caller, who knows the start.
    """
    from argosy.run import parquet, record
    from argosy.run.folder import Run

    if not (run / "run.json").exists():
        return None
    entries = list(parquet.entries(Run(run), incarnation))[:2000]
    ended = [entry for entry in entries if entry["kind"] == record.STEP]
    if not ended:
        return None
    until = ended[0]["left"]
    parts = {"born": min(int(entry["entered"]) for entry in entries if entry["entered"]) / 1e9}
    for entry in entries:
        if entry["kind"] == record.PHASE and entry["left"] <= until:
            name = record.PHASES[entry["name"]]
            parts[name] = parts.get(name, 0.0) + float(entry["left"] - entry["entered"]) / 1e9
    return float(until) / 1e9, parts


def pid_of(run: Path, rank: int, incarnation: int) -> int:
    """The process that is this rank."""
    from argosy.run import record
    from argosy.run.folder import Run

    return int(record.header(record.files(Run(run).local, rank=rank, incarnation=incarnation)[0][1]).pid)


def waited(condition: Callable[[], Any], what: str, seconds: float = 900.0, every: float = 0.05) -> Any:
    """The first true answer of `condition`, asked `every` so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(every)
    raise SystemExit(f"waited {seconds:.0f} s in vain for {what}")
