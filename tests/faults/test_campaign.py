"""The fault campaign: what it names exists, what is committed is whole, and guards can be taken."""

import ast
import json
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CASES: Any = runpy.run_path(str(ROOT / "benchmarks/faults/cases.py"))
RESULT = json.loads((ROOT / "results/faults.json").read_text(encoding="utf-8"))


def test_every_test_that_a_case_names_exists() -> None:
    for case in CASES["CASES"]:
        picked = [test for test in (*case.tests, *case.control_tests) if test[0] != "-"]
        for test in picked:
            if " or " in test or test[-1] == "_" or "/" not in test:
                continue  # an expression of -k
            file, _, name = test.partition("::")
            tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
            names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert not name or re.sub(r"\[.*", "", name) in names, test


def test_the_committed_result_is_of_these_cases_and_survived() -> None:
    cases = {case.row: case for case in CASES["CASES"]}
    assert len(cases) == len(CASES["CASES"])
    assert [row["row"] for row in RESULT["cases"]] == list(cases)
    for row in RESULT["cases"]:
        assert (row["name"], row["control"]) == (cases[row["row"]].name, cases[row["row"]].control)
        assert row["survived"] == row["injected"] > 0, row["row"]
        assert row["control_failed"], row["row"]
        assert row["figure"] and row["seconds"] > 0
    assert RESULT["left_out"] == CASES["LEFT_OUT"]


def test_what_a_test_leaves_running_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks/faults"))
    script = tmp_path / "t" / "run.py"
    script.parent.mkdir()
    script.write_text("import time; time.sleep(60)")
    left = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    campaign = runpy.run_path(str(ROOT / "benchmarks/faults/campaign.py"))
    campaign["end_runs_of"](str(tmp_path))
    assert left.wait(timeout=10) == -signal.SIGKILL
    assert other.poll() is None
    other.communicate(b"\n", timeout=10)


def test_a_case_is_green_with_its_guard_and_red_without(tmp_path: Path) -> None:
    flags = [str(tmp_path / "faults.json"), "--only", "6"]
    command = [sys.executable, str(ROOT / "benchmarks/faults/campaign.py"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads((tmp_path / "faults.json").read_text())["cases"]
    assert row["survived"] == row["injected"] == 1 and row["control_failed"]
