"""What one rank does to the others: whole runs of two."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kinetics400.engine.checkpoint import read_checkpoint

FLAGS = (
    *("--n_epoch", "200", "--warmup_epochs", "1", "--n_worker", "1", "--log_every", "1"),
    *("--save_frequency", "1", "--mask_ratio", "0.75", "--batch_size", "4", "--n_device", "2"),
)
# What rank 1 does when it draws the masks of its n-th batch (two are DDP's warm-up).
AT_STEP = """
from kinetics400.methods.videomae import VideoMAE
draw, calls = VideoMAE.draw, []
def drawn(self, keys):
    calls.append(1)
    if os.environ.get("LOCAL_RANK") == "1" and len(calls) - 2 == {step}:
        open({moment!r}, "w").close()
        {action}
    return draw(self, keys)
VideoMAE.draw = drawn
"""
Start = Callable[..., subprocess.Popen[str]]


MARK = "KINETICS400_TEST"  # in the environment of a run and of all that it starts


@pytest.fixture
def start(start_run: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setenv(MARK, str(tmp_path))

    def run(*flags: str, step: int = 0, action: str = "pass", **more: str) -> subprocess.Popen[str]:
        moment = str(tmp_path / "moment")
        prelude = AT_STEP.format(step=step, action=action, moment=moment) + more.pop("prelude", "")
        return start_run("pretrain", tmp_path / "run", *FLAGS, *flags, prelude=prelude, **more)

    yield run
    for pid in alive(tmp_path):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def alive(folder: Path) -> list[int]:
    """Processes of a test's runs that have not ended; torchrun's are in sessions of their own."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if f"{MARK}={folder}".encode() in environment:
            found.append(int(entry.name))
    return found


def ended(process: subprocess.Popen[str], moment: Path, seconds: float) -> str:
    """What a run tells that ends so soon after the fault, and leaves no process behind."""
    out, err = process.communicate(timeout=150)
    if moment.exists():
        assert time.time() - moment.stat().st_mtime < seconds, err
    require_nobody_left(moment.parent, err)
    return out + err


def require_nobody_left(folder: Path, err: str) -> None:
    """Wait some seconds for the last processes of a test's runs."""
    end = time.monotonic() + 10
    while left := alive(folder):
        assert time.monotonic() < end, f"{len(left)} processes are left: {err}"
        time.sleep(0.1)


def test_an_error_of_one_rank_ends_all_and_is_told_with_rank_step_and_slots(
    start: Start, tmp_path: Path
) -> None:
    process = start(step=5, action="raise ValueError('of rank 1')")
    err = ended(process, tmp_path / "moment", 15)
    assert process.returncode not in (0, None)
    assert "[rank 1] ValueError: of rank 1" in err
    assert "[rank 1] in step 5 (epoch 1, slots 8 to 15)" in err


# Leaves a file when Python runs what is registered for the end, another when it is taken apart.
AT_THE_END = """
import atexit
folder, rank = os.path.dirname(sys.argv[0]), os.environ.get("LOCAL_RANK", "0")
atexit.register(lambda: open(folder + "/registered" + rank, "w").close())
class Apart:
    def __del__(self, open=os.open, path=folder + "/apart" + rank, flags=os.O_CREAT):
        open(path, flags)
apart = Apart()
"""


