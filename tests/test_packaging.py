"""The wheel holds the package alone and works outside a checkout; make and CI do what they say."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _run(
    *command: object, cwd: Path, returncode: int = 0, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would: nothing of this checkout, make or pytest in its environment.

    Fails with the command's output if it does not exit with `returncode`.
    """
    own = ("MAKE", "MFLAGS", "PYTEST", "PYTHON")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    ran = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**clean, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ran.returncode == returncode, ran.stdout + ran.stderr
    return ran


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, so that the checkout gets no build folder."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE", "train.py"):
        shutil.copy(ROOT / name, tree)
    shutil.copy(ROOT / "pretraining.py", tree)
    shutil.copytree(
        ROOT / "kinetics400", tree / "kinetics400", ignore=shutil.ignore_patterns("__pycache__")
    )
    for folder in ("data", "tests", "recipes", "results"):  # what must stay out
        (tree / folder).mkdir()
        (tree / folder / "__init__.py").touch()
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index")
    _run(*pip, "--no-build-isolation", "-w", out, ".", cwd=tree)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    _run(*pip, "--target", target, wheel, cwd=target)
    return target


def _names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as file:
        return set(file.namelist())


def _metadata(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as file:
        (path,) = (entry for entry in file.namelist() if entry.endswith(f".dist-info/{name}"))
        return file.read(path).decode()


def test_wheel_holds_only_the_package(wheel: Path) -> None:
    tops = {name.partition("/")[0] for name in _names(wheel)}
    assert tops == {"kinetics400", f"kinetics400-{PYPROJECT['project']['version']}.dist-info"}


def test_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    package = ROOT / "kinetics400"
    kinds = (".py", ".txt", ".typed", ".safetensors")
    files = {path for path in package.rglob("*") if path.suffix in kinds}
    assert {str(path.relative_to(ROOT)) for path in files} <= _names(wheel)
    assert {"kinetics400/py.typed", "kinetics400/data/kinetics400_labels.txt"} <= _names(wheel)


def test_version_is_stated_once(wheel: Path, installed: Path) -> None:
    code = "import kinetics400; print(kinetics400.__version__)"
    stated = _run(sys.executable, "-c", code, cwd=installed.parent, PYTHONPATH=str(installed))
    assert stated.stdout.strip() == message_from_string(_metadata(wheel, "METADATA"))["Version"]


def test_requirements_are_the_core_dependencies(wheel: Path) -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = {str(Requirement(line)) for line in lines if line and not line.startswith("#")}
    stated = message_from_string(_metadata(wheel, "METADATA")).get_all("Requires-Dist", [])
    assert {str(Requirement(line)) for line in stated if "extra ==" not in line} == listed


def test_compromised_lightning_is_excluded() -> None:
    (line,) = (
        line
        for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
        if line.startswith("lightning")
    )
    allowed = Requirement(line).specifier
    assert [version for version in ("2.6.1", "2.6.2", "2.6.3", "2.6.4") if version in allowed] == [
        "2.6.1",
        "2.6.4",
    ]


def test_extras_exist(wheel: Path) -> None:
    extras = message_from_string(_metadata(wheel, "METADATA")).get_all("Provides-Extra", [])
    assert set(extras) == {
        *("hf", "bench", "ray", "gpu-decode", "wandb", "export", "demo", "docs", "dev")
    }


def test_licence_is_stated_and_shipped(wheel: Path) -> None:
    assert message_from_string(_metadata(wheel, "METADATA"))["License-Expression"] == "Apache-2.0"
    assert "Apache License" in _metadata(wheel, "licenses/LICENSE")


def test_installed_package_runs_outside_a_checkout(installed: Path, tmp_path: Path) -> None:
    code = "import kinetics400; print(kinetics400.__file__)"
    where = _run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed))
    assert Path(where.stdout.strip()).is_relative_to(installed)
    command = (sys.executable, "-m", "kinetics400", "--help")
    helped = _run(*command, cwd=tmp_path, PYTHONPATH=str(installed))
    script = _run(
        installed / "bin" / "kinetics400", "--help", cwd=tmp_path, PYTHONPATH=str(installed)
    )
    assert helped.stdout == script.stdout
    for subcommand in ("preprocess", "pretrain", "train", "evaluate", "demo"):
        assert subcommand in helped.stdout


