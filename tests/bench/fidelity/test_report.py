"""The fidelity page: what it names exists, and it fails when a rule is broken."""

import ast
import json
import re
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from kinetics400.__main__ import run_command
from kinetics400.bench.fidelity import report, scores
from kinetics400.bench.fidelity.rules import Rule, difference
from kinetics400.data import sampling
from kinetics400.engine import metrics

ROOT = Path(__file__).parents[3]
RESULT: dict[str, Any] = json.loads((ROOT / "results/fidelity.json").read_text())


def functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("kind", ["rules", "deviations"])
def test_every_test_that_a_row_names_exists(kind: str) -> None:
    for row in RESULT[kind]:
        file, name = row["test"].split("::")
        assert name in functions(ROOT / "tests" / file), row["test"]


def test_every_function_and_flag_that_a_row_names_exists() -> None:
    flags = "".join(path.read_text() for path in (ROOT / "kinetics400/config").glob("*.py"))
    for row in RESULT["rules"]:
        if row["ours"].startswith("--"):
            assert re.search(rf"^    {row['ours'][2:]}\b", flags, flags=re.MULTILINE)
        else:
            resolve_name(f"kinetics400.{row['ours']}")


def test_the_committed_result_passes_and_has_every_part() -> None:
    assert RESULT["passed"] and all(row["holds"] for row in RESULT["rules"])
    assert {row["part"] for row in RESULT["rules"]} == set(report.PARTS)
    assert len(RESULT["rules"]) >= 45 and min(row["compared"] for row in RESULT["rules"]) >= 1
    assert all(row["count"] >= 10_000 for row in RESULT["draws"])
    curves = json.loads((ROOT / "results/fidelity_curves.json").read_text())["curves"]
    assert [len(curve["ours"]) for curve in curves] == [300, 300]
    assert max(curve["largest_gap"] for curve in curves) <= 1e-3


def test_references_do_not_come_from_what_they_check() -> None:
    """No flag, no default, no recipe."""
    for file in (ROOT / "kinetics400/bench/fidelity").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert "config" not in (node.module or ""), file


@pytest.mark.parametrize(
    ("pair", "relative", "largest"),
    [
        (([1.0, 2.0], [1.0, 2.5]), False, 0.5),
        (([1.0, 2.0], [1.0, 2.5]), True, 0.2),
        (([1.0, 2.0], [1.0]), False, float("inf")),
        (([float("nan")], [float("nan")]), False, float("inf")),
    ],
)
def test_differences(pair: Any, relative: bool, largest: float) -> None:
    found = difference([([0.0], [0.0]), pair], relative=relative)
    assert found.largest == pytest.approx(largest) and found.compared == 1 + len(pair[0])


def test_comparing_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing was compared"):
        difference([])


def test_a_rule_holds_up_to_what_is_allowed() -> None:
    texts = dict.fromkeys(("part", "rule", "source", "ours", "reference", "test", "unit"), "")
    rule = Rule(**texts, compared=1, largest=1e-5, allowed=1e-5)
    assert rule.holds
    assert not Rule(**texts, compared=1, largest=1.1e-5, allowed=1e-5).holds
    assert not Rule(**texts, compared=1, largest=float("nan"), allowed=1e-5).holds


def test_a_broken_rule_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(rule.holds for rule in scores.score_rules())
    monkeypatch.setattr(scores, "merge_views", lambda views, merge: views.double().sum(dim=0))
    broken = [rule.rule for rule in scores.score_rules() if not rule.holds]
    assert broken == ["softmax of each view, then the mean", "mean of logits (`--merge logit`)"]
    assert metrics.merge_views is not scores.merge_views


def test_a_broken_rule_ends_the_command_with_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = sampling.pretraining_frames

    def late(*args: Any, **more: Any) -> Any:
        return [frame + 1 for frame in published(*args, **more)]

    for name in ("golden_rules", "learning_rules", "score_rules"):
        monkeypatch.setattr(report, name, lambda *_: iter(()))
    for name in ("model_rules", "compare_all"):
        monkeypatch.setattr(report, name, lambda **_: [])
    flags = ["fidelity", "--json", str(tmp_path / "r.json")]
    assert run_command("bench", flags) == 0
    monkeypatch.setattr("kinetics400.bench.fidelity.clips.sampling.pretraining_frames", late)
    assert run_command("bench", flags) == 1
    assert "FAILED" in capsys.readouterr().out
    assert not json.loads((tmp_path / "r.json").read_text())["passed"]
