"""`examples/cluster/train.sbatch` with torchrun, and with stand-ins for SLURM's commands.

`srun` runs its command here; `scancel` signals what srun has started, as SLURM does to a step's
task; `scontrol` names this machine, and writes down what it was asked.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kinetics400.engine.log import read_metrics

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples/cluster/train.sbatch"
STANDINS = {
    "srun": 'shift\necho $$ > "$STATE/pid"\nexec "$@"\n',
    "scancel": 'kill -"${1#--signal=}" "$(cat "$STATE/pid")"\n',
    "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$STATE/asked"; fi\n',
    "python": f'exec {sys.executable} "$@"\n',
}

Submit = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def submit(tmp_path: Path, library: Path, tiny_flags: tuple[str, ...]) -> Submit:
    """Start the script as SLURM would, for one machine with two processes."""
    commands, state = tmp_path / "bin", tmp_path / "state"
    commands.mkdir()
    state.mkdir()
    for name, body in STANDINS.items():
        (commands / name).write_text(f"#!/bin/sh\n{body}")
        (commands / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start(*flags: str) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "PATH": f"{commands}:{os.environ['PATH']}",
            "STATE": str(state),
            "PORT": str(port),
            **{"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7", "SLURM_NNODES": "1"},
            **{"SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_NODELIST": "here", "OMP_NUM_THREADS": "1"},
        }
        where = ("--data_dir", str(library), "--save_dir", str(tmp_path / "run"))
        own = ("--mask_ratio", "0.75", "--batch_size", "4", "--n_worker", "0", "--log_every", "1")
        return subprocess.Popen(
            [str(SCRIPT), "pretraining", *tiny_flags, *where, *own, *flags],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.mark.campaign  # torchrun, twice
def test_a_warned_job_saves_is_queued_again_and_continues(submit: Submit, tmp_path: Path) -> None:
    metrics = tmp_path / "run" / "metrics.jsonl"
    long = ("--n_epoch", "60", "--warmup_epochs", "1", "--save_frequency", "1000")
    job = submit(*long)
    deadline = time.monotonic() + 120
    while len(read_metrics(metrics)) < 5 and time.monotonic() < deadline:
        time.sleep(0.2)
    job.send_signal(signal.SIGUSR1)
    told, _ = job.communicate(timeout=60)
    assert job.returncode == 0, told
    assert (tmp_path / "state" / "asked").read_text() == "requeue 7\n"
    stopped = read_metrics(metrics)[-1]["step"]
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert int(saved.name.removeprefix("step-")) == stopped < 180
    job = submit(*long)
    told, _ = job.communicate(timeout=200)
    assert job.returncode == 0, told
    assert f"continuing after step {stopped}" in told
    assert [row["step"] for row in read_metrics(metrics)] == list(range(1, 181))


@pytest.mark.campaign
def test_a_failed_job_fails_and_is_not_queued_again(submit: Submit, tmp_path: Path) -> None:
    job = submit("--n_epoch", "0")
    told, _ = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "--n_epoch 0 must be at least 1" in told
    assert not (tmp_path / "state" / "asked").exists()


def test_no_processes_are_started_outside_a_job() -> None:
    environment = {name: value for name, value in os.environ.items() if "SLURM" not in name}
    ran = subprocess.run(
        [str(SCRIPT), "train"], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode != 0 and "run this with sbatch" in ran.stderr