@pytest.mark.parametrize("n_device", [1, 2])
def test_one_of_several_processes_is_not_taken_apart(
    start: Start, tmp_path: Path, n_device: int
) -> None:
    """Threads of gloo may be at work still: it would abort on a busy machine."""
    few = ("--n_epoch", "2", "--n_device", str(n_device), "--batch_size", str(8 // n_device))
    _, err = (process := start(*few, prelude=AT_THE_END)).communicate(timeout=150)
    assert process.returncode == 0, err
    require_nobody_left(tmp_path, err)
    left = {path.name for path in tmp_path.iterdir()}
    assert {f"registered{rank}" for rank in range(n_device)} <= left
    assert ("apart0" in left) == (n_device == 1) and "apart1" not in left


def test_a_killed_rank_ends_all(start: Start, tmp_path: Path) -> None:
    process = start(step=5, action="os.kill(os.getpid(), 9)")
    ended(process, tmp_path / "moment", 15)
    assert process.returncode not in (0, None)
    (newest,) = [f.name for f in (tmp_path / "run/checkpoints").iterdir()]
    assert newest == "step-0000000003"


def test_a_rank_that_does_not_answer_ends_with_the_first(start: Start, tmp_path: Path) -> None:
    """It could not notice a closed connection: the kernel ends it."""
    process = start(step=5, action="os.kill(os.getppid(), 9); os.kill(os.getpid(), 19)")
    ended(process, tmp_path / "moment", 15)
    assert process.returncode == -signal.SIGKILL


def test_a_stopped_rank_ends_all_after_the_timeout(start: Start, tmp_path: Path) -> None:
    process = start("--rank_timeout", "4", step=5, action="os.kill(os.getpid(), 19)")
    err = ended(process, tmp_path / "moment", 14)
    assert process.returncode not in (0, None)
    assert "[rank 0] in step 5" in err


@pytest.mark.parametrize(
    ("prelude", "named"),
    [
        ("if os.environ.get('LOCAL_RANK') == '1': sys.argv += ['--lr', '2e-3']", "peak_lr"),
        (
            "import torch\nfrom kinetics400.commands import session\nreal = session.checksum\n"
            "session.checksum = lambda m: real(m) + int(os.environ.get('LOCAL_RANK', 0))",
            "the weights",
        ),
        (
            "if os.environ.get('LOCAL_RANK') == '1':\n"
            "    data_dir = sys.argv[sys.argv.index('--data_dir') + 1]\n"
            "    rows = open(data_dir + '/kinetics400_train_list_videos.txt').readlines()\n"
            "    other = sys.argv[0] + '.txt'\n"
            "    open(other, 'w').writelines(reversed(rows))\n"
            "    sys.argv += ['--train_list', other]\n",
            "videos",
        ),
    ],
    ids=["flag", "weights", "list"],
)
def test_ranks_that_were_started_differently_are_refused_before_the_first_step(
    prelude: str, named: str, start: Start, tmp_path: Path
) -> None:
    process = start(prelude=prelude)
    err = ended(process, tmp_path / "moment", 15)
    assert process.returncode == 2, err
    assert f"{named} (rank 1)" in err and "Traceback" not in err
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_a_bit_flipped_on_one_rank_is_found_before_it_is_saved(
    start: Start, tmp_path: Path
) -> None:
    flip = "self.encoder.blocks[0].attn.proj.weight.data.view(-1)[0].mul_(1 + 2.0**-20)"
    process = start(step=5, action=flip)
    err = ended(process, tmp_path / "moment", 15)
    assert process.returncode == 1, err
    assert "the ranks have drifted: after step 6" in err and "Traceback" not in err
    (newest,) = [f.name for f in (tmp_path / "run/checkpoints").iterdir()]
    assert newest == "step-0000000003"


def test_a_bad_batch_of_one_rank_is_skipped_by_both(start: Start, tmp_path: Path) -> None:
    bad = (
        "real, losses = VideoMAE.forward, []\n"
        "def forward(self, batch, drawn):\n"
        "    values = real(self, batch, drawn)\n"
        "    losses.append(1)\n"
        "    is_bad = os.environ.get('LOCAL_RANK') == '1' and len(losses) - 2 == 5\n"
        "    return {**values, 'loss': values['loss'] * float('nan')} if is_bad else values\n"
        "VideoMAE.forward = forward\n"
    )
    process = start("--n_epoch", "4", prelude=bad)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    assert out.count("not finite in step 5 (epoch 1, slots 8 to 15): skipped on all ranks") == 1
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert [row["skipped_share"] for row in rows] == [float(row["step"] == 5) for row in rows]
    assert len(rows) == 12 and rows[4]["loss"] is None


def test_torchrun_restarts_a_run_that_continues(start: Start, tmp_path: Path) -> None:
    """Rank 1 fails once; the restarted run goes on from the checkpoint and finishes."""
    flag = tmp_path / "failed"
    fail = f"os.path.exists({str(flag)!r}) or (open({str(flag)!r}, 'w').close(), os._exit(3))"
    torchrun = (
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc_per_node", "2", "--max_restarts", "3"),
    )
    process = start("--n_epoch", "4", step=5, action=fail, launcher=torchrun)
    told = ended(process, tmp_path / "moment", 60)
    assert process.returncode == 0, told
    assert told.count("continuing after step 3 of 12") == 1
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert [row["step"] for row in rows] == list(range(1, 13))


@pytest.mark.campaign
def test_a_port_that_is_taken_ends_all_and_is_named(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 finds out at once, when the other has hardly begun: nobody is left behind."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", port)
        process = start()
        _, err = process.communicate(timeout=30)  # the other rank holds the pipes, too
    assert process.returncode == 2, err
    assert f"cannot meet at 127.0.0.1:{port}" in err and "give MASTER_PORT another one" in err
    assert "Traceback" not in err
    require_nobody_left(tmp_path, err)


@pytest.mark.campaign  # five starts take a minute
def test_a_run_that_fails_at_the_same_step_again_and_again_is_not_restarted_for_ever(
    start: Start, tmp_path: Path
) -> None:
    """After the checkpoint of the first epoch, which stays."""
    torchrun = (
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc_per_node", "1", "--max_restarts", "4"),
    )
    saved = tmp_path / "run/checkpoints/step-0000000006"
    fail = f"pass\n    if len(calls) > 1 and os.path.exists({str(saved)!r}): os._exit(3)"
    process = start("--n_device", "1", action=fail, launcher=torchrun)
    told = ended(process, tmp_path / "moment", 60)
    assert process.returncode != 0
    assert "2 restarts have not come further than step 6" in told
    assert json.loads((tmp_path / "run/.restarts.json").read_text())["restarts"] == 2
    assert list(saved.parent.iterdir()) == [saved]
    assert read_checkpoint(saved).step == 6
