"""`argosy job`: show, check, diff, schema, upgrade."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from argosy.errors import NO

if TYPE_CHECKING:
    from argosy.job.load import Loaded
    from argosy.job.setting import Setting
    from argosy.plan.prepared import PreparedFacts
    from argosy.plan.settle import Settled

HELP = "Check and change"
CLUSTER_SCHEMA = "src/argosy/clusters/cluster.schema.json"
_WORDS = {"allow_extra_args": True, "ignore_unknown_options": True}
_METAVAR = "[JOB] [OPTIONS] [KEY=VALUE]..."


def settled(loaded: Loaded, workers: int | None = None) -> Settled:
    """`loaded` as it would run here now, with what is known without preparing data or measuring anything.

    Where nobody can tell which accelerators are here: as on the CPU, with a note.
    """
    from argosy.cluster import here
    from argosy.commands.inherit import shaped
    from argosy.plan.layouts import workers as chosen
    from argosy.plan.trial import settled as with_answers

    machine, refused = here.looked()
    loaded = shaped(loaded)
    count = chosen(loaded.job, machine, workers, written=loaded.written)
    found = with_answers(loaded, machine, facts(loaded), count, lambda asked: here.tried(asked) or here.probed())[0]
    return found if refused is None else replace(found, notes=[*found.notes, f"{refused.text} This is for the CPU."])


def facts(loaded: Loaded) -> PreparedFacts:
    """The tokenizer's vocabulary where the job tells it; the text itself is not looked at."""
    from argosy.job.schema import Trained
    from argosy.plan.prepared import PreparedFacts

    asked = loaded.job.data.tokenizer
    if isinstance(asked, Trained):
        vocabulary = asked.vocabulary
    elif asked == "bytes":
        vocabulary = 257
    else:
        from argosy.data.tokenizer import open_tokenizer

        vocabulary = open_tokenizer(asked).vocabulary
    return PreparedFacts(vocabulary, 0, 0, 0, 0.0)


def show(words: Sequence[str], *, as_json: bool = False, workers: int | None = None) -> str:
    """Every key with its value, who said it and why."""
    from argosy.job.load import load, split

    name, overrides = split(words)
    loaded = load(name, overrides)
    found = settled(loaded, workers)
    if as_json:
        rows = [vars(setting) for setting in found.settings]
        return json.dumps({"chain": loaded.chain, "settings": rows, "notes": found.notes}, indent=1)
    notes = [*loaded.notes, *found.notes]
    if any("nothing was measured" in setting.why for setting in found.settings):
        notes.append("nothing was measured on this machine yet; the first start does, and may choose otherwise")
    lines = [f"# {' → '.join(loaded.chain)}", *_table(found.settings), *(f"note: {note}" for note in notes)]
    return "\n".join(lines)


def _table(settings: Sequence[Setting]) -> list[str]:
    from argosy.job.paths import masked
    from argosy.job.text import toml
    from argosy.run.origin import mask

    rows: list[str] = []
    section = ""
    for setting in settings:
        part, _, name = setting.key.rpartition(".")
        if part != section:
            rows += ["", f"[{part}]"]
            section = part
        if setting.used is None:
            continue
        value = mask(masked(toml(setting.used)))
        why = f"{setting.origin}: {setting.why}" if setting.why else setting.origin
        rows.append(f"{name:<14} = {value:<24}  # {why}")
    return rows


def check(words: Sequence[str], *, strict: bool = False, workers: int | None = None) -> str:
    """One line when the job is good here; Refused, with place and remedy, when it is not."""
    from argosy.commands import held
    from argosy.data.prepare import cache_folder, found, refuse_unwritable
    from argosy.job import parts
    from argosy.job.load import load, split

    name, overrides = split(words)
    loaded = load(name, overrides, strict=strict)
    section, base = loaded.job.data, loaded.base
    parts.check_all(loaded.job, loaded.written)
    if section.mix or section.source != "python":
        found(section, base)
    held.refuse_missing(loaded)
    refuse_unwritable(section, base=base, cache=cache_folder(section, base))
    made = settled(loaded, workers)
    notes = "".join(f"\nnote: {note}" for note in (*loaded.notes, *made.notes))
    return f"{loaded.chain[-1]} is good: {len(made.settings)} keys, {len(loaded.written)} of them written.{notes}"


def diff(first: str, second: str) -> list[tuple[str, object, object]]:
    """The keys in which two jobs, as asked, differ: (key, value in the first, in the second)."""
    from argosy.job import leaves
    from argosy.job.load import load

    one, other = (leaves.leaves(load(name).job) for name in (first, second))
    return [
        (key, leaves.plain(one[key]), leaves.plain(other[key]))
        for key in one
        if one[key] != other[key] and key != "name"
    ]


