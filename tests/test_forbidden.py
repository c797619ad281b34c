"""Constructs that have no place in the package: broad excepts, shells, pickles, unsafe loaders."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# torch.load is fine with weights_only=True; the others never are.
CALLS = {
    "os.popen",
    "os.system",
    "torch.load",
    *(f"pickle.{name}" for name in ("Pickler", "Unpickler", "dump", "dumps", "load", "loads")),
    *(f"yaml.{name}" for name in ("full_load", "load", "load_all", "unsafe_load")),
}


def violations(source: str) -> list[str]:
    """Return "line: what" for each forbidden construct in a module's source."""
    nodes = ast.walk(ast.parse(source))
    return [f"{node.lineno}: {what}" for node in nodes for what in _forbidden(node)]


def _forbidden(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.ExceptHandler):
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        names = {"everything" if kind is None else _dotted(kind) for kind in caught}
        reraises = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
        # Cleaning up after anything at all, then passing it on unchanged, is fine.
        if names & {"everything", "Exception"} or ("BaseException" in names and not reraises):
            yield f"catches {', '.join(sorted(names))}"
    if isinstance(node, ast.ImportFrom):
        for name in sorted({f"{node.module}.{alias.name}" for alias in node.names} & CALLS):
            yield f"imports {name} by its bare name"
    if isinstance(node, ast.Call):
        name = _dotted(node.func)
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        constants = {k: v.value for k, v in keywords.items() if isinstance(v, ast.Constant)}
        if "shell" in keywords and constants.get("shell") is not False:
            yield "runs a shell"
        if name == "torch.load":
            if constants.get("weights_only") is not True:
                yield "calls torch.load without weights_only=True"
        elif name in CALLS:
            yield f"calls {name}"


def _dotted(node: ast.AST) -> str:
    """Return "a.b.c" for such an expression, else ""."""
    if isinstance(node, ast.Attribute):
        return f"{base}.{node.attr}" if (base := _dotted(node.value)) else ""
    return node.id if isinstance(node, ast.Name) else ""


def test_package_holds_nothing_forbidden() -> None:
    files = sorted((ROOT / "kinetics400").rglob("*.py"))
    assert files
    found = {str(file.relative_to(ROOT)): violations(file.read_text("utf-8")) for file in files}
    assert {file: lines for file, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    f()\nexcept Exception:\n    pass",
        "try:\n    f()\nexcept (OSError, Exception) as e:\n    raise",
        "try:\n    f()\nexcept:\n    raise",
        "try:\n    f()\nexcept BaseException:\n    pass",
        "subprocess.run('ls', shell=True)",
        "subprocess.run('ls', shell=flag)",
        "os.system('ls')",
        "os.popen('ls')",
        "from os import system",
        "yaml.load(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "def f():\n    return pickle.loads(text)",
        "from pickle import Unpickler",
    ],
)
def test_a_planted_violation_is_reported(source: str) -> None:
    assert len(violations(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    f()\nexcept BaseException:\n    clean_up()\n    raise",
        "try:\n    f()\nexcept (OSError, ValueError):\n    pass",
        "torch.load(path, weights_only=True, map_location='cpu')",
        "yaml.safe_load(text)\nsubprocess.run(['ls'])",
        "try:\n    f()\nexcept pickle.UnpicklingError:\n    pass",
    ],
)
def test_harmless_code_is_not_reported(source: str) -> None:
    assert violations(source) == []
