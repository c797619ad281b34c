"""Scores of a whole split: every video once, whatever the number of ranks."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed
from lightning.fabric import Fabric
from torch import Tensor

from kinetics400.batch import normalize
from kinetics400.data.dataset import Unreadable, VideoViews
from kinetics400.engine.metrics import accuracy, merge_views, topk_correct
from kinetics400.methods.base import Method

ViewTransform = Callable[[Tensor, int], Tensor]  # (views (V, C, T, H, W), video index) -> views


@dataclass(frozen=True)
class Evaluation:
    """Result of a test.

    Attributes:
        top1_acc: percent of all listed videos; one that cannot be read counts as wrong.
        top5_acc: likewise.
        num_videos: listed.
        num_views: per video.
        failures: videos that could not be read.
        scores: (N, K) merged scores; NaN where a video could not be read.
    """

    top1_acc: float
    top5_acc: float
    num_videos: int
    num_views: int
    failures: list[Unreadable] = field(default_factory=list)
    scores: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    @property
    def num_scored(self) -> int:
        return self.num_videos - len(self.failures)


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
) -> Evaluation:
    """Score each video by its merged views.

    Args:
        fabric: device, precision and ranks.
        method: one that predicts; its training mode is restored afterwards.
        videos: this rank's share of the split.
        num_videos: in the whole split.
        num_classes: K.
        merge: "prob" averages softmaxes, "logit" logits.
        clips_per_forward: how many views go through the model at once.
        transform: changes the views first (for ablations).

    Raises:
        RuntimeError: the ranks together did not see every video exactly once (a bug).
    """
    was_training = method.training
    method.eval()
    rows: list[tuple[int, int, Tensor]] = []
    failures: list[Unreadable] = []
    num_views = 0
    for group in _grouped(videos, clips_per_forward):
        readable = [video for video in group if video.views is not None]
        views = [_prepared(video, transform) for video in readable]
        if views:
            logits = _predict(fabric, method, torch.cat(views), clips_per_forward)
            parts = logits.split([len(part) for part in views])
            num_views = len(views[0])
            for video, part in zip(readable, parts, strict=True):
                rows.append((video.index, video.label, merge_views(part, merge)))
        for video in group:
            if video.failure is not None:
                failures.append(video.failure)
                nothing = torch.full((num_classes,), float("nan"), dtype=torch.float64)
                rows.append((video.index, video.label, nothing))
    method.train(was_training)
    return _gathered(fabric, rows, failures, num_videos, num_views)


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


def _gathered(
    fabric: Fabric,
    rows: list[tuple[int, int, Tensor]],
    failures: list[Unreadable],
    num_videos: int,
    num_views: int,
) -> Evaluation:
    if fabric.world_size > 1:
        shares: list = [None] * fabric.world_size
        torch.distributed.all_gather_object(shares, (rows, failures, num_views))
        rows = [row for share in shares for row in share[0]]
        failures = [failure for share in shares for failure in share[1]]
        num_views = max(share[2] for share in shares)
    rows.sort(key=lambda row: row[0])
    if [row[0] for row in rows] != list(range(num_videos)):
        raise RuntimeError(f"{len(rows)} rows for {num_videos} videos: not each exactly once")
    labels = torch.tensor([row[1] for row in rows])
    scores = torch.stack([row[2] for row in rows])
    read = ~scores.isnan().any(dim=1)
    filled = scores.nan_to_num()
    return Evaluation(
        top1_acc=accuracy(topk_correct(filled, labels, 1) & read),
        top5_acc=accuracy(topk_correct(filled, labels, 5) & read),
        num_videos=num_videos,
        num_views=num_views,
        failures=sorted(failures, key=lambda failure: failure.path),
        scores=scores,
    )
