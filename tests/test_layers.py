"""Who may import whom (docs/architecture.md).

The rules are checked on the syntax tree: an import inside a function counts like any other, and so
does `import_module("...")` with a literal name.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "kinetics400"

# Pure: torch, the standard library, and nothing else.
PURE = {"data.sampling", "data.keys", "methods.masking", "engine.schedule", "engine.metrics"}

# These run in small isolated processes: no torch, directly or through other modules of ours.
NO_TORCH = {
    "bench.store",
    "bench.videos",
    "data.annotations",
    "data.archive",
    "data.broken",
    "data.checkup",
    "data.checkup_full",
    "data.checkup_journal",
    "data.checkup_lists",
    "data.containers",
    "data.findings",
    "data.foreign",
    "data.headers",
    "data.housekeeping",
    "data.intake",
    "data.isolation",
    "data.library",
    "data.listing",
    "data.manifest",
    "data.merge",
    "data.member_names",
    "data.motion",
    "data.orphans",
    "data.pyramid",
    "data.ray_pool",
    "data.shards",
    "data.shared_memory",
    "data.shelf",
    "data.sources",
    "data.stills",
    "data.storage",
    "data.stream",
    "data.synthetic",
    "data.texture",
    "data.torn",
    "data.transcode",
    "data.verify",
    "data.watch",
}
BRINGS_TORCH = {
    "lightning",
    "lightning_fabric",
    "pytorch_lightning",
    "safetensors.torch",
    "timm",
    "torch",
    "torchcodec",
    "torchmetrics",
    "torchvision",
    "transformers",
}

# Room or module → the only things of ours it may import. `errors` is open to everybody.
MAY_IMPORT = {
    "errors": set(),
    "batch": {"data.keys"},
    **{name: set() for name in PURE},
    "methods": {"batch", "data.keys", "methods", "models"},
    "engine.trainer": {"batch", "engine", "methods.base"},
}

# Room → what it never imports: these take plain parameters, and nobody calls back up.
NEVER = {
    room: {"commands", "__main__"}
    for room in ("augment", "batch", "bench", "config", "data", "engine", "methods", "models")
}
CONFIG_READERS = {"commands", "config"}


@dataclass(frozen=True)
class Import:
    target: str  # the full name of a module of ours, or what was written for somebody else's
    line: int
    at_import: bool  # runs when the module is imported, not when a function is called


def modules(root: Path) -> dict[str, Path]:
    """Map every module's dotted name to its file."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> list[Import]:
    """List what a module imports; `from package import x` means the module x if there is one."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = []

    def visit(node: ast.AST, at_import: bool) -> None:
        for target in _targets(node, package, known):
            found.append(Import(target, node.lineno, at_import))
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, at_import and not deferred)

    visit(ast.parse(path.read_text(encoding="utf-8")), True)
    return found


def _targets(node: ast.AST, package: str, known: dict[str, Path]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, base] if base else above)
        for alias in node.names:
            below = f"{base}.{alias.name}"
            yield below if below in known or below in BRINGS_TORCH else base
    elif isinstance(node, ast.Call) and _dotted(node.func).endswith(
        ("import_module", "__import__")
    ):
        yield from (str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def _dotted(node: ast.AST) -> str:
    """Return "a.b.c" for such an expression, else ""."""
    if isinstance(node, ast.Attribute):
        return f"{base}.{node.attr}" if (base := _dotted(node.value)) else ""
    return node.id if isinstance(node, ast.Name) else ""


def _within(name: str, rooms: set[str]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def _inside(name: str) -> str:
    """Return a module's name below the package: "data.keys"; "" for the package itself."""
    return name.removeprefix(PACKAGE).removeprefix(".")


def direction_violations(root: Path) -> list[str]:
    """Return one line for each import that goes where it may not."""
    known = modules(root)
    found = []
    for name, path in known.items():
        here = _inside(name)
        for item in imports(name, path, known):
            ours = _within(item.target, {PACKAGE})
            if (ours and not _may(here, _inside(item.target))) or (
                not ours and here in PURE and not _torch_or_standard(item.target)
            ):
                found.append(f"{path.relative_to(root)}:{item.line}: imports {item.target}")
    return found


def _may(here: str, target: str) -> bool:
    if _within(target, {"config"}) and not _within(here, CONFIG_READERS):
        return False
    room = here.partition(".")[0]
    if _within(target, NEVER.get(room, set())):
        return False
    allowed = MAY_IMPORT.get(here, MAY_IMPORT.get(room))
    return allowed is None or target in ("", "errors") or _within(target, allowed)


def _torch_or_standard(target: str) -> bool:
    top = target.partition(".")[0]
    return top == "torch" or top in sys.stdlib_module_names


def torch_violations(root: Path) -> list[str]:
    """Return the chain of imports by which a torch-free module reaches torch."""
    known = modules(root)
    found = []
    for start in sorted(f"{PACKAGE}.{name}" for name in NO_TORCH):
        chains = {start: start} if start in known else {}
        pending = list(chains)
        while pending:
            name = pending.pop()
            for target in _reached(name, start, known):
                chain = f"{chains[name]} -> {target}"
                if _within(target, BRINGS_TORCH):
                    found.append(chain)
                elif target in known and target not in chains:
                    chains[target] = chain
                    pending.append(target)
    return found


