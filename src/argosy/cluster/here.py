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
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

import psutil

from argosy.errors import BUG, MACHINE, Refused

DEVICES = Path("/dev")
TRIAL = 90.0  # seconds that timing may take, loading included: a busy machine needs many times the usual six


@dataclass(frozen=True)
class DeviceKind:
    """One accelerator of this machine."""

    kind: str  # "cuda"
    name: str  # "NVIDIA H200"
    memory_bytes: int


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
    """What is here now."""
    total, available = _memory()
    devices, missing = _devices()
    return Machine(
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


def _devices() -> tuple[tuple[DeviceKind, ...], tuple[str, ...]]:
    """NVIDIA devices that CUDA_VISIBLE_DEVICES leaves, and what it names that is not there."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    wanted = None if visible is None else tuple(word.strip() for word in visible.split(",") if word.strip())
    if wanted == () or (wanted and wanted[0] == "-1"):
        return (), ()
    program = shutil.which("nvidia-smi")
    if program is None:
        return (), wanted or ()
    ask = [program, "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        # Without the driver's persistence mode eight devices take longer than twenty seconds to wake.
        rows = subprocess.run(ask, capture_output=True, text=True, timeout=120, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        if not isinstance(error, subprocess.TimeoutExpired) and not any(DEVICES.glob("nvidia[0-9]*")):
            return (), wanted or ()  # a program left over on a machine that has no such device
        raise Refused(
            "there are GPUs here, and nvidia-smi does not tell what they are.",
            found=str(getattr(error, "stderr", "") or error).strip()[:200],
            do="See what `nvidia-smi` says; CUDA_VISIBLE_DEVICES= before the command trains on the CPU.",
            code=MACHINE,
        ) from None
    return _listed(rows, wanted)


def _listed(rows: Iterable[str], wanted: Sequence[str] | None) -> tuple[tuple[DeviceKind, ...], tuple[str, ...]]:
    """The devices in nvidia-smi's rows "index, uuid, name, MiB", those in `wanted` only; and what of it is not there."""
    found: list[DeviceKind] = []
    matched: set[str] = set()
    for row in rows:
        index, uuid, name, mebibytes = (word.strip() for word in row.split(",", 3))
        named = [want for want in wanted or () if want == index or (not want.isdigit() and uuid.startswith(want))]
        matched.update(named)
        if wanted is None or named:
            found.append(DeviceKind("cuda", name, int(mebibytes) << 20 if mebibytes.isdigit() else 0))
    return tuple(found), tuple(want for want in wanted or () if want not in matched)


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

    {"gemm": {"float32": 140.0, "bfloat16": 32.0}, "torch": "2.13.0+cpu", "devices": [...]}. `shapes` are the model's own
    matrix products (`plan/seconds.py` lists them); none = typical ones. Refused, as a bug, when the probe itself fails.
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
    """Times pieces of a job's model: `python -m argosy.train.trial`, one child. `begin` lets it load ahead of the question."""

    def __init__(self, cache: Path | None = None, limit: float = TRIAL):
        self.cache, self.limit = cache, limit
        self._child: subprocess.Popen[str] | None = None

    def begin(self) -> None:
        """Start loading torch now, where this machine was never measured: what is asked later is answered sooner."""
        folder = (self.cache or cache_folder()) / "probe"
        if not folder.is_dir() or not any(folder.iterdir()):
            self._start()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to `request`: kept, or timed now and kept. {"failed": why} where it cannot be had; never Refused."""
        kept = tried(request, self.cache)
        if "pieces" in kept:
            self.close()
            return kept
        try:
            child = self._child or self._start()
            said, complaint = child.communicate(json.dumps(dict(request)) + "\n", timeout=self.limit)
            found: dict[str, Any] = json.loads(said)
        except subprocess.TimeoutExpired:
            return {**kept, "failed": f"it took longer than {self.limit:.0f} s"}
        except OSError as error:
            return {**kept, "failed": error.strerror or str(error)}
        except ValueError:
            return {**kept, "failed": (complaint.strip().splitlines() or ["the program said nothing"])[-1][:200]}
        finally:
            self.close()
        found = {**found, "seen": kept.get("seen", {})}
        if found["keep"]:  # else it was disturbed, and the next start measures again
            _keep(_trial_file(request, self.cache), found)
        return found

    def close(self) -> None:
        """End the child, if there is one."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()

    def _start(self) -> subprocess.Popen[str]:
        # -P: a file named like a module in the working folder must not be imported instead of it.
        command = [sys.executable, "-P", "-m", "argosy.train.trial"]
        pipe = subprocess.PIPE
        self._child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        return self._child


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
    devices = ",".join(device.name for device in _devices()[0])
    words = (platform.node(), _processor(), str(cores()), torch, devices, os.environ.get("OMP_NUM_THREADS", ""))
    return "\0".join(words)
