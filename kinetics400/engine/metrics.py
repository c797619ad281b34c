"""Accuracies from scores. Pure functions.

Shapes: N videos, K classes, V views. Accuracies and intervals are in percent.
"""

import math

from torch import Tensor

Z_95 = 1.959963984540054  # the normal distribution's 97.5 % quantile


def merge_views(logits: Tensor, merge: str) -> Tensor:
    """Scores of one video from its views' logits: (V, K) to (K,) float64.

    "prob" averages softmaxes, as VideoMAE's published numbers (engine_for_finetuning.py:249);
    "logit" averages logits. Logits of 16 bits become float32 before anything is computed.
    """
    logits = logits.float().double()
    return (logits.softmax(dim=1) if merge == "prob" else logits).mean(dim=0)


def best_classes(scores: Tensor, k: int) -> Tensor:
    """The k best classes, best first: (N, K) to (N, min(k, K)) int64.

    Of equal scores the class with the lower number comes first.

    >>> best_classes(Tensor([[0.2, 0.5, 0.5]]), 2)
    tensor([[1, 2]])
    """
    return scores.argsort(dim=1, descending=True, stable=True)[:, :k]


def topk_correct(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether the label is among the k best: (N, K) and (N,) to (N,) bool."""
    return (best_classes(scores, k) == labels[:, None]).any(dim=1)


def accuracy(correct: Tensor) -> float:
    """Percent of True."""
    return 100.0 * correct.double().mean().item() if len(correct) else 0.0


def wilson_interval(num_correct: int, num_videos: int) -> tuple[float, float]:
    """Ends of the 95 % interval of an accuracy, in percent (Wilson 1927, the score interval).

    It says how far the accuracy on other videos of the same kind may lie from the one measured,
    nothing about other trainings of the same model.

    >>> [round(end, 2) for end in wilson_interval(15836, 19796)]
    [79.43, 80.55]
    """
    if num_videos == 0:
        return 0.0, 100.0
    share, z_squared = num_correct / num_videos, Z_95**2
    centre = share + z_squared / (2 * num_videos)
    half = Z_95 * math.sqrt(
        share * (1 - share) / num_videos + z_squared / (4 * num_videos * num_videos)
    )
    width = 1 + z_squared / num_videos
    low, high = (centre - half) / width, (centre + half) / width
    # Rounding must not leave 0 and 100 % outside of their own intervals.
    return 100 * min(max(low, 0.0), share), 100 * max(min(high, 1.0), share)


def confusion_matrix(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """How many videos of each class were taken for which: (N,) and (N,) to (K, K) int64.

    Rows are labels, columns predictions.
    """
    pairs = labels * num_classes + predictions
    return pairs.bincount(minlength=num_classes**2).reshape(num_classes, num_classes)


def class_accuracies(correct: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Percent correct of each class's videos: (N,) and (N,) to (K,) float64, NaN without any."""
    return (
        100
        * labels[correct].bincount(minlength=num_classes)
        / labels.bincount(minlength=num_classes).double()
    )
