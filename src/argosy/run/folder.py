"""The run folder: its files, its lock, its state. Knows the job's tree and the ledger; needs neither torch nor the other rooms.

In: what `plan/settle.py` settled. Out: `Run`, with which every process of a run finds everything else. All paths inside are
relative to the folder, so that a run which was moved or copied goes on.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from argosy.errors import Refused
from argosy.job.schema import Job
from argosy.job.setting import Setting
from argosy.run.ledger import Ledger

VERSION = 1
PREPARED = "data.prepared"  # an extra setting, no key of a job: the folder of prepared text
HELD = "evaluate.prepared"  # another: name and folder of each named held-out set
# The names that a run makes in its folder, and those that were written half when it was killed.
MADE = re.compile(
    r"(run|settings|tokenizer|chat)\.json|job\.toml|(ledger|journal|metrics|evaluations|samples)\.jsonl|log\.txt|crash\.txt"
    r"|report\.html|diff\.patch|lock|save|stop|checkpoints|log|local|record|source|\..+\.[0-9]+"
)
PATIENCE = 5.0  # seconds that a second start waits for the first to leave
_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
GLANCE = 0.15  # seconds that a lock may be held by somebody who only looks whether it is free


class Run:
    """One run folder. Cheap to make; reads and writes only when asked."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._name: str | None = None  # of the folder in $ARGOSY_LOCAL, once it was read

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints lie."""
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        """Where each process's own lines lie."""
        return self.path / "log"

    @property
    def local(self) -> Path:
        """Where what lives only while a run goes lies: records, stores, requests; `$ARGOSY_LOCAL/<id>`, else inside."""
        place = os.environ.get("ARGOSY_LOCAL")
        if not place:
            return self.path / "local"
        if self._name is None:
            name = self.info().get("id")
            if not isinstance(name, str) or not _ID.fullmatch(name):  # of a stranger: it must not lead anywhere else
                raise Refused("run.json has no id that names a folder.", where=str(self.path), found=repr(name)[:80])
            self._name = name
        return Path(place) / self._name

    @property
    def exists(self) -> bool:
        """Whether there is a run here."""
        return (self.path / "run.json").is_file()

    def info(self) -> dict[str, Any]:
        """What stands in run.json: id, name, state, step, steps, versions, origin. Refused where it is none."""
        return _table(self.path / "run.json")

    def update_info(self, **changes: object) -> None:
        """Change keys of run.json; a reader sees the old or the new file, never half of one."""
        self._name = None
        write_whole(self.path / "run.json", json.dumps({**self.info(), **changes}, indent=1, default=_plain) + "\n")

    def settings(self) -> list[Setting]:
        """Every key in force, with what was asked, who said so and why."""
        path = self.path / "settings.json"
        try:
            return [Setting(**row) for row in _part(path, "settings", list)]
        except TypeError as error:
            raise Refused(f"{path.name} is damaged.", where=str(self.path), found=str(error)) from None

    def setting(self, key: str) -> Setting:
        """The setting of one key. KeyError where there is none."""
        for setting in self.settings():
            if setting.key == key:
                return setting
        raise KeyError(key)

    def job(self) -> Job:
        """The job in force: every value concrete."""
        return job_of(self.settings())

    def asked(self) -> Job:
        """The job as it was asked, before anything was resolved."""
        path = self.path / "settings.json"
        return _job(_part(path, "asked", dict), path)

    def written(self) -> dict[str, str]:
        """The keys that somebody wrote, with where."""
        return dict(_part(self.path / "settings.json", "written", dict))

    def ledger(self) -> Ledger:
        """What was changed at which step."""
        return Ledger.read(self.path / "ledger.jsonl")

    def prepared(self) -> Path:
        """The folder of the prepared text."""
        return Path(str(self.setting(PREPARED).used))

    def held_sets(self) -> list[tuple[str, Path]]:
        """Name and folder of prepared text of each of `evaluate.sets`, in their order."""
        found = next((setting.used for setting in self.settings() if setting.key == HELD), ())
        return [(str(name), Path(str(folder))) for name, folder in found]  # type: ignore[attr-defined]

    def journal(self, event: Mapping[str, object]) -> None:
        """Append one event or decision, with the time, to journal.jsonl."""
        append_line(self.path / "journal.jsonl", {"time": time.time(), **event})

    def newest_step(self) -> int:
        """The step of the newest checkpoint that was committed; 0 where there is none. Says nothing about its health.

        Newest as a start chooses: of a later incarnation first, told by the names of the data files, without reading any.
        """
        found = [(0, 0)]
        for manifest in self.checkpoints.glob("step-*/manifest.json"):
            step = manifest.parent.name.removeprefix("step-")
            written = [file.stem.rpartition("-")[2] for file in manifest.parent.glob("node-*-inc-*.safetensors")]
            if step.isdecimal():
                found.append((min((int(number) for number in written if number.isdecimal()), default=0), int(step)))
        return max(found)[1]

    def metrics(self) -> Any:
        """The table of metrics.jsonl as a pyarrow.Table, one row a step; empty before the first."""
        from argosy.run.lines import rows, table

        return table(rows(self.path / "metrics.jsonl"))

    def busy(self) -> int | None:
        """The pid of the process that holds the lock, None where nobody does."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder(descriptor)
        finally:
            os.close(descriptor)
        return None

    @contextmanager
    def lock(self, patience: float = PATIENCE, note: Callable[[str], None] = lambda text: None) -> Iterator[int]:
        """Hold the folder while inside; gives the descriptor, which children inherit, so that orphans keep it busy.

        A busy folder is waited for up to `patience` seconds, told to `note` once; then Refused names the pid. Refused also
        where it was removed meanwhile.
        """
        descriptor = _taken(self.path, patience, note)
        try:
            os.set_inheritable(descriptor, True)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield descriptor
        finally:
            os.close(descriptor)  # never LOCK_UN: that would free it under an orphan that still writes


def create(path: Path, *, asked: Job, text: str, origin: Mapping[str, object], **facts: object) -> Run:
    """Make the folder `path` a new run that was asked for `asked`; settings follow with `settle`. Refused if it cannot.

    text: the whole job as asked, as a job file.
    """
    run = Run(path)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)  # samples and tokenizer tell what was read
        run.log.mkdir(exist_ok=True)
        run.checkpoints.mkdir(exist_ok=True)
    except OSError as error:
        raise Refused("a run cannot be made there.", where=str(path), found=error.strerror or str(error)) from None
    now = datetime.now(UTC)
    info = {
        "version": VERSION,
        "id": new_id(),
        "name": asked.name,
        "state": "new",
        "created": now.isoformat(timespec="seconds"),
        "place": str(path.resolve()),
        "step": 0,
        "parents": [],
        **origin,
        **facts,
    }
    write_whole(path / "job.toml", text)
    write_whole(path / "run.json", json.dumps(info, indent=1, default=_plain) + "\n")
    run.local.mkdir(parents=True, exist_ok=True)
    return run


def new_id() -> str:
    """A name for a run that no other has: the time and 32 random bits."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"


