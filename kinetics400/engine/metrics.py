"""Accuracies from scores. Pure functions."""

from torch import Tensor


def merge_views(logits: Tensor, merge: str) -> Tensor:
    """Scores of one video from its views' logits: (V, K) to (K,) float64.

    "prob" averages softmaxes, as VideoMAE's published numbers (engine_for_finetuning.py:249);
    "logit" averages logits.
    """
    logits = logits.float().double()
    return (logits.softmax(dim=1) if merge == "prob" else logits).mean(dim=0)


def topk_correct(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether the label is among the k best: (N, K) and (N,) to (N,) bool."""
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(dim=1)


def accuracy(correct: Tensor) -> float:
    """Percent of True."""
    return 100.0 * correct.double().mean().item() if len(correct) else 0.0
