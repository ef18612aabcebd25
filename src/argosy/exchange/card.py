"""The model card: a README.md about a run, from what the run itself recorded: data, licences, tokens, figures, commit.

Knows the run folder. What is not known is left out, never guessed; texts from outside stand in quotes that YAML takes as text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from argosy.data.order import read_at
from argosy.job.schema import Job
from argosy.plan.flops import parameters
from argosy.quantities import count_text
from argosy.run.folder import Run
from argosy.run.lines import rows

# Licences as the hub writes them; a card with another word there is refused by it.
HUB_TERMS = frozenset((
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "zlib", "unlicense", "mpl-2.0", "gpl-2.0", "gpl-3.0",
    "agpl-3.0", "lgpl-2.1", "lgpl-3.0", "cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "odc-by", "odbl", "pddl", "cdla-permissive-2.0",
))  # fmt: skip


def card(run: Run, *, title: str, family: str, kind: str, step: int) -> str:
    """The text of README.md for the weights of `step`."""
    info, job = run.info(), run.job()
    data = info.get("data") or {}
    came = info.get("init") or {}
    parts = [
        _front(data, came, family),
        f"# {_line(title)}",
        _what(job, family, kind, info, came, step),
        _data(data),
        _training(run, job, step) if not info.get("imported") else "",
        _figures(run, step),
        _use(),
        _origin(info),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(data: Mapping[str, Any], came: Mapping[str, Any], family: str) -> str:
    """What the hub reads."""
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    lines.append("tags: [argosy, " + json.dumps(family) + "]")
    terms = {str(row.get("license") or "unknown") for row in _sources(data)}
    if len(terms) == 1 and "unknown" not in terms:  # of several the hub has no word for "each its own"; the table tells
        name = terms.pop()
        known = name.lower() in HUB_TERMS
        lines += [f"license: {name.lower()}"] if known else ["license: other", f"license_name: {json.dumps(name)}"]
    source = str(came.get("source") or "")
    if source.startswith("hf://"):
        lines.append(f"base_model: {json.dumps(source.removeprefix('hf://').partition('@')[0])}")
    return "\n".join([*lines, "---"])


def _what(job: Job, family: str, kind: str, info: Mapping[str, Any], came: Mapping[str, Any], step: int) -> str:
    model, block = job.model, job.model.block
    count = parameters(model)
    text = (
        f"A decoder of {count:,} parameters ({model.layers} layers, width {model.width}, {block.heads} heads"
        f"{f', {block.kv_heads} for keys and values' if block.kv_heads != block.heads else ''}, vocabulary "
        f"{model.vocabulary:,}), written as a model of the family *{family}* in {kind}."
    )
    if info.get("imported"):
        return f"{text} Its weights are those of {_quoted(came.get('source'))}; nothing was trained."
    text += f" These are its weights after step {step:,}."
    if came.get("source"):
        text += f" Training began with the weights of {_quoted(came['source'])}{_at(came)}."
    return text


def _at(came: Mapping[str, Any]) -> str:
    return f" (revision {_quoted(came['revision'])})" if came.get("revision") else ""


def _sources(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A row for each source: of a mix its own, else the text as one."""
    mixed = data.get("mix")
    return mixed if isinstance(mixed, list) and mixed else [data]


def _data(data: Mapping[str, Any]) -> str:
    if not data:
        return ""
    found = _sources(data)
    weights = sum(float(row.get("weight") or 0) for row in found) or 1.0
    lines = ["## Data", "", "| source | licence | tokens | share of what was read last |", "|---|---|---|---|"]
    lines += [
        f"| {_quoted(row.get('source'))} | {_quoted(row.get('license') or 'unknown')} | {_number(row.get('tokens'))} "
        f"| {float(row.get('weight') or weights) / weights:.1%} |"
        for row in found
    ]
    if data.get("documents"):
        lines += ["", f"{_number(data['documents'])} documents to train on."]
    if data.get("held_out_documents"):
        lines += ["", f"{_number(data['held_out_documents'])} documents were held out and never trained on."]
    return "\n".join(lines)


def _training(run: Run, job: Job, step: int) -> str:
    ledger = run.ledger()
    read, last = read_at(step + 1, ledger).first_token, read_at(max(1, step), ledger)
    steps = f"{step:,} steps of {last.tokens:,}"
    if read != step * last.tokens:  # a ramp, or a change in the middle
        steps = f"{step:,} steps, the last of {last.tokens:,}"
    lines = [
        "## Training",
        "",
        f"- {count_text(read)} tokens in {steps}, sequences of {last.sequence:,}",
        f"- {job.optim.name}, peak learning rate {job.optim.lr}, schedule {job.optim.schedule}, "
        f"weight decay {job.optim.weight_decay}",
        f"- products in {job.train.precision}, weights in {job.train.master}, seed {job.train.seed}",
    ]
    return "\n".join(lines)


def _figures(run: Run, step: int) -> str:
    found = [row for row in rows(run.path / "evaluations.jsonl") if int(row.get("step", 0)) <= step]
    if not found:
        return ""
    last = found[-1]
    lines = ["## Figures", "", f"On held-out documents, after step {int(last['step']):,}:", ""]
    for key, name in (("loss", "nats per token"), ("bits_per_byte", "bits per byte")):
        if isinstance(last.get(key), int | float):
            lines.append(f"- {name}: {last[key]:.4f}")
    return "\n".join(lines)


def _use() -> str:
    return """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```"""


def _origin(info: Mapping[str, Any]) -> str:
    commit = info.get("commit")
    code = (
        f", commit {_quoted(commit)}{' with uncommitted changes' if info.get('uncommitted') else ''}" if commit else ""
    )
    return (
        f"Made by Argosy {_quoted(info.get('argosy', '?'))}{code}, torch {_quoted(info.get('torch', '?'))}; "
        f"run {_quoted(info.get('id', '?'))}."
    )


def _line(text: object) -> str:
    """One line, without what Markdown or a table would take for its own."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def _quoted(text: object) -> str:
    return "`" + _line(text).replace("`", "'") + "`"


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else "unknown"
