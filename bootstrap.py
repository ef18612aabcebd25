"""Set-up on a fresh machine, and what the Makefile runs: `python3 bootstrap.py train|test|test-long|docs|lint|setup`.

Standard library only, and readable by an older Python, so that it can say what is missing. It finds Python >= 3.11,
names the package to install when something is missing, makes `.venv` (or uses the active environment when that has
torch), installs torch first and Argosy after it, says name and size before it downloads, and remembers what it did: the
second time it only looks at a stamp. `ARGOSY_VENV=DIR` puts the environment somewhere else. Exit codes: 0, 2 (something
for you to install or mend), 4 (installing failed), else that of the command.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time

ROOT = os.path.dirname(os.path.abspath(__file__))
OLDEST_PYTHON = (3, 11)
NEWEST_PYTHON = (3, 14)
OLDEST_TORCH = (2, 11)
STAMP = "argosy-setup.json"

# What a package manager calls each thing; {minor} is that of the Python that would be used.
PARTS = ("python", "venv", "headers", "g++", "git")
PACKAGES = {
    "apt-get": ("sudo apt-get install", "python3.11-venv", "python3.{minor}-venv", "python3.{minor}-dev", "g++", "git"),
    "dnf": ("sudo dnf install", "python3.11", "python3-libs", "python3-devel", "gcc-c++", "git"),
    "zypper": ("sudo zypper install", "python311", "python3{minor}-base", "python3{minor}-devel", "gcc-c++", "git"),
    "pacman": ("sudo pacman -S", "python", "python", "python", "gcc", "git"),
    "apk": ("sudo apk add", "python3", "python3", "python3-dev", "g++", "git"),
    "brew": ("brew install", "python@3.12", "python@3.12", "python@3.12", "gcc", "git"),
}
WHAT_FOR = {
    "venv": "Python's venv module, to keep Argosy apart from the rest of the machine",
    "g++": "a C++ compiler (g++), with which torch compiles the model",
    "headers": "Python's C headers (Python.h), with which torch compiles the model",
    "git": "git, with which a run keeps the commit that it was made by",
}
COMMANDS = {
    "train": "set up, then train the built-in laptop job (arguments: those of `argosy train`)",
    "test": "set up, then lint and the short tests",
    "test-long": "set up, then the long tests",
    "docs": "set up, then run the commands shown in README and docs",
    "lint": "set up, then lint alone",
    "bench": "set up, then the benchmarks (hours; --quick to see them work)",
    "setup": "set up alone (--dev: with what the tests need)",
}


class Stop(Exception):
    """A sentence for the person, and the exit code."""

    def __init__(self, text, code=2):
        super().__init__(text)
        self.code = code


def say(text):
    print(text, flush=True)


# --- what the machine must have ---------------------------------------------------------------------------------------


def find_python(version=sys.version_info, which=shutil.which):
    """The Python to go on with: None for the running one, else the path of a newer one; Stop when there is none."""
    if tuple(version[:2]) >= OLDEST_PYTHON:
        return None
    for minor in range(NEWEST_PYTHON[1], OLDEST_PYTHON[1] - 1, -1):
        found = which("python3.%d" % minor)
        if found:
            return found
    raise Stop(
        "Argosy needs Python 3.11 or newer; this is %d.%d, and no newer one is on the PATH. %s"
        % (version[0], version[1], how_to_install(["python"], which))
    )


def missing_parts(need_venv, need_headers, which=shutil.which, has_module=importlib.util.find_spec, include=None):
    """Which of venv, g++, headers and git are not there."""
    include = sysconfig.get_path("include") if include is None else include
    missing = []
    if need_venv and not (has_module("venv") and has_module("ensurepip")):
        missing.append("venv")
    if not any(which(name) for name in (os.environ.get("CXX") or "g++", "g++", "c++", "clang++")):
        missing.append("g++")
    if need_headers and not os.path.exists(os.path.join(include, "Python.h")):
        missing.append("headers")
    if not which("git"):
        missing.append("git")
    return missing


def how_to_install(parts, which=shutil.which, minor=None):
    """One command that installs `parts` with this machine's package manager."""
    minor = sys.version_info[1] if minor is None else minor
    manager = next((name for name in PACKAGES if which(name)), None)
    if manager is None:
        return "Install %s with your system's package manager." % " and ".join(parts)
    install, *names = PACKAGES[manager]
    wanted = [dict(zip(PARTS, names))[part].format(minor=minor) for part in parts]
    return "Install it with: %s %s" % (install, " ".join(dict.fromkeys(wanted)))


