"""A folder of another program's weights: where it lies, which files it has, what their headers say. Knows no torch.

In: a path, or hf://org/name@revision, which the Hugging Face client fetches into its own cache, with its own login. Out: the
tables of the folder's JSON files, and for each tensor where its bytes are. All of it may come from a stranger: sizes are
bounded, names lead nowhere else, offsets lie in their file, and a pickle is refused unread, for reading it runs it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from argosy.checkpoint.plan import SIZES
from argosy.errors import Refused
from argosy.job import paths
from argosy.quantities import bytes_text

HUB = "hf://"
KEPT = "source"  # folder of a run: what came along with its first weights
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
# What goes along unchanged, in and out: a tokenizer with all that belongs to it, how to sample, the chat template.
COMPANIONS = (
    CONFIG, TOKENIZER, "tokenizer_config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json", "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip
WEIGHTS = ("*.safetensors", INDEX)
ELSEWHERE = ("*/*", "consolidated*")  # of a name on the hub: the same weights once more, in somebody's own format
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack", ".npz")
LARGEST_JSON = 64 << 20
LARGEST_HEADER = 100 << 20  # as the format's own library has it
MOST_DIMENSIONS = 8
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.safetensors")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: bytes [begin, end) of it, in rows one after the other."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def rows(self, first: int, last: int) -> bytearray:
        """The bytes of rows [first, last); of all of it where it has no dimension. Refused where the file has changed."""
        count = self.shape[0] if self.shape else 1
        each = (self.end - self.begin) // max(1, count)
        wanted = bytearray((last - first) * each)
        view, done = memoryview(wanted), 0
        try:
            with self.file.open("rb", buffering=0) as file:
                file.seek(self.begin + first * each)
                while done < len(wanted):
                    got = file.readinto(view[done:])
                    if not got:
                        break
                    done += got
        except OSError as error:
            raise Refused("this cannot be read.", where=str(self.file), found=error.strerror or str(error)) from None
        if done < len(wanted):
            raise Refused("this file ends before its tensors do.", where=str(self.file), do="Was it being written?")
        return wanted


@dataclass(frozen=True)
class Source:
    """A folder of weights. `text` is how it was asked for, `revision` the commit that the hub gave for it."""

    folder: Path
    text: str
    revision: str = ""

    @property
    def config(self) -> dict[str, Any]:
        """The table of its config.json. Refused where there is none."""
        path = self.folder / CONFIG
        if not path.is_file():
            raise Refused(
                "this folder has no config.json.",
                where=str(self.folder),
                found=_listed(self.folder),
                do="Name a folder as Hugging Face's `save_pretrained` writes it, or hf://org/name.",
            )
        return table(path)

    @property
    def facts(self) -> dict[str, str]:
        """What a run that begins with it keeps: enough for `of`."""
        return {"source": self.text, "folder": str(self.folder.absolute()), "revision": self.revision}

    @staticmethod
    def of(facts: dict[str, str]) -> Source:
        """The source that `facts` tells of."""
        return Source(Path(facts["folder"]), facts["source"], facts.get("revision", ""))

    @property
    def tokenizer(self) -> Path | None:
        """Its tokenizer.json."""
        path = self.folder / TOKENIZER
        return path if path.is_file() else None

    def companions(self) -> list[Path]:
        """The files that go along unchanged. Refused where one is larger than any of them is."""
        found = [self.folder / name for name in COMPANIONS if (self.folder / name).is_file()]
        for path in found:
            if path.stat().st_size > 2 * LARGEST_JSON:
                raise Refused(f"this is larger than any {path.name}.", where=str(path))
        return found

    def keep(self, run: Path) -> None:
        """Put them beside the run in the folder `run`, for the way out."""
        found, place = self.companions(), run / KEPT
        place.mkdir(exist_ok=True)
        for path in found:
            shutil.copyfile(path, place / path.name)

    def entries(self) -> dict[str, Entry]:
        """Every tensor of the folder by name, from the headers of its safetensors files."""
        if (self.folder / ONE).is_file():
            return header(self.folder / ONE)
        if (self.folder / INDEX).is_file():
            return self._sharded(self.folder / INDEX)
        files = sorted(self.folder.glob("*.safetensors"))
        if len(files) == 1:
            return header(files[0])
        if files:
            raise Refused(
                f"there are {len(files)} safetensors files and no {INDEX}.", where=str(self.folder),
                do="Add it: it says which tensor lies where.",
            )  # fmt: skip
        pickles = [entry.name for entry in self.folder.iterdir() if entry.suffix in PICKLES]
        if pickles:
            raise refused_pickle(self.folder, ", ".join(sorted(pickles)[:3]))
        raise Refused("this folder holds no weights.", where=str(self.folder), found=_listed(self.folder))

    def _sharded(self, index: Path) -> dict[str, Entry]:
        places = table(index).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise Refused("this index has no weight_map.", where=str(index))
        for name, file in places.items():
            if not isinstance(file, str) or not _FILE.fullmatch(file):
                raise Refused(
                    f"it puts {name[:80]} into what is no safetensors file of its folder.", where=str(index),
                    found=str(file)[:80],
                )  # fmt: skip
        found: dict[str, Entry] = {}
        for file in sorted(set(places.values())):
            for name, entry in header(self.folder / file).items():
                if name in found:
                    raise Refused(f"{name} is in two files.", where=str(self.folder), found=f"{entry.file.name} too")
                found[name] = entry
        for name, file in places.items():
            if name not in found or found[name].file.name != file:
                raise Refused(f"{file} does not hold {name[:80]}, which the index puts there.", where=str(index))
        return found


def find(text: str, base: Path | None = None, *, weights: bool = True) -> Source:
    """The folder of weights that `text` means; what lies on the hub is fetched into its client's cache first.

    weights=False: only the small files beside them are fetched.
    """
    if text.startswith(HUB):
        return _fetched(text, (*WEIGHTS, *COMPANIONS) if weights else COMPANIONS)
    path = Path(paths.resolve(text, base or Path.cwd()))
    if path.is_dir():
        return Source(path, text)
    if not path.exists():
        raise Refused("there is no such folder.", where=text, do="Name a folder of weights, or hf://org/name.")
    if path.suffix in PICKLES:
        raise refused_pickle(path, "")
    raise Refused("this is a file; name the folder that it lies in.", where=text)


def is_source(text: str, base: Path | None = None) -> bool:
    """Whether `text` means a folder of weights of another program, and not a run or nothing. Fetches nothing."""
    if text.startswith(HUB):
        return True
    path = Path(paths.resolve(text, base or Path.cwd()))
    if path.is_dir():
        return (path / CONFIG).is_file() and not (path / "run.json").is_file()
    return path.suffix in PICKLES


def refused_pickle(path: Path, found: str) -> Refused:
    """The sentence about weights that are pickles, or of another format that is not read."""
    return Refused(
        "only safetensors are read: a pickle (.bin, .pt) runs what is in it.",
        where=str(path),
        found=found,
        do="Take a revision with safetensors, or have whoever you trust convert it.",
    )


def header(path: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file. Refused for a header that is absurd, lies about its file, or is none."""
    what = "this is no whole safetensors file"
    try:
        if not path.is_file():
            raise Refused("this file is missing.", where=str(path))
        size = path.stat().st_size
        with path.open("rb") as file:
            count = int.from_bytes(file.read(8), "little")
            if size < 8 or count > min(size - 8, LARGEST_HEADER):
                raise Refused(
                    f"{what}: its header claims {bytes_text(count)}.",
                    where=str(path),
                    found=f"a file of {bytes_text(size)}",
                )
            text = file.read(count)
        rows = json.loads(text, object_pairs_hook=_once)
    except OSError as error:
        raise Refused("this cannot be read.", where=str(path), found=error.strerror or str(error)) from None
    except (ValueError, RecursionError) as error:
        raise Refused(f"{what}: its header is no JSON ({str(error)[:80]}).", where=str(path)) from None
    if not isinstance(rows, dict):
        raise Refused(f"{what}: its header is no table.", where=str(path))
    rows.pop("__metadata__", None)
    found, begin = {}, 8 + count
    for name, row in rows.items():
        found[name] = _entry(path, name, row, begin, size)
    place = begin
    for entry in sorted(found.values(), key=lambda one: (one.begin, one.end)):
        if entry.begin != place:
            raise Refused(f"{what}: its tensors overlap, or leave a gap at byte {place}.", where=str(path))
        place = entry.end
    if place != size:
        raise Refused(f"{what}: it has {size - place} bytes after its last tensor.", where=str(path))
    return found


