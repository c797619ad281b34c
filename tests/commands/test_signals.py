"""Signals to whole runs: saved at the next step, exit code 75, continued bit for bit."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

FLAGS = (
    *("--n_epoch", "40", "--warmup_epochs", "1", "--n_worker", "1", "--log_every", "2"),
    *("--save_frequency", "100", "--mask_ratio", "0.75", "--batch_size", "4"),
)
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def start(start_run: Start) -> Start:
    """Every step pauses, so that a signal finds the run between two checkpoints."""

    def run(save_dir: Path, pause: float, *flags: str) -> subprocess.Popen[str]:
        slow = (
            "from kinetics400.methods.videomae import VideoMAE\n"
            "draw = VideoMAE.draw\n"
            f"VideoMAE.draw = lambda self, keys: (time.sleep({pause}), draw(self, keys))[1]\n"
        )
        return start_run("pretrain", save_dir, *FLAGS, *flags, prelude=slow)

    return run


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
def whole(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    save_dir = tmp_path_factory.mktemp("signals") / "whole"
    process = start(save_dir, 0.0, "--n_device", "2", "--n_epoch", "10")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    yield save_dir


def second_rank(first: int) -> int:
    """The process of rank 1; rank 0, which has started it, was itself started without a rank."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(parent) == first and b"LOCAL_RANK=1" in environment:
            return int(entry.name)
    pytest.fail(f"process {first} has no second rank")


@pytest.mark.parametrize(
    ("number", "to"),
    [(signal.SIGTERM, "the first"), (signal.SIGUSR1, "the second"), (signal.SIGINT, "all")],
    ids=lambda value: getattr(value, "name", value),
)
def test_two_ranks_stop_at_a_signal_and_continue_bit_for_bit(
    number: signal.Signals, to: str, start: Start, whole: Path, tmp_path: Path
) -> None:
    """In the middle of an epoch of three steps and of a row of two."""
    save_dir = tmp_path / "run"
    flags = ("--n_device", "2", "--n_epoch", "10")
    process = start(save_dir, 0.3, *flags)
    wait_for_step(save_dir, 4, process)
    signalled = time.monotonic()
    if to == "all":
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid if to == "the first" else second_rank(process.pid), number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert time.monotonic() - signalled < 20
    assert f"stopped by {number.name} after step" in err and "Traceback" not in err
    (step,) = steps_saved(save_dir)
    assert 4 <= step < 30 and f"after step {step}." in err

    again = start(save_dir, 0.0, *flags)
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert losses(save_dir) == losses(whole)
    ours, theirs = (load_file(x / "model" / "model.safetensors") for x in (save_dir, whole))
    assert all(ours[name].equal(value) for name, value in theirs.items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_the_whole_group_saves_and_another_run_may_not_join(
    start: Start, tmp_path: Path, number: int
) -> None:
    """As the terminal and SLURM send them: to the trainer and to its workers."""
    save_dir = tmp_path / "run"
    process = start(save_dir, 0.2)
    wait_for_step(save_dir, 2, process)
    if number == signal.SIGINT:
        second = start(save_dir, 0.0)
        _, err = second.communicate(timeout=60)
        assert second.returncode == 2, err
        assert f"in use by process {process.pid}" in err
    signalled = time.monotonic()
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert time.monotonic() - signalled < 20
    assert f"stopped by {signal.Signals(number).name} after step" in err
    assert "Traceback" not in err and "worker" not in err
    assert len(steps_saved(save_dir)) == 1
    assert not (save_dir / "model").exists()


def test_usr2_tells_where_a_process_is_and_the_run_goes_on(start: Start, tmp_path: Path) -> None:
    save_dir = tmp_path / "run"
    process = start(save_dir, 0.2)
    wait_for_step(save_dir, 2, process)
    process.send_signal(signal.SIGUSR2)
    wait_for_step(save_dir, 6, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "(most recent call first):" in err and "/kinetics400/engine/trainer.py" in err
