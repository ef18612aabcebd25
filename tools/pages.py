"""Writes the pages that are made from the code: `python tools/pages.py [--check]`. With --check it only compares; exit code 1.

docs/limits.md (paths that need hardware), docs/reference/ commands, exit codes, record, run folder and screen. The page of the
job file is made by `argosy job schema --write .`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def made(source: str) -> str:
    """The comment that says where a page comes from."""
    return f"<!-- Generated from {source} by `python tools/pages.py`: edit there. -->\n"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def limits() -> str:
    from argosy.device import capability

    return f"""# What it does not do, and what never ran

{made("src/argosy/device/capability.py")}
This version trains one decoder architecture (and, through `argosy.fit`, any module in one process) with data, tensor and
pipeline parallelism in any combination. There is no context or expert parallelism yet, no fine-tuning
recipes, no formats of weights but safetensors, and no driver for several machines: there a launcher (`torchrun`,
`srun`, `mpirun`) starts the ranks and starts them again. Nothing is downloaded but what a job names elsewhere itself: text
or weights of `hf://`, text in an object store.

Linux on x86-64 and aarch64 is what it is written for. macOS has code of its own that has not been run; on Windows use WSL2.

Paths that need certain hardware or a certain launcher, and when and on what each last ran. *never* means just that: the code
was written from the documentation and has not been tried.

{capability.table()}"""


def commands() -> str:
    import typer

    from argosy.__main__ import program

    tree = typer.main.get_command(program())
    parts = [
        "# Commands\n",
        made("the commands themselves"),
        "`argosy COMMAND --help` says the same. Every command ends with one of the [exit codes](exit-codes.md).\n",
    ]
    for name, command in getattr(tree, "commands", {}).items():
        inner = getattr(command, "commands", None)
        parts.append(described(f"argosy {name}", command))
        for below, child in (inner or {}).items():
            parts.append(described(f"argosy {name} {below}", child))
    return "\n".join(parts)


def described(name: str, command: Any) -> str:
    """Heading, help and options of one command."""
    words = [one for one in command.params if one.param_type_name == "argument" and not getattr(one, "hidden", False)]
    usage = " ".join([name, *(shown(one) for one in words)])
    if getattr(command, "ignore_unknown_options", False) or command.context_settings.get("ignore_unknown_options"):
        own = command.options_metavar or ""
        usage = f"{name} {own}" if "|" in own else f"{name} [JOB] [KEY=VALUE ...] [OPTIONS]"
    lines = [f"## `{usage}`\n", (command.help or "").strip() + "\n"]
    rows = [(f"`{shown(one)}`", one.help or "") for one in words]
    for one in command.params:
        if one.param_type_name != "option" or getattr(one, "hidden", False) or "--help" in one.opts:
            continue
        takes = takes_what(one)
        default = getattr(one, "default", None)
        told = (
            f" Default: `{default}`."
            if isinstance(default, str | int | float) and not isinstance(default, bool)
            else ""
        )
        rows.append((f"`{'`, `'.join(one.opts)}{takes}`", (one.help or "") + told))
    if rows:
        lines.append(table(("argument or option", ""), rows))
    return "\n".join(lines)


def takes_what(option: Any) -> str:
    """What is written after an option: " N", " TEXT"; nothing after a switch. Typer keeps the type in a place of its own."""
    if option.metavar:
        return f" {option.metavar}"
    descriptor = getattr(option, "type_descriptor", None)
    kind = (
        getattr(descriptor, "annotation", None) if descriptor else getattr(getattr(option, "type", None), "name", None)
    )
    names = {
        bool: "",
        "boolean": "",
        int: " N",
        "integer": " N",
        float: " X",
        "float": " X",
        Path: " PATH",
        "path": " PATH",
    }
    return names.get(kind, " TEXT")


def shown(argument: Any) -> str:
    name = argument.metavar or argument.name.rstrip("_").upper()
    name = name.strip("[]")
    return name if argument.required else f"[{name}]"


def exit_codes() -> str:
    from argosy import errors

    rows = [
        (errors.DONE, "done; also after `argosy stop`"),
        (errors.BUG, "a bug of Argosy: a crash file tells what happened"),
        (errors.INPUT, "something in what you gave, found before the first step; nothing was lost"),
        (
            errors.NO,
            "the answer is no: training diverged, data ended, or a check (diff, verify, doctor) found a difference",
        ),
        (
            errors.MACHINE,
            "the machine: disk or memory ran out, a device was lost, or restarts were spent; the last good state is kept",
        ),
        (errors.SAVED, "saved after SIGUSR1, or after SIGTERM where a scheduler asks again: start it again to go on"),
        (errors.INTERRUPTED, "saved after Ctrl-C (SIGINT); a second Ctrl-C leaves without saving, and says so"),
        (errors.TERMINATED, "saved after SIGTERM, or when the terminal was closed (SIGHUP, unless started by nohup)"),
    ]
    return f"""# Exit codes

