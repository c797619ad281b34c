"""An evaluation that is killed and repeated counts every video once, and scores none twice."""

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from kinetics400.data.dataset import Unreadable, VideoViews
from kinetics400.data.loader import view_loader
from kinetics400.engine import kept_scores
from kinetics400.engine.evaluation import Evaluation, evaluate
from kinetics400.engine.kept_scores import FOLDER, KeptScores, weights_digest
from kinetics400.methods.base import Method

VIDEOS, VIEWS, CLASSES = 50, 15, 5
DAMAGED = (3, 20, 41)
ABOUT = {"weights": "these", "videos": "those"}


class Ranks:
    """What evaluation needs of Fabric, in forked processes."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.global_rank, self.world_size = rank, world_size
        self.is_global_zero = rank == 0
        self.to_device, self.autocast = (lambda clips: clips), nullcontext

    def broadcast(self, value: object) -> object:
        if self.world_size == 1:
            return value
        torch.distributed.broadcast_object_list(box := [value])
        return box[0]

    def barrier(self) -> None:
        if self.world_size > 1:
            torch.distributed.barrier()


class Counting(Method):
    """Logits from a clip's first pixels; dies when it is asked for one view too many."""

    def __init__(self, most: int | None = None) -> None:
        super().__init__()
        self.encoder = nn.Identity()
        self.most, self.num_seen = most, 0

    def predict(self, clips: Tensor) -> Tensor:
        if self.most is not None and self.num_seen + len(clips) > self.most:
            os.kill(os.getpid(), signal.SIGKILL)
        self.num_seen += len(clips)
        return clips[:, 0, 0, 0, :CLASSES]


class Videos(Dataset[VideoViews]):
    def __len__(self) -> int:
        return VIDEOS

    def __getitem__(self, index: int) -> VideoViews:
        if index in DAMAGED:
            return VideoViews(index, index % 5, None, Unreadable(f"{index}.mp4", "damaged"))
        pixels = np.random.default_rng(index).integers(0, 256, (VIEWS, 3, 1, 1, 8), np.uint8)
        return VideoViews(index, index % 5, torch.from_numpy(pixels))


def run(output_dir: Path, fabric: Any, method: Counting, about: dict[str, str]) -> Evaluation:
    videos: Any = Videos()
    kept = KeptScores(output_dir, fabric, about)
    share = view_loader(
        videos,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        num_workers=0,
        done=kept.done,
    )
    return evaluate(
        fabric, method, share, num_videos=VIDEOS, num_classes=CLASSES, clips_per_forward=30,
        kept=kept,
    )  # fmt: skip


def as_rank(rank: int, world_size: int, folder: Path, most: int | None) -> None:
    meet = f"file://{folder / f'meet-{world_size}-{most}'}"
    torch.distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=world_size)
    method = Counting(most)
    result = run(folder, Ranks(rank, world_size), method, ABOUT)
    torch.save((result, method.num_seen), folder / f"result-{rank}")
    torch.distributed.destroy_process_group()


