"""A run becomes a folder as `transformers` reads it: safetensors, tokenizer, how to sample, chat template, model card.

In: a run with a checkpoint, of any layout. Out: a folder that appears whole or not at all; its tensors pass one at a time.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from argosy.checkpoint import store
from argosy.checkpoint.load import load
from argosy.checkpoint.plan import SIZES
from argosy.checkpoint.store import Checkpoint
from argosy.data.chat import FILE as CHAT
from argosy.data.chat import Template
from argosy.data.tokenizer import Pieces, open_tokenizer
from argosy.errors import INPUT, Refused
from argosy.exchange import config as configs
from argosy.exchange.card import card
from argosy.exchange.huggingface import shapes_of, staged, tensors_of
from argosy.exchange.mapping import Rules, Tensors, families
from argosy.exchange.source import CONFIG, INDEX, KEPT, ONE, TOKENIZER, table
from argosy.exchange.weights import TYPES, raw
from argosy.job.schema import Job, ModelSection
from argosy.run.folder import Run

SHARD = 5 * 10**9  # bytes of a file of weights
WORDS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}


@dataclass
class Sent:
    """What `send` wrote."""

    out: Path
    rules: Rules
    step: int
    kind: str
    files: int
    bytes: int
    notes: list[str] = field(default_factory=list)


def send(
    run: Run, out: Path, *, family: str | None = None, kind: str | None = None, shard: int = SHARD,
    check: Callable[[Path, Sent], object] = lambda place, sent: None,
) -> Sent:  # fmt: skip
    """Write the newest good checkpoint of `run` to the folder `out`, as `transformers` reads it.

    family: a name of `families()`; None = the one it came from, else the first that can say what the model is. kind: the
    type of the weights; None = the one they came in where they are as they came, else float32. check: told of the folder
    before it appears under its name; what it raises leaves nothing behind.
    """
    if run.info().get("fit"):
        raise Refused("this run holds a module of your own, which no family's rules are for.", where=str(run.path))
    job = run.job()
    own = getattr(job.model, "class")
    if own is not None:
        raise Refused(
            "no family's rules are for a model of your own.", where=str(run.path), found=f"model.class = {own}"
        )
    found, reasons = store.search(run.checkpoints)
    if found is None:
        store.refuse_lost(run, reasons, code=INPUT)
        raise Refused("it has no checkpoint yet.", where=str(run.path), do=f"Save one: argosy save {run.path}")
    try:
        rules, config = _choose(run, job, family, kind_of(run, found, kind))
        with staged(out) as place:
            sent = Sent(out, rules, found.step, kind_of(run, found, kind), 0, 0, list(reasons))
            _send_weights(run, found, job.model, sent, place, shard)
            _send_words(run, job, config, sent, place)
            words = card(run, title=out.name, family=rules.family, kind=sent.kind, step=sent.step)
            (place / "README.md").write_text(words, encoding="utf-8")
            check(place, sent)
    finally:
        found.close()
    return sent


def kind_of(run: Run, found: Checkpoint, asked: str | None) -> str:
    """The type that the weights are written in."""
    if asked is not None:
        if asked not in WORDS:
            raise Refused(f"--type {asked} is no type of weights; {', '.join(WORDS)} are.")
        return asked
    came = (run.info().get("init") or {}).get("type")
    if found.step == 0 and came in WORDS.values():
        return next(word for word, name in WORDS.items() if name == came)
    return "float32"


def _choose(run: Run, job: Job, family: str | None, kind: str) -> tuple[Rules, dict[str, Any]]:
    """The family, and the config.json that it writes. Refused with each family's reason where none can."""
    known = families()
    if family is not None and family not in known:
        raise Refused(f"--family {family} is none.", found=f"families {', '.join(known)}")
    came = (run.info().get("init") or {}).get("family")
    order = [family] if family else [*([came] if came in known else []), *(one for one in known if one != came)]
    kept = run.path / KEPT / CONFIG
    base = table(kept) if kept.is_file() else {}
    reasons = []
    for name in order:
        try:
            return known[name], configs.written(
                known[name], job.model, base, context=job.batch.sequence, kind=kind, where=str(run.path)
            )
        except Refused as refused:
            reasons.append(refused)
    if len(reasons) == 1:
        raise reasons[0]
    raise Refused(
        "no family that there are rules for can say what this model is.",
        where=str(run.path),
        found="; ".join(refused.what.rstrip(".") for refused in reasons),
        do="Export what one of them is, or add a family's file of rules (docs/how-to/models.md).",
    )


