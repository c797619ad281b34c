"""The demo's own parts; `make demo` runs the whole."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kinetics400.commands.demo import (
    missed_thresholds,
    prepare_folder,
    repeat_frame,
    shuffle_frames,
)
from kinetics400.commands.report import demo_page, demo_verdict
from kinetics400.errors import InputError

VIEWS = torch.arange(3 * 2 * 16).reshape(3, 1, 16, 2, 1).expand(3, 3, 16, 2, 4)


def results(**changes: float) -> dict[str, Any]:
    top1 = {"finetuned": 90.0, "scratch": 89.0, "shuffled_frames": 12.0, "repeated_frame": 10.0}
    top1 |= {name: value for name, value in changes.items() if name in top1}
    return {
        "pretrain_loss_first_epoch": 1.2,
        "pretrain_loss_last_epoch": changes.get("last_loss", 0.7),
        "n_classes": 10,
        "n_train_videos": 400,
        "n_val_videos": 200,
        "n_views": 15,
        "seconds": 300.0,
        **{name: {"top1_acc": value, "top5_acc": 100.0} for name, value in top1.items()},
    }


def test_shuffling_permutes_each_views_frames_and_nothing_else() -> None:
    shuffled = shuffle_frames(VIEWS, 5)
    for view, original in zip(shuffled, VIEWS, strict=True):
        frames = {tuple(original[:, t].flatten().tolist()): t for t in range(16)}
        order = [frames[tuple(view[:, t].flatten().tolist())] for t in range(16)]
        assert sorted(order) == list(range(16))
        assert order != list(range(16))
    assert torch.equal(shuffled, shuffle_frames(VIEWS, 5))
    assert not torch.equal(shuffled, shuffle_frames(VIEWS, 6))


def test_repeating_shows_one_frame_of_each_view() -> None:
    repeated = repeat_frame(VIEWS, 0)
    assert repeated.shape == VIEWS.shape
    assert all(torch.equal(repeated[:, :, t], VIEWS[:, :, 8]) for t in range(16))


def test_thresholds() -> None:
    assert missed_thresholds(results()) == []
    assert missed_thresholds(results(finetuned=80.0, shuffled_frames=50.0)) == []
    for change, word in (
        ({"last_loss": 0.97}, "pretraining loss"),
        ({"finetuned": 79.5}, "finetuned top-1"),
        ({"shuffled_frames": 60.5}, "random order"),
        ({"repeated_frame": 20.5}, "repeated frame"),
    ):
        (missed,) = missed_thresholds(results(**change))
        assert word in missed


def test_verdict_is_honest_both_ways() -> None:
    assert "no difference" in demo_verdict(results())
    assert "lost to training from scratch by 10.0" in demo_verdict(
        results(finetuned=85, scratch=95)
    )
    assert "beat training from scratch by 15.0" in demo_verdict(results(finetuned=95, scratch=80))


def test_page_holds_every_number() -> None:
    page = demo_page(results())
    for text in ("400", "200", "90.0 %", "89.0 %", "12.0 %", "10.0 %", "42 %", "300 seconds"):
        assert text in page


def test_only_a_demos_own_folder_is_emptied(tmp_path: Path) -> None:
    precious = tmp_path / "mine"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not a demo's"):
        prepare_folder(precious)
    assert (precious / "thesis.txt").exists()
    prepare_folder(tmp_path / "work")
    (tmp_path / "work/old").touch()
    prepare_folder(tmp_path / "work")
    assert not (tmp_path / "work/old").exists()
