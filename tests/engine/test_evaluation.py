"""Scores of a split against numpy, for any number of videos, ranks and views per forward."""

import multiprocessing
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import Dataset

from kinetics400.data.dataset import Unreadable, VideoViews
from kinetics400.data.loader import view_loader
from kinetics400.engine.evaluation import Evaluation, evaluate
from kinetics400.methods.base import Method

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
CLASSES = 7
VIEWS = 3
NUM_VIDEOS = range(1, 18)
MERGES = ("prob", "logit")


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


class Videos(Dataset[VideoViews]):
    """Made videos for the loader that splits a list among the ranks."""

    def __init__(self, videos: list[VideoViews]) -> None:
        self.videos = videos

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> VideoViews:
        return self.videos[index]


def unreadable_of(num_videos: int) -> list[int]:
    """Every fifth video, from the second on: alone on a rank, and beside others."""
    return list(range(1, num_videos, 5))


def evaluate_as_rank(rank: int, world_size: int, folder: Path) -> None:
    """One of several processes: all sizes of a split, with both merges, over one connection."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=world_size
    )
    fabric = SimpleNamespace(
        world_size=world_size, to_device=lambda clips: clips, autocast=nullcontext
    )
    found = {}
    for num_videos in NUM_VIDEOS:
        videos: Any = Videos(make_videos(num_videos, unreadable_of(num_videos)))
        share = view_loader(videos, rank=rank, world_size=world_size, num_workers=0)
        for merge in MERGES:
            method = Linear()
            found[num_videos, merge] = (
                score(method, share, num_videos, fabric=fabric, merge=merge),
                sum(method.seen),
            )
    torch.save(found, folder / f"rank-{rank}")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def found_by_ranks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[tuple[int, str], tuple[Evaluation, int]]]:
    """What each of 1 to 4 processes found, talking through gloo. Forked, as importing is slow."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=evaluate_as_rank, args=(rank, request.param, folder), daemon=True)
        for rank in range(request.param)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=60)
        process.kill()
    assert [process.exitcode for process in ranks] == [0] * request.param
    return [
        torch.load(folder / f"rank-{rank}", weights_only=False) for rank in range(request.param)
    ]


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


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("num_videos", NUM_VIDEOS)
def test_eval_counts_each_video_once(
    num_videos: int,
    merge: str,
    found_by_ranks: list[dict[tuple[int, str], tuple[Evaluation, int]]],
) -> None:
    """Whatever the number of videos and processes; one that cannot be read is wrong and listed."""
    bad = unreadable_of(num_videos)
    videos = make_videos(num_videos, bad)
    scores, top1 = expected(Linear(), videos, merge)
    for found in found_by_ranks:  # every rank knows the whole result
        result, _ = found[num_videos, merge]
        np.testing.assert_allclose(result.scores.numpy(), scores, rtol=1e-4, atol=1e-6)
        assert result.labels.tolist() == [video.label for video in videos]
        assert result.top1_acc == pytest.approx(top1)
        assert result.failures == sorted(
            (Unreadable(f"{i}.mp4", "damaged") for i in bad), key=lambda one: one.path
        )
        assert (result.num_videos, result.num_scored) == (num_videos, num_videos - len(bad))
    seen = [found[num_videos, merge][1] for found in found_by_ranks]
    assert sum(seen) == VIEWS * (num_videos - len(bad))
    assert max(seen) <= VIEWS * -(-num_videos // len(found_by_ranks))  # the work is shared


@pytest.mark.parametrize("merge", MERGES)
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


def test_an_unreadable_video_is_wrong_even_of_the_class_that_zeros_would_be_given() -> None:
    method = Linear()
    videos = [
        VideoViews(v.index, 0, v.views, v.failure) for v in make_videos(9, unreadable=[2, 5, 8])
    ]
    result = score(method, videos, 9)
    scores, top1 = expected(method, videos, "prob")
    np.testing.assert_allclose(result.scores.numpy(), scores, rtol=1e-5)
    assert result.top1_acc == pytest.approx(top1)
    assert result.top5_acc <= 100 * 6 / 9
    assert result.failures == [Unreadable(f"{i}.mp4", "damaged") for i in (2, 5, 8)]
    assert (result.num_videos, result.num_scored) == (9, 6)
    assert result.is_scored().tolist() == [i not in (2, 5, 8) for i in range(9)]


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_output_that_is_not_finite_is_no_score(value: float, merge: str) -> None:
    """Of one view of one video: as 16 bits overflow. The video is wrong, and listed by name."""
    method, videos = Linear(), make_videos(5)
    original = method.predict

    def overflow(clips: Tensor) -> Tensor:
        logits = original(clips)
        logits[4, 2] = value  # the second view of the second video
        return logits

    method.predict = overflow  # type: ignore[method-assign]
    result = score(method, videos, 5, merge=merge, path_of=lambda index: f"<{index}>")
    assert [failure.path for failure in result.failures] == ["<1>"]
    assert "not finite" in result.failures[0].reason
    assert result.is_scored().tolist() == [True, False, True, True, True]
    right = expected(method, videos, merge)[0].argmax(axis=1) == [v.label for v in videos]
    assert result.correct(1).tolist() == [bool(x) and i != 1 for i, x in enumerate(right)]


def test_two_files_of_one_name_are_two_videos() -> None:
    """The published code keys its results by name, and drops the second (kinetics.py:119)."""
    one, other = make_videos(2, unreadable=[0, 1])
    videos = [
        VideoViews(0, one.label, None, Unreadable("a/same.mp4", "damaged")),
        VideoViews(1, other.label, make_videos(2)[1].views),
        VideoViews(2, other.label, None, Unreadable("b/same.mp4", "damaged")),
    ]
    result = score(Linear(), videos, 3)
    assert (result.num_videos, result.num_scored, len(result.failures)) == (3, 1, 2)


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