def check_machine(need_venv, need_headers):
    """Stop with one sentence a missing part, and one command that installs them all."""
    if os.name == "nt":
        raise Stop("Argosy runs on Linux and macOS. On Windows, use WSL2 (`wsl --install`) and start again there.")
    missing = missing_parts(need_venv, need_headers)
    if missing:
        raise Stop("Missing: %s.\n%s" % ("; ".join(WHAT_FOR[part] for part in missing), how_to_install(missing)))


# --- which environment ------------------------------------------------------------------------------------------------


def python_of(prefix):
    return os.path.join(prefix, "bin", "python")


def installed(python):
    """{name: version} of all that `python` can import, by metadata alone; {} where `python` does not run."""
    program = (
        "import importlib.metadata as m, json, sys;"
        "print(json.dumps([list(sys.version_info[:2]),"
        "{(d.metadata['Name'] or '').lower().replace('_','-'): d.version for d in m.distributions()}]))"
    )
    try:
        text = subprocess.run([python, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120)
        version, packages = json.loads(text.stdout.decode())
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return {}
    return packages if tuple(version) >= OLDEST_PYTHON else {}


def usable_torch(packages):
    """The version of a torch that can be kept, or None."""
    found = packages.get("torch")
    if not found:
        return None
    numbers = re.match(r"(\d+)\.(\d+)", found)
    return found if numbers and (int(numbers.group(1)), int(numbers.group(2))) >= OLDEST_TORCH else None


def choose_environment(variables=os.environ, root=ROOT, running=None):
    """(prefix, borrowed): the environment to install into, and whether it is somebody else's, whose packages stay.

    The active environment when it has torch, else `.venv`. A running interpreter outside any environment that has torch
    lends it to `.venv` (see `make_environment`).
    """
    if variables.get("ARGOSY_VENV"):
        return os.path.abspath(variables["ARGOSY_VENV"]), False
    own = os.path.join(root, ".venv")
    candidates = [variables.get("VIRTUAL_ENV")]
    if running is None:
        running = sys.prefix if sys.prefix != sys.base_prefix else None
    candidates.append(running)
    for prefix in candidates:
        if not prefix or os.path.abspath(prefix) == own:
            continue
        if read_stamp(prefix) or usable_torch(installed(python_of(prefix))):
            return os.path.abspath(prefix), True
    return own, False


def make_environment(prefix):
    """Create `prefix` unless it works; it sees the running interpreter's packages when these hold a torch."""
    if os.path.exists(python_of(prefix)) and installed(python_of(prefix)):
        return
    base = getattr(sys, "_base_executable", None) or sys.executable
    lent = usable_torch(installed(base))
    say("Making an environment in %s%s" % (prefix, " that uses the torch %s of %s" % (lent, base) if lent else ""))
    command = [base, "-m", "venv", "--clear", prefix] + (["--system-site-packages"] if lent else [])
    if subprocess.call(command) != 0:
        raise Stop("venv failed (above). " + how_to_install(["venv"]))


def sees_others(prefix):
    """Whether the environment `prefix` also sees its base interpreter's packages."""
    try:
        with open(os.path.join(prefix, "pyvenv.cfg")) as file:
            return "include-system-site-packages = true" in file.read()
    except OSError:
        return False


# --- installing -------------------------------------------------------------------------------------------------------


def fingerprint(root=ROOT):
    """What the installed state depends on: what is asked for, where the checkout lies, this program."""
    digest = hashlib.sha256(root.encode())
    for name in ("pyproject.toml", "constraints.txt", "bootstrap.py"):
        with open(os.path.join(root, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def read_stamp(prefix, root=ROOT):
    """The level that `prefix` is at: "core", "dev", or "" when the checkout changed since."""
    try:
        with open(os.path.join(prefix, STAMP)) as file:
            stamp = json.load(file)
        same = stamp["fingerprint"] == fingerprint(root) and os.path.exists(os.path.join(prefix, "bin", "argosy"))
        return stamp["level"] if same and os.path.exists(python_of(prefix)) else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def write_stamp(prefix, level, root=ROOT):
    try:
        with open(os.path.join(prefix, STAMP), "w") as file:
            json.dump({"fingerprint": fingerprint(root), "level": level}, file)
    except OSError as error:
        say("note: could not write %s (%s): set-up will look at everything again next time" % (STAMP, error))


def requirements(level, root=ROOT):
    """The package's requirements, the build's, and for "dev" those of the tests."""
    import tomllib

    with open(os.path.join(root, "pyproject.toml"), "rb") as file:
        project = tomllib.load(file)
    wanted = list(project["project"]["dependencies"]) + list(project["build-system"]["requires"]) + ["editables"]
    return wanted + (project["project"]["optional-dependencies"]["dev"] if level == "dev" else [])


def name_of(requirement):
    return re.split(r"[\s<>=!~\[;]", requirement.strip(), maxsplit=1)[0].lower().replace("_", "-")


def constraints(packages, borrowed, root=ROOT):
    """The pins that apply: a torch that is there keeps its version; in a borrowed environment so does everything."""
    kept = dict(packages) if borrowed else {}
    torch = usable_torch(packages)
    if torch:
        kept["torch"] = torch
    lines = []
    with open(os.path.join(root, "constraints.txt")) as file:
        for line in file:
            line = line.split("#")[0].strip()
            if line and name_of(line) not in kept:
                lines.append(line)
    return lines + ["%s==%s" % (name, version) for name, version in kept.items() if name and name != "argosy"]


def sizes(urls):
    """Bytes of each address, None where it does not say; files on this disk by their size."""
    import ssl
    import urllib.parse
    import urllib.request
    from concurrent.futures import ThreadPoolExecutor

    trust = ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE") or None)

    def one(url):
        parts = urllib.parse.urlsplit(url)
        try:
            if parts.scheme == "file":
                return os.path.getsize(urllib.parse.unquote(parts.path))
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=15, context=trust) as answer:
                return int(answer.headers["Content-Length"])
        except (OSError, ValueError, TypeError):
            return None

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, urls))


