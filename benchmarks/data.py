"""Tokens prepared and loaded each second, what training waits for them, memory, and the start with a billion tokens at hand.

`python benchmarks/data.py [FOLDER] [--rounds 5] [--megabytes 500] [--large 5000] [--datasets PYTHON] [--parts ...] [--quick]`

Text: the files below FOLDER (.txt .md .py), else Python's own library, cut into records of some thousand letters and told again
with other cuts until there are so many megabytes: JSON lines, the same for all. *prepare*: `argosy data prepare` with two
processes beside `datasets` + `tokenizers` doing the same with the same tokenizer (JSON lines in, token ids on disk; PYTHON is
an interpreter that has both: `pip install datasets`). *load*: whole batches made from the prepared text, one process. *wait*:
the share of a step that the laptop job waits for its batch, two workers. *memory*: a large corpus, once, for resident memory
alone. *index*: a process from its birth to its first batch of a prepared text of 10^9 tokens, made up.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

import measure
import runs

RECORD = 4000  # letters of a record
FILE = 50_000_000  # bytes of a file of records
OURS, THEIRS, THREADS = "argosy data prepare", "datasets + tokenizers, 2 processes", "datasets + tokenizers, threads"
LOADED, WAITED, MEMORY, STARTED = "argosy, batches", "argosy train", "argosy data prepare, large", "argosy, first batch"

DATASETS = """
import os, sys, time
from pathlib import Path
folder, tokenizer, out, processes, end = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
import pyarrow.compute as compute
from datasets import Features, Sequence, Value, load_dataset
from tokenizers import Tokenizer
known = []
def encode(batch):
    if not known:
        known.append(Tokenizer.from_file(tokenizer))
    return {"ids": [[*one.ids, end] for one in known[0].encode_batch(batch["text"], add_special_tokens=False)]}
if __name__ == "__main__":
    files = sorted(str(path) for path in Path(folder).glob("*.jsonl"))
    many = processes if processes > 1 else None
    data = load_dataset("json", data_files=files, split="train", cache_dir=out, num_proc=many)
    kind = Features({"ids": Sequence(Value("int32"))})
    data = data.map(encode, batched=True, remove_columns=data.column_names, num_proc=many, features=kind)
    ended = time.time()
    print(ended, compute.sum(compute.list_value_length(data.data.column("ids"))).as_py())
"""
LOAD = """
import sys, time
from pathlib import Path
from argosy.data.batch import given
from argosy.data.shards import Shards
from argosy.run.ledger import Ledger
shards, sequence, tokens, steps = Shards(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
ledger = Ledger.start(data__order=2, batch__sequence=sequence, batch__tokens=tokens, batch__packing=sys.argv[5])
given(1, 1, ledger, shards)
began = time.perf_counter()
for step in range(2, steps + 2):
    given(step, 1, ledger, shards)
print(steps * tokens / (time.perf_counter() - began))
"""
FIRST = """
import sys, time
began = time.perf_counter()
from pathlib import Path
from argosy.data.batch import given
from argosy.data.shards import Shards
from argosy.run.ledger import Ledger
imported = time.perf_counter()
shards = Shards(Path(sys.argv[1]))
given(1, 1, Ledger.start(data__order=2, batch__sequence=1024, batch__tokens=65536), shards)
print(shards.train_tokens, time.perf_counter() - imported)
"""
MADE = """
import json, sys
from pathlib import Path
import numpy as np
from argosy.data import shard_file, shards, tokenizer
folder, total, length, files = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), 16
folder.mkdir()
each = total // length // files
for part in range(files):
    rows = np.zeros(each, shard_file.DOCUMENT)
    numbers = np.arange(part * each, (part + 1) * each, dtype=np.uint64)
    rows["hash"] = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    rows["held"] = numbers % 50 == 0
    bounds = np.arange(each + 1, dtype=np.uint64) * np.uint64(length)
    contents = shard_file.Contents(bounds, rows, [f"{part}.txt"], np.zeros(each * length, np.uint16))
    shard_file.write(folder / f"part-{part:05d}.shard", contents)
