"""Signals to whole runs: saved at the next step, exit code 75, continued bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
FLAGS = (
    *("--model_name", "tiny", "--input_size", "32", "--patch_size", "8", "--num_frames", "4"),
    *("--sampling_rate", "2", "--n_epoch", "40", "--warmup_epochs", "1", "--lr", "1e-3"),
    *("--accelerator", "cpu", "--n_worker", "1", "--log_every", "2", "--save_frequency", "100"),
    *("--mask_ratio", "0.75", "--batch_size", "4"),
)
# Every step takes a while, so that a signal finds the run between two checkpoints.
SLOW = (
    "import sys, time\n"
    "from kinetics400.__main__ import run_command\n"
    "from kinetics400.methods.videomae import VideoMAE\n"
    "draw = VideoMAE.draw\n"
    "VideoMAE.draw = lambda self, keys: (time.sleep(float(sys.argv[1])), draw(self, keys))[1]\n"
    "sys.exit(run_command('pretrain', sys.argv[2:]))\n"
)


def start(library: Path, save_dir: Path, pause: float, *flags: str) -> subprocess.Popen[str]:
    code = save_dir.with_suffix(".py")
    code.parent.mkdir(parents=True, exist_ok=True)
    code.write_text(SLOW)
    where = ("--data_dir", str(library), "--save_dir", str(save_dir))
    return subprocess.Popen(
        [sys.executable, str(code), str(pause), *FLAGS, *where, *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_step(save_dir: Path, step: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        rows = save_dir / "metrics.jsonl"
        if rows.exists() and len(rows.read_text().splitlines()) * 2 > step:
            return
        time.sleep(0.05)
    pytest.fail(f"never reached step {step}: {process.communicate()}")


def losses(save_dir: Path) -> dict[int, str]:
    rows = map(json.loads, (save_dir / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: float(row["loss"]).hex() for row in rows}


def steps_saved(save_dir: Path) -> list[int]:
    return sorted(int(f.name.split("-")[1]) for f in (save_dir / "checkpoints").glob("step-*"))


@pytest.fixture(scope="module")
def whole(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    save_dir = tmp_path_factory.mktemp("signals") / "whole"
    process = start(library, save_dir, 0.0, "--n_device", "2", "--n_epoch", "10")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    yield save_dir


def test_two_ranks_stop_at_a_signal_to_the_first_and_continue_bit_for_bit(
    library: Path, whole: Path, tmp_path: Path
) -> None:
    """In the middle of an epoch of three steps and of a row of two."""
    save_dir = tmp_path / "run"
    flags = ("--n_device", "2", "--n_epoch", "10")
    process = start(library, save_dir, 0.3, *flags)
    wait_for_step(save_dir, 4, process)
    signalled = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert time.monotonic() - signalled < 20
    assert "stopped by SIGTERM after step" in err and "Traceback" not in err
    (step,) = steps_saved(save_dir)
    assert 4 <= step < 30 and f"after step {step}." in err

    again = start(library, save_dir, 0.0, *flags)
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert losses(save_dir) == losses(whole)
    ours, theirs = (load_file(x / "model" / "model.safetensors") for x in (save_dir, whole))
    assert all(ours[name].equal(value) for name, value in theirs.items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_the_whole_group_saves_and_another_run_may_not_join(
    library: Path, tmp_path: Path, number: int
) -> None:
    """As the terminal and SLURM send them: to the trainer and to its workers."""
    save_dir = tmp_path / "run"
    process = start(library, save_dir, 0.2)
    wait_for_step(save_dir, 2, process)
    if number == signal.SIGINT:
        second = start(library, save_dir, 0.0)
        _, err = second.communicate(timeout=60)
        assert second.returncode == 2, err
        assert f"in use by process {process.pid}" in err
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert f"stopped by {signal.Signals(number).name} after step" in err
    assert "Traceback" not in err and "worker" not in err
    assert len(steps_saved(save_dir)) == 1
    assert not (save_dir / "model").exists()
