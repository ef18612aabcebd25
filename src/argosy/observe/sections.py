"""The parts of the page, each a pure function from what a run came to (`Summary`) to HTML; "" where there is nothing to say."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape

from argosy.observe import curves, goodput, words
from argosy.observe.charts import bar, figure
from argosy.observe.summary import Summary
from argosy.observe.text import harmless
from argosy.quantities import bytes_text, count_text, seconds_text

LONG = 400  # characters of a value, a name or a sentence that are shown
SAMPLE = 3000  # characters of a sample
ROWS = 100  # rows of a table that grows with the run
PANES = 12  # that one row of choices may have
MEASURED = ("train.precision", "train.compile", "batch.micro")  # what a start decides by measuring, where it can


def text(value: object, limit: int = LONG, lines: bool = False) -> str:
    """`value` as HTML text: escaped, control characters spelled out, cut at `limit` with a note."""
    shown = harmless(str(value)[: limit + 1], lines=lines)
    return escape(shown if len(shown) <= limit else shown[:limit] + " … (cut)")


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]], limit: int = ROWS) -> str:
    """A table of escaped values; the middle of a long one is left out, and that is said."""
    kept = list(rows)
    left_out = len(kept) - limit
    if left_out > 0:
        note = [f"… {left_out:,} more rows, in the run folder", *[""] * (len(head) - 1)]
        kept = [*kept[: limit // 2], note, *kept[-(limit // 2) :]]
    body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in kept)
    titles = "".join(f'<th scope="col">{text(title)}</th>' for title in head)
    top = f"<caption>{text(caption)}</caption><thead><tr>{titles}</tr></thead>"
    return f'<div class="wide"><table>{top}<tbody>{body}</tbody></table></div>'


def pairs(caption: str, rows: Iterable[tuple[str, object]]) -> str:
    """A table of names and values."""
    body = "".join(f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>' for name, value in rows)
    return f'<div class="wide"><table><caption>{text(caption)}</caption><tbody>{body}</tbody></table></div>'


def choices(name: str, label: str, panes: Sequence[tuple[str, str]], chosen: int = 0) -> str:
    """Panes of which one is shown, chosen by radio buttons: works without a script, with a keyboard, and in print."""
    if len(panes) == 1:
        return panes[0][1]
    buttons = "".join(
        f'<input type="radio" class="choice choice-{index}" name="{name}" id="{name}-{index}"{" checked" * (index == chosen)}>'
        f'<label class="tab" for="{name}-{index}">{text(title)}</label>'
        for index, (title, _) in enumerate(panes)
    )
    shown = "".join(f'<div class="pane pane-{index}">{body}</div>' for index, (_, body) in enumerate(panes))
    return f'<div class="choices" role="radiogroup" aria-label="{text(label)}">{buttons}{shown}</div>'


def sentence(summary: Summary) -> str:
    """What the run came to, in one sentence."""
    if summary.own:
        told = f"; its last loss is {summary.figure[0]:.4g}" if summary.figure else ""
        return f"A module of your own took {summary.step:,} steps{told}."
    size = f"{count_text(summary.parameters)}-parameter " if summary.parameters else ""
    if not summary.metrics:
        return f"A {size}model that has not begun to learn."
    data = summary.info.get("data") or {}
    source = data.get("version") or data.get("source") or summary.used("data.source")
    # Of a folder its name: where it lies on somebody's machine is no part of what the run came to.
    short = str(source).rstrip("/").rpartition("/")[2] if str(source).startswith("/") else source
    named = f" of {short}" if source else ""
    read = f"read {count_text(summary.tokens)} tokens{named}" if summary.tokens else f"took {summary.step:,} steps"
    if summary.figure is None:
        return f"A {size}model {read}."
    value, unit, place = summary.figure
    how = "text it was never trained on" if place == "held out" else "what it reads"
    return f"A {size}model {read} and now predicts {how} at {value:.2f} {unit}."


def head(summary: Summary) -> str:
    """Name, state, the sentence, and the figures that matter."""
    info, account = summary.info, summary.account
    created = str(info.get("created", ""))[:10]
    state = [summary.state, created, seconds_text(account.total) if account.total else ""]
    told = " · ".join(text(part) for part in state if part)
    tiles = [_tile(name, value, note) for name, value, note in _figures(summary)]
    return (
        f'<header><h1>{text(summary.name)}</h1><p class="state">{told}</p>'
        f'<p class="sentence">{text(sentence(summary))}</p></header>\n<main>\n<dl class="figures">{"".join(tiles)}</dl>'
    )


def _tile(name: str, value: str, note: str) -> str:
    return f"<div><dt>{text(name)}</dt><dd>{text(value)} <small>{text(note)}</small></dd></div>"


def _figures(summary: Summary) -> list[tuple[str, str, str]]:
    found = []
    if summary.figure:
        value, unit, place = summary.figure
        found.append((place, f"{value:.3f}", unit))
    if summary.tokens_per_second and not summary.own:
        found.append(("speed", f"{summary.tokens_per_second:,.0f}", "tokens/s"))
    if summary.gemm_share:
        found.append(("of its matrix products' speed", f"{summary.gemm_share:.0%}", words.timed(summary)))
    if summary.mfu:
        found.append(("MFU", f"{summary.mfu:.0%}", "of the device's peak"))
    if summary.account.total:
        useful = summary.account.seconds["training"] / summary.account.total
        found.append(("training", f"{useful:.0%}", f"of {seconds_text(summary.account.total)}"))
    found.append(("steps", f"{summary.step:,}", f"of {summary.steps:,}" if summary.steps else ""))
    found.append(("faults", str(len(summary.faults)), "survived" if summary.faults else ""))
    return found


def learning(summary: Summary) -> str:
    """The loss against tokens, time and FLOPs, with held-out points, saves and faults."""
    panes = [
        (label, figure(chart, f"learning-{number}")) for number, (label, chart) in enumerate(curves.learning(summary))
    ]
    return (
        f"<section><h2>Learning</h2>{choices('x', 'What the curve is drawn against', panes)}</section>" if panes else ""
    )


def writes(summary: Summary) -> str:
    """The samples, one pane a step."""
    steps = sorted({int(row["step"]) for row in summary.samples})
    if not steps:
        return ""
    if len(steps) > PANES:
        steps = [steps[index * (len(steps) - 1) // (PANES - 1)] for index in range(PANES)]
    panes = []
    for step in steps:
        rows = [row for row in summary.samples if row["step"] == step][:6]
        body = "".join(f"<pre><b>{_long(row.get('prompt', ''))}</b>{_long(row['text'])}</pre>" for row in rows)
        panes.append((f"step {step:,}", body))
    note = '<p class="quiet">What the model wrote after the same beginnings, as it learned.</p>'
    return (
        f"<section><h2>What it writes</h2>{note}{choices('step', 'After which step', panes, len(panes) - 1)}</section>"
    )


def _long(value: object) -> str:
    return text(value, SAMPLE, lines=True)


def predicted(summary: Summary) -> str:
    """Predicted beside measured, and where the time went."""
    parts = [_compared(summary), _time(summary)]
    return f'<div class="two">{"".join(parts)}</div>' if any(parts) else ""


def _compared(summary: Summary) -> str:
    if not summary.compared:
        return ""
    rows = [
        (
            one.name,
            words.amount(one.predicted, one.unit),
            words.amount(one.measured, one.unit),
            f"{one.difference:+.0%}",
        )
        for one in summary.compared
    ]
    caption = (
        "Predicted before the first step; measured as the median over steps, the peak of rank 0, and the run folder"
    )
    told = table(caption, ("", "predicted", "measured", "difference"), rows)
    return f"<section><h2>Predicted and measured</h2>{told}</section>"


def _time(summary: Summary) -> str:
    account = summary.account
    if not account.total:
        return ""
    title, seconds = "Where the time went", account.seconds
    rows = [
        (name, seconds_text(seconds[name]), f"{share:.1%}", goodput.CLASSES[name]) for name, share in account.shares
    ]
    rows.append(("all", seconds_text(account.total), "100%", "every second in exactly one class"))
    told = table("By rank 0's record", ("class", "time", "share", "what it is"), rows)
    away = f'<p class="quiet">Nothing ran for another {seconds_text(account.away)}.</p>' if account.away >= 1 else ""
    details = f"<details><summary>As a table</summary>{told}</details>"
    return f"<section><h2>{title}</h2>{bar(account.shares, title)}{details}{away}</section>"


def speed(summary: Summary) -> str:
    """Speed, learning rate and gradient norm by step."""
    found = [figure(chart, name) for name, chart in curves.steps(summary)]
    return f'<section><h2>Step by step</h2><div class="two">{"".join(found)}</div></section>' if found else ""


def layers(summary: Summary) -> str:
    """The figures of every layer, where some were taken."""
    found = [figure(chart, f"layers-{name}") for name, chart in curves.layers(summary)]
    told = f'<h2>Layer by layer</h2><p class="quiet">{curves.IN_PASSING}</p><div class="two">{"".join(found)}</div>'
    return f"<section>{told}</section>" if found else ""


def data(summary: Summary) -> str:
    """What was read, under which licence, and what was changed on the way."""
    told = summary.info.get("data") or {}
    names = {
        "source": "source",
        "version": "version",
        "license": "licence",
        "files": "files",
        "bytes": "bytes",
        "tokenizer": "tokenizer",
        "tokens": "tokens to train on",
        "documents": "documents to train on",
        "held_out_documents": "documents held out",
        "bytes_per_token": "bytes per token",
        "digest": "digest of the prepared text",
    }
    known = [(name, told.get(key)) for key, name in names.items()]
    rows: list[tuple[str, object]] = [(name, _plain(value)) for name, value in known if value not in (None, "")]
    rows.append(("tokens trained on", f"{summary.tokens:,}"))
    rows += [("note", note) for note in list(told.get("notes") or [])[:20]]
    entries = summary.run.ledger().entries if (summary.run.path / "ledger.jsonl").is_file() else ()
    changes = [(entry.from_step, entry.key, _plain(entry.old), _plain(entry.new), entry.reason) for entry in entries]
    head = ("from step", "key", "old", "new", "reason")
    ledger = table("The ledger: with the seed it decides what every step read", head, changes)
    return f"<section><h2>Data</h2>{pairs('What was read', rows)}<h3>Ledger</h3>{ledger}</section>"


def settings(summary: Summary) -> str:
    """Every key in force, with who said so and why."""
    if not summary.settings:
        return ""
    rows = [(one.key, _plain(one.asked), _plain(one.used), one.origin, one.why) for one in summary.settings]
    said = [row for row in rows if row[3] != "default"]
    head = ("key", "asked", "in force", "origin", "why")
    summed = f"All {len(rows)} keys, the defaults too"
    everything = f"<details><summary>{summed}</summary>{table('All keys', head, rows, 300)}</details>"
    return (
        f"<section><h2>Settings</h2>{table('What was written, derived or measured', head, said)}{everything}</section>"
    )


def checkpoints(summary: Summary) -> str:
    """The checkpoints that lie there, and what the writer did."""
    kept = [
        (row["name"], bytes_text(float(row["bytes"])), _when(row.get("created")), row.get("torch") or "")
        for row in summary.checkpoints
    ]
    saves = [
        (
            f"{row.get('step', ''):,}" if isinstance(row.get("step"), int) else "",
            bytes_text(float(row.get("bytes") or 0)),
            seconds_text(float(row.get("seconds") or 0)),
            f"{float(row.get('waited') or 0):.2f} s",
            "verified" if row.get("ok", True) else row.get("sentence") or row.get("error") or "not written",
        )
        for row in summary.saves
    ]
    parts = []
    if kept:
        parts.append(table("Kept in the run folder", ("checkpoint", "size", "written", "torch"), kept))
    if saves:
        parts.append(table("Every save", ("step", "size", "writing took", "training waited", "outcome"), saves))
    return f"<section><h2>Checkpoints</h2>{''.join(parts)}</section>" if parts else ""


def faults(summary: Summary) -> str:
    """What broke and what was decided, and everything else that happened."""
    told = [(_when(row.get("time")), row.get("step", ""), row.get("because", "")) for row in summary.faults]
    broke = (
        table("What broke and what was decided", ("when", "step", "decision"), told)
        if told
        else "<p>Nothing broke.</p>"
    )
    rest = []
    for row in summary.journal:
        facts = {key: value for key, value in row.items() if key not in ("time", "what", "seen", "actions")}
        rest.append(
            (
                _when(row.get("time")),
                row.get("what", ""),
                ", ".join(f"{key} {_plain(value)}" for key, value in facts.items()),
            )
        )
    journal = f"<details><summary>All that happened</summary>{table('The journal', ('when', 'what', 'facts'), rest)}</details>"
    return f"<section><h2>Faults and decisions</h2>{broke}{journal if rest else ''}</section>"


def environment(summary: Summary) -> str:
    """Machine, versions, commit, and the variables of a white list."""
    info = summary.info
    machine = info.get("machine") or {}
    rows: list[tuple[str, object]] = [
        ("machine", machine.get("processor") or info.get("platform", "")),
        ("cores, memory", f"{machine.get('cores', '?')}, {bytes_text(float(machine.get('memory_bytes') or 0))}"),
        ("devices", ", ".join(machine.get("devices") or []) or "no accelerator"),
        ("system", info.get("platform", "")),
        ("workers, layout", f"{info.get('workers', '?')}, {info.get('layout', '?')}"),
        ("commit", str(info.get("commit") or "none") + ", with uncommitted changes" * bool(info.get("uncommitted"))),
    ]
    rates = (info.get("probed") or {}).get("gemm") or {}
    if isinstance(rates, Mapping):
        rows += [
            (f"matrix products in {name}", f"{float(rate):,.0f} GFLOP/s, one worker, measured")
            for name, rate in rates.items()
            if rate
        ]
    rows += list((info.get("versions") or {}).items())
    variables = list((info.get("environment") or {}).items())[:60]
    shown = pairs("Environment variables of a white list, secrets masked", variables) if variables else ""
    return f"<section><h2>Environment</h2>{pairs('Where it ran', rows)}{shown}</section>"


def repeat(summary: Summary) -> str:
    """The commands that make this run again."""
    info = summary.info
    commit = info.get("commit")
    lines = []
    if commit:
        lines.append(
            f"git checkout {commit}" + ("   # and apply the run's diff.patch" if info.get("uncommitted") else "")
        )
    torch = str(info.get("torch", "?"))
    build = torch.partition("+")[2]  # one that only torch's own index has
    index = f" --index-url https://download.pytorch.org/whl/{build}" if re.fullmatch(r"cpu|cu\d+", build) else ""
    lines.append(f"pip install torch=={torch}{index} && pip install .")
    threads = f"OMP_NUM_THREADS={info['threads']} " if "threads" in info else ""
    words = [f"{summary.run.path.name}/job.toml", *_found_here(summary), "--run", "again"]
    lines.append(f"{threads}argosy train {shlex.join(words)}   # in the folder that holds this run's folder")
    note = (
        "Same job, same text, the same number of threads and what was measured or found on this machine (it stands in "
        "the command) give the same losses, bit for bit, on the same kind of CPU and torch; changes on the way stand in "
        "the ledger. The run was started with:"
    )
    command = f"<pre>{text(info.get('command', ''))}</pre>"
    return (
        f"<section><h2>How to repeat this run</h2><pre>{text(chr(10).join(lines), 2000, lines=True)}</pre>"
        f"<p>{note}</p>{command}</section>"
    )


def _found_here(summary: Summary) -> list[str]:
    """What another start would measure or find anew, perhaps otherwise, as words of the command line.

    MEASURED always: where nothing was measured this time, the next start may well, and then decide otherwise.
    """
    words = ["--workers", str(summary.info["workers"])] if "workers" in summary.info else []
    for one in summary.settings:
        here = one.origin in ("measured", "this machine") and one.key.startswith(("train.", "batch.", "layout."))
        if here or one.key in MEASURED:
            words += [f"--{one.key}", one.used if isinstance(one.used, str) else json.dumps(one.used)]
    return words


def foot(summary: Summary) -> str:
    """Who made the page."""
    made = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    source = "The figures are in metrics.jsonl, evaluations.jsonl and record/."
    return f"</main>\n<footer>argosy {text(summary.info.get('argosy', '?'))}, {made}. {source}</footer>"


ORDER: tuple[Callable[[Summary], str], ...] = (
    head,
    learning,
    writes,
    predicted,
    speed,
    layers,
    data,
    settings,
    checkpoints,
    faults,
    environment,
    repeat,
    foot,
)


def _plain(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _when(value: object) -> str:
    """A time in seconds since 1970, in words."""
    if not isinstance(value, int | float) or not 0 < value < 4e9:
        return ""
    return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%S} UTC"