{made("src/argosy/errors.py")}
{table(("code", "meaning"), [(str(code), said) for code, said in rows])}"""


def record_page() -> str:
    from argosy.run import record

    fields = [(f"`{name}`", str(record.ENTRY[name]), str(record.ENTRY.fields[name][1])) for name in record.ENTRY.names]  # type: ignore[index,union-attr]
    names = {"phases": record.PHASES, "scalars": record.SCALARS, "marks": record.MARKS}
    lists = "\n\n".join(f"**{kind}**: {', '.join(f'`{name}`' for name in found)}" for kind, found in names.items())
    return f"""# The record, version {record.VERSION}

{made("src/argosy/run/record.py")}
Each rank of each start of the workers (an *incarnation*) writes `local/record-rank-0000-inc-0001-000.bin`: a header and then
entries of {record.SIZE} bytes, little-endian, in a memory-mapped file that the kernel keeps when the process is killed. An
entry is published by its sequence number, which is written last; its checksum is the CRC-32 of the 60 bytes before it. After
{record.SEGMENT:,} entries the next segment begins. When an incarnation has ended its files become one Parquet file of
the node, `record/node-0000-inc-0001.parquet`, with the same columns. Formats never break: a newer version reads older files.

Header: magic `ARGOSYR\\n`, then five 32-bit numbers (version, entry size, rank, incarnation, pid), four bytes unused, start
time in nanoseconds, CPU time in nanoseconds that the writer itself has taken.

{table(("field", "type", "at byte"), fields)}
`kind` is {", ".join(f"{number} ({name})" for number, name in record.KINDS.items())}; `name` is the place in the kind's
list below; `entered` and `left` are nanoseconds since 1970.

{lists}

`argosy.run.record.read(path)` gives a file's entries as a NumPy array, `argosy.run.parquet.entries(run, incarnation, rank)`
both forms alike.
"""


def run_folder() -> str:
    rows = [
        ("`job.toml`", "what was asked, with where each key was written"),
        ("`settings.json`", "every key: asked, in force, origin, why"),
        ("`run.json`", "id, name, state, versions, commit, machine, data, prediction"),
        (
            "`ledger.jsonl`",
            "what was changed at which step, and by which rule (`data.order`); with the seed it decides what every step reads",
        ),
        ("`journal.jsonl`", "every event and decision, with the reason"),
        ("`metrics.jsonl`", "one line a step, ascending; see below"),
        ("`evaluations.jsonl`", "one line an evaluation on held-out documents"),
        ("`samples.jsonl`", "what the model wrote: step, prompt, text"),
        ("`checkpoints/step-NNNNNN/`", "safetensors, checksums, and `manifest.json`, which is written last"),
        ("`record/`", "the record as Parquet; [its format](record.md)"),
        ("`report.html`", "the page"),
        ("`log.txt`, `log/`", "what the screen showed; each process's own lines"),
        ("`tokenizer.json`", "so that `sample` needs nothing else"),
        ("`chat.json`", "how chats are written, where the tokenizer brought a template"),
        ("`source/`", "what came along with first weights of another program: tokenizer, chat template, config.json"),
        ("`diff.patch`", "uncommitted changes of the program, if there were any; secrets masked"),
        ("`local/`", "what lives only while the run goes; in `$ARGOSY_LOCAL` where that is set"),
        ("`save`, `stop`", "make one of these files to ask for it; it vanishes when it is done"),
        ("`lock`", "held while somebody trains"),
    ]
    metrics = [
        ("`step`", "counted from 1"),
        ("`tokens`", "trained on since the start of the run"),
        ("`loss`", "nats per counted token of the global batch, to the last bit (`%.17g`)"),
        ("`bits_per_byte`", "the same per byte of text; null where bytes are not known"),
        ("`lr`, `gradient_norm`", "learning rate of the update, norm before clipping"),
        ("`seconds`, `tokens_per_second`", "of this step"),
        (
            "`gemm_share`",
            "the model's FLOP/s over what the model's own matrix products reach alone, timed in the same minute (on a CPU "
            "by all ranks at once, as in a step); absent in the first step of a start",
        ),
        ("`mfu`", "the same over the device's dense peak; absent where none is known, as for a CPU"),
        (
            "`layers`",
            "every `observe.numerics_every` steps: `gradient_norm` before clipping and `update_ratio` of each block, and at "
            "the end of embedding, last norm and head together; `activation_rms` and `attention_logit` of each block",
        ),
        ("`incarnation`", "which start of the workers computed it; a step done again keeps the later line"),
        ("`time`", "seconds since 1970"),
    ]
    return f"""# The run folder

