"""What a preparation was asked for, and how its result is named and found in the cache. No torch.

In the cache's folder `prepared`: DIGEST, what was made, named by everything that decides what it holds; *.seen names the folder
that was made of just these files, so that they need not be read again, and tells what of them was passed over; *.same the one
of the same text and the same tokens; *.lock is held while a folder is made.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

from argosy.data import shards, tokenizer
from argosy.data.chat import Template
from argosy.data.document import Source
from argosy.data.make import Recipe, write
from argosy.data.prepared import Prepared
from argosy.data.scan import Progress, Scan, fingerprint
from argosy.errors import Refused
from argosy.job.schema import DataSection, Trained

# Names everything in the code that decides what a folder of one source holds. Raise a number whenever that changes: two
# machines, or two versions, that mean the same text by one name must hold the same tokens, on the same side.
RULES = f"argosy {shards.FORMAT}, held out 2"


class Asked:
    """What one preparation was asked for. Refused where tokenizer or chat template cannot be read."""

    def __init__(self, section: DataSection, base: Path, home: Path, progress: Progress, workers: int, strict: bool):
        self.section, self.base, self.home = section, base, home
        self.progress, self.workers, self.strict = progress, workers, strict
        self._words, content, template = _tokenizer_key(section, base)
        self.recipe = Recipe(section.tokenizer, content, template, section.held_out)

    @property
    def key(self) -> str:
        """What names everything but the text in the cache."""
        return key_of(self.recipe, self._words)

    def with_tokenizer(self, content: str) -> Asked:
        """The same with a tokenizer that was trained on all sources."""
        made = Asked(self.section, self.base, self.home, self.progress, self.workers, self.strict)
        made.recipe = replace(self.recipe, content=content)
        made._words = _content_words(content)
        return made


def key_of(recipe: Recipe, words: str) -> str:
    """What names everything but the text: the rules, the tokenizer (`words`), the held-out share, the chat template."""
    template = f"; template {name_of(recipe.template.content)}" if recipe.template.source else ""
    return f"{RULES}; {words}; held out {recipe.held_out!r}{template}"


def alias_file(home: Path, content: str, recipe: Recipe, name: str, found: Scan) -> Path:
    """The file that names the folder which holds this text in the tokens of the tokenizer `content`."""
    return home / f"{name_of('same', key_of(recipe, _content_words(content)), name, found.digest)}.same"


def alias(home: Path, content: str, recipe: Recipe, name: str, found: Scan, folder: Path) -> Path:
    """The folder that holds just that already, under whatever name; else `folder`."""
    try:
        other = home / alias_file(home, content, recipe, name, found).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return folder
    return other if (other / shards.FACTS).is_file() else folder


def mix_seen(asked: Asked, sources: list[Source]) -> Path:
    """The file that names the folder of a mix of just these files."""
    words = [word for source in sources for word in (source.name, fingerprint(source))]
    return asked.home / f"{name_of('mix', asked.key, *words)}.seen"


def _tokenizer_key(section: DataSection, base: Path) -> tuple[str, str | None, Template]:
    """What names the tokenizer in the cache, the content of its file where it is not trained here, and its chat template."""
    spec = section.tokenizer
    if isinstance(spec, Trained):
        return f"bpe {spec.vocabulary} tokenizers {version('tokenizers')}", None, Template()
    if spec == "bytes":
        return "bytes", tokenizer.BYTES, Template()
    path = tokenizer.located(spec, base)
    file = path / tokenizer.FILE if path.is_dir() else path
    content = tokenizer.read_file(file)
    return _content_words(content), content, Template.of(file)


def _content_words(content: str) -> str:
    return "bytes" if content == tokenizer.BYTES else f"{name_of(content)} tokenizers {version('tokenizers')}"


def name_of(*words: str) -> str:
    """The name of a folder or file that `words` decide."""
    return blake2b("\0".join(words).encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()


def seen_of(asked: Asked, source: Source) -> Path:
    """The file that names the folder which was made of just these files."""
    return asked.home / f"{name_of(asked.key, source.name, fingerprint(source))}.seen"


def keep(seen: Path, prepared: Prepared) -> Prepared:
    """Note in `seen` the folder and what is said of just these files: others of the same text had other bad records."""
    told = {"bad": prepared.bad, "notes": prepared.notes, "unread": prepared.unread}
    write(seen, f"{prepared.folder.name}\n{json.dumps(told)}\n")
    return prepared


def named(seen: Path) -> str:
    """The folder that `seen` names. Raises OSError, UnicodeDecodeError."""
    return seen.read_text(encoding="utf-8").partition("\n")[0]


def known(home: Path, seen: Path) -> Prepared | None:
    """The folder that was made of the very same files, found without reading them."""
    try:
        told = json.loads(seen.read_text(encoding="utf-8").partition("\n")[2])
        notes, unread = (tuple(map(str, told.get(name, ()))) for name in ("notes", "unread"))
        return replace(Prepared.open(home / named(seen)), bad=int(told["bad"]), notes=notes, unread=unread)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, Refused):
        return None


@contextmanager
def locked(path: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock `path`; the kernel lets go of it when this process ends, however it ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another process that prepares the same text", 0, 1)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
