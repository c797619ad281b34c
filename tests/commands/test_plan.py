"""The promised training commands, word for word plus --dry_run: what they plan, typed by hand."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kinetics400.__main__ import run_command
from kinetics400.data import shared_memory

ROOT = Path(__file__).resolve().parents[2]

FINETUNE = (
    "python -m train --save_dir weights --model_name MCG-NJU/videomae-base-finetuned-kinetics"
    " --pretrained --pretrained_name MCG-NJU/videomae-base --pretrained_dir pretrained_weights"
    " --n_epoch 100 --batch_size 32 --lr 3e-4 --n_worker 16 --n_device 8 --precision bf16-mixed"
    " --dtype bfloat16 --strategy ddp --save_frequency 5 --label_smoothing 0.1 --input_size 224"
)
PRETRAIN = (
    "python -m pretraining --save_dir pretrained_weights --model_name MCG-NJU/videomae-base"
    " --n_epoch 400 --batch_size 64 --lr 5e-4 --n_worker 16 --n_device 8 --precision bf16-mixed"
    " --dtype bfloat16 --strategy ddp --save_frequency 20 --input_size 224 --mask_ratio 0.9"
    " --tubelet_size 2 --norm_pix_loss"
)
SHARED = {"precision": "bf16-mixed", "strategy": "ddp", "n_device": 8, "tokens_total": 1568}
EXPECTED: dict[str, dict[str, Any]] = {
    PRETRAIN: {
        **SHARED,
        "model": "MCG-NJU/videomae-base",
        "global_batch_size": 512,
        "peak_lr": 5e-4,
        "param_groups": 2,
        "tokens_visible": 160,
    },
    FINETUNE: {
        **SHARED,
        "model": "MCG-NJU/videomae-base-finetuned-kinetics",
        "global_batch_size": 256,
        "peak_lr": 3e-4,
        "param_groups": 28,
        "tokens_visible": 1568,
    },
}
# With Kinetics-400's own 240,436 training videos; the last incomplete batch is dropped.
STEPS = {
    PRETRAIN: {"steps_per_epoch": 469, "total_steps": 187_600, "warmup_steps": 18_760},
    FINETUNE: {"steps_per_epoch": 939, "total_steps": 93_900, "warmup_steps": 4_695},
}
MILLIONS = {PRETRAIN: 94.2, FINETUNE: 86.5}


def contents(folder: str) -> list[str]:
    """What lies in a folder of the checkout, but for Python's own caches."""
    found = (path for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts)
    return sorted(f"{path} {path.stat().st_mtime_ns}" for path in found)


