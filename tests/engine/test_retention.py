"""Which checkpoints stay."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch import nn

from kinetics400.engine import retention
from kinetics400.engine.optim import build_optimizer
from kinetics400.errors import StorageError

Usage = namedtuple("Usage", "total used free")


def make(root: Path, *steps: int) -> None:
    for step in steps:
        (root / f"step-{step:010}").mkdir(parents=True)


def there(root: Path) -> list[int]:
    return list(retention.step_folders(root))


def test_the_two_newest_stay(tmp_path: Path) -> None:
    make(tmp_path, 9, 10, 100, 11)
    for other in (".tmp-step-0000000001", ".bad-step-0000000002", "step-3", "step-00000000044"):
        (tmp_path / other).mkdir()
    retention.prune(tmp_path)
    assert there(tmp_path) == [11, 100] and len(list(tmp_path.iterdir())) == 6


def test_every_nth_and_the_best_stay_as_well(tmp_path: Path) -> None:
    make(tmp_path, *range(10, 101, 10))
    retention.note_score(tmp_path, 40, 71.5)
    retention.prune(tmp_path, keep_every=30)
    assert there(tmp_path) == [30, 40, 60, 90, 100]


def test_the_best_is_the_first_of_the_highest_scores_that_were_saved(tmp_path: Path) -> None:
    make(tmp_path, 10, 20, 30, 40)
    for step, score in ((10, 50.0), (15, 99.0), (20, 70.0), (30, 70.0), (40, 60.0)):
        retention.note_score(tmp_path, step, score)
    assert retention.best_step(tmp_path) == 20
    shutil.rmtree(tmp_path / "step-0000000020")
    assert retention.best_step(tmp_path) is None
    retention.note_score(tmp_path, 40, 10.0)
    assert retention.best_step(tmp_path) == 40


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"step": "40"}'])
def test_a_damaged_note_of_the_best_is_no_obstacle(content: str, tmp_path: Path) -> None:
    make(tmp_path, 40)
    (tmp_path / "best.json").write_text(content)
    assert retention.best_step(tmp_path) is None
    retention.prune(tmp_path)


@pytest.mark.parametrize(
    ("name", "has_average", "copies"),
    [("adamw", False, 3), ("adamw", True, 4), ("lion", False, 2), ("lion", True, 3)],
)
def test_bytes_of_a_checkpoint(name: str, has_average: bool, copies: int) -> None:
    method = nn.BatchNorm1d(10)  # 20 parameters; buffers of 10, 10 and one int64
    groups = [{"params": list(method.parameters()), "names": ["w", "b"], "lr_scale": 1.0}]
    optimizer = build_optimizer(name, groups, betas=(0.9, 0.95), fused=False)
    size = retention.checkpoint_bytes(method, optimizer, has_average=has_average)
    assert size == 20 * 4 * copies + 20 * 4 + 8


@pytest.mark.parametrize(("present", "needed"), [((), 330), ((1,), 220), ((1, 2), 110)])
def test_space_for_those_to_come(
    present: tuple[int, ...], needed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run" / "checkpoints"
    make(root, *present)
    free = [needed * 10**7]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free[0]))
    retention.require_space(root, 10**9)
    free[0] -= 10**6
    with pytest.raises(StorageError, match=rf"takes 1 GB .* {needed / 100:.3g} GB are needed"):
        retention.require_space(root, 10**9)


def test_what_the_page_cache_holds_is_dropped_without_harm(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(10**6))
    retention.drop_from_cache(tmp_path)
    assert torch.frombuffer(bytearray((tmp_path / "a").read_bytes()), dtype=torch.uint8).sum() == 0
