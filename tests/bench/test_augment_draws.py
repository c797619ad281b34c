"""The tests of distributions accept what is the same and notice what is not."""

import numpy as np
import pytest
import torch

from kinetics400.bench import augment_draws
from kinetics400.bench.augment_draws import same_counts, same_numbers
from kinetics400.data import keys


def test_the_same_numbers_pass_and_others_do_not() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(2, 4000))
    assert same_numbers("", "", list(one), list(two)).p_value > 0.01
    assert same_numbers("", "", list(one), list(two + 0.2)).p_value < 1e-6


def test_the_same_counts_pass_and_others_do_not() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 5, (2, 4000)).tolist()
    assert same_counts("", "", one, two).p_value > 0.01
    assert same_counts("", "", one, [max(value, 1) for value in two]).p_value < 1e-6


def test_rare_values_are_one_column() -> None:
    """Ten values seen once each would otherwise make any two samples look alike or not."""
    ours, theirs = ["a"] * 500 + list(range(10)), ["a"] * 500 + list(range(10, 20))
    found = same_counts("", "", ours, theirs)
    assert found.p_value == pytest.approx(1.0) and found.test == "chi-square"
    assert same_counts("", "", ["a"] * 50, ["a"] * 60).test == "equality"


def test_a_wrong_sampler_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours with another probability of applying, or another deviation."""
    host_keys = keys.combine(5, torch.arange(3000))
    right = _p_values("rand-m7-n4-mstd0.5-inc1", host_keys)
    assert min(right.values()) > 0.001 and len(right) == 23
    theirs = augment_draws._timm_draws("rand-m7-n4-mstd0.5-inc1", 3000)
    monkeypatch.setattr(augment_draws, "_timm_draws", lambda *_: theirs)
    more = _p_values("rand-m7-n4-mstd0.5-inc1-p0.6", host_keys)
    assert more["applied"] < 1e-9 and more["operation"] > 0.001
    wider = _p_values("rand-m7-n4-mstd0.8-inc1", host_keys)
    assert wider["ColorIncreasing: strength"] < 1e-3 < wider["applied"]


def _p_values(text: str, host_keys: torch.Tensor) -> dict[str, float]:
    augment_draws.random.seed(2)
    np.random.seed(2)
    return {row.quantity: row.p_value for row in augment_draws.randaugment_rows(text, host_keys)}


def test_all_quantities_are_compared() -> None:
    rows = augment_draws.compare_draws("rand-m7-n4-mstd0.5-inc1", seed=4, count=300)
    kinds = {row.quantity.partition(":")[0] for row in rows}
    assert kinds >= {"operation", "applied", "erasing", "noise", "mixup", "cutmix", "flip"}
    assert kinds >= {"finetuning's crop", "pretraining's crop", "Rotate", "SolarizeAdd"}
    assert all(type(row.p_value) is float and 0 <= row.p_value <= 1 for row in rows)