def settle(
    run: Run, asked: Job, written: Mapping[str, str], settings: Iterable[Setting], prepared: Path, text: str,
    sets: Sequence[tuple[str, Path]] = (),
) -> None:  # fmt: skip
    """Keep what is in force from now on, and the folder of prepared text beside it. text: the job as asked.

    sets: name and folder of the prepared text of each of `evaluate.sets`.
    """
    rows = [setting for setting in settings if setting.key not in (PREPARED, HELD)]
    rows.append(Setting(PREPARED, None, str(prepared), "this machine", "found by the content of the text"))
    if sets:
        folders = [[name, str(folder)] for name, folder in sets]
        rows.append(Setting(HELD, None, folders, "this machine", "found by the content of each"))
    table = {
        "version": VERSION,
        "asked": asked.model_dump(mode="json"),
        "written": dict(written),
        "settings": [vars(row) for row in rows],
    }
    write_whole(run.path / "settings.json", json.dumps(table, indent=1, default=_plain) + "\n")
    write_whole(run.path / "job.toml", text)


def job_of(settings: Iterable[Setting]) -> Job:
    """The tree whose leaves are the values in force; settings that are no key of a job are left out."""
    tree: dict[str, Any] = {}
    for setting in settings:
        parts = setting.key.split(".")
        if _known(parts):
            node = tree
            for part in parts[:-1]:
                node = node.setdefault(part, {})
            node[parts[-1]] = setting.used
    return _job(tree, Path("settings.json"))