def pip(python, *arguments):
    return [python, "-m", "pip", "--no-input", "--disable-pip-version-check", *arguments]


def plan(python, wanted, pins):
    """[(name, version, bytes or None)] that pip would install for `wanted`, largest first."""
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "report.json")
        command = pip(python, "install", "-qq", "--dry-run", "--report", report, "-c", pins, *wanted)
        if subprocess.call(command, stdout=subprocess.DEVNULL) != 0:
            raise Stop(
                "pip could not find what is needed (above). Without a network, point pip at a folder of "
                "wheels: PIP_FIND_LINKS=DIR PIP_NO_INDEX=1.",
                4,
            )
        with open(report) as file:
            items = json.load(file)["install"]
    lengths = sizes([item["download_info"]["url"] for item in items])
    found = [(item["metadata"]["name"], item["metadata"]["version"], n) for item, n in zip(items, lengths)]
    return sorted(found, key=lambda item: -(item[2] or 0))


def megabytes(count):
    return "%.1f GB" % (count / 1e9) if count >= 1e9 else "%.0f MB" % max(count / 1e6, 1)


def describe(found):
    """One line: names and sizes of what comes, the small ones together."""
    big = [item for item in found if (item[2] or 0) >= 10e6]
    small = found[len(big) :]
    texts = ["%s %s (%s)" % (name, version, megabytes(size)) for name, version, size in big]
    if small:
        names = ", ".join(item[0] for item in small[:3]) + (", …" if len(small) > 3 else "")
        known = sum(item[2] or 0 for item in small)
        unknown = ", some of unknown size" if any(item[2] is None for item in small) else ""
        texts.append("%d smaller: %s (%s%s)" % (len(small), names, megabytes(known), unknown))
    return ", ".join(texts) + ". In all " + megabytes(sum(item[2] or 0 for item in found)) + "."


