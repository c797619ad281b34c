"""`--strategy fsdp` is the same run: losses and checkpoints of `ddp` and of one process."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kinetics400.__main__ import run_command

SHORT = (
    *("--n_epoch", "2", "--warmup_epochs", "1", "--n_worker", "0", "--log_every", "1"),
    *("--save_minutes", "0"),
)
OWN = {
    "pretrain": ("--mask_ratio", "0.75", "--clip_grad", "0.5"),  # below every norm
    "train": (
        *("--num_classes", "4", "--views", "1x1", "--ema_decay", "0.9", "--layer_decay", "0.75"),
        *("--drop_path_rate", "0.3", "--head_dropout", "0.2", "--mixup", "0.8", "--cutmix", "1.0"),
        *("--accumulate", "2"),
    ),
}
STEPS = 6  # two epochs of 24 videos
FSDP, DDP = ("--strategy", "fsdp"), ("--strategy", "ddp")
STOP = """
from kinetics400.engine import interruption
steps = []
def decide(self):
    steps.append(1)
    return interruption.Decision(stop=15 if len(steps) == {stop} else 0)
interruption.Interruption.decide = decide
"""
Start = Callable[..., subprocess.Popen[str]]


def flags_of(command: str, ranks: int) -> tuple[str, ...]:
    """Eight videos per step."""
    batch = 8 // ranks // (2 if command == "train" else 1)
    return (*OWN[command], *SHORT, "--n_device", str(ranks), "--batch_size", str(batch))


def logged(save_dir: Path) -> list[tuple[float, float]]:
    """Loss and norm of the gradient of each step."""
    rows = map(json.loads, (save_dir / "metrics.jsonl").read_text().splitlines())
    return [(row["loss"], row["grad_norm"]) for row in rows if "loss" in row]


def assert_alike(first: Path, second: Path) -> None:
    ours, theirs = logged(first), logged(second)
    assert len(ours) == STEPS == len(set(ours))
    assert [loss for loss, _ in ours] == pytest.approx([loss for loss, _ in theirs], rel=1e-4)
    assert [norm for _, norm in ours] == pytest.approx([norm for _, norm in theirs], rel=1e-4)


def state_of(save_dir: Path) -> dict[str, str]:
    """All files of the last checkpoint."""
    files = (save_dir / f"checkpoints/step-{STEPS:010}").glob("*.safetensors")
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def layout_of(save_dir: Path) -> dict[str, dict[str, Any]]:
    """Names, shapes and types of a checkpoint's tensors, but for the generators'."""
    last = save_dir / f"checkpoints/step-{STEPS:010}"
    return {
        file.name: {name: (value.shape, value.dtype) for name, value in load_file(file).items()}
        for file in last.glob("*.safetensors")
        if not file.name.startswith("rank-")
    }


class Runs:
    """Runs below one folder, each by its name."""

    def __init__(self, start: Start, place: Path, flags: tuple[str, ...], library: Path) -> None:
        self._start, self._place = start, place
        self._single = (*flags, "--data_dir", str(library))

    def __getitem__(self, name: str) -> Path:
        return self._place / name

    def several(
        self, *wanted: tuple[str, str, tuple[str, ...], int], ranks: int = 2, prelude: str = ""
    ) -> None:
        """Run (name, command, more flags, step to stop after or 0) side by side, in processes."""
        started = []
        for name, command, more, stop in wanted:
            flags = (*flags_of(command, ranks), *more)
            before = prelude + (STOP.format(stop=stop) if stop else "")
            started.append(self._start(command, self[name], *flags, prelude=before))
        try:
            for process, (name, *_, stop) in zip(started, wanted, strict=True):
                _, err = process.communicate(timeout=400)
                assert process.returncode == (75 if stop else 0), (name, err)
        finally:
            for process in started:
                process.kill()

    def one(self, name: str, command: str, code: int = 0) -> None:
        """Run in this process."""
        flags = [*self._single, "--save_dir", str(self[name]), *flags_of(command, 1)]
        assert run_command(command, flags) == code

    def copy(self, name: str, to: str) -> None:
        shutil.copytree(self[name], self[to])


@pytest.fixture(scope="module")
def no_runs(
    start_run: Start,
    tiny_flags: tuple[str, ...],
    library: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Runs:
    """None yet."""
    return Runs(start_run, tmp_path_factory.mktemp("sharded"), tiny_flags, library)


@pytest.fixture(scope="module")
def runs(no_runs: Runs) -> Runs:
    """Whole and stopped runs of two ranks, and one of one."""
    runs = no_runs
    runs.several(
        ("pretrain fsdp", "pretrain", FSDP, 3),
        ("train ddp", "train", DDP, 0),
        ("train fsdp", "train", FSDP, 0),
        ("train fsdp, continued", "train", FSDP, 4),
    )
    runs.one("pretrain", "pretrain")
    return runs


def test_sharded_pretraining_goes_on_in_one_process_with_the_same_losses(runs: Runs) -> None:
    runs.one("pretrain fsdp", "pretrain")
    assert_alike(runs["pretrain fsdp"], runs["pretrain"])
    assert layout_of(runs["pretrain fsdp"]) == layout_of(runs["pretrain"])


def test_sharded_finetuning_has_the_losses_scores_and_files_of_ddp(runs: Runs) -> None:
    """With an average of the weights, drop path, layer decay, mixup and two micro-batches."""
    ddp, fsdp = runs["train ddp"], runs["train fsdp"]
    assert_alike(fsdp, ddp)
    assert layout_of(fsdp) == layout_of(ddp) and len(layout_of(ddp)) == 3
    ours, theirs = (json.loads((run / "results.json").read_text()) for run in (fsdp, ddp))
    assert ours == theirs
    averages = load_file(fsdp / f"checkpoints/step-{STEPS:010}/average.safetensors")
    model = load_file(fsdp / "model/model.safetensors")
    head = "classifier.weight"
    assert torch.equal(model[head], averages["head.weight"])  # the average is what is left


def test_a_sharded_run_continues_to_the_last_bit(runs: Runs) -> None:
    runs.several(("train fsdp, continued", "train", FSDP, 0))
    assert logged(runs["train fsdp, continued"]) == logged(runs["train fsdp"])
    assert len(state_of(runs["train fsdp"])) == 5  # two ranks' generators among them
    assert state_of(runs["train fsdp, continued"]) == state_of(runs["train fsdp"])
    folders = (runs["train fsdp, continued"], runs["train fsdp"])
    models = [(run / "model/model.safetensors").read_bytes() for run in folders]
    assert models[0] == models[1]


def test_a_run_of_one_process_goes_on_sharded(runs: Runs) -> None:
    """From its first epoch's checkpoint."""
    runs.copy("pretrain", "pretrain, then fsdp")
    shutil.rmtree(runs["pretrain, then fsdp"] / f"checkpoints/step-{STEPS:010}")
    shutil.rmtree(runs["pretrain, then fsdp"] / "model")
    runs.several(("pretrain, then fsdp", "pretrain", FSDP, 0))
    assert_alike(runs["pretrain, then fsdp"], runs["pretrain"])
    steps = [
        json.loads(line)["step"] for line in (runs["pretrain, then fsdp"] / "metrics.jsonl").open()
    ]
    assert steps == [1, 2, 3, 4, 5, 6]


