"""The same global batch, however it is made: the same learning rates and losses."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kinetics400.__main__ import run_command

WAYS = {  # (processes, clips per process and micro-batch, micro-batches)
    "one process": (1, 8, 1),
    "accumulated": (1, 4, 2),
    "two processes, accumulated": (2, 2, 2),
    "four processes": (4, 2, 1),
}
STEPS = 20  # of 21: seven epochs of 24 videos
FLAGS = (*("--n_epoch", "7", "--warmup_epochs", "1", "--n_worker", "0", "--log_every", "1"),)
OWN = {
    "pretrain": ("--mask_ratio", "0.75"),
    "train": (
        *("--num_classes", "4", "--views", "1x1", "--eval_frequency", "100"),
        *("--drop_path_rate", "0", "--mixup", "0", "--cutmix", "0"),
    ),
}


# Four processes on two cores take their time: they are the campaign's.
@pytest.mark.parametrize(
    "ways",
    [
        tuple(way for way in WAYS if way != "four processes"),
        pytest.param(("one process", "four processes"), marks=pytest.mark.campaign),
    ],
    ids=["up to two processes", "four processes"],
)
@pytest.mark.parametrize("command", OWN)
def test_learning_rates_losses_and_gradients_agree(
    command: str,
    ways: tuple[str, ...],
    start_run: Callable[..., subprocess.Popen[str]],
    outcome: Callable[..., tuple[int, str, str]],
    tiny_flags: tuple[str, ...],
    tmp_path: Path,
    library: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = {}
    for way in ways:
        n_device, batch_size, accumulate = WAYS[way]
        made = ("--n_device", str(n_device), "--batch_size", str(batch_size))
        save_dir = tmp_path / way
        flags = (*OWN[command], *FLAGS, *made, "--accumulate", str(accumulate))
        if n_device == 1:
            where = ("--data_dir", str(library), "--save_dir", str(save_dir))
            assert run_command(command, [*tiny_flags, *where, *flags]) == 0
            out = capsys.readouterr().out
        else:
            code, out, err = outcome(start_run(command, save_dir, *flags))
            assert code == 0, err
        assert f"global batch 8 = {batch_size} per device x {n_device} device(s)" in out
        rows = map(json.loads, (save_dir / "metrics.jsonl").read_text().splitlines())
        found[way] = [(row["lr"], row["loss"], row["grad_norm"]) for row in rows if "loss" in row][
            :STEPS
        ]
    rates, losses, norms = zip(*found["one process"], strict=True)
    assert len(losses) == STEPS and len(set(losses)) == STEPS and max(losses) < 5
    for way, rows in found.items():
        assert [lr for lr, _, _ in rows] == list(rates), way
        assert [loss for _, loss, _ in rows] == pytest.approx(losses, rel=1e-4), way
        # AdamW would not notice gradients of another scale.
        assert [norm for _, _, norm in rows] == pytest.approx(norms, rel=1e-3), way