(folder / tokenizer.FILE).write_text(tokenizer.BYTES)
np.array([1] * 256 + [0], "<i4").tofile(folder / shards.TOKEN_BYTES)
names = [f"part-{part:05d}.shard" for part in range(files)]
facts = {"version": 1, "digest": "made up", "source": "made up", "vocabulary": 257, "shards": names}
(folder / shards.FACTS).write_text(json.dumps(facts))
"""
TRAINED = """
import json, sys
from pathlib import Path
from argosy.data.tokenizer import parse, train_bpe
texts, size = [], 0
for line in Path(sys.argv[1]).open(encoding="utf-8"):
    texts.append(json.loads(line)["text"])
    size += len(texts[-1])
    if size > 10_000_000:
        break
content = train_bpe(iter(texts), int(sys.argv[3]))
Path(sys.argv[2]).write_text(content, encoding="utf-8")
print(parse(content, "").end)
"""


def texts(folder: Path) -> list[Path]:
    """The files whose text is used, in a fixed order."""
    found = [path for path in folder.rglob("*") if path.suffix in (".txt", ".md", ".py") and path.is_file()]
    return sorted(path for path in found if "site-packages" not in path.parts or folder.name == "site-packages")


def records(folder: Path, wanted: int) -> Iterator[str]:
    """Records of `wanted` bytes in all: the text once, then again cut at other places."""
    given, told = 0, 0
    files = texts(folder)
    while given < wanted:
        rest = "x" * (137 * told)  # cuts move by so many letters from one telling to the next
        before = given
        for path in files:
            rest += path.read_text(encoding="utf-8", errors="ignore").replace("\0", "")
            while len(rest) >= RECORD:
                piece, rest = rest[:RECORD], rest[RECORD:]
                given += len(piece.encode())
                yield piece
                if given >= wanted:
                    return
        told += 1
        if given == before:
            raise SystemExit(f"{folder} holds too little text")


def write(folder: Path, source: Path, wanted: int) -> None:
    """`wanted` bytes of records as JSON lines in files of about FILE bytes below `folder`."""
    folder.mkdir(parents=True)
    made = (json.dumps({"text": piece}, ensure_ascii=False) + "\n" for piece in records(source, wanted))
    for number in itertools.count():
        lines = list(itertools.islice(made, FILE // RECORD))
        if not lines:
            return
        (folder / f"{number:04d}.jsonl").write_text("".join(lines), encoding="utf-8")


# --- what is measured -------------------------------------------------------------------------------------------------


class Peak:
    """The most memory that a process and all it started held at once: resident bytes of all, and of the largest of them."""

    def __init__(self, pid: int):
        self.all = self.largest = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, args=(pid,), daemon=True)
        self._thread.start()

    def _look(self, pid: int) -> None:
        while not self._done.wait(0.2):
            try:
                parent = psutil.Process(pid)
                sizes = [one.memory_info().rss for one in [parent, *parent.children(recursive=True)]]
            except psutil.Error:
                continue
            self.all, self.largest = max(self.all, sum(sizes)), max(self.largest, *sizes)

    def close(self) -> dict[str, int]:
        """Stop looking; what was found."""
        self._done.set()
        self._thread.join()
        return {"bytes": self.all, "largest": self.largest}


def ran(command: list[str], **variables: str) -> tuple[str, float, dict[str, int]]:
    """Run a program; what it printed, its seconds, its peak memory."""
    began = time.time()
    process = subprocess.Popen(
        command, env=runs.environment(**variables), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    peak = Peak(process.pid)
    printed, said = process.communicate()
    seconds, found = time.time() - began, peak.close()
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:3])} ended with {process.returncode}\n{said[-4000:]}")
    return printed, seconds, found


def prepared(corpus: Path, tokenizer: Path, cache: Path) -> tuple[Path, int, float, dict[str, int]]:
    """Prepare with an empty cache: the folder, its tokens, seconds, peak memory."""
    shutil.rmtree(cache, ignore_errors=True)
    words = [f"--data.source={corpus}", f"--data.tokenizer={tokenizer}", f"--data.cache={cache}", "--workers", "2"]
    printed, seconds, peak = ran([runs.program("argosy"), "data", "prepare", *words])
    folder = Path(printed.splitlines()[-1])
    facts = json.loads((folder / "prepared.json").read_text(encoding="utf-8"))
    return folder, facts["tokens"] + facts["held_out_tokens"], seconds, peak


def ours(corpus: Path, tokenizer: Path, cache: Path) -> measure.Taken:
    """Tokens a second of `argosy data prepare`."""
    _, tokens, seconds, peak = prepared(corpus, tokenizer, cache)
    return tokens / seconds, {"tokens": tokens, **peak}


def theirs(python: str, corpus: Path, tokenizer: Path, out: Path, end: int, processes: int) -> measure.Taken:
    """Tokens a second of `datasets` and `tokenizers`; threads of the tokenizer in one process, where `processes` is 1."""
    shutil.rmtree(out, ignore_errors=True)
    threads = {"TOKENIZERS_PARALLELISM": "true" if processes == 1 else "false", "HF_HUB_OFFLINE": "1"}
    program = out.with_suffix(".py")
    program.write_text(DATASETS, encoding="utf-8")
    began = time.time()
    words = [python, str(program), str(corpus), str(tokenizer), str(out), str(processes), str(end)]
    printed, _, peak = ran(words, **threads)
    ended, tokens = printed.split()[-2:]
    return int(tokens) / (float(ended) - began), {"tokens": int(tokens), **peak}


def has_datasets(python: str) -> bool:
    """Whether the interpreter has `datasets` and `tokenizers`."""
    return subprocess.run([python, "-c", "import datasets, tokenizers"], capture_output=True).returncode == 0


def loaded(folder: Path, steps: int, packing: str) -> measure.Taken:
    """Tokens a second that one process makes batches of: 64 sequences of 1,024."""
    printed, _, peak = ran([sys.executable, "-c", LOAD, str(folder), "1024", "65536", str(steps), packing])
    return float(printed), peak


def waited(folder: Path, overrides: list[str], steps: int) -> measure.Taken:
    """The share of its steps that rank 0 of a real run waits for batches, the first ten steps left out."""
    from argosy.run import parquet, record
    from argosy.run.folder import Run

    run = Path(tempfile.mkdtemp(dir=folder)) / "run"
    runs.complete(runs.train(run, [*overrides, f"train.steps={steps}", *runs.QUIET], 2))
    entries = parquet.entries(Run(run), 1)
    late = entries[entries["step"] > 10]
    data = late[(late["kind"] == record.PHASE) & (late["name"] == record.number(record.PHASE, "data"))]
    whole = late[late["kind"] == record.STEP]
    waits, seconds = ((chosen["left"] - chosen["entered"]) / 1e9 for chosen in (data, whole))
    return float(waits.sum() / seconds.sum()), {"longest": float(waits.max()), "step": float(seconds.mean())}


def first(folder: Path) -> measure.Taken:
    """Seconds of a process that makes the first batch of a prepared text and ends."""
    printed, seconds, peak = ran([sys.executable, "-c", FIRST, str(folder)])
    tokens, inside = printed.split()
    return seconds, {"tokens": int(tokens), "without imports": float(inside), **peak}


# --- the whole --------------------------------------------------------------------------------------------------------


class Text:
    """The text of this measurement, below `folder`: made when it is first asked for."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.options, self.folder = options, folder
        self.corpus, self.tokenizer = folder / "corpus", folder / "tokenizer.json"
        self.vocabulary = 512 if options.quick else 8192
        self.end = -1

    def make(self) -> None:
        """Records, and a tokenizer trained on the first of them."""
        if self.end < 0:
            write(self.corpus, self.options.folder, self.options.megabytes * 1_000_000)
            words = [str(self.corpus / "0000.jsonl"), str(self.tokenizer), str(self.vocabulary)]
            self.end = int(ran([sys.executable, "-c", TRAINED, *words])[0])

    def told(self, megabytes: int) -> dict[str, str]:
        """The settings that say what it is."""
        distinct = sum(path.stat().st_size for path in texts(self.options.folder)) / 1e6
        again = ", told again with other cuts" if distinct < megabytes else ""
        return {
            "text": f"{megabytes:,} MB of records of {RECORD:,} letters, {min(distinct, megabytes):.0f} MB distinct{again}",
            "tokenizer": f"BPE {self.vocabulary}, the same for all; two cores",
        }


