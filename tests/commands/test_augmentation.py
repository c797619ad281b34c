"""From flags to what happens to clips, and that it happens to them in a run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kinetics400.__main__ import run_command
from kinetics400.augment.mix import Mixing
from kinetics400.augment.randaugment import RandAugment
from kinetics400.batch import Batch
from kinetics400.commands import augmentation
from kinetics400.commands.augmentation import device_augment, on_whole_frames, randaugment
from kinetics400.config.finetuning import AugmentationFlags
from kinetics400.data import keys
from kinetics400.data.dataset import ClipDataset
from kinetics400.methods.classification import Classification

NOTHING = {"flip": 0, "auto_augment": "none", "reprob": 0, "mixup": 0, "cutmix": 0}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[[AugmentationFlags], dict[str, Any]]:
    """What the flags come to."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(augmentation, "training_augment", lambda **given: found.update(given))

    def ask(flags: AugmentationFlags) -> dict[str, Any]:
        device_augment(flags, 400)
        return found

    return ask


def test_the_defaults_are_the_published_ones(
    asked: Callable[[AugmentationFlags], dict[str, Any]],
) -> None:
    """Typed from VideoMAE's finetuning scripts."""
    assert AugmentationFlags().crop_scale == (0.08, 1.0)
    assert asked(AugmentationFlags()) == {
        "flip_probability": 0.5,
        "randaugment": RandAugment(magnitude=7, num_layers=4, magnitude_std=0.5, probability=0.5),
        "erase_probability": 0.25,
        "mixing": Mixing(
            num_classes=400,
            mixup_alpha=0.8,
            cutmix_alpha=1.0,
            probability=1.0,
            switch_probability=0.5,
            mode="batch",
        ),
    }


def test_every_flag_of_mixing_arrives(
    asked: Callable[[AugmentationFlags], dict[str, Any]],
) -> None:
    flags = AugmentationFlags(
        mixup=0.3, cutmix=0.6, mixup_prob=0.9, mixup_switch_prob=0.2, mixup_mode="pair"
    )
    assert asked(flags)["mixing"] == Mixing(
        num_classes=400,
        mixup_alpha=0.3,
        cutmix_alpha=0.6,
        probability=0.9,
        switch_probability=0.2,
        mode="pair",
    )


def test_everything_can_be_left_out(
    asked: Callable[[AugmentationFlags], dict[str, Any]],
) -> None:
    flags = AugmentationFlags(**NOTHING)  # type: ignore[arg-type]
    assert asked(flags) == {
        "flip_probability": 0,
        "randaugment": None,
        "erase_probability": 0,
        "mixing": None,
    }


@pytest.mark.parametrize(
    "flags", [{"mixup_prob": 0.0}, {"mixup": 0.0, "cutmix": 0.0}], ids=["never", "no alphas"]
)
def test_without_mixing_there_are_no_targets(
    asked: Callable[[AugmentationFlags], dict[str, Any]], flags: dict[str, float]
) -> None:
    assert asked(AugmentationFlags(**flags))["mixing"] is None  # type: ignore[arg-type]