def presets() -> dict[str, int]:
    """Model presets with their parameters; a vocabulary that the tokenizer decides counts as none."""
    from argosy.job import presets as shapes
    from argosy.job.schema import ModelSection
    from argosy.plan.flops import parameters

    return {name: parameters(shapes.filled(ModelSection(preset=name))) for name in shapes.presets()}


def cluster_schema() -> str:
    """JSON schema of cluster files."""
    from argosy.cluster.schema import Cluster
    from argosy.job.reference import for_editors

    return for_editors(Cluster.model_json_schema(), "Argosy cluster")


def write_reference(root: Path) -> list[Path]:
    """Write schema and reference page into the checkout at `root`."""
    from argosy.job import reference

    written = []
    files = {
        reference.SCHEMA: reference.schema_text(),
        reference.PAGE: reference.page(presets()),
        CLUSTER_SCHEMA: cluster_schema(),
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def upgrade(file: Path, *, write: bool = False) -> str:
    """What an upgrade of `file` changes, as a diff; with `write` it is done."""
    from argosy.job import paths
    from argosy.job.upgrade import difference
    from argosy.job.upgrade import upgrade as upgraded

    old = paths.content(file, do="Give a job file.")
    new = upgraded(old, str(file))
    changes = difference(old, new, str(file))
    if not changes:
        return f"{file} is of the newest version."
    if write:
        file.write_text(new, encoding="utf-8")
        return f"{changes}{file} is upgraded."
    return f"{changes}Nothing is written; --write does it."


def _compared(rows: Sequence[tuple[str, object, object]]) -> list[str]:
    """A line for each key in which two jobs differ, and one that counts them."""
    from argosy.job.text import toml

    lines = []
    for key, *values in rows:
        texts = ("left out" if value is None else toml(value) for value in values)
        lines.append(f"{key:<26} {' → '.join(texts)}")
    return [*lines, f"{len(rows)} keys differ." if rows else "The jobs ask for the same."]


def register(app: typer.Typer) -> None:
    """Spell the commands for the shell."""
    job = typer.Typer(no_args_is_help=True, help="Show, check, compare and upgrade job files.")
    app.add_typer(job, name="job", rich_help_panel=HELP)

    @job.command("show", context_settings=_WORDS, options_metavar=_METAVAR)
    def show_command(
        context: typer.Context,
        as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
        workers: Annotated[int | None, typer.Option(help="As for argosy train.")] = None,
    ) -> None:
        """Every value of a job, also the derived ones, who said it and why."""
        print(show(context.args, as_json=as_json, workers=workers))

    @job.command("check", context_settings=_WORDS, options_metavar=_METAVAR)
    def check_command(
        context: typer.Context,
        strict: Annotated[bool, typer.Option("--strict", help="Refuse what has no effect on this machine.")] = False,
        workers: Annotated[int | None, typer.Option(help="As for argosy train.")] = None,
    ) -> None:
        """Is this a job, and would it run here? One line if so; else what is wrong, and exit code 2."""
        print(check(context.args, strict=strict, workers=workers))

    @job.command("diff")
    def diff_command(
        first: Annotated[str, typer.Argument(help="A shipped job, or a job file.")],
        second: Annotated[str, typer.Argument(help="Another one.")],
    ) -> None:
        """The keys in which two jobs differ; exit code 3 if they do."""
        rows = diff(first, second)
        print("\n".join(_compared(rows)))
        if rows:
            raise typer.Exit(NO)

    _register_files(job)


def _register_files(job: typer.Typer) -> None:
    """Spell those of the commands that write files."""

    @job.command("schema")
    def schema_command(
        presets_only: Annotated[bool, typer.Option("--presets", help="The model presets and their sizes.")] = False,
        write: Annotated[Path | None, typer.Option(help="Write schema and reference page into a checkout.")] = None,
    ) -> None:
        """The JSON schema of job files, for editors."""
        from argosy.job.reference import schema_text

        if presets_only:
            for name, count in presets().items():
                print(f"{name:<16} {count:>16,} parameters")
        elif write:
            for path in write_reference(write):
                print(path)
        else:
            print(schema_text(), end="")

    @job.command("upgrade")
    def upgrade_command(
        file: Annotated[Path, typer.Argument(help="A job file.")],
        write: Annotated[
            bool, typer.Option("--write", help="Change the file; else the changes are only shown.")
        ] = False,
    ) -> None:
        """Bring a job file to the newest version, comments kept."""
        print(upgrade(file, write=write))
