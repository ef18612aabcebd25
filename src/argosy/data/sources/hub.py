"""Data sets of the Hugging Face Hub, `hf://datasets/ORG/NAME[@REVISION][/PATH]`, and the tokenizers of its models. No torch.

Files are listed once, at one commit, and fetched into the cache of `huggingface_hub` when they are read: a download that was
interrupted goes on, a second reading needs no network, and code of the data set is never run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from argosy.data.document import File, Unreadable, printable
from argosy.data.sources.streams import first_line
from argosy.errors import Refused

_ADDRESS = re.compile(r"hf://datasets/([^/@]+(?:/[^/@]+)?)(?:@([^/]+))?(?:/(.+))?/?")
_TRAIN = re.compile(r"(^|[^a-z])train([^a-z]|$)", re.IGNORECASE)
_OTHER = re.compile(r"(^|[^a-z])(test|valid|validation|dev|eval)([^a-z]|$)", re.IGNORECASE)
_MODEL = re.compile(r"hf://([^/@]+(?:/[^/@]+)?)(?:@(.+))?")
FORM = "hf://datasets/ORG/NAME, with @REVISION and /PATH where wanted"
OF_MODEL = "hf://ORG/NAME, with @REVISION where wanted"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class Place:
    """A data set at one commit, and what of it is meant; or a model."""

    name: str
    revision: str
    inner: str  # a file, a folder or a pattern within it; "" = all
    kind: str = "data set"


@dataclass(frozen=True)
class Listing:
    """What lies there: (path, bytes) of each file, the commit, the licence it names, and how many files were left out."""

    place: Place
    files: list[tuple[str, int]]
    license: str
    left_out: int


def parse(address: str) -> Place:
    """The parts of `address`. Refused where it is none of a data set."""
    found = _ADDRESS.fullmatch(address)
    if found is None or address.startswith("hf://datasets/datasets/"):
        do = f"Write {FORM}." + ("" if "datasets/" in address else " A model is no source of text.")
        raise Refused("this is no address of a data set.", where=f'data.source = "{printable(address)}"', do=do)
    return Place(found[1], found[2] or "main", (found[3] or "").strip("/"))


def listing(address: str) -> Listing:
    """The files at `address`. Refused for names that are missing, gated, or out of reach."""
    place, where = parse(address), f'data.source = "{printable(address)}"'
    with _told(place, where):
        commit, entries, terms = _entries(place)
    place = Place(place.name, commit, place.inner)
    chosen = [(path, size) for path, size in entries if _meant(path, place.inner)]
    if not chosen:
        folders = sorted({path.split("/")[0] for path, _ in entries})[:8]
        raise Refused("there is no such file in this data set.", where=where, found=", ".join(folders) or "nothing")
    kept = chosen if place.inner else [one for one in chosen if not _OTHER.search(one[0])]
    if not any(_TRAIN.search(path) for path, _ in chosen) or not kept:
        kept = chosen
    return Listing(place, kept, terms, len(chosen) - len(kept))


def _entries(place: Place) -> tuple[str, list[tuple[str, int]], str]:
    """(commit, [(path, bytes)], licence) of the data set, from the Hub or, offline, from what was fetched."""
    from huggingface_hub import HfApi, constants, errors
    from huggingface_hub.hf_api import RepoFile

    if constants.HF_HUB_OFFLINE:
        return _cached(place)
    api = HfApi()
    try:
        info = api.dataset_info(place.name, revision=place.revision)
        commit = str(info.sha)
        tree = api.list_repo_tree(place.name, recursive=True, revision=commit, repo_type="dataset")
        entries = [(one.path, int(one.size or 0)) for one in tree if isinstance(one, RepoFile)]
    except (errors.HfHubHTTPError, errors.HFValidationError):
        raise
    except Exception as error:  # no network: what was fetched may do
        try:
            return _cached(place)
        except errors.LocalEntryNotFoundError:
            raise error from None
    tags = [str(tag) for tag in (info.tags or [])]
    terms = next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), "")
    return commit, sorted(entries), terms


def _cached(place: Place) -> tuple[str, list[tuple[str, int]], str]:
    """The same from the cache: of the commit that the name had when it was last fetched. Raises LocalEntryNotFoundError."""
    from huggingface_hub import constants, errors

    home = Path(constants.HF_HUB_CACHE) / f"datasets--{place.name.replace('/', '--')}"
    named = home / "refs" / place.revision
    commit = named.read_text(encoding="utf-8").strip() if named.is_file() else place.revision
    folder = home / "snapshots" / commit
    if not folder.is_dir() and place.revision == "main":  # fetched by its commit: the last one that was
        kept = sorted((home / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime_ns)
        folder = kept[-1] if kept else folder
    if not folder.is_dir():
        raise errors.LocalEntryNotFoundError(f"nothing of {place.name} in {home.parent}")
    files = [path for path in folder.rglob("*") if path.is_file()]
    return folder.name, sorted((path.relative_to(folder).as_posix(), path.stat().st_size) for path in files), ""


def _meant(path: str, inner: str) -> bool:
    if not inner:
        return path.lower() not in ("readme.md", "license", "license.md", "license.txt") and not path.startswith(".")
    return path == inner or path.startswith(f"{inner}/") or fnmatchcase(path, inner)


def fetched(file: File) -> Path:
    """The file on this disk, fetched now unless it is there. Raises Unreadable."""
    from huggingface_hub import hf_hub_download

    place = parse(file.url)
    try:
        return Path(hf_hub_download(place.name, place.inner, repo_type="dataset", revision=place.revision))
    except Exception as error:  # the library raises its own, its HTTP client's and the system's
        raise Unreadable(f"cannot be fetched: {first_line(error)}") from error


def tokenizer(address: str) -> Path:
    """The folder with the tokenizer of the model at `address`, fetched now unless it is there. Refused where it has none."""
    found, where = _MODEL.fullmatch(address), f'data.tokenizer = "{printable(address)}"'
    if found is None or found[1].startswith("datasets/"):
        raise Refused("this is no address of a model.", where=where, do=f"Write {OF_MODEL}.")
    place = Place(found[1], found[2] or "main", "", "model")
    with _told(place, where):
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(place.name, revision=place.revision, allow_patterns=list(TOKENIZER)))
    if not (folder / TOKENIZER[0]).is_file():
        do = "Name one that has: other files of tokenizers are not read."
        raise Refused(f"this model has no {TOKENIZER[0]}.", where=where, do=do)
    return folder


@contextmanager
def _told(place: Place, where: str) -> Iterator[None]:
    """What goes wrong with the Hub, as one sentence."""
    from huggingface_hub import constants, errors

    kind, model = place.kind, place.kind == "model"
    form, page = OF_MODEL if model else FORM, f"https://huggingface.co/{'' if model else 'datasets/'}{place.name}"

    def refused(what: str, error: Any, do: str) -> Refused:
        """One sentence with what the Hub said."""
        return Refused(what, where=where, found=first_line(error), do=do)

    try:
        yield
    except errors.GatedRepoError as error:
        do = f"Accept its terms at {page}, then `hf auth login` or set HF_TOKEN."
        raise refused(f"this {kind} is gated: its owner lets in who has accepted the terms.", error, do) from None
    except errors.RevisionNotFoundError as error:
        raise refused(f"this {kind} has no revision {place.revision}.", error, f"Write {form}.") from None
    except errors.RepositoryNotFoundError as error:
        do = f"Write {form}; a private one needs `hf auth login` or HF_TOKEN."
        raise refused(f"there is no such {kind} on the Hub, or it is private.", error, do) from None
    except errors.HFValidationError as error:
        raise refused(f"this is no name of a {kind}.", error, f"Write {form}.") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        why = "is switched off" if constants.HF_HUB_OFFLINE else "cannot be reached"
        do = "Go online once (without HF_HUB_OFFLINE), or name files on this machine."
        raise refused(f"the Hub {why}, and this {kind} was never fetched.", error, do) from None
    except errors.HfHubHTTPError as error:
        raise refused("the Hub did not answer as it should.", error, "Try again later.") from None
    except Exception as error:  # the HTTP client's own: no network, no such host, a proxy
        if isinstance(error, Refused):
            raise
        do = "Look at the network, or fetch it elsewhere and name its files here."
        raise refused("the Hub cannot be reached.", error, do) from None