def test_the_official_order_takes_randaugment_from_the_device_to_the_workers(
    asked: Callable[[AugmentationFlags], dict[str, Any]],
) -> None:
    flags = AugmentationFlags(official_augment=True)
    assert asked(flags)["randaugment"] is None
    assert on_whole_frames(flags) == randaugment(flags) == randaugment(AugmentationFlags())
    assert on_whole_frames(AugmentationFlags()) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--auto_augment", "rand-m11-inc1"], "--auto_augment 'rand-m11-inc1' is out of range"),
        (["--auto_augment", "augmix"], "--auto_augment 'augmix' is not understood"),
        (["--official_augment", "--auto_augment", "none"], "--official_augment means nothing"),
        (["--reprob", "1.5"], "--reprob 1.5 must lie in [0, 1]"),
        (["--mixup", "-1"], "--mixup -1.0 must be at least 0"),
        (["--cutmix", "nan"], "--cutmix nan must be at least 0"),
        (["--mixup_prob", "2"], "--mixup_prob 2.0 must lie in [0, 1]"),
        (["--mixup_switch_prob", "-0.1"], "--mixup_switch_prob -0.1 must lie in [0, 1]"),
        (["--num_sample", "0"], "--num_sample 0 must be at least 1"),
        (["--decode_timeout", "0"], "--decode_timeout 0.0 must be a positive number"),
    ],
)
def test_bad_flags_are_refused(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["--model_name", "tiny", "--save_dir", str(tmp_path / "run"), "--dry_run", *flags]
    assert run_command("train", argv) == 2
    told = capsys.readouterr().err
    assert " ".join(message.split()) in " ".join(told.replace("│", " ").split())
    assert not (tmp_path / "run").exists()


# --- in a run -------------------------------------------------------------------------------------

RUN = (
    *("--model_name", "tiny", "--input_size", "32", "--patch_size", "8", "--num_frames", "4"),
    *("--sampling_rate", "2", "--n_epoch", "1", "--batch_size", "8", "--warmup_epochs", "0"),
    *("--num_classes", "4", "--views", "1x1", "--accelerator", "cpu", "--log_every", "1"),
)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """What reaches the method."""
    seen: list[Batch] = []
    forward = Classification.forward

    def noted(self: Classification, batch: Batch, drawn: dict[str, torch.Tensor]) -> Any:
        seen.append(batch)
        return forward(self, batch, drawn)

    monkeypatch.setattr(Classification, "forward", noted)
    return seen


def run(library: Path, save_dir: Path, *flags: str) -> None:
    where = ("--data_dir", str(library), "--save_dir", str(save_dir))
    assert run_command("train", [*RUN, *where, *flags]) == 0


def test_a_run_mixes_and_repeats(
    library: Path, tmp_path: Path, batches: list[Batch], capsys: pytest.CaptureFixture[str]
) -> None:
    run(library, tmp_path / "run", "--n_worker", "0", "--num_sample", "2")
    assert "16 clips per step (2 of each video)" in capsys.readouterr().out
    assert [len(batch) for batch in batches] == [16, 16, 16]
    for batch in batches:
        assert batch.clips.dtype == torch.float32 and batch.clips.isfinite().all()
        assert batch.targets is not None
        torch.testing.assert_close(batch.targets.sum(1), torch.ones(16))
        assert batch.labels.view(8, 2).eq(batch.labels[::2, None]).all()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert all("train_top1_acc" not in row for row in rows)


@pytest.mark.parametrize("workers", ["0", "1", "2", "4"])
def test_any_number_of_workers_augments_alike(
    library: Path, tmp_path: Path, batches: list[Batch], workers: str
) -> None:
    """Bit for bit what comes of the same samples by hand, one clip at a time."""
    flags = ("--mixup", "0", "--cutmix", "0", "--num_sample", "2", "--seed", "5")
    run(library, tmp_path / "run", "--n_worker", workers, *flags)
    assert len(batches) == 3
    augment = device_augment(AugmentationFlags(mixup=0, cutmix=0), 4)
    if workers == "0":
        assert len({key for batch in batches for key in batch.keys.tolist()}) == 48
    order = keys.permutation(5, 0, 24).tolist()
    dataset = RECORDED[-1]
    for step, batch in enumerate(batches):
        for place in range(0, 16, 5):
            slot = 8 * step + place // 2
            sample = dataset[(order[slot], 0, slot)]
            clip, key = sample.clips[place % 2], sample.keys[place % 2]
            alone = Batch(clip[None], torch.tensor([sample.label]), key[None])
            assert batch.keys[place] == key
            assert torch.equal(augment(alone).clips[0], batch.clips[place])


RECORDED: list[ClipDataset] = []


@pytest.fixture(autouse=True)
def _recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the datasets that commands make."""
    init = ClipDataset.__init__

    def noted(self: ClipDataset, *args: Any, **more: Any) -> None:
        init(self, *args, **more)
        RECORDED.append(self)

    monkeypatch.setattr(ClipDataset, "__init__", noted)


def test_the_official_order_is_another_one(
    library: Path, tmp_path: Path, batches: list[Batch]
) -> None:
    """The same operations, before the crop: other pixels, and nothing but RandAugment differs."""
    alone = ("--mixup", "0", "--cutmix", "0", "--reprob", "0", "--n_worker", "0", "--seed", "1")
    run(library, tmp_path / "ours", *alone)
    run(library, tmp_path / "official", *alone, "--official_augment")
    run(library, tmp_path / "none", *alone, "--auto_augment", "none")
    ours, official, none = (torch.cat([b.clips for b in batches[i : i + 3]]) for i in (0, 3, 6))
    operations = randaugment(AugmentationFlags())
    assert operations is not None
    draws = operations.draw(torch.cat([batch.keys for batch in batches[:3]]))
    idle = torch.tensor([not any(draw.applied for draw in clip) for clip in draws])
    same = torch.tensor([a.equal(b) for a, b in zip(official, none, strict=True)])
    assert torch.equal(same, idle) and 0 < idle.sum() < 24
    assert not torch.equal(ours, official)