def prepare(text: Text) -> tuple[measure.Table, list[str]]:
    """*prepare*: the table, and what is below it."""
    text.make()
    options, table, lines = text.options, measure.Table("data-prepare", "tokens/s"), list[str]()
    table.settings = text.told(options.megabytes)
    contestants = {OURS: functools.partial(ours, text.corpus, text.tokenizer, text.folder / "cache")}
    if has_datasets(options.datasets):
        for name, processes in ((THEIRS, 2), (THREADS, 1)):
            words = (options.datasets, text.corpus, text.tokenizer, text.folder / "theirs", text.end, processes)
            contestants[name] = functools.partial(theirs, *words)
    else:
        lines.append(f"- {options.datasets} has no `datasets`: not measured beside it")
    measure.alternate(table, contestants, options.rounds)
    counts = {sample.details["tokens"] for sample in table.samples}
    if len(counts) > 1:
        raise SystemExit(f"the contestants do not make the same tokens: {sorted(counts)}")
    if len(contestants) > 1:
        best = max((name for name in contestants if name != OURS), key=table.median)
        lines.append(measure.verdict(f"tokens/s beside {best}", table.ratio(OURS, best)[0], 1.0, at_least=True))
    for name in contestants:
        peak = max(sample.details["bytes"] for sample in table.samples if sample.contestant == name)
        lines.append(f"- peak resident memory of all processes together, {name}: {peak / 1e9:.2f} GB")
    return table, lines


