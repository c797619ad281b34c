"""Scores of a split against numpy, for any number of videos, ranks and views per forward."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from kinetics400.data.dataset import Unreadable, VideoViews
from kinetics400.engine.evaluation import Evaluation, evaluate
from kinetics400.methods.base import Method

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
CLASSES = 7
VIEWS = 3


class Linear(Method):
    """Logits from the clip's first frame, no more; counts what it is given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Linear(3 * 2 * 2, CLASSES)
        nn.init.normal_(self.encoder.weight, std=2.0)
        self.dropout = nn.Dropout(0.5)  # in training mode the scores would be noise
        self.seen: list[int] = []

    def predict(self, clips: Tensor) -> Tensor:
        self.seen.append(len(clips))
        return self.dropout(self.encoder(clips[:, :, 0].flatten(1)))


def make_videos(num_videos: int, unreadable: Iterable[int] = ()) -> list[VideoViews]:
    rng = np.random.default_rng(num_videos)
    videos = []
    for index in range(num_videos):
        label = int(rng.integers(CLASSES))
        views = torch.from_numpy(rng.integers(0, 256, (VIEWS, 3, 4, 2, 2), dtype=np.uint8))
        if index in unreadable:
            failure = Unreadable(f"{index}.mp4", "damaged")
            videos.append(VideoViews(index, label, None, failure))
        else:
            videos.append(VideoViews(index, label, views))
    return videos


def expected(method: Linear, videos: list[VideoViews], merge: str) -> tuple[np.ndarray, float]:
    """Merged scores and top-1, by numpy; what cannot be read is wrong."""
    weight = method.encoder.weight.detach().double().numpy()
    bias = method.encoder.bias.detach().double().numpy()
    scores = np.full((len(videos), CLASSES), np.nan)
    correct = 0
    for row, video in enumerate(videos):
        if video.views is None:
            continue
        logits = []
        for view in video.views.numpy()[:, :, 0]:  # (C, H, W)
            pixels = (view.transpose(1, 2, 0) / 255 - MEAN) / STD
            logits.append(weight @ pixels.transpose(2, 0, 1).ravel() + bias)
        stacked = np.stack(logits)
        if merge == "prob":
            powers = np.exp(stacked)
            stacked = powers / powers.sum(axis=1, keepdims=True)
        scores[row] = stacked.mean(axis=0)
        correct += int(scores[row].argmax() == video.label)
    return scores, 100 * correct / len(videos)


class NotTheLast(Exception):
    """A rank has left its share; the others have not come yet."""


def over_ranks(
    method: Method, videos: list[VideoViews], world_size: int, monkeypatch: pytest.MonkeyPatch
) -> Evaluation:
    """Let ranks evaluate one after the other; the last to come gathers what all have left."""
    shares: dict[int, Any] = {}

    def run(rank: int) -> Evaluation:
        def gather(found: list[Any], own: Any) -> None:
            shares[rank] = own
            if len(shares) < world_size:
                raise NotTheLast
            found[:] = [shares[r] for r in range(world_size)]

        monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
        fabric: Any = SimpleNamespace(
            world_size=world_size,
            global_rank=rank,
            is_global_zero=rank == 0,
            device=torch.device("cpu"),
            to_device=lambda x: x,
            autocast=nullcontext,
        )
        return score(method, videos[rank::world_size], len(videos), fabric=fabric)

    for rank in range(1, world_size):
        with pytest.raises(NotTheLast):
            run(rank)
    return run(0)


def score(
    method: Method,
    videos: Iterable[VideoViews],
    num_videos: int,
    *,
    fabric: Any = None,
    **options: Any,
) -> Evaluation:
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    return evaluate(fabric, method, videos, num_videos=num_videos, num_classes=CLASSES, **options)


