"""Scores of a whole split: every video once, whatever the number of ranks."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed
from lightning.fabric import Fabric
from torch import Tensor

from kinetics400.batch import normalize
from kinetics400.data.dataset import Unreadable, VideoViews
from kinetics400.engine.kept_scores import KeptScores, Scored
from kinetics400.engine.metrics import accuracy, merge_views, topk_correct
from kinetics400.methods.base import Method

ViewTransform = Callable[[Tensor, int], Tensor]  # (views (V, C, T, H, W), video index) -> views

NOT_FINITE = "the model's output for it is not finite; try --precision 32-true"


@dataclass(frozen=True)
class Evaluation:
    """Result of a test, of all listed videos in the list's order.

    Attributes:
        scores: (N, K) merged scores; NaN where a video was not scored.
        labels: (N,) int64.
        failures: videos that were not scored: they could not be read, or the model's output was
            not finite.
    """

    scores: Tensor
    labels: Tensor
    failures: list[Unreadable]

    @property
    def num_videos(self) -> int:
        """Listed."""
        return len(self.labels)

    @property
    def num_scored(self) -> int:
        return self.num_videos - len(self.failures)

    @property
    def top1_acc(self) -> float:
        """Percent of all listed videos; one that was not scored counts as wrong."""
        return accuracy(self.correct(1))

    @property
    def top5_acc(self) -> float:
        """The same with the label among the five best."""
        return accuracy(self.correct(5))

    def is_scored(self) -> Tensor:
        """Which videos have scores: (N,) bool."""
        return ~self.scores.isnan().any(dim=1)

    def correct(self, k: int) -> Tensor:
        """Which videos have their label among the k best: (N,) bool; none without scores."""
        return topk_correct(self.scores.nan_to_num(), self.labels, k) & self.is_scored()


@torch.inference_mode()
def evaluate(
    fabric: Fabric,
    method: Method,
    videos: Iterable[VideoViews],
    *,
    num_videos: int,
    num_classes: int,
    merge: str = "prob",
    clips_per_forward: int = 32,
    transform: ViewTransform | None = None,
    path_of: Callable[[int], str] = "video {}".format,
    kept: KeptScores | None = None,
) -> Evaluation:
    """Score each video by its merged views. A video is known by its place in the list alone.

    Args:
        fabric: device, precision and ranks.
        method: one that predicts; its training mode is restored afterwards.
        videos: this rank's share of the split, without those that `kept` knows.
        num_videos: in the whole split.
        num_classes: K.
        merge: "prob" averages softmaxes, "logit" logits.
        clips_per_forward: how many views go through the model at once.
        transform: changes the views first (for ablations).
        path_of: what failures call a video.
        kept: what an evaluation that was ended has left, and where this one leaves its scores.

    Raises:
        RuntimeError: the ranks together did not see every video exactly once (a bug).
        StorageError: scores cannot be kept.
    """
    was_training = method.training
    method.eval()
    rows = [] if kept is None else kept.known()
    try:
        for group in _grouped(videos, clips_per_forward):
            scored = [
                Scored(video.index, video.label, _no_scores(num_classes), video.failure)
                for video in group
                if video.failure is not None
            ]
            readable = [video for video in group if video.views is not None]
            views = [_prepared(video, transform) for video in readable]
            if views:
                logits = _predict(fabric, method, torch.cat(views), clips_per_forward)
                for video, part in zip(readable, logits.split([*map(len, views)]), strict=True):
                    scores, failure = merge_views(part, merge), None
                    if not scores.isfinite().all():
                        scores = _no_scores(num_classes)
                        failure = Unreadable(path_of(video.index), NOT_FINITE)
                    scored.append(Scored(video.index, video.label, scores, failure))
            if kept is not None:
                kept.add(scored)
            rows += scored
    finally:
        if kept is not None:
            kept.flush()
    method.train(was_training)
    return _gathered(fabric, rows, num_videos)


def _grouped(videos: Iterable[VideoViews], num_clips: int) -> Iterator[list[VideoViews]]:
    """Gather videos until they hold `num_clips` views."""
    group: list[VideoViews] = []
    count = 0
    for video in videos:
        group.append(video)
        count += 0 if video.views is None else len(video.views)
        if count >= num_clips:
            yield group
            group, count = [], 0
    if group:
        yield group


def _no_scores(num_classes: int) -> Tensor:
    return torch.full((num_classes,), float("nan"), dtype=torch.float64)


def _prepared(video: VideoViews, transform: ViewTransform | None) -> Tensor:
    views = video.views
    assert views is not None
    return views if transform is None else transform(views, video.index)


def _predict(fabric: Fabric, method: Method, views: Tensor, at_once: int) -> Tensor:
    parts = []
    for part in views.split(at_once):
        clips = normalize(fabric.to_device(part))
        with fabric.autocast():
            parts.append(method.predict(clips).float().cpu())
    return torch.cat(parts)


def _gathered(fabric: Fabric, rows: list[Scored], num_videos: int) -> Evaluation:
    if fabric.world_size > 1:
        shares: list = [None] * fabric.world_size
        torch.distributed.all_gather_object(shares, rows)
        rows = [row for share in shares for row in share]
    rows.sort(key=lambda row: row.index)
    if [row.index for row in rows] != list(range(num_videos)):
        raise RuntimeError(f"{len(rows)} rows for {num_videos} videos: not each exactly once")
    failures = [row.failure for row in rows if row.failure is not None]
    return Evaluation(
        scores=torch.stack([row.scores for row in rows]),
        labels=torch.tensor([row.label for row in rows]),
        failures=sorted(failures, key=lambda failure: failure.path),
    )
