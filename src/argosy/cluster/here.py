"""This machine: cores, memory, devices, compiler, free disk, and the probe of its matrix-multiply rates. Without torch.

What a container may use counts, not what the host has: affinity and control groups (v1 and v2) are honoured.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

import psutil

from argosy.cluster import accelerators
from argosy.cluster.accelerators import DeviceKind
from argosy.errors import BUG, Refused

TRIAL = 20.0  # seconds that a start waits for what is timed, loading included: a quiet machine needs six
LAST = 1.0  # seconds before the end of that time after which nothing more is begun
AGAIN = 3600.0  # seconds for which what a busy machine answered is believed, or that it could not answer


@dataclass(frozen=True)
class Machine:
    """What this process may use here. memory in bytes; `cores` may be fewer than the host has."""

    cores: int
    memory_bytes: int
    memory_available: int
    devices: tuple[DeviceKind, ...] = ()
    compiler: str | None = None
    platform: str = ""
    python: str = ""
    processor: str = ""
    missing: tuple[str, ...] = ()  # what CUDA_VISIBLE_DEVICES names and nobody has
    told: int | None = None  # threads of a process, where OMP_NUM_THREADS says how many

    def threads(self, workers: int) -> int:
        """Threads of each of `workers` processes here (0: this one): what was told, else equal shares of the cores."""
        return self.told or max(1, self.cores // max(1, workers))

    def disk_free(self, path: Path) -> int:
        """Free bytes of the file system that `path`, or the nearest folder above it that exists, lies on."""
        return disk_free(path)


def machine() -> Machine:
    """What is here now. Refused where nobody can tell which accelerators are."""
    found, refused = looked()
    if refused is not None:
        raise refused
    return found


def looked() -> tuple[Machine, Refused | None]:
    """What is here now; where nobody can tell which accelerators, all but those, and what is wrong with them."""
    total, available = _memory()
    devices, missing, refused = _accelerators()
    found = Machine(
        cores=cores(),
        memory_bytes=total,
        memory_available=available,
        devices=devices,
        compiler=_compiler(),
        platform=f"{platform.system()}-{platform.machine()}",
        python=platform.python_version(),
        processor=_processor(),
        missing=missing,
        told=_told(os.environ),
    )
    return found, refused


def _accelerators() -> tuple[tuple[DeviceKind, ...], tuple[str, ...], Refused | None]:
    try:
        return *accelerators.visible(), None
    except Refused as refused:
        return (), (), refused


def cores() -> int:
    """Cores that this process may use: affinity, and the control group's quota rounded up."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota()
    return max(1, min(usable, -(-quota[0] // quota[1])) if quota else usable)


def _told(environ: Mapping[str, str]) -> int | None:
    """What OMP_NUM_THREADS says: its first number, as for OpenMP. torchrun puts a 1 there that nobody asked for."""
    word = environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if "TORCHELASTIC_RUN_ID" in environ or not word.isdecimal():
        return None
    return int(word) or None


def disk_free(path: Path) -> int:
    """Free bytes where `path` lies or would lie."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _groups(controller: str) -> list[Path]:
    """Folders of this process's control group for `controller`, innermost first, up to the root that can be seen."""
    found: list[Path] = []
    try:
        entries = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return found
    for entry in entries:
        _, names, place = entry.split(":", 2)
        if names and controller not in names.split(","):
            continue
        root = Path("/sys/fs/cgroup") / (controller if names else "")
        folder = root / place.lstrip("/")
        found += [level for level in (folder, *folder.parents) if level.is_relative_to(root) and level.is_dir()]
    return found


def _number(path: Path) -> int | None:
    """The number in a control file; None where there is no file or no limit ("max")."""
    try:
        text = path.read_text(encoding="ascii").split()[0]
    except (OSError, IndexError):
        return None
    return int(text) if text.lstrip("-").isdigit() else None


def _cpu_quota() -> tuple[int, int] | None:
    """The tightest (quota, period) in microseconds."""
    found = []
    for folder in _groups("cpu"):
        try:
            words = (folder / "cpu.max").read_text(encoding="ascii").split()
            pair = (int(words[0]), int(words[1])) if words[0] != "max" else None
        except (OSError, IndexError, ValueError):
            quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
            pair = (quota, period) if quota and period and quota > 0 else None
        if pair:
            found.append(pair)
    return min(found, key=lambda pair: pair[0] / pair[1], default=None)


def _memory() -> tuple[int, int]:
    """Bytes in all and available, under the tightest control group."""
    known = psutil.virtual_memory()
    total, available = int(known.total), int(known.available)
    for folder in _groups("memory"):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
        if limit and limit < total:
            total = limit
            # Page cache counts as used there and is given back under pressure.
            available = min(available, limit - used + _inactive(folder))
    return total, max(0, available)


def _inactive(folder: Path) -> int:
    """Bytes of file pages that the control group would drop before it kills anybody."""
    try:
        rows = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    known = dict(row.split()[:2] for row in rows if " " in row)
    return int(known.get("total_inactive_file", known.get("inactive_file", 0)))


def _compiler() -> str | None:
    """The C++ compiler that torch.compile would call on a CPU."""
    names = [os.environ.get("CXX", ""), "g++", "c++", "clang++"]
    return next((name for name in names if name and shutil.which(name)), None)


def _processor() -> str:
    """What the processor calls itself."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            rows = [row for row in file if row.startswith(("model name", "Hardware"))]
    except OSError:
        rows = []
    return rows[0].split(":", 1)[1].strip() if rows else platform.processor() or platform.machine()


def cache_folder() -> Path:
    """$ARGOSY_CACHE, else argosy under $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("ARGOSY_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "argosy"


Shapes: TypeAlias = Sequence[tuple[int, int, int]]  # M, K, N of matrix products


def _probe_file(cache: Path | None, shapes: Shapes) -> Path:
    words = "\0".join([_machine_key(), *(f"{m},{k},{n}" for m, k, n in shapes)])
    return (cache or cache_folder()) / "probe" / f"{blake2b(words.encode(), digest_size=10).hexdigest()}.json"


def probed(cache: Path | None = None, shapes: Shapes = ()) -> dict[str, Any]:
    """What an earlier `probe` measured here; empty when none did."""
    try:
        kept = json.loads(_probe_file(cache, shapes).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def probe(cache: Path | None = None, shapes: Shapes = (), *, fresh: bool = False) -> dict[str, Any]:
    """What `python -m argosy.device.probe` measures here, kept per machine, cores, torch and shapes. gemm in GFLOP/s.

    {"gemm": {"float32": 140.0, "bfloat16": 32.0}, "torch": "2.13.0+cpu", "devices": [...]}. `shapes`: of the matrix
    products; none = typical ones. Refused, as a bug, when the probe itself fails.
    """
    path = _probe_file(cache, shapes)
    if not fresh and (kept := probed(cache, shapes)):
        return kept
    said = ["--shapes", *(f"{m},{k},{n}" for m, k, n in shapes)] if shapes else []
    # -P: a file named like a module in the working folder must not be imported instead of it.
    command = [sys.executable, "-P", "-m", "argosy.device.probe", *said]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise Refused(
            "measuring this machine failed.",
            found=last,
            do="`python -P -m argosy.device.probe` shows all of it.",
            code=BUG,
        ) from None
    _keep(path, found)
    return found


def tried(request: Mapping[str, Any], cache: Path | None = None) -> dict[str, Any]:
    """The kept answer to `request` (see `trial`); without "pieces" where nobody has timed them. Costs one file."""
    try:
        kept = json.loads(_trial_file(request, cache).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


class Trial:
    """Times pieces of a job's model: `python -m argosy.train.bound_trial`, one child, which ends with this process.

    `begin` lets it load ahead of the question.
    """

    def __init__(self, cache: Path | None = None, limit: float = TRIAL):
        self.cache, self.limit = cache, limit
        self._child: subprocess.Popen[str] | None = None

    def begin(self) -> None:
        """Start loading torch now, where this machine was never measured: what is asked later is answered sooner."""
        folder = (self.cache or cache_folder()) / "probe"
        if not folder.is_dir() or not any(folder.iterdir()):
            self._start()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to `request`: kept, or timed now and kept; never Refused, and never later than after `limit` seconds.

        "steady" is false where the machine was too busy: then it is the best that could be had, and is kept for an hour only.
        {"failed": why} where nothing could be had.
        """
        kept = tried(request, self.cache)
        if stands(kept):
            self.close()
            return kept
        found = self._timed(request)
        older = kept if "pieces" not in found else {"seen": kept["seen"]} if "seen" in kept else {}
        found = {**older, **found}
        if "steady" in found:
            found["at"] = time.time()
            _keep(_trial_file(request, self.cache), found)
        return found

    def _timed(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What the program says last, "failed" where that is nothing."""
        until = time.monotonic() + self.limit
        try:
            child = self._child or self._start()
            try:
                asked = f"{json.dumps(dict(request))}\n{until - LAST}\n"
                said, complaint = child.communicate(asked, timeout=self.limit)
            except subprocess.TimeoutExpired:
                child.kill()
                said, complaint = child.communicate()
        except OSError as error:
            return {"failed": error.strerror or str(error)}
        finally:
            self.close()
        if found := _last(said):
            return found
        if time.monotonic() >= until - LAST and not complaint.strip():  # it ends by itself where it has no time left
            late = f"this machine is so busy that it took longer than {self.limit:.0f} s"
            return {"failed": late, "steady": False}
        return {"failed": (complaint.strip().splitlines() or ["the program said nothing"])[-1][:200]}

    def close(self) -> None:
        """End the child, if there is one."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()

    def _start(self) -> subprocess.Popen[str]:
        # -P: a file named like a module in the working folder must not be imported instead of it.
        command = [sys.executable, "-P", "-m", "argosy.train.bound_trial", str(os.getpid())]
        pipe = subprocess.PIPE
        # A group of its own: Ctrl-C is for the starter, which ends it.
        self._child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, process_group=0)
        return self._child


def stands(kept: Mapping[str, Any]) -> bool:
    """Whether a kept answer is still believed: what a quiet machine said always, what a busy one said for an hour."""
    if kept.get("steady", True):
        return "pieces" in kept
    return 0 <= time.time() - float(kept.get("at", 0)) < AGAIN  # not where the clock was set back


def _last(said: str) -> dict[str, Any]:
    """The last whole line of JSON in `said`; a program that was ended may have written half of one."""
    for line in reversed(said.splitlines()):
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                return found
    return {}


def learn(request: Mapping[str, Any], key: str, seconds: float, cache: Path | None = None) -> None:
    """Keep what a run's step really took, under `key`, beside the answer to its `request`: the next prediction is that."""
    kept = tried(request, cache)
    kept["seen"] = {**kept.get("seen", {}), key: float(f"{seconds:.4g}")}
    _keep(_trial_file(request, cache), kept)


def _trial_file(request: Mapping[str, Any], cache: Path | None) -> Path:
    words = "\0".join([_machine_key(), json.dumps(dict(request), sort_keys=True)])
    return (cache or cache_folder()) / "probe" / f"trial-{blake2b(words.encode(), digest_size=10).hexdigest()}.json"


def _keep(path: Path, found: Mapping[str, Any]) -> None:
    """Write what was measured; an unwritable cache costs the next start some seconds, no more."""
    with suppress(OSError):
        path.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # the cache, where prepared text lies too
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(found), encoding="utf-8")
        temporary.replace(path)


def _machine_key() -> str:
    """Names this machine as far as measured speeds depend on it."""
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "none"
    devices = ",".join(device.name for device in _accelerators()[0])
    words = (platform.node(), _processor(), str(cores()), torch, devices, os.environ.get("OMP_NUM_THREADS", ""))
    return "\0".join(words)