@pytest.mark.parametrize("num_videos", range(1, 10))
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_eval_counts_each_video_once(
    num_videos: int, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, videos = Linear(), make_videos(num_videos)
    result = over_ranks(method, videos, world_size, monkeypatch)
    scores, top1 = expected(method, videos, "prob")
    np.testing.assert_allclose(result.scores.numpy(), scores, rtol=1e-5)
    assert result.top1_acc == pytest.approx(top1)
    assert (result.num_videos, result.num_scored, result.num_views) == (num_videos, num_videos, 3)
    assert sum(method.seen) == VIEWS * num_videos


@pytest.mark.parametrize("merge", ["prob", "logit"])
def test_merging_views(merge: str) -> None:
    """Averaging softmaxes and averaging logits are different things, and both are as said."""
    method, videos = Linear(), make_videos(40)
    result = score(method, videos, 40, merge=merge)
    scores, top1 = expected(method, videos, merge)
    np.testing.assert_allclose(result.scores.numpy(), scores, rtol=1e-4, atol=1e-6)
    assert result.top1_acc == pytest.approx(top1)
    other = "prob" if merge == "logit" else "logit"
    winners = expected(method, videos, other)[0].argmax(axis=1)
    assert (winners != scores.argmax(axis=1)).any()


def test_top5_counts_the_five_best() -> None:
    method, videos = Linear(), make_videos(60)
    scores, _ = expected(method, videos, "prob")
    better = np.array([(row > row[v.label]).sum() for row, v in zip(scores, videos, strict=True)])
    result = score(method, videos, 60)
    assert result.top5_acc == pytest.approx(100 * (better < 5).mean())
    assert result.top1_acc == pytest.approx(100 * (better < 1).mean())
    assert result.top1_acc < result.top5_acc < 100


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_unreadable_video_is_wrong_and_listed(
    world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even one whose label is the class that a row of zeros would be given."""
    method = Linear()
    videos = [
        VideoViews(v.index, 0, v.views, v.failure) for v in make_videos(9, unreadable=[2, 5, 8])
    ]
    result = over_ranks(method, videos, world_size, monkeypatch)
    scores, top1 = expected(method, videos, "prob")
    np.testing.assert_allclose(result.scores.numpy(), scores, rtol=1e-5)
    assert result.top1_acc == pytest.approx(top1)
    assert result.top5_acc <= 100 * 6 / 9
    assert result.failures == [Unreadable(f"{i}.mp4", "damaged") for i in (2, 5, 8)]
    assert (result.num_videos, result.num_scored) == (9, 6)


def test_nothing_can_be_read() -> None:
    result = score(Linear(), make_videos(4, unreadable=range(4)), 4)
    assert (result.top1_acc, result.top5_acc, result.num_scored) == (0.0, 0.0, 0)


@pytest.mark.parametrize("wrong", ["twice", "missing", "another's"])
def test_a_video_counted_twice_or_never_is_noticed(wrong: str) -> None:
    videos = make_videos(5)
    wrong_videos = {
        "twice": [*videos, videos[1]],
        "missing": videos[:4],
        "another's": [*videos[:4], videos[0]],
    }[wrong]
    with pytest.raises(RuntimeError, match="not each exactly once"):
        score(Linear(), wrong_videos, 5)


@pytest.mark.parametrize("at_once", [1, 2, 3, 4, 100])
def test_clips_per_forward_changes_no_score(at_once: int) -> None:
    method, videos = Linear(), make_videos(7, unreadable=[3])
    result = score(method, videos, 7, clips_per_forward=at_once)
    np.testing.assert_allclose(
        result.scores.numpy(), expected(method, videos, "prob")[0], rtol=1e-5
    )
    assert max(method.seen) <= at_once
    assert sum(method.seen) == 6 * VIEWS


def test_videos_are_taken_as_they_come() -> None:
    """A split is larger than memory: no more than one forward's videos wait at a time."""
    method, handed_out = Linear(), []

    def stream() -> Iterator[VideoViews]:
        for video in make_videos(10):
            waiting = VIEWS * len(handed_out) - sum(method.seen)
            assert waiting < 6
            handed_out.append(video.index)
            yield video

    score(method, stream(), 10, clips_per_forward=6)
    assert handed_out == list(range(10))


@pytest.mark.parametrize("training", [True, False])
def test_the_training_mode_is_restored_and_gradients_stay_off(training: bool) -> None:
    method = Linear()
    method.train(training)
    modes = []
    original = method.predict

    def predict(clips: Tensor) -> Tensor:
        modes.append((method.training, torch.is_grad_enabled()))
        return original(clips)

    method.predict = predict  # type: ignore[method-assign]
    score(method, make_videos(2), 2)
    assert modes == [(False, False)]
    assert method.training is training


def test_a_transform_sees_the_views_and_the_videos_number() -> None:
    method, videos, seen = Linear(), make_videos(4), []

    def repeat_the_last_frame(views: Tensor, index: int) -> Tensor:
        seen.append(index)
        return views[:, :, -1:].expand_as(views)

    result = score(method, videos, 4, transform=repeat_the_last_frame)
    changed = [
        VideoViews(v.index, v.label, v.views[:, :, -1:].expand_as(v.views))
        for v in videos
        if v.views is not None
    ]
    assert seen == [0, 1, 2, 3]
    np.testing.assert_allclose(
        result.scores.numpy(), expected(method, changed, "prob")[0], rtol=1e-5
    )
