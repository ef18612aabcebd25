"""Lint rules of this house that no linter has: `python tools/forbidden.py [FILE|FOLDER ...]`.

Private torch: names of torch with a leading underscore, and names that changed between the supported versions, are used
in `device/torch_versions.py` and its own test alone. Pickle: nothing that a file can hold is unpickled, evaluated or
executed. Torch at import: outside the engine no module imports torch (or an engine room) when it is loaded. Size: a file of
the package that one cannot oversee, or a function, is to be split. What is found is printed as file:line: rule: sentence;
exit code 1. In tests a line may end with `# allowed: REASON`; in the package nothing may.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKED = ("src", "tests", "tools", "benchmarks", "bootstrap.py")
VERSIONS_MODULE = "device/torch_versions.py"
VERSIONS_TEST = "tests/device/test_torch_versions.py"
# The one module that may unpickle, with a closed list of classes, would stand here after a review. None is needed yet.
REVIEWED: tuple[str, ...] = ()

ENGINE = ("device", "model", "optim", "parallel", "checkpoint", "exchange", "evaluate", "train")
TORCH_FREE_ENGINE = (
    "checkpoint.snapshot",
    "checkpoint.slots",
    "checkpoint.sweep",
    "checkpoint.store",
    "checkpoint.manifest",
    "checkpoint.plan",
    "exchange.mapping",
    "exchange.config",
    "exchange.source",
    "exchange.card",
)
IMPORTS_TORCH_ALONE = ("prove/reference.py",)

# Names of torch's objects that alias tracking cannot see, because they are reached through instances.
PRIVATE_ATTRIBUTES = {
    "_allgather_base",
    "_reduce_scatter_base",
    "_local_tensor",
    "_fsdp_param_group",
    "_fsdp_wrapped_module",
    "_get_fsdp_state",
    "_get_backend",
    "_orig_mod",
    "_spec",
}
VERSION_BOUND = {"all_gather_single", "reduce_scatter_single", "_allgather_base", "_reduce_scatter_base"}
PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "pickle5", "shelve"}
FORBIDDEN_CALLS = {
    "torch.load": "torch.load unpickles; own files are safetensors and JSON",
    "torch.save": "torch.save pickles; own files are safetensors and JSON",
    "torch.distributed.checkpoint.load": "its file reader unpickles .metadata (FileSystemReader)",
    "torch.distributed.checkpoint.FileSystemReader": "it unpickles .metadata",
    "torch.distributed.checkpoint.FileSystemWriter": "it pickles .metadata",
    "yaml.load": "yaml.load builds any object; TOML and JSON are the formats here",
    "yaml.unsafe_load": "it builds any object; TOML and JSON are the formats here",
    "pandas.read_pickle": "it unpickles",
}
DYNAMIC = {"eval", "exec"}
LINES_OF_FILE, LINES_OF_FUNCTION = 400, 60  # from which on something of the package is too long


@dataclass(frozen=True)
class Finding:
    """One breach: where, which rule, and a sentence."""

    path: Path
    line: int
    rule: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.sentence}"


class _File(ast.NodeVisitor):
    """Walks one module, knowing which local names stand for which dotted names."""

    def __init__(self, path: Path, package: str):
        self.path, self.package = path, package  # package: path below src/argosy, "" for other files
        self.names: dict[str, str] = {}
        self.found: list[Finding] = []
        self.depth = 0
        self.versions = package == VERSIONS_MODULE or path.as_posix().endswith(VERSIONS_TEST)
        self.reviewed = package in REVIEWED
        room = package.split("/")[0]
        dotted = package.removesuffix(".py").replace("/", ".")
        self.loads_torch = (
            not package or (room in ENGINE and dotted not in TORCH_FREE_ENGINE) or package in IMPORTS_TORCH_ALONE
        )

    def note(self, node: ast.stmt | ast.expr, rule: str, sentence: str) -> None:
        self.found.append(Finding(self.path, node.lineno, rule, sentence))

    # Scopes: what stands inside a function or under TYPE_CHECKING is not imported when the module is loaded.
    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if self.package and lines >= LINES_OF_FUNCTION:
            self.note(node, "size", f"{node.name} has {lines} lines; split it")
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 (the visitor's own naming)

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" in ast.unparse(node.test):
            self.depth += 1
            self.generic_visit(node)
            self.depth -= 1
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for name in node.names:
            self.imported(node, name.name)
            self.names[name.asname or name.name.split(".")[0]] = name.name if name.asname else name.name.split(".")[0]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = ("argosy." if node.level else "") + (node.module or "")
        for name in node.names:
            whole = f"{module}.{name.name}"
            self.imported(node, whole, inside=module)
            self.names[name.asname or name.name] = whole

    def imported(self, node: ast.stmt, whole: str, inside: str = "") -> None:
        """The three rules for `import whole` (`from inside import ...`)."""
        parts = whole.split(".")
        self.private(node, whole)
        if parts[0] in PICKLES and not self.reviewed:
            self.note(node, "pickle", f"{parts[0]} runs what a file says; write JSON or safetensors")
        self.forbidden_name(node, whole)
        if self.depth or self.loads_torch:
            return
        if parts[0] == "torch" or whole.startswith("safetensors.torch"):
            self.note(node, "torch", f"{whole} is imported when this module is loaded; import it inside the function")
        elif parts[0] == "argosy" and len(parts) > 1 and parts[1] in ENGINE:
            target = ".".join((inside or whole).split(".")[1:])
            if not any(f"{target}.".startswith(f"{free}.") or whole == f"argosy.{free}" for free in TORCH_FREE_ENGINE):
                self.note(node, "torch", f"{whole} loads torch; import it inside the function")

    def private(self, node: ast.stmt | ast.expr, whole: str) -> None:
        parts = whole.split(".")
        if parts[0] != "torch" or self.versions:
            return
        hidden = [part for part in parts if part.startswith("_") and not part.endswith("__")]
        if hidden:
            self.note(node, "private torch", f"{whole} is private; use it through argosy.device.torch_versions")
        elif parts[-1] in VERSION_BOUND:
            self.note(node, "private torch", f"{whole} depends on the version; ask argosy.device.torch_versions")

    def forbidden_name(self, node: ast.stmt | ast.expr, whole: str) -> None:
        if whole in FORBIDDEN_CALLS and not self.reviewed:
            self.note(node, "pickle", f"{whole}: {FORBIDDEN_CALLS[whole]}")

    def dotted(self, node: ast.expr) -> str:
        """The full dotted name of an attribute chain that starts at an imported name, else ""."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id not in self.names:
            return ""
        return ".".join([self.names[node.id], *reversed(parts)])

    def visit_Attribute(self, node: ast.Attribute) -> None:
        whole = self.dotted(node)
        if whole:
            self.private(node, whole)
            self.forbidden_name(node, whole)
        else:
            if node.attr in PRIVATE_ATTRIBUTES and self.package and not self.versions:
                self.note(node, "private torch", f".{node.attr} is private to torch; see argosy.device.torch_versions")
            elif node.attr in VERSION_BOUND and self.package and not self.versions:
                self.note(node, "private torch", f".{node.attr} depends on the version of torch")
            self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        # Keeping the version in a record is fine; deciding by it belongs into one module.
        inside = [part for part in ast.walk(node) if isinstance(part, ast.Attribute)]
        if self.package and not self.versions and "torch.__version__" in map(self.dotted, inside):
            self.note(node, "private torch", "this decides by torch.__version__; ask argosy.device.torch_versions")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in DYNAMIC and not self.reviewed:
            self.note(node, "pickle", f"{node.func.id}() runs text as code")
        whole = self.dotted(node.func) if isinstance(node.func, (ast.Attribute, ast.Name)) else ""
        for keyword in node.keywords:
            refused = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if keyword.arg == "allow_pickle" and not refused and not self.reviewed:
                self.note(node, "pickle", f"{whole or 'a call'} with allow_pickle unpickles")
        self.generic_visit(node)


