"""Read pytest's JUnit report: which tests were skipped, and were they allowed to be?

    python .ci/skips.py REPORT.xml ALLOWED.txt    exit 1 and name the tests when they were not
    python .ci/skips.py --count REPORT.xml        one line: "N passed, N failed, N skipped"

Only the standard library, so that it runs without the project's environment.
"""

import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Result:
    name: str  # "tests.data.test_archive::test_name[case]"; only the module if it was skipped whole
    outcome: str  # "passed", "failed" or "skipped"; an expected failure counts as skipped
    reason: str = ""


def read_report(path: Path) -> list[Result]:
    """Return one result per test. A test that also fails in teardown appears once, as failed."""
    results: dict[str, Result] = {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            results[name] = Result(name, "failed")
        elif skipped is not None:
            results.setdefault(name, Result(name, "skipped", skipped.get("message") or "no reason"))
        else:
            results.setdefault(name, Result(name, "passed"))
    return list(results.values())


def read_allowed(path: Path) -> dict[str, str]:
    """Return name → reason from lines "name reason"; a name without [case] stands for all cases."""
    allowed = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, reason = line.strip().partition(" ")
        if not reason.strip():
            raise SystemExit(f"{path}:{number}: {name} needs a reason after its name")
        allowed[name] = reason.strip()
    return allowed


def problems(results: list[Result], allowed: dict[str, str]) -> list[str]:
    """Name every skip that is not allowed, and every allowance for a test that is gone."""
    if not results:
        return ["the report holds no test at all"]
    found = [
        f"skipped but not allowed: {result.name} ({result.reason})"
        for result in results
        if result.outcome == "skipped" and not {result.name, _family(result.name)} & allowed.keys()
    ]
    known = {name for result in results for name in (result.name, _family(result.name))}
    return found + [
        f"allowed to skip, but there is no such test: {name}" for name in allowed.keys() - known
    ]


def _family(name: str) -> str:
    return name.partition("[")[0]


def main(argv: list[str]) -> int:
    if len(argv) != 2:
        raise SystemExit(__doc__)
    if argv[0] == "--count":
        outcomes = [result.outcome for result in read_report(Path(argv[1]))]
        print(
            ", ".join(f"{outcomes.count(kind)} {kind}" for kind in ("passed", "failed", "skipped"))
        )
        return 0
    results = read_report(Path(argv[0]))
    found = problems(results, read_allowed(Path(argv[1])))
    for result in results:
        if result.outcome == "skipped":
            print(f"skipped: {result.name} ({result.reason})")
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
