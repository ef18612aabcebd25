"""The job while it is settled: the values so far, each with its origin and reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from argosy.errors import Refused
from argosy.job import leaves
from argosy.job.load import Loaded
from argosy.job.schema import Job
from argosy.job.setting import Setting
from argosy.plan.derive import Derived


@dataclass
class Draft:
    """Values in force so far, with origin and reason by key."""

    loaded: Loaded
    kept: Mapping[str, Setting]
    values: dict[str, Any]
    origins: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    read: tuple[int, int] = (0, 0)
    launched: bool = False

    def put(self, key: str, value: object, origin: str, why: str = "") -> None:
        """Give `key` its value in force; `origin` and `why` where they are not what was asked."""
        self.values[key] = value
        if origin:
            self.origins[key] = origin
        if why:
            self.reasons[key] = why

    def derived(self, key: str, found: Derived) -> None:
        """Take `found` where nothing was said."""
        if self.values[key] is None:
            self.put(key, found.value, "derived", found.why)

    def measured(self, key: str, *origins: str) -> bool:
        """Whether an unfinished run measured `key` for the same question; its value is then in force.

        origins: others beside "measured" that stand for a decision which must not be taken again.
        """
        old = self.kept.get(key)
        asked = leaves.plain(leaves.leaves(self.loaded.job)[key])
        if old is None or old.origin not in ("measured", *origins) or old.asked != asked:
            return False
        self.put(key, old.used, old.origin, old.why)
        return True

    def replaced(self, key: str, value: object, why: str) -> None:
        """Something written has no effect on this machine: a note, or with --strict a refusal."""
        written = self.values[key]
        sentence = f"{key} = {_text(written)} {why}; using {_text(value)}"
        if self.loaded.strict and key in self.loaded.written:
            raise Refused(f"{sentence}.", where=self.loaded.written[key], do="--strict refuses that; change the key.")
        self.notes.append(sentence)
        self.put(key, value, "this machine", why)

    def dead(self, key: str, sentence: str) -> None:
        """A key that does nothing on this machine: a note, or with --strict a refusal where somebody wrote it."""
        if self.loaded.strict and key in self.loaded.written:
            do = "--strict refuses that; remove the key."
            raise Refused(f"{sentence}.", where=self.loaded.written[key], do=do)
        self.notes.append(sentence)

    def job(self) -> Job:
        """The job with all values so far."""
        return Job.model_validate(leaves.nested(self.values))

    def settings(self) -> list[Setting]:
        """One setting per leaf of the job, in the order of the schema."""
        asked, written = leaves.leaves(self.loaded.job), self.loaded.written
        found = []
        for key, value in leaves.leaves(self.job()).items():
            origin = self.origins.get(key) or written.get(key) or "default"
            if key in written and origin == "derived":
                origin = written[key]
            found.append(Setting(key, leaves.plain(asked[key]), leaves.plain(value), origin, self.reasons.get(key, "")))
        return found


def _text(value: object) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)