def _entry(path: Path, name: str, row: object, begin: int, size: int) -> Entry:
    def wrong(why: str) -> Refused:
        """The sentence for this entry."""
        return Refused(f"this is no whole safetensors file: {name[:80]} {why}.", where=str(path))

    if not isinstance(row, dict) or set(row) != {"dtype", "shape", "data_offsets"}:
        raise wrong("has not dtype, shape and data_offsets alone")
    dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise wrong(f"has the unknown type {str(dtype)[:40]!r}")
    if not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS or not all(_natural(one) for one in shape):
        raise wrong(f"has the shape {str(shape)[:80]}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_natural(one) for one in offsets):
        raise wrong(f"lies at {str(offsets)[:80]}")
    first, last = offsets
    if not first <= last <= size - begin:
        raise wrong(f"lies at bytes {first} to {last} of {size - begin}")
    if prod(shape) * SIZES[dtype] != last - first:
        raise wrong(f"has {last - first} bytes for {dtype} {shape}")
    return Entry(path, dtype, tuple(shape), begin + first, begin + last)


def _natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def table(path: Path) -> dict[str, Any]:
    """The table of a JSON file. Refused where it is too large or none."""
    text = paths.content(path, most=LARGEST_JSON)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(f"this is no JSON: {str(error)[:80]}.", where=str(path)) from None
    if not isinstance(found, dict):
        raise Refused("this JSON is no table.", where=str(path))
    return found


def _listed(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "nothing"


def _fetched(text: str, files: tuple[str, ...]) -> Source:
    """What hf://org/name[@revision] means, in the cache of Hugging Face's client. Its own login is used, and no other."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0" if os.isatty(2) else "1")
    name, _, revision = text.removeprefix(HUB).partition("@")
    if name.startswith("datasets/"):
        raise Refused("this is a data set, not a model.", where=text)
    if not _NAME.fullmatch(name):
        raise Refused(
            "this is no name of a model on the hub.", where=text, do="Write hf://org/name or hf://org/name@revision."
        )
    from huggingface_hub import errors, snapshot_download

    page = f"https://huggingface.co/{name}"
    try:
        folder = snapshot_download(
            name, revision=revision or None, allow_patterns=list(files), ignore_patterns=list(ELSEWHERE)
        )
    except errors.GatedRepoError:
        raise Refused(
            f"it is gated: accept its terms at {page}, then `hf auth login`.", where=text, do="Nothing was downloaded."
        ) from None
    except errors.RevisionNotFoundError:
        raise Refused(
            f"it has no revision {revision}.", where=text, do=f"See {page}/tree/main for what there is."
        ) from None
    except errors.RepositoryNotFoundError:
        raise Refused(
            "the hub has no such model, or it is private.", where=text, do="Check the name, or `hf auth login`."
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise Refused(
            "the hub cannot be reached, and the model is not in its cache.", where=text,
            do="Name a folder, or fetch it where there is a network: hf download " + name,
        ) from None  # fmt: skip
    except Exception as error:  # of the client or its connection: whatever it is, it is not ours
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise Refused("it could not be fetched from the hub.", where=text, found=reason) from None
    return Source(Path(folder), text, Path(folder).name)
