"""The comparison of pixels: it counts rightly, passes today, and fails when a rule is changed."""

import json
from pathlib import Path

import pytest
import torch

from kinetics400.bench import augment_fidelity
from kinetics400.bench.augment_fidelity import EXACT, GEOMETRY_TOLERANCE, batch_rows, compare

ROOT = Path(__file__).parents[2]


def test_differences_are_counted_over_all_pairs() -> None:
    zeros = torch.zeros(10)
    other = torch.tensor([0.0] * 8 + [2.0, -3.0])
    row = compare("rule", "reference", "levels", [(zeros, other), (zeros, zeros)], EXACT)
    assert (row.compared, row.largest, row.share, row.holds) == (20, 3.0, 0.1, False)
    row = compare("rule", "reference", "levels", [(zeros, other)], (3.0, 0.2))
    assert row.holds
    assert not compare("rule", "reference", "levels", [(zeros, other)], (3.0, 0.1)).holds
    assert not compare("rule", "reference", "levels", [(zeros, other)], (2.0, 0.2)).holds


def test_levels_do_not_wrap_around() -> None:
    one, two = (torch.tensor([value], dtype=torch.uint8) for value in (1, 255))
    assert compare("", "", "levels", [(one, two)], EXACT).largest == 254


def small_clips() -> dict[str, torch.Tensor]:
    numbers = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (3, 2, 40, 52), generator=numbers, dtype=torch.uint8)
    return {"noise": noise, "pictures 256×340": noise[..., :30, :]}


def test_every_operation_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment_fidelity, "example_clips", small_clips)
    rows = list(augment_fidelity.operation_rows())
    assert len(rows) == 15 and all(row.holds for row in rows)
    allowed = {row.allowed_difference for row in rows}
    assert allowed == {EXACT[0], GEOMETRY_TOLERANCE[0]}


def test_normalising_erasing_and_mixing_agree() -> None:
    rows = list(batch_rows())
    assert all(row.holds for row in rows)
    assert [row.rule.partition(",")[0] for row in rows] == [
        "normalise",
        "erased box",
        *["mixup and cutmix"] * 4,
    ]


def test_a_wrong_box_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = augment_fidelity.erased_box

    def shifted(height: int, width: int, u: list[float]) -> object:
        box = right(height, width, u)
        return box and box._replace(left=max(box.left - 1, 0))

    monkeypatch.setattr(augment_fidelity, "erased_box", shifted)
    (row,) = (row for row in batch_rows() if row.rule == "erased box")
    assert not row.holds


def test_the_committed_result_passed_and_is_complete() -> None:
    result = json.loads((ROOT / "results/fidelity_augment.json").read_text(encoding="utf-8"))
    assert result["passed"] and len(result["pixels"]) == 25
    assert all(row["holds"] for row in result["pixels"])
    assert min(row["p_value"] for row in result["draws"]) >= result["least_p_value"] == 0.001
    assert min(row["count"] for row in result["draws"]) > 2500