def with_ranks(world_size: int, folder: Path, most: int | None = None) -> list[int]:
    """Exit codes."""
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=as_rank, args=(rank, world_size, folder, most), daemon=True)
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=60)
        process.kill()
    return [process.exitcode or 0 for process in ranks]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for half a minute."""
    monkeypatch.setattr(kept_scores, "FLUSH_SECONDS", 0.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """The evaluation that nothing interrupts."""
    return run(tmp_path_factory.mktemp("whole"), Ranks(), Counting(), ABOUT)


def assert_equal(result: Evaluation, whole: Evaluation) -> None:
    torch.testing.assert_close(result.scores, whole.scores, rtol=0, atol=0, equal_nan=True)
    assert result.labels.tolist() == whole.labels.tolist() == [i % 5 for i in range(VIDEOS)]
    assert result.failures == whole.failures and len(whole.failures) == len(DAMAGED)
    assert result.top1_acc == whole.top1_acc


@pytest.mark.parametrize("ranks_after", [1, 2, 3])
def test_killed_ranks_leave_what_they_have_scored(
    ranks_after: int, tmp_path: Path, whole: Evaluation
) -> None:
    """50 videos of 15 views on 3 ranks: each is killed after 90 views, and the rest scored."""
    assert with_ranks(3, tmp_path, most=90) == [-signal.SIGKILL] * 3
    assert with_ranks(ranks_after, tmp_path) == [0] * ranks_after
    found = [
        torch.load(tmp_path / f"result-{rank}", weights_only=False) for rank in range(ranks_after)
    ]
    for result, _ in found:
        assert_equal(result, whole)
    readable = VIDEOS - len(DAMAGED)
    assert sum(seen for _, seen in found) == VIEWS * readable - 3 * 90


def test_all_was_scored_and_only_the_report_is_missing(tmp_path: Path, whole: Evaluation) -> None:
    run(tmp_path, Ranks(), Counting(), ABOUT)
    method = Counting(most=0)
    assert_equal(run(tmp_path, Ranks(), method, ABOUT), whole)


@pytest.mark.parametrize("what", ABOUT)
def test_scores_of_something_else_are_removed(what: str, tmp_path: Path) -> None:
    run(tmp_path, Ranks(), Counting(), {**ABOUT, what: "other"})
    method = Counting()
    run(tmp_path, Ranks(), method, ABOUT)
    assert method.num_seen == VIEWS * (VIDEOS - len(DAMAGED))
    (file,) = (tmp_path / FOLDER).iterdir()
    assert json.loads(file.read_text().splitlines()[0]) == {"about": ABOUT}


def test_a_torn_line_is_scored_again(tmp_path: Path, whole: Evaluation) -> None:
    run(tmp_path, Ranks(), Counting(), ABOUT)
    (file,) = (tmp_path / FOLDER).iterdir()
    file.write_bytes(file.read_bytes()[:-40])
    method = Counting()
    assert_equal(run(tmp_path, Ranks(), method, ABOUT), whole)
    assert method.num_seen == VIEWS


def test_an_error_leaves_what_was_scored_before(
    tmp_path: Path, whole: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_scores, "FLUSH_SECONDS", 1e9)
    method = Counting()
    predict = method.predict

    def stopped(clips: Tensor) -> Tensor:
        if method.num_seen >= 300:
            raise KeyboardInterrupt
        return predict(clips)

    monkeypatch.setattr(method, "predict", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Ranks(), method, ABOUT)
    rest = Counting()
    assert_equal(run(tmp_path, Ranks(), rest, ABOUT), whole)
    assert rest.num_seen == VIEWS * (VIDEOS - len(DAMAGED)) - 300


def test_failures_are_tried_again(tmp_path: Path, whole: Evaluation) -> None:
    """The data folder may be back, or a video repaired."""
    fabric: Any = Ranks()
    run(tmp_path, fabric, Counting(), ABOUT)
    assert KeptScores(tmp_path, fabric, ABOUT).done == {*range(VIDEOS)} - {*DAMAGED}


def test_closing_leaves_nothing(tmp_path: Path) -> None:
    fabric: Any = Ranks()
    KeptScores(tmp_path, fabric, ABOUT).close()  # nothing was scored
    run(tmp_path, fabric, Counting(), ABOUT)
    assert [path.name for path in tmp_path.iterdir()] == [FOLDER]
    KeptScores(tmp_path, fabric, ABOUT).close()
    assert list(tmp_path.iterdir()) == []


def changed(module: nn.Module) -> Iterator[nn.Module]:
    with torch.no_grad():
        module.weight[0, 0] += 1e-6  # type: ignore[index, operator]
        yield module
        module.bias[1] = 0  # type: ignore[index, operator]
        yield module


def test_the_digest_tells_weights_apart() -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    seen = {weights_digest(module), *(weights_digest(one) for one in changed(module))}
    assert len(seen) == 3
    assert weights_digest(module.half()) not in seen