def _send_weights(run: Run, found: Checkpoint, model: ModelSection, sent: Sent, place: Path, shard: int) -> None:
    specs = {spec.name: spec for spec in found.manifest.specs}
    tensors = tensors_of(sent.rules, model, shapes_of(model))
    word = WORDS[sent.kind]

    def read(name: str) -> Tensor:
        """One tensor of the checkpoint, whole, in the type in which it leaves."""
        spec = specs.get(f"model.{name}")
        if spec is None:
            raise Refused(f"its checkpoint holds no {name}.", where=str(found.folder))
        whole = torch.empty(spec.shape, dtype=TYPES[spec.dtype])
        load(run, found, {spec.name: whole}, partial=True)
        return whole.to(TYPES[word])

    wanted = tensors.theirs()
    files = _files(wanted, word, shard)
    places: dict[str, str] = {}
    for number, names in enumerate(files, 1):
        name = ONE if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        places |= dict.fromkeys(names, name)
        sent.bytes += _file(
            place / name, {one: wanted[one] for one in names}, word, lambda one: merged(tensors, one, read)
        )
    sent.files = len(files)
    if len(files) > 1:
        total = sum(_size(shape, word) for shape in wanted.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (place / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def merged(tensors: Tensors, theirs: str, read: Callable[[str], Tensor]) -> Tensor:
    """A tensor of theirs from those of ours that it holds: the inverse of `Weights.rows`."""
    origin = next(one for one in tensors.origins.values() if one.theirs == theirs)
    rows = tensors.rows(origin.parts[0])
    parts = [read(name) for name in origin.parts]
    if len(parts) == 1:
        whole = parts[0]
    else:
        whole = torch.cat([part.unflatten(0, (rows.groups, -1)) for part in parts], 1).flatten(0, 1)
    return whole.t() if origin.rule.transpose and whole.ndim == 2 else whole


def _size(shape: Sequence[int], word: str) -> int:
    return prod(shape) * SIZES[word]


def _files(wanted: Mapping[str, tuple[int, ...]], word: str, limit: int) -> list[list[str]]:
    """Which tensors go into which file: in their order, each file below `limit` unless one tensor alone is larger."""
    files: list[list[str]] = [[]]
    filled = 0
    for name, shape in wanted.items():
        size = _size(shape, word)
        if files[-1] and filled + size > limit:
            files.append([])
            filled = 0
        files[-1].append(name)
        filled += size
    return files


def _file(path: Path, shapes: Mapping[str, tuple[int, ...]], word: str, make: Callable[[str], Tensor]) -> int:
    """Write one safetensors file, a tensor at a time; gives its bytes."""
    rows: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + _size(shape, word)
        rows[name] = {"dtype": word, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(rows, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            tensor = make(name)
            if tuple(tensor.shape) != shape:
                raise AssertionError(f"{name} became {list(tensor.shape)}, not {list(shape)}")
            file.write(raw(tensor))
        file.flush()
        os.fsync(file.fileno())
    return 8 + len(text) + end


def _send_words(run: Run, job: Job, config: dict[str, Any], sent: Sent, place: Path) -> None:
    """config.json, the tokenizer with what belongs to it, how to sample, the chat template."""
    own, kept = run.path / TOKENIZER, run.path / KEPT
    same = same_tokenizer(own, kept / TOKENIZER)
    if same:
        for path in sorted(kept.iterdir()):
            if path.name != CONFIG:
                shutil.copyfile(path, place / path.name)
    elif own.is_file():
        tokenizer = open_tokenizer(own)
        content = tokenizer.content if isinstance(tokenizer, Pieces) else bytes_tokenizer()
        (place / TOKENIZER).write_text(content, encoding="utf-8")
        end = _word(content, tokenizer.end)
        config |= {"bos_token_id": None, "eos_token_id": tokenizer.end, "pad_token_id": None}
        words = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "model_max_length": job.batch.sequence}
        # Without these names it also makes token_type_ids, which their decoders refuse to generate with.
        words |= {"model_input_names": ["input_ids", "attention_mask"], "clean_up_tokenization_spaces": False}
        _json(place / "tokenizer_config.json", words)
        template = Template.of(run.path).source if (run.path / CHAT).is_file() else ""
        if template:
            (place / "chat_template.jinja").write_text(template, encoding="utf-8")
        _json(place / "generation_config.json", {"eos_token_id": tokenizer.end, "do_sample": True})
    else:
        sent.notes.append("the run has no tokenizer, so the folder has none")
    _json(place / CONFIG, config)


def same_tokenizer(own: Path, kept: Path) -> bool:
    """Whether a run, whose tokenizer is `own`, still has the one that its weights came with."""
    if not own.is_file() or not kept.is_file():
        return not own.is_file() and kept.parent.is_dir()
    one, other = open_tokenizer(own), open_tokenizer(kept)
    return isinstance(one, Pieces) and isinstance(other, Pieces) and one.content == other.content


def _word(content: str, number: int) -> str:
    """How the tokenizer in `content` writes the id `number`."""
    from tokenizers import Tokenizer

    return str(Tokenizer.from_str(content).id_to_token(number))


def bytes_tokenizer() -> str:
    """The tokenizer of bytes as the `tokenizers` library writes it: the same ids for every text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = _letters()
    made = Tokenizer(models.BPE({letters[byte]: byte for byte in range(256)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    text: str = made.to_str()
    return text


def _letters() -> list[str]:
    """The letter that stands for each byte in byte-level vocabularies (Radford et al., "GPT-2", 2019).

    Printable ones stand for themselves, the others for the letters from 256 on.
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def _json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
