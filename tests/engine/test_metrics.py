"""Accuracies and merged views against numpy."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from kinetics400.engine.metrics import (
    accuracy,
    best_classes,
    class_accuracies,
    confusion_matrix,
    merge_views,
    topk_correct,
    wilson_interval,
)


def random_scores(n: int, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(n, num_classes, generator=generator, dtype=torch.float64)
    return scores, torch.randint(num_classes, (n,), generator=generator)


@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_topk_equals_numpy(k: int) -> None:
    scores, labels = random_scores(500, 10)
    best = np.argsort(-scores.numpy(), axis=1)[:, :k]
    expected = (best == labels.numpy()[:, None]).any(axis=1)
    assert topk_correct(scores, labels, k).tolist() == expected.tolist()


def test_of_equal_scores_the_lower_class_comes_first() -> None:
    """Also in rows long enough for a sort that is not stable to show it."""
    scores = torch.randint(3, (50, 400), generator=torch.Generator().manual_seed(0)).double()
    wanted = [sorted(range(400), key=lambda k: (-row[k], k))[:5] for row in scores.tolist()]
    assert best_classes(scores, 5).tolist() == wanted
    labels = torch.tensor([row[4] for row in wanted])
    assert topk_correct(scores, labels, 5).all()
    assert not topk_correct(scores, labels, 4).any()


def test_topk_of_fewer_classes_is_always_right() -> None:
    scores, labels = random_scores(20, 3)
    assert topk_correct(scores, labels, 5).all()


def test_accuracy_is_percent() -> None:
    assert accuracy(torch.tensor([True, False, False, True, True, False, False, False])) == 37.5
    assert accuracy(torch.tensor([], dtype=torch.bool)) == 0.0
    many = torch.zeros(19_796, dtype=torch.bool)
    many[:16_033] = True
    assert accuracy(many) == pytest.approx(100 * 16_033 / 19_796, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_prob_merging_averages_softmaxes_in_float64(dtype: torch.dtype) -> None:
    logits = (4 * random_scores(15, 7)[0]).to(dtype)
    values = logits.double().numpy()
    exponentials = np.exp(values - values.max(axis=1, keepdims=True))
    expected = (exponentials / exponentials.sum(axis=1, keepdims=True)).mean(axis=0)
    merged = merge_views(logits, "prob")
    assert merged.dtype == torch.float64 and merged.shape == (7,)
    np.testing.assert_allclose(merged.numpy(), expected, rtol=1e-12)
    assert merged.sum().item() == pytest.approx(1.0)


def test_logit_merging_averages_logits() -> None:
    logits = random_scores(15, 7)[0].float()
    merged = merge_views(logits, "logit")
    assert merged.dtype == torch.float64
    np.testing.assert_allclose(merged.numpy(), logits.double().numpy().mean(axis=0), rtol=1e-12)


def test_the_two_ways_of_merging_can_disagree() -> None:
    # One view is very sure of class 0, two are mildly for class 1.
    logits = torch.tensor([[9.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    assert merge_views(logits, "logit").argmax() == 0
    assert merge_views(logits, "prob").argmax() == 1


@pytest.mark.parametrize("num_videos", [1, 8, 400, 19_796])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.7999, 1.0])
def test_wilson_interval_equals_scipys(num_videos: int, share: float) -> None:
    correct = round(share * num_videos)
    wanted = binomtest(correct, num_videos).proportion_ci(0.95, method="wilson")
    low, high = wilson_interval(correct, num_videos)
    assert (low, high) == pytest.approx((100 * wanted.low, 100 * wanted.high), abs=1e-9)
    assert 0 <= low <= 100 * correct / num_videos <= high <= 100


def test_wilson_interval_of_nothing_says_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 100.0)


def test_confusion_matrix_equals_counting() -> None:
    scores, labels = random_scores(300, 7)
    predictions = scores.argmax(dim=1)
    counted = np.zeros((7, 7), int)
    for label, prediction in zip(labels.tolist(), predictions.tolist(), strict=True):
        counted[label, prediction] += 1
    assert (counted != counted.T).any()
    np.testing.assert_array_equal(confusion_matrix(labels, predictions, 7).numpy(), counted)
    nobody = torch.empty(0, dtype=torch.int64)
    assert confusion_matrix(nobody, nobody, 3).tolist() == [[0] * 3] * 3


def test_class_accuracies_equal_counting() -> None:
    labels = torch.tensor([0, 0, 0, 2, 2, 4])
    correct = torch.tensor([True, False, True, False, False, True])
    found = class_accuracies(correct, labels, 6).tolist()
    assert found == pytest.approx(
        [200 / 3, float("nan"), 0, float("nan"), 100, float("nan")], nan_ok=True
    )