def _reached(name: str, start: str, known: dict[str, Path]) -> Iterator[str]:
    """Yield what a module imports, and the packages above it, which Python imports first.

    In a package's `__init__.py` on the way, only what runs at import counts: the lazy Python API
    of the top package is never called by these modules.
    """
    whole = name == start or known[name].name != "__init__.py"
    yield from (
        item.target for item in imports(name, known[name], known) if whole or item.at_import
    )
    if "." in name:
        yield name.rpartition(".")[0]


def test_import_directions_hold() -> None:
    assert direction_violations(ROOT) == []


def test_unpacking_and_verifying_never_reach_torch() -> None:
    assert torch_violations(ROOT) == []


def test_rules_name_modules_that_exist() -> None:
    """A renamed module must not slip out of its rule."""
    named = {f"{PACKAGE}.{name}" for name in PURE | NO_TORCH | MAY_IMPORT.keys() | CONFIG_READERS}
    assert sorted(named - modules(ROOT).keys()) == []


def test_torch_free_modules_import_without_torch() -> None:
    """The same rule, asked of Python itself."""
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    code += "print('torch' in sys.modules)"
    names = sorted(f"{PACKAGE}.{name}" for name in NO_TORCH)
    ran = subprocess.run(
        [sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (ran.stdout.strip(), ran.stderr) == ("False", "")


def test_root_entry_modules_are_thin() -> None:
    """They hand over to the console command and hold nothing of their own."""
    for file in ("train.py", "pretraining.py", "data/preprocess.py"):
        targets = {item.target for item in imports(file, ROOT / file, modules(ROOT))}
        assert targets <= {"sys", f"{PACKAGE}.__main__"}, file


def _plant(root: Path, files: dict[str, str]) -> Path:
    for file, source in files.items():
        path = root / PACKAGE / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("data/loader.py", "from kinetics400.config import parse"),
        ("data/loader.py", "def f():\n    from kinetics400 import config"),
        ("augment/mix.py", "from ..commands.train import main"),
        ("engine/log.py", "import kinetics400.config.parse as p"),
        ("models/vit.py", "import importlib\nimportlib.import_module('kinetics400.config.parse')"),
        ("methods/mine.py", "from kinetics400.engine import schedule"),
        ("methods/mine.py", "from kinetics400.data import sampling"),
        ("engine/trainer.py", "from kinetics400.methods.videomae import VideoMAE"),
        ("engine/trainer.py", "from kinetics400.models import vit"),
        ("data/sampling.py", "import numpy as np"),
        ("data/sampling.py", "from kinetics400.batch import Batch"),
        ("engine/schedule.py", "def f():\n    import yaml"),
        ("errors.py", "from kinetics400.batch import Batch"),
        ("__init__.py", "def f():\n    from kinetics400.config import parse"),
    ],
)
def test_a_planted_import_is_reported(tmp_path: Path, file: str, source: str) -> None:
    skeleton = {
        "config/__init__.py": "",
        "config/parse.py": "",
        "data/sampling.py": "",
        "engine/schedule.py": "",
        "models/vit.py": "",
    }
    root = _plant(tmp_path, {**skeleton, file: source})
    line = len(source.splitlines())
    reports = direction_violations(root)
    assert len(reports) == 1, reports
    assert reports[0].startswith(f"{PACKAGE}/{file}:{line}: imports ")


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("methods/mine.py", "import torch, numpy\nfrom kinetics400.models.vit import ViT"),
        ("methods/mine.py", "from kinetics400.data import keys\nfrom .base import Method"),
        ("engine/trainer.py", "from kinetics400.methods.base import Method\nfrom . import optim"),
        ("engine/schedule.py", "import math\nimport torch.nn\nfrom kinetics400 import errors"),
        (
            "commands/train.py",
            "from kinetics400.config import parse\nimport kinetics400.engine.log",
        ),
    ],
)
def test_allowed_imports_are_not_reported(tmp_path: Path, file: str, source: str) -> None:
    skeleton = {"data/keys.py": "", "config/parse.py": "", "errors.py": "", "engine/optim.py": ""}
    assert direction_violations(_plant(tmp_path, {**skeleton, file: source})) == []


@pytest.mark.parametrize(
    ("files", "chain"),
    [
        ({"data/archive.py": "def f():\n    import torch"}, "data.archive -> torch"),
        (
            {"data/archive.py": "from .library import x", "data/library.py": "import timm.layers"},
            "data.archive -> kinetics400.data.library -> timm.layers",
        ),
        (
            {"data/archive.py": "", "data/__init__.py": "from torch import nn"},
            "data.archive -> kinetics400.data -> torch",
        ),
        ({"data/archive.py": "from safetensors import torch"}, "data.archive -> safetensors.torch"),
    ],
)
def test_a_planted_way_to_torch_is_reported(
    tmp_path: Path, files: dict[str, str], chain: str
) -> None:
    assert f"{PACKAGE}.{chain}" in torch_violations(_plant(tmp_path, files))


def test_a_lazy_api_in_the_top_package_does_not_count_as_torch(tmp_path: Path) -> None:
    api = {"__init__.py": "def f():\n    import torch", "data/archive.py": "import tarfile"}
    assert torch_violations(_plant(tmp_path, api)) == []