{made("tools/pages.py")}
{table(("file", "holds"), rows)}
Paths inside are relative: a run that was moved or copied goes on. A run folder is data: nothing in it is ever executed.

## A line of `metrics.jsonl`

{table(("key", "meaning"), metrics)}
What is not a finite number is `null`; `"skipped": true` marks a step whose update was left out. `evaluations.jsonl` has `step`,
`tokens`, `loss`, `bits_per_byte`, `documents`, `held_out_tokens`, `seconds`, `incarnation` and `time`; `best` and `by`: whether
it is better than all before it, and the set that says so; `sets`: the figures of each of `evaluate.sets`, by name.
"""


def screen_page() -> str:
    from argosy.observe import progress

    events = [
        ("`title`", "`text`, `version`"),
        ("`preparing`", "`what`, `done`, `total`"),
        ("`start`", "`facts` (label to text), `notes`, `steps`"),
        ("`compiling`, `compiled`", "`seconds` when done"),
        ("`step`", "a line of `metrics.jsonl`, and `steps`, `seconds_left`"),
        ("`held_out`", "a line of `evaluations.jsonl`"),
        ("`sample`", "`step`, `prompt`, `text`"),
        ("`saved`", "`step`, `bytes`, `seconds`, `waited`, `ok`"),
        ("`fault`", "`sentence`, `followup`"),
        ("`note`", "`text`"),
        ("`stopping`", "`reason`"),
        ("`done`", "`sentence`, `lines`, `sample`, `commands`"),
    ]
    return f"""# What the screen shows

{made("src/argosy/observe/progress.py")}
On a terminal one live line of at most {progress.WIDTH} columns; samples, evaluations, saves and faults stay above it. Where
the output is no terminal, or `TERM=dumb`: lines of `key=value`, every `observe.log_every` seconds and each hundredth of the
run, without control characters. `NO_COLOR` leaves colours out. `--quiet` shows only trouble. Everything is also in the run's
`log.txt`.

`--json` prints one object a line. Each has `event` and `time` (seconds since 1970); keys may be added, none is taken away
(version {progress.VERSION}):

{table(("event", "keys"), events)}"""


PAGES: dict[str, Callable[[], str]] = {
    "docs/limits.md": limits,
    "docs/reference/commands.md": commands,
    "docs/reference/exit-codes.md": exit_codes,
    "docs/reference/record.md": record_page,
    "docs/reference/run-folder.md": run_folder,
    "docs/reference/screen.md": screen_page,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="pages")
    parser.add_argument("--check", action="store_true", help="only say which pages are not up to date")
    check = parser.parse_args().check
    stale = []
    for name, make in PAGES.items():
        path, text = ROOT / name, make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    print("\n".join(f"{'stale' if check else 'written'}: {name}" for name in stale) or "all pages are up to date")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