def check(path: Path, root: Path = ROOT) -> list[Finding]:
    """The breaches of one Python file, in the order of its lines."""
    inside = path.resolve()
    source = root / "src" / "argosy"
    package = inside.relative_to(source).as_posix() if inside.is_relative_to(source) else ""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    visitor = _File(path, package)
    visitor.visit(ast.parse(text, filename=str(path)))
    if package and len(lines) >= LINES_OF_FILE:
        visitor.found.append(Finding(path, len(lines), "size", f"{len(lines)} lines; split the file"))
    if inside.is_relative_to(root / "tests"):
        visitor.found = [one for one in visitor.found if "# allowed: " not in lines[one.line - 1]]
    return sorted(set(visitor.found), key=lambda one: (one.line, one.rule, one.sentence))


def files(places: Sequence[Path]) -> Iterator[Path]:
    """All Python files at `places`."""
    for place in places:
        yield from sorted(place.rglob("*.py")) if place.is_dir() else [place]


def main(arguments: Sequence[str]) -> int:
    """Check the named files, or the whole repository; 1 when something was found."""
    places = [Path(name) for name in arguments] or [ROOT / name for name in CHECKED if (ROOT / name).exists()]
    checked = list(files(places))
    found = [one for path in checked for one in check(path)]
    for one in found:
        print(one)
    print(f"forbidden: {len(found)} found in {len(checked)} files")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