def load(text: Text) -> tuple[measure.Table, list[str]]:
    """*load*: the table."""
    text.make()
    table = measure.Table("data-load", "tokens/s")
    table.settings = {"what": "batches of 64 sequences of 1,024 tokens made by one process, files in the page cache"}
    place = prepared(text.corpus, text.tokenizer, text.folder / "cache")[0]
    steps = 5 if text.options.quick else 200
    makers = {f"{LOADED}, {how}": functools.partial(loaded, place, steps, how) for how in ("greedy", "best-fit")}
    return measure.alternate(table, makers, text.options.rounds), []


def wait(text: Text) -> tuple[measure.Table, list[str]]:
    """*wait*: the table, and the claim."""
    table = measure.Table("data-wait", "share")
    table.settings = {"what": "the laptop job with two workers: waiting for batches over the whole of its steps"}
    small, steps = (runs.SMALL, 20) if text.options.quick else ([], 100)
    measure.alternate(table, {WAITED: functools.partial(waited, text.folder, small, steps)}, text.options.rounds)
    share = 100 * table.median(WAITED)
    return table, [measure.verdict("percent of a step waiting for data", share, 1.0, at_least=False)]


def memory(text: Text) -> tuple[measure.Table, list[str]]:
    """*memory*: the table, and the claim."""
    text.make()
    table, large, cache = measure.Table("data-memory", "tokens/s"), text.folder / "large", text.folder / "cache"
    table.settings = {**text.told(text.options.large), "what": "once, for resident memory alone"}
    write(large, text.options.folder, text.options.large * 1_000_000)
    measure.alternate(table, {MEMORY: functools.partial(ours, large, text.tokenizer, cache)}, 1)
    shutil.rmtree(large)
    shutil.rmtree(cache)
    peak = table.samples[-1].details["bytes"] / 1e9
    return table, [measure.verdict("GB of memory, all processes together", peak, 1.0, at_least=False)]


def index(text: Text) -> tuple[measure.Table, list[str]]:
    """*index*: the table, and the claim."""
    total, place = 10**6 if text.options.quick else 10**9, text.folder / "made"
    table = measure.Table("data-index", "seconds")
    table.settings = {
        "what": f"{total:,} tokens, {total // 500:,} documents; a process from its birth to its first batch"
    }
    ran([sys.executable, "-c", MADE, str(place), str(total), "500"])
    first(place)  # from now on the files are in memory
    measure.alternate(table, {STARTED: functools.partial(first, place)}, text.options.rounds)
    shutil.rmtree(place)
    return table, [measure.verdict("seconds to the first batch", table.median(STARTED), 1.0, at_least=False)]


PARTS = {"prepare": prepare, "load": load, "wait": wait, "memory": memory, "index": index}


def main() -> None:
    """Read the options, measure, print, and write the page unless it was quick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(sysconfig.get_paths()["stdlib"]))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--large", type=int, default=5000, help="megabytes of the corpus for memory alone")
    parser.add_argument("--datasets", default=sys.executable, help="an interpreter that has datasets and tokenizers")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="one round of little text, nothing written")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.megabytes, options.large = 1, 2, 4
    with tempfile.TemporaryDirectory() as name:
        text = Text(options, Path(name))
        for part in options.parts:
            table, said = PARTS[part](text)
            measure.finish(
                table, [f"### {table.name}", "", *measure.markdown(table), "", *said], write=not options.quick
            )


if __name__ == "__main__":
    sys.exit(main())
