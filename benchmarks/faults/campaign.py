"""Inject every fault, then again with its guard taken away: `make faults`, results/faults.json.

A case is green when all its tests pass with the guard, and at least one fails without it.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cases import CASES, LEFT_OUT, Case

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LONGEST = 4 * 3600.0  # seconds: the full grid; a control that hangs is red much earlier
LONGEST_CONTROL = 240.0
GRID_ROW = "5"  # exact resume


@dataclass
class Outcome:
    """What pytest says of one run."""

    n_tests: int = 0
    n_failed: int = 0
    n_broken: int = 0
    """Not even begun, or not cleaned up: no proof of anything."""
    properties: dict[str, str] = field(default_factory=dict)
    is_hung: bool = False
    cause: str = ""
    """The first failure: its test, and what it says."""
    told: str = ""

    @property
    def is_green(self) -> bool:
        return self.n_tests > 0 and not (self.n_failed or self.n_broken or self.is_hung)


def run_tests(
    tests: tuple[str, ...], *, only: str = "", unguarded: str = "", seconds: float
) -> Outcome:
    """Run tests in a process of their own, without a guard if one is named."""
    with tempfile.TemporaryDirectory(prefix="kinetics400-faults-") as folder:
        report = Path(folder) / "report.xml"
        picked = [f"tests/{test}" for test in tests]
        environment = {**os.environ, "UNGUARDED": unguarded}
        paths = [str(HERE / "unguarded")] if unguarded else []
        environment["PYTHONPATH"] = os.pathsep.join([*paths, str(ROOT)])
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "pytest", "-q", "-m", "", "-p", "no:cacheprovider"),
                *(["--maxfail=1"] if unguarded else []),
                *(["-k", only] if only else []),
                *(f"--junitxml={report}", f"--basetemp={folder}/t", *picked),
            ],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            told, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return Outcome(is_hung=True)
        finally:
            end_runs_of(folder)
        if not report.exists():
            return Outcome(told=told)
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
        ran = [case for case in cases if case.find("skipped") is None]
        failed = [case for case in ran if case.find("failure") is not None]
        broken = [case for case in ran if case.find("error") is not None]
        properties = {
            p.get("name", ""): p.get("value", "") for case in ran for p in case.iter("property")
        }
        cause = f"{failed[0].get('name')}: {_message(failed[0])}" if failed else ""
        return Outcome(len(ran), len(failed), len(broken), properties, cause=cause, told=told)


def end_runs_of(folder: str) -> None:
    """Kill what tests have started from files in their folder, and left, whatever its session."""
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if any(word.startswith(folder.encode() + b"/") for word in words):
                os.kill(int(entry.name), signal.SIGKILL)
        except (OSError, ValueError):  # it has just ended, or is no process
            continue


def _message(case: ElementTree.Element) -> str:
    failure = case.find("failure")
    assert failure is not None
    said = (failure.get("message") or "").strip().partition("\n")[0]
    return re.sub(r"(/[\w.+-]+){2,}", "…", said)[:160]  # no paths of this machine


def commit() -> str:
    """Of the code under test; with a + where files have been changed since."""

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True).stdout

    changed = git("status", "--porcelain", "--", "kinetics400", "tests", "benchmarks/faults")
    return git("rev-parse", "--short=12", "HEAD").strip() + ("+" if changed else "")


def run_case(case: Case) -> dict[str, Any]:
    """One row of the result."""
    started = time.monotonic()
    found = run_tests(case.tests, only=case.only, seconds=LONGEST)
    extra = int(found.properties.get("injected", 1)) - 1  # a test that injects many times
    injected = found.n_tests + extra
    missing = found.n_failed + found.n_broken
    if extra and found.n_failed:
        missing = injected - int(found.properties["survived"])
    passed = f"{found.n_tests - found.n_failed} of {found.n_tests} tests"
    if not found.is_green:
        print(found.told[-4000:], file=sys.stderr)
    return {
        "row": case.row,
        "name": case.name,
        "commit": commit(),
        "promise": case.promise,
        "injected": injected,
        "survived": 0 if found.is_hung else injected - missing,
        "figure": found.properties.get("figure", passed),
        "tests": [*case.tests, *(["-k", case.only] if case.only else [])],
        **run_control(case),
        "seconds": round(time.monotonic() - started, 1),
    }


def run_control(case: Case) -> dict[str, Any]:
    """The same without the guard."""
    control = run_tests(
        case.control_tests or case.tests,
        only="" if case.control_tests else case.only,
        unguarded=case.control,
        seconds=LONGEST_CONTROL,
    )
    is_red = control.is_hung or control.n_failed > 0
    if not is_red:
        print(f"the control is green: {control.told[-1500:]}", file=sys.stderr)
    cause = f"not over after {LONGEST_CONTROL:g} s" if control.is_hung else control.cause
    return {"control": case.control, "control_failed": is_red, "control_cause": cause}


def main() -> int:
    """Run the campaign; 1 if a fault is not survived or a control not noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path)
    parser.add_argument("--full", action="store_true", help="the whole grid of exact resume")
    parser.add_argument("--controls", action="store_true", help="only without the guards")
    parser.add_argument("--only", nargs="*", default=[], help="rows; others stay as they are")
    flags = parser.parse_args()
    if flags.full:
        os.environ["KINETICS400_GRID"] = "full"
    before = json.loads(flags.json.read_text()) if flags.json.exists() else {"cases": []}
    known = {row["row"]: row for row in before["cases"]}
    is_grid_known = flags.controls or (flags.only and GRID_ROW not in flags.only)
    full_grid = before.get("full_grid", False) if is_grid_known else flags.full
    cases = [case for case in CASES if not flags.only or case.row in flags.only]
    bad = 0
    for case in cases:
        row = {**known[case.row], **run_control(case)} if flags.controls else run_case(case)
        green = row["survived"] == row["injected"] and row["control_failed"]
        bad += not green
        print(
            f"{row['row']:<11}{row['name'][:58]:<60}{row['survived']:>5} of {row['injected']:<5}"
            f"control {'red' if row['control_failed'] else 'GREEN':<6}{row['seconds']:>6.0f} s"
            f"{'' if green else '  FAILED'}",
            flush=True,
        )
        known[case.row] = row
        kept = [known[each.row] for each in CASES if each.row in known]
        result = {"benchmark": "faults", "full_grid": full_grid, "cases": kept}
        # After each: half an hour is long. Every row says which code it is of.
        flags.json.write_text(json.dumps({**result, "left_out": LEFT_OUT}, indent=2) + "\n")
    survived = len(cases) - bad
    print(f"{survived} of {len(cases)} faults survived, each with a control that failed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