def latest(root: Path, path: Path) -> None:
    """Let `latest` in `root` point at the run at `path`, where it lies there."""
    if path.resolve().parent == root.resolve():
        beside = root / f".latest.{os.getpid()}"
        with suppress(OSError):  # a file system without links; the name is a convenience
            beside.unlink(missing_ok=True)
            beside.symlink_to(path.name)
            os.replace(beside, root / "latest")


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path` so that no reader, and no crash, ever shows half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def append_line(path: Path, row: Mapping[str, object]) -> None:
    """Append one JSON line, whole or not at all; lines of several processes never mix. OSError where there is no room."""
    line = memoryview((json.dumps(row, default=_plain) + "\n").encode())
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        before = os.fstat(descriptor).st_size
        try:
            while len(line):  # a disk that is nearly full takes a part first, and fails the next time
                line = line[os.write(descriptor, line) :]
        except OSError:
            os.ftruncate(descriptor, before)
            raise
    finally:
        os.close(descriptor)


def _taken(path: Path, patience: float, note: Callable[[str], None]) -> int:
    """The lock of the folder that lies at `path` now: whoever held it while we waited may have removed that folder."""
    while True:
        try:
            descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            raise Refused("this run was just removed.", where=str(path), do="Give the same command again.") from None
        try:
            _wait(descriptor, path, patience, note)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path / "lock"), os.fstat(descriptor)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _wait(descriptor: int, path: Path, patience: float, note: Callable[[str], None]) -> None:
    begin, told = time.monotonic(), False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pid = _holder(descriptor)
        if time.monotonic() - begin >= patience:
            what = f"the run is in use by process {pid}." if pid else "the run is in use by another process."
            do = f"Wait for it, stop it (argosy stop {path}), or give another folder: --run DIR."
            raise Refused(what, where=str(path), do=do)
        if not told and time.monotonic() - begin > GLANCE:
            note(f"{path} is in use by process {pid}: waiting up to {patience:.0f} s")
            told = True
        time.sleep(0.05)


def _holder(descriptor: int) -> int:
    text = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
    return int(text) if text.isdecimal() else 0


def _known(parts: list[str]) -> bool:
    node: Any = Job
    for part in parts:
        if not (isinstance(node, type) and issubclass(node, BaseModel)) or part not in node.model_fields:
            return False
        node = node.model_fields[part].annotation
    return True


def _job(tree: object, where: Path) -> Job:
    try:
        return Job.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Refused(
            "the job kept there cannot be read.", where=str(where), found=f"{place}: {first['msg']}"
        ) from None


def _table(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refused(f"there is no run here: {path.name} is missing.", where=str(path.parent)) from None
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(f"{path.name} cannot be read.", where=str(path.parent), found=str(error)) from None
    if not isinstance(table, dict) or not isinstance(table.get("version"), int):
        raise Refused(f"{path.name} is no file of Argosy.", where=str(path.parent))
    if table["version"] > VERSION:
        raise Refused(
            f"{path.name} was written by a newer Argosy.",
            where=str(path.parent),
            found=f"version {table['version']}; this one reads up to {VERSION}",
            do="Install the newer one.",
        )
    return table


def _part(path: Path, name: str, kind: type) -> Any:
    """What the table at `path` holds as `name`. Refused where that is missing or is no `kind`."""
    found = _table(path).get(name)
    if not isinstance(found, kind):
        raise Refused(
            f"{path.name} is damaged.", where=str(path.parent), found=f'"{name}" is no {kind.__name__}: {found!r:.40}'
        )
    return found


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no place in a run folder")
