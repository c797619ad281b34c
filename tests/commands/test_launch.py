"""Who starts the processes: the command itself, torchrun, SLURM; on one machine and on several."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from kinetics400.__main__ import run_command
from kinetics400.commands.session import check_launcher
from kinetics400.config.common import DeviceFlags
from kinetics400.errors import InputError

TORCHRUN_4_OF_8 = {"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}


@pytest.mark.parametrize(
    ("n_device", "n_node", "environment", "message"),
    [
        (4, 2, TORCHRUN_4_OF_8, None),
        (8, 1, TORCHRUN_4_OF_8, "torchrun has started 4 processes here and 8 in all"),
        (4, 1, TORCHRUN_4_OF_8, "--n_device says 4 and --n_node 1"),
        (4, 2, {}, "--n_node 2: start the command with torchrun"),
        (8, 1, {}, None),
        (8, 1, {"SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}, None),  # in an sbatch, without srun
        (8, 1, {"SLURM_STEP_NUM_TASKS": "1"}, None),
        (8, 1, {"SLURM_STEP_NUM_TASKS": "8"}, "srun has started 8 tasks"),
        (4, 2, {"SLURM_STEP_NUM_TASKS": "2", **TORCHRUN_4_OF_8}, None),
    ],
)
def test_launchers_and_flags(
    n_device: int, n_node: int, environment: Mapping[str, str], message: str | None
) -> None:
    device = DeviceFlags(n_device=n_device, n_node=n_node)
    if message is None:
        check_launcher(device, environment)
    else:
        with pytest.raises(InputError, match=message):
            check_launcher(device, environment)


def losses(save_dir: Path) -> list[float]:
    rows = map(json.loads, (save_dir / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def test_two_machines_have_the_losses_of_one_process_in_a_slurm_job(
    start_run: Callable[..., subprocess.Popen[str]],
    tiny_flags: tuple[str, ...],
    library: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each "machine" is a torchrun of its own; they meet at the first one's address.

    In an sbatch without srun SLURM's variables speak of tasks that SLURM never starts.
    """
    flags = (*("--mask_ratio", "0.75", "--n_epoch", "2", "--warmup_epochs", "1"),)
    flags += ("--n_worker", "0", "--log_every", "1")
    for name, value in (("NTASKS", "8"), ("JOB_ID", "7"), ("JOB_NAME", "train"), ("PROCID", "0")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    where = ("--data_dir", str(library), "--save_dir", str(tmp_path / "alone"))
    assert run_command("pretrain", [*tiny_flags, *flags, *where, "--batch_size", "8"]) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    machines = []
    for number in range(2):
        torchrun = (
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"),
            *("--node_rank", str(number), "--nproc_per_node", "1"),
            *("--master_addr", "127.0.0.1", "--master_port", port),
        )
        own = (*flags, "--batch_size", "4", "--n_device", "1", "--n_node", "2")
        machines.append(start_run("pretrain", tmp_path / "both", *own, launcher=torchrun))
    for machine in machines:
        out, err = machine.communicate(timeout=90)
        assert machine.returncode == 0, err
    assert "global batch" not in out  # the second machine's: only the first one speaks
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)
    assert len(losses(tmp_path / "both")) == 6