# --- minutes --------------------------------------------------------------------------------------


@pytest.mark.campaign
@pytest.mark.parametrize("command", OWN)
def test_four_ranks_continue_to_the_last_bit_and_change_their_strategy(
    command: str, no_runs: Runs
) -> None:
    whole, ddp, stopped, then_ddp = (f"{command} of four, {way}" for way in ("", "d", "s", "sd"))
    no_runs.several((whole, command, FSDP, 0), ranks=4)
    no_runs.several((stopped, command, FSDP, 2), ranks=4)
    no_runs.copy(stopped, then_ddp)
    no_runs.several((stopped, command, FSDP, 0), ranks=4)
    assert state_of(no_runs[stopped]) == state_of(no_runs[whole])
    assert logged(no_runs[stopped]) == logged(no_runs[whole])
    no_runs.several((then_ddp, command, DDP, 0), ranks=4)
    assert_alike(no_runs[then_ddp], no_runs[whole])
    no_runs.several((ddp, command, DDP, 4), ranks=4)
    no_runs.several((ddp, command, FSDP, 0), ranks=4)
    assert_alike(no_runs[ddp], no_runs[whole])


@pytest.mark.campaign
@pytest.mark.parametrize("command", OWN)
def test_compiled_blocks_have_the_losses_of_eager_ones(command: str, no_runs: Runs) -> None:
    """With torch's own compiler, and blocks that keep their inputs only."""
    more = (*FSDP, "--compile", "on", "--activation_checkpointing", "blocks")
    no_runs.several((f"{command}, eager", command, FSDP, 0))
    no_runs.several((f"{command}, compiled", command, more, 0))
    assert_alike(no_runs[f"{command}, compiled"], no_runs[f"{command}, eager"])


@pytest.mark.campaign
def test_ranks_that_continue_from_different_checkpoints_are_refused(
    no_runs: Runs, start_run: Start
) -> None:
    """Not from different steps: from files that differ."""
    no_runs.several(("unlike", "pretrain", FSDP, 4))
    unlike = (
        "from pathlib import Path\nreal = Path.read_text\n"
        "def read(self, *how, **more):\n"
        "    text = real(self, *how, **more)\n"
        "    is_other = os.environ.get('LOCAL_RANK') == '1' and self.name == 'manifest.json'\n"
        "    return text + ' ' if is_other else text\n"
        "Path.read_text = read\n"
    )
    flags = (*flags_of("pretrain", 2), *FSDP)
    process = start_run("pretrain", no_runs["unlike"], *flags, prelude=unlike)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert "the checkpoint (rank 1)" in err
