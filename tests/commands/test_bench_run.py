"""`bench run`: what it runs, what it makes of the log, what it refuses."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kinetics400.commands import bench, bench_run
from kinetics400.data.annotations import read_list
from kinetics400.data.manifest import count_originals
from kinetics400.errors import Failure, InputError


@pytest.mark.parametrize("method", ["pretraining", "finetuning"])
def test_some_steps_of_a_dataset_are_run_and_projected(
    method: str,
    library: Path,
    tiny_flags: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """24 videos, batches of 4: 6 steps are an epoch, 9 steps two, of the 50 that are planned."""
    own = ("--method", method, "--steps", "9", "--json", str(tmp_path / "run.json"))
    flags = [*tiny_flags, "--data_dir", str(library), "--batch_size", "4", "--n_worker", "0"]
    flags += ["--n_epoch", "50"] + ["--num_classes", "4"] * (method == "finetuning")
    profiled = ("--profile", str(tmp_path / "profile"))
    assert bench.main(["run", *own, *profiled, "--", *flags]) == 0
    result = json.loads((tmp_path / "run.json").read_text())
    rows = result["rows"]
    assert rows[-1]["step"] == 12
    later = [row["step_time"] for row in rows[len(rows) // 3 :]]
    seconds = sum(later) / len(later)
    assert result["clips_per_sec"] == pytest.approx(4 / seconds)
    assert result["hours"] == pytest.approx(50 * 6 * seconds / 3600)
    assert (result["total_steps"], result["train_videos"], result["videos_made"]) == (
        *(300, 24, False),
    )
    assert "aten::addmm" in (tmp_path / "profile" / "kernels.txt").read_text()
    assert json.loads((tmp_path / "profile" / "trace.json").read_text())["traceEvents"]
    told = capsys.readouterr().out
    assert f"{method} of tiny, 4 clips per step on 1 × CPU" in told
    assert "50 epochs of 24 videos: 300 steps" in told


def test_without_a_profile_the_command_runs_in_a_process_of_its_own(
    library: Path,
    tiny_flags: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which starts others for its devices; where it fails, so does the benchmark."""
    ran: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        ran.append(command)
        return type("Ended", (), {"returncode": 3})

    monkeypatch.setattr(bench_run.subprocess, "run", run)
    flags = [*tiny_flags, "--data_dir", str(library), "--batch_size", "4", "--n_device", "2"]
    with pytest.raises(Failure, match="has failed"):
        bench.main(["run", "--", *flags])
    (command,) = ran
    assert command[1:4] == ["-m", "kinetics400", "pretrain"]
    assert command[4 : 4 + len(flags)] == flags


def test_a_made_dataset_holds_pyramids_under_many_names(
    make_video: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(folder: Path, count: int) -> list[str]:
        return [str(make_video(folder / f"m{n}.mp4", n_frames=9, seed=n)) for n in range(count)]

    monkeypatch.setattr(bench_run, "make_videos", make)
    bench_run.make_dataset(tmp_path / "data", count=20)
    library = tmp_path / "data" / "Kinetics-400"
    table = read_list(library / "kinetics400_train_list_videos.txt", num_classes=8)
    assert len(table) == 20
    files = [os.stat(library / "videos_train" / table.name(i)) for i in range(20)]
    assert len({file.st_ino for file in files}) == bench_run.NUM_MADE - 2
    assert count_originals(library, "train", table) == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--steps 5", "--steps 5 must be at least 6"),
        ("-- --save_dir x --views 5x3", "the benchmark sets --save_dir, --views itself"),
        ("--profile p -- --n_device 2 --accelerator cpu", "--profile looks into one process"),
        ("-- --batch_size 0", "--batch_size 0 must be at least 1"),
        ("-- --accelerator cuda", "asked for, this machine has"),
    ],
)
def test_bad_flags_are_refused(argv: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bench.main(["run", *argv.split()])