@pytest.fixture(scope="module")
def ran() -> dict[str, tuple[int, str, str, bool]]:
    """Exit code, output, messages and whether files changed; side by side, as starting is slow."""
    places = ("data", "pretrained_weights", "weights")
    before = [contents(place) for place in places]
    started = {
        command: subprocess.Popen(
            [sys.executable, *shlex.split(command)[1:], "--dry_run"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        for command in (PRETRAIN, FINETUNE)
    }
    told = {command: process.communicate() for command, process in started.items()}
    wrote = [contents(place) for place in places] != before
    return {c: (started[c].returncode, out, err, wrote) for c, (out, err) in told.items()}


@pytest.mark.parametrize("command", [PRETRAIN, FINETUNE], ids=["pretraining", "train"])
def test_the_promised_command_plans_what_it_promises(
    command: str, ran: dict[str, tuple[int, str, str, bool]]
) -> None:
    code, out, err, wrote = ran[command]
    assert code == 0, err
    plan = json.loads(out)  # standard output carries nothing else
    assert {name: plan[name] for name in EXPECTED[command]} == EXPECTED[command]
    assert plan["n_parameters"] / 1e6 == pytest.approx(MILLIONS[command], abs=0.05)
    missing = {text.partition(":")[0] for text in plan["missing"]}
    if "data" in missing:  # unless this checkout has been given the dataset
        assert (plan["train_videos"], plan["val_videos"]) == (240_436, 19_796)
        assert {name: plan[name] for name in STEPS[command]} == STEPS[command]
        assert any("assumes" in text and "240,436" in text for text in plan["missing"])
    if torch.cuda.device_count() < 8 and (os.cpu_count() or 1) < 8:
        assert "devices" in missing
    if command == FINETUNE and not (ROOT / "pretrained_weights").exists():
        assert "weights" in missing
    assert not wrote


# --- the same in this process ---------------------------------------------------------------------


def plan_of(capsys: pytest.CaptureFixture[str], name: str, *flags: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run_command(name, [*flags, "--dry_run"]) == 0
    return json.loads(capsys.readouterr().out)


def flags_of(command: str) -> list[str]:
    return shlex.split(command)[3:]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("name", "command"), [("pretrain", PRETRAIN), ("train", FINETUNE)])
def test_a_plan_without_data_weights_devices_and_memory(
    elsewhere: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    command: str,
) -> None:
    """Everything absent is named, nothing is written, and the real run refuses with the same."""
    monkeypatch.setattr(shared_memory, "free_bytes", lambda: 8 << 20)
    flags = [*flags_of(command), "--accelerator", "cuda", "--n_device", "99"]
    plan = plan_of(capsys, name, *flags)
    kinds = [text.partition(":")[0] for text in plan["missing"]]
    assert set(kinds) == {"devices", "data", "shared memory"} | (
        {"weights"} if name == "train" else set()
    )
    assert (plan["train_videos"], plan["val_videos"]) == (240_436, 19_796)
    assert list(elsewhere.iterdir()) == []

    assert run_command(name, flags) == 2
    told = capsys.readouterr()
    assert told.out == ""
    # 99 processes, 16 workers with 2 batches each and one in use, 64 or 32 uint8 clips of 2.4 MB.
    gigabytes = 99 * 33 * {"pretrain": 64, "train": 32}[name] * 3 * 16 * 224 * 224 / 1e9
    memory = f"need {gigabytes:.2f} GB of /dev/shm"
    for expected in ("99", "kinetics400_train_list_videos.txt", "data.preprocess", memory):
        assert expected in told.err
    if name == "train":
        assert "pretrained_weights" in told.err
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(("name", "command"), [("pretrain", PRETRAIN), ("train", FINETUNE)])
def test_warmup_and_steps(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], name: str, command: str
) -> None:
    """40 and 5 epochs of warm-up; the assumed dataset gives the promised steps."""
    plan = plan_of(capsys, name, *flags_of(command))
    assert {key: plan[key] for key in STEPS[command]} == STEPS[command]
    epochs = plan["warmup_steps"] / plan["steps_per_epoch"]
    assert epochs == {"pretrain": 40, "train": 5}[name]


@pytest.mark.parametrize(
    ("flags", "strategy"),
    [
        (("--n_device", "8"), "ddp"),
        (("--n_device", "8", "--strategy", "fsdp"), "fsdp"),
        (("--strategy", "ddp"), "ddp"),
        ((), "auto"),
    ],
)
def test_a_plan_says_the_strategy(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], strategy: str
) -> None:
    assert plan_of(capsys, "pretrain", *flags)["strategy"] == strategy


@pytest.mark.parametrize("name", ["pretrain", "train"])
def test_a_plan_counts_the_data_that_is_there(
    library: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    plan = plan_of(
        capsys,
        *(name, "--data_dir", str(library.parent), "--model_name", "tiny"),
        *("--n_epoch", "50", "--batch_size", "5", "--accelerator", "cpu"),
    )
    assert (plan["train_videos"], plan["val_videos"], plan["missing"]) == (24, 8, [])
    assert (plan["steps_per_epoch"], plan["total_steps"]) == (4, 200)


@pytest.mark.parametrize(
    ("name", "published"),
    [("pretrain", 1.5e-4 * 96 / 256), ("train", 5e-4 * 96 / 256)],
)
def test_learning_rates_scale_with_the_global_batch_unless_absolute(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], name: str, published: float
) -> None:
    batch = ("--batch_size", "16", "--n_device", "2", "--accumulate", "3", "--accelerator", "cpu")
    small = ("--model_name", "tiny", *batch)
    assert plan_of(capsys, name, *small)["peak_lr"] == pytest.approx(published)
    assert plan_of(capsys, name, *small, "--base_lr", "0.1")["peak_lr"] == pytest.approx(0.0375)
    assert plan_of(capsys, name, *small, "--lr", "0.1")["peak_lr"] == 0.1


@pytest.mark.parametrize(
    ("model", "width", "depth"),
    [("small", 384, 12), ("base", 768, 12), ("large", 1024, 24), ("huge", 1280, 32)],
)
def test_every_size_can_be_planned(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], model: str, width: int, depth: int
) -> None:
    """A block has 12 D² weights and 12 D biases and scales: its key bias is no parameter."""
    plan = plan_of(capsys, "train", "--model_name", f"MCG-NJU/videomae-{model}")
    embedding = 3 * 2 * 16 * 16 * width + width
    blocks = depth * 12 * (width * width + width)
    head = 2 * width + 400 * width + 400
    assert plan["n_parameters"] == embedding + blocks + head