def fetch(python, prefix, title, wanted, pins):
    """Say what comes and how large it is, then install it; nothing is said or done when all is there."""
    found = plan(python, wanted, pins)
    if not found:
        return
    say("%s: %s" % (title, describe(found)))
    need = 5 * sum(item[2] or 0 for item in found)  # the files and what they unpack to
    free = shutil.disk_usage(prefix).free
    if free < need:
        raise Stop(
            "Not enough disk at %s: %s free, about %s needed. Free some, or put the environment elsewhere: "
            "ARGOSY_VENV=DIR." % (prefix, megabytes(free), megabytes(need)),
            4,
        )
    began = time.monotonic()
    command = pip(python, "install", "-qq", "-c", pins, *wanted)
    if subprocess.call(command) != 0:
        raise Stop("pip could not install it (above); nothing else was changed. The same command goes on.", 4)
    say("  done in %.0f s" % (time.monotonic() - began))


def install(prefix, borrowed, level):
    """Bring `prefix` to `level` ("core" or "dev"): torch first, then the rest, then Argosy itself, editable."""
    python = python_of(prefix)
    if subprocess.call([python, "-m", "pip", "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) != 0:
        subprocess.call([python, "-m", "ensurepip", "--upgrade"], stdout=subprocess.DEVNULL)
    packages = installed(python)
    with tempfile.TemporaryDirectory() as folder:
        pins = os.path.join(folder, "constraints.txt")
        with open(pins, "w") as file:
            file.write("\n".join(constraints(packages, borrowed)) + "\n")
        kept = usable_torch(packages)
        if kept:
            say("Keeping torch %s, which is there" % kept)
        else:
            if packages.get("torch"):
                say("note: torch %s in %s is older than 2.11 and will be replaced" % (packages["torch"], prefix))
            fetch(python, prefix, "Downloading torch", ["torch"], pins)
        fetch(python, prefix, "Downloading what Argosy needs", requirements(level), pins)
    command = pip(python, "install", "-qq", "--no-deps", "--no-build-isolation", "--no-index", "-e", ROOT)
    if subprocess.call(command) != 0:
        raise Stop("pip could not install Argosy itself (above).", 1)
    write_stamp(prefix, level)


def set_up(level):
    """The environment's prefix, ready for `level`; a matching stamp makes this a matter of milliseconds."""
    prefix, borrowed = choose_environment()
    check_machine(need_venv=not os.path.exists(python_of(prefix)), need_headers=not borrowed)
    if read_stamp(prefix) in ("dev", level):
        return prefix
    if not borrowed:
        make_environment(prefix)
    install(prefix, borrowed or sees_others(prefix), level)
    say("Ready: %s" % (os.path.relpath(prefix) if prefix.startswith(os.getcwd() + os.sep) else prefix))
    return prefix


def become(arguments):
    """Replace this process by a program of the environment, so that signals and exit codes are its own."""
    sys.stdout.flush()
    os.execv(arguments[0], arguments)


def main(arguments):
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command not in COMMANDS:
        lines = ["  %-10s %s" % item for item in COMMANDS.items()]
        say("\n".join(["usage: python3 bootstrap.py COMMAND [arguments passed on]", "", *lines]))
        return 0 if command in ("-h", "--help") else 2
    other = find_python()
    if other:
        os.execv(other, [other, os.path.abspath(__file__), *arguments])
    prefix = set_up("core" if command == "train" or (command == "setup" and "--dev" not in rest) else "dev")
    if command == "train":
        become([os.path.join(prefix, "bin", "argosy"), "train", *rest])
    if command == "bench":
        become([python_of(prefix), os.path.join(ROOT, "benchmarks"), *rest])
    if command != "setup":
        become([python_of(prefix), os.path.join(ROOT, "tools", "check.py"), command, *rest])
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Stop as stop:
        print("error: %s" % stop, file=sys.stderr, flush=True)
        sys.exit(stop.code)
    except KeyboardInterrupt:
        sys.exit(130)
