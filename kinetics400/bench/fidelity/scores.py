"""Scores of videos against numpy: merging of views, top-k, every video once.

Shapes: V views, N videos, K classes.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from kinetics400.bench.fidelity.rules import Rule, difference
from kinetics400.data.dataset import Unreadable, VideoViews
from kinetics400.engine.evaluation import evaluate
from kinetics400.engine.metrics import accuracy, merge_views, topk_correct
from kinetics400.methods.base import Method

SEED = 0
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
CLASSES = 12


def score_rules() -> Iterator[Rule]:
    """Every rule of evaluation after the views."""
    rng = np.random.default_rng(SEED)
    logits = [rng.normal(0, 6, (15, 400)).astype(np.float32) for _ in range(50)]
    for merge, rule, source in (
        ("prob", "softmax of each view, then the mean", "VideoMAE engine_for_finetuning.py:249"),
        ("logit", "mean of logits (`--merge logit`)", "mmaction2, `average_clips='score'`"),
    ):
        test = "prob_merging_averages_softmaxes_in_float64"
        yield Rule(
            part="scores",
            rule=rule,
            source=source,
            ours="engine.metrics.merge_views",
            reference="numpy float64",
            test="engine/test_metrics.py::test_"
            + (test if merge == "prob" else "logit_merging_averages_logits"),
            unit="1",
            allowed=1e-12,
            **difference(
                (merge_views(torch.from_numpy(each), merge), _merged(each, merge))
                for each in logits
            )._asdict(),
        )
    scores, labels = rng.normal(size=(500, 400)), rng.integers(400, size=500)
    labels[:200] = scores[:200].argsort(axis=1)[np.arange(200), -1 - np.arange(200) % 8]
    ranks = (scores > scores[np.arange(500), labels][:, None]).sum(axis=1)
    ours = [
        accuracy(topk_correct(torch.from_numpy(scores), torch.from_numpy(labels), k))
        for k in (1, 5)
    ]
    yield Rule(
        part="scores",
        rule="top-1 and top-5 in percent",
        source="VideoMAE engine_for_finetuning.py",
        ours="engine.metrics.topk_correct",
        reference="numpy, ranks",
        test="engine/test_metrics.py::test_topk_equals_numpy",
        unit="%",
        allowed=1e-9,
        **difference([(ours, [100 * (ranks < k).mean() for k in (1, 5)])])._asdict(),
    )
    pairs = [_evaluated(count, merge) for count in range(1, 18) for merge in ("prob", "logit")]
    yield Rule(
        part="scores",
        rule="each of 1 to 17 listed videos counts once; one that cannot be read counts as wrong",
        source="ours: the paper's code puts another video in its place (kinetics.py:123-130)",
        ours="engine.evaluation.evaluate",
        reference="numpy",
        test="engine/test_evaluation.py::test_eval_counts_each_video_once",
        unit="%",
        allowed=1e-9,
        **difference(pairs)._asdict(),
    )


def _merged(logits: np.ndarray, merge: str) -> np.ndarray:
    logits = logits.astype(np.float64)
    if merge == "prob":
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        logits = powers / powers.sum(axis=1, keepdims=True)
    return logits.mean(axis=0)


class _Linear(Method):
    """Logits are a linear function of the clip's pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(SEED)
        self.linear = nn.Linear(3 * 2 * 2 * 2, CLASSES)
        self.encoder = self.linear
        nn.init.normal_(self.linear.weight)

    def predict(self, clips: Tensor) -> Tensor:
        return self.linear(clips.flatten(1))


def _evaluated(count: int, merge: str) -> tuple[Any, Any]:
    """Top-1 and top-5 of `count` videos of three views; every fifth cannot be read."""
    rng = np.random.default_rng((SEED, count))
    views = rng.integers(0, 256, (count, 3, 3, 2, 2, 2), dtype=np.uint8)
    labels = rng.integers(CLASSES, size=count)
    read = np.arange(count) % 5 != 2
    videos = [
        VideoViews(i, int(labels[i]), torch.from_numpy(views[i]))
        if read[i]
        else VideoViews(i, int(labels[i]), None, Unreadable(f"{i}.mp4", "damaged"))
        for i in range(count)
    ]
    method = _Linear()
    found = evaluate(
        Fabric(accelerator="cpu", devices=1),
        method,
        videos,
        num_videos=count,
        num_classes=CLASSES,
        merge=merge,
        clips_per_forward=4,
    )
    weight = method.linear.weight.detach().double().numpy()
    bias = method.linear.bias.detach().double().numpy()
    hits = np.zeros(2)
    for video in np.flatnonzero(read):
        pixels = (views[video].transpose(0, 2, 3, 4, 1) / 255 - MEAN) / STD
        logits = pixels.transpose(0, 4, 1, 2, 3).reshape(3, -1) @ weight.T + bias
        scores = _merged(logits, merge)
        rank = (scores > scores[labels[video]]).sum()
        hits += rank < np.array([1, 5])
    return [found.top1_acc, found.top5_acc], 100 * hits / count