@pytest.mark.parametrize("subcommand", ["preprocess", "pretrain", "train", "evaluate", "demo"])
def test_installed_subcommand_explains_itself(
    installed: Path, tmp_path: Path, subcommand: str
) -> None:
    command = (sys.executable, "-m", "kinetics400", subcommand, "--help")
    assert _run(*command, cwd=tmp_path, PYTHONPATH=str(installed)).stdout
    assert list(tmp_path.iterdir()) == []


def _checkout(folder: Path, dependencies: str) -> Path:
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "requirements.txt").write_text(dependencies, encoding="utf-8")
    return folder


def test_make_installs_once_per_set_of_dependencies(tmp_path: Path) -> None:
    """Checkouts with equal dependencies share an environment; one with others updates it."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    fake = venv / "bin" / "python"
    log = tmp_path / "log"
    fake.write_text(f'#!/bin/sh\necho "$@" >> "{log}"\n', encoding="utf-8")
    fake.chmod(0o755)
    same = [_checkout(tmp_path / name, "numpy\n") for name in ("one", "two")]
    other = _checkout(tmp_path / "three", "numpy>=2\n")
    installs = []
    for folder in (same[0], same[0], same[1], other, same[0]):
        log.write_text("", encoding="utf-8")
        _run("make", "env", f"VENV={venv}", f"PYTHON_BOOTSTRAP={sys.executable}", cwd=folder)
        installs.append("pip install" in log.read_text(encoding="utf-8"))
    assert installs == [True, False, False, True, True]


def test_make_refuses_an_old_python(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    old.chmod(0o755)
    variables = (f"VENV={tmp_path / 'venv'}", f"PYTHON_BOOTSTRAP={old}")
    assert (
        "older than Python 3.11" in _run("make", "env", *variables, cwd=ROOT, returncode=2).stderr
    )
    assert not (tmp_path / "venv").exists()


@pytest.fixture(scope="module")
def skips() -> ModuleType:
    """Load `.ci/skips.py`, which no package holds."""
    spec = importlib.util.spec_from_file_location("ci_skips", ROOT / ".ci" / "skips.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SKIPPING = """
import pytest

def test_runs(): pass
@pytest.mark.parametrize("case", ["a", "b"])
def test_cases(case): pytest.skip("no GPU")
@pytest.mark.xfail(reason="known")
def test_expected(): assert False
"""
WHOLE = "import pytest\npytest.importorskip('there_is_no_such_module')\n"


@pytest.mark.parametrize("workers", ["0", "2"])
def test_ci_finds_every_kind_of_skip(tmp_path: Path, skips: ModuleType, workers: str) -> None:
    (tmp_path / "test_some.py").write_text(SKIPPING, encoding="utf-8")
    (tmp_path / "test_whole.py").write_text(WHOLE, encoding="utf-8")
    report = tmp_path / "report.xml"
    options = ("-q", "-n", workers, "-p", "no:cacheprovider", f"--junitxml={report}")
    _run(sys.executable, "-m", "pytest", *options, cwd=tmp_path)
    results = skips.read_report(report)
    allowed = {"test_some::test_cases[a]": "why", "test_some::test_gone": "why"}
    assert sorted(problem.partition(" (")[0] for problem in skips.problems(results, allowed)) == [
        "allowed to skip, but there is no such test: test_some::test_gone",
        "skipped but not allowed: test_some::test_cases[b]",
        "skipped but not allowed: test_some::test_expected",
        "skipped but not allowed: test_whole",
    ]
    family = dict.fromkeys(("test_some::test_cases", "test_some::test_expected", "test_whole"), "w")
    assert skips.problems(results, family) == []


def test_ci_takes_no_tests_for_a_failure(skips: ModuleType) -> None:
    assert skips.problems([], {}) == ["the report holds no test at all"]


def test_every_allowed_skip_has_a_reason(tmp_path: Path, skips: ModuleType) -> None:
    skips.read_allowed(ROOT / "tests" / "skips_allowed.txt")
    bare = tmp_path / "allowed.txt"
    bare.write_text("# comment\n\ntests.test_x::test_y\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"allowed\.txt:3: tests\.test_x::test_y needs a reason"):
        skips.read_allowed(bare)
