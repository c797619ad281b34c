"""Timing of augmentation: everybody takes turns, and medians become ratios."""

from pathlib import Path

import pytest
import torch

from kinetics400.augment.randaugment import NAMES
from kinetics400.bench import augment
from kinetics400.bench.augment import Amount, Timing, batch_ratio, medians, take_turns


def test_contenders_take_turns_and_the_first_turn_does_not_count() -> None:
    calls: list[str] = []
    tasks = {
        task: {name: (lambda text=task + name: calls.append(text), 4) for name in "ab"}
        for task in "xy"
    }
    rows = take_turns(tasks, 2, shortest=1e-12)
    assert [(row.task, row.contender, row.repeat) for row in rows] == [
        (task, name, repeat) for repeat in (0, 1) for task in "xy" for name in "ab"
    ]
    assert calls == [task + name for _ in range(3) for task in "xy" for name in "ab"]


def test_time_is_per_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(augment.time, "process_time", lambda: next(clock))
    (row,) = take_turns({"x": {"a": (lambda: None, 4)}}, 1, shortest=2.5)
    assert row.cpu_seconds == 3 / (3 * 4)


def test_medians_are_milliseconds() -> None:
    rows = [Timing("x", "ours", i, seconds) for i, seconds in enumerate((0.1, 0.3, 0.002))]
    assert medians(rows) == {"x": {"ours": pytest.approx(100)}}


def test_ratios_are_of_all_batches_together() -> None:
    cost = {
        "batch 0": {"ours": 1.0, "timm": 6.0},
        "batch 1": {"ours": 3.0, "timm": 2.0},
        "Invert": {"ours": 100.0, "timm": 1.0},
    }
    assert batch_ratio(cost, "timm") == 2.0


def test_the_benchmark_measures_everything_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On clips of a few pixels."""
    monkeypatch.setattr(augment, "SIZE", 32)
    monkeypatch.setattr(augment, "NUM_FRAMES", 4)
    monkeypatch.setattr(augment, "BATCH_SIZE", 2)
    monkeypatch.setattr(augment, "VIDEO_FRAMES", 40)
    turns = augment.take_turns
    monkeypatch.setattr(augment, "take_turns", lambda *args: turns(*args, shortest=1e-9))
    said: list[str] = []
    amount = Amount(repeats=1, batches=1, clips=2)
    threads = torch.get_num_threads()
    result = augment.bench_augment(tmp_path, amount=amount, say=said.append)
    assert torch.get_num_threads() == threads and said
    cost = result["cpu_ms_per_clip"]
    assert list(cost) == [*NAMES, "batch 0", "reading"]
    for task, by in cost.items():
        assert len(by) == (2 if task == "reading" else 3) and min(by.values()) > 0
    assert result["ratio_timm"] > 0 and result["versions"]["torchvision"]


def test_both_ways_of_reading_give_the_same_clip(tmp_path: Path) -> None:
    path = augment.stored_video(tmp_path)
    (first, _), (last, _) = augment.reading_task(path, 2).values()
    for cropped, whole in zip(first(), last(), strict=True):  # type: ignore[call-overload]
        assert cropped.shape == (3, 16, 224, 224)
        # A box is converted from its own even corner: chroma may be interpolated otherwise there.
        assert (cropped.int() - whole.int()).abs().float().mean() < 1
