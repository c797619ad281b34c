"""Faults of data and decoders while training, each with a negative control: the guard removed.

Numbered: 20 a file goes bad, 21 the data folder goes away, 22 a decoder hangs, 23 it crashes or is
killed, 24 shared memory is too small, 26 the trainer is killed. (25, memory growth, is in
tests/faults/test_memory.py.)
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kinetics400.__main__ import run_command
from kinetics400.commands.bad_videos import BadVideos
from kinetics400.commands.guard import VideoGuard
from kinetics400.data import dataset as dataset_module
from kinetics400.data import keys, watch
from kinetics400.data.dataset import ClipDataset, Sample
from kinetics400.data.decode import VideoReader

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    *("--model_name", "tiny", "--input_size", "32", "--patch_size", "8", "--num_frames", "4"),
    *("--sampling_rate", "2", "--save_frequency", "1", "--log_every", "1", "--warmup_epochs", "0"),
    *("--lr", "1e-3", "--accelerator", "cpu", "--mask_ratio", "0.75"),
)


def command(library: Path, save_dir: Path, *flags: str) -> list[str]:
    where = ["--data_dir", str(library), "--save_dir", str(save_dir)]
    return [*TINY, *where, *flags]


def pretrain(library: Path, save_dir: Path, *flags: str) -> int:
    return run_command("pretrain", command(library, save_dir, *flags))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def weights(save_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(save_dir / "model" / "model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(first[n].equal(second[n]) for n in first)


# --- 20: a file goes bad after it was verified ----------------------------------------------------

BAD = ("many_012.mp4", "many_047.mp4", "many_090.mp4")


@pytest.fixture(scope="module")
def many(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred videos, three of them truncated after the list was written."""
    folder = tmp_path_factory.mktemp("many") / "Kinetics-400"
    shutil.copytree(library, folder, ignore=shutil.ignore_patterns("train_*.mp4"))
    sources = sorted((library / "videos_train").glob("*.mp4"))
    rows = []
    for i in range(100):
        name = f"many_{i:03}.mp4"
        shutil.copy(sources[i % len(sources)], folder / "videos_train" / name)
        rows.append(f"{name} {i % 4}\n")
    (folder / "kinetics400_train_list_videos.txt").write_text("".join(rows))
    for name in BAD:
        file = folder / "videos_train" / name
        os.truncate(file, file.stat().st_size // 2)
    return folder


TWENTY = ("--n_epoch", "2", "--batch_size", "10", "--n_worker", "0", "--max_bad_share", "0.05")


def test_20_bad_files_are_replaced_counted_and_listed(
    many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reported = injected, in each epoch; and an interrupted run still ends in the same weights."""
    assert pretrain(many, tmp_path / "run", *TWENTY) == 0
    journal = lines(tmp_path / "run" / "bad_videos.jsonl")
    for epoch in (0, 1):
        names = [Path(row["path"]).name for row in journal if row["step"] // 10 == epoch]
        assert set(names) == set(BAD)
    told = capsys.readouterr().err
    assert "3 video(s) could not be read and were replaced by others" in told
    assert all(name in told for name in BAD)

    again = shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(again / "model")
    shutil.rmtree(again / "checkpoints" / "step-0000000020")
    assert pretrain(many, again, *TWENTY) == 0
    assert same(weights(again), weights(tmp_path / "run"))


def test_20_control_substitutes_drawn_by_chance_change_the_weights(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws, chance = keys.draws, iter([[0.1] * 8, [0.6] * 8, [0.3] * 8, [0.75] * 8] * 50)

    def unseeded(key: torch.Tensor, stream: str, n: int) -> list[float]:
        return next(chance) if stream == "substitute" else draws(key, stream, n)

    monkeypatch.setattr(dataset_module.keys, "draws", unseeded)
    flags = ("--n_epoch", "1", *TWENTY[2:])
    assert pretrain(many, tmp_path / "one", *flags) == 0
    assert pretrain(many, tmp_path / "two", *flags) == 0
    assert not same(weights(tmp_path / "one"), weights(tmp_path / "two"))


def test_20_control_silent_substitution_reports_nothing(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What other projects do; the count above would notice."""
    load = ClipDataset.__getitem__

    def silent(self: ClipDataset, item: tuple[int, int, int]) -> Sample:
        sample = load(self, item)
        return Sample(sample.clips, sample.label, sample.keys)

    monkeypatch.setattr(ClipDataset, "__getitem__", silent)
    assert pretrain(many, tmp_path / "run", "--n_epoch", "1", *TWENTY[2:]) == 0
    assert lines(tmp_path / "run" / "bad_videos.jsonl") == []


def test_20_more_than_the_allowed_share_stops_the_run(
    many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three of a hundred are within 5 %, above 2 %."""
    flags = (*TWENTY[:-1], "0.02")
    assert pretrain(many, tmp_path / "run", *flags) == 3
    assert "--max_bad_share 0.02 allows" in capsys.readouterr().err
    assert len({row["path"] for row in lines(tmp_path / "run" / "bad_videos.jsonl")}) == 3


# --- 21: the data folder goes away ----------------------------------------------------------------


@pytest.mark.parametrize("guarded", [True, False])
def test_21_a_data_folder_that_goes_away_stops_the_run(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    """Without the check (the control) the run trains on blank clips to its end."""
    folder = shutil.copytree(library, tmp_path / "Kinetics-400")
    load, calls = ClipDataset._load, []

    def vanishing(self: ClipDataset, index: int, repeats: Any) -> list[torch.Tensor]:
        calls.append(index)
        if len(calls) == 20:
            (folder / "videos_train").rename(folder / "elsewhere")
        return load(self, index, repeats)

    monkeypatch.setattr(ClipDataset, "_load", vanishing)
    if not guarded:
        monkeypatch.setattr(BadVideos, "check", lambda self, step: None)
    started = time.monotonic()
    flags = ("--n_epoch", "2", "--batch_size", "8", "--n_worker", "0", "--max_bad_share", "100")
    assert pretrain(folder, tmp_path / "run", *flags) == (3 if guarded else 0)
    assert time.monotonic() - started < 30


# --- 22, 23: a decoder hangs, crashes, or is killed -----------------------------------------------

FAULTS: dict[str, Callable[[], object]] = {
    "hung": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "crashed": os.abort,
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
}
CULPRIT = "train_13.mp4"
WORKERS = (
    *("--n_epoch", "1", "--batch_size", "4", "--n_worker", "2", "--max_bad_share", "0.5"),
    *("--decode_timeout", "1"),
)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make reading one video do something to the process that does it."""
    monkeypatch.setattr(watch, "LOOK_EVERY", 0.1)

    def plant(fault: str) -> None:
        init = VideoReader.__init__

        def opening(self: VideoReader, path: str) -> None:
            if path.endswith(CULPRIT):
                FAULTS[fault]()
            init(self, path)

        monkeypatch.setattr(VideoReader, "__init__", opening)

    return plant


@pytest.mark.parametrize(("fault", "strikes"), [("hung", 1), ("crashed", 1), ("killed", 2)])
def test_22_23_a_video_that_ends_a_worker_is_named_and_left_out_next_time(
    library: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    faulty: Callable[[str], None],
    fault: str,
    strikes: int,
) -> None:
    """Exit code 75 naming the video; repeating the command completes, with exactly one id out."""
    faulty(fault)
    for strike in range(1, strikes + 1):
        started = time.monotonic()
        assert pretrain(library, tmp_path / "run", *WORKERS) == 75
        assert time.monotonic() - started < 1 + 5 + 5  # the time limit, 5 s, and starting up
        told = capfd.readouterr().err
        assert f"train video '{CULPRIT}' ({fault}" in told
        assert ("continues without it" in told) == (strike == strikes)
        assert "pretrain: decoding ended a worker" in told
    rows = lines(tmp_path / "run" / "quarantine.jsonl")
    assert [(row["path"], row["reason"]) for row in rows] == [(CULPRIT, fault)] * strikes

    assert pretrain(library, tmp_path / "run", *WORKERS) == 0
    (row,) = lines(tmp_path / "run" / "bad_videos.jsonl")
    assert row["path"].endswith(CULPRIT)
    assert f"is quarantined: {fault}" in row["reason"]
    assert len(lines(tmp_path / "run" / "quarantine.jsonl")) == strikes


def test_22_control_without_the_quarantine_every_restart_stops_at_the_same_video(
    library: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    faulty: Callable[[str], None],
) -> None:
    faulty("crashed")
    monkeypatch.setattr(VideoGuard, "quarantined", lambda self, split, table: {})
    for _ in range(3):
        assert pretrain(library, tmp_path / "run", *WORKERS) == 75
    assert not (tmp_path / "run" / "model").exists()


def test_22_a_hanging_video_of_the_validation_is_named_and_then_counted_wrong(
    library: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    faulty: Callable[[str], None],
) -> None:
    monkeypatch.setitem(globals(), "CULPRIT", "val_03.mp4")
    faulty("hung")
    flags = [*command(library, tmp_path / "run", *WORKERS), "--num_classes", "4", "--views", "1x1"]
    flags = [flag for flag in flags if flag not in ("--mask_ratio", "0.75")]
    assert run_command("train", flags) == 75
    assert "val video 'val_03.mp4' (hung" in capfd.readouterr().err
    assert run_command("train", flags) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["num_videos"], results["num_scored"]) == (8, 7)
    (failure,) = results["failures"]
    assert failure["path"].endswith("val_03.mp4") and "quarantined" in failure["reason"]

    # The same of `evaluate`, which remembers the video beside its results.
    flags = ["--checkpoint", str(tmp_path / "run"), "--output_dir", str(tmp_path / "out")]
    flags += ["--accelerator", "cpu", "--n_worker", "1", "--decode_timeout", "1"]
    assert run_command("evaluate", flags) == 75
    assert "val video 'val_03.mp4' (hung" in capfd.readouterr().err
    assert run_command("evaluate", flags) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["num_videos"], results["num_scored"]) == (8, 7)


# --- in processes of their own --------------------------------------------------------------------

SCRIPT = """
import os, signal, sys
from kinetics400.data.decode import VideoReader
from kinetics400.data import loader, shared_memory, watch
from kinetics400.commands import plan
fault, culprit, control = sys.argv[1:4]
init = VideoReader.__init__
def opening(self, path):
    if path.endswith(culprit):
        print("pid", os.getpid(), flush=True)
        {"stop": lambda: os.kill(os.getpid(), signal.SIGSTOP), "abort": os.abort}[fault]()
    init(self, path)
VideoReader.__init__ = opening
if control == "no preflight":
    plan.shortage = lambda need: None
if control == "no settling":
    loader._settle = lambda parent, worker: None
from kinetics400.__main__ import run_command
if __name__ == "__main__":
    sys.exit(run_command("pretrain", sys.argv[4:]))
"""


def start(
    folder: Path, fault: str, culprit: str, control: str, argv: list[str], *around: str
) -> "subprocess.Popen[str]":
    """Run pretraining in a process (group) of its own."""
    script = folder / "faulty.py"  # a file: the launcher starts the other ranks with it
    script.write_text(SCRIPT)
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return subprocess.Popen(
        [*around, sys.executable, str(script), fault, culprit, control, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )


def group(leader: int) -> list[int]:
    """Live processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(session) == leader and state != "Z":
                found.append(int(entry.name))
    return found


def empties(leader: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while group(leader) and time.monotonic() < end:
        time.sleep(0.05)
    return not group(leader)


@pytest.mark.parametrize("culprit", ["train_13.mp4", "train_04.mp4"])
def test_22_23_with_two_ranks_all_stop_and_the_video_is_named(
    library: Path, tmp_path: Path, culprit: str
) -> None:
    """Whichever rank met it: exit code 75, no process left, and the repeated command completes."""
    flags = ("--n_device", "2", *WORKERS[:-2], "--decode_timeout", "60")
    argv = command(library, tmp_path / "run", *flags)
    for expected in (75, 0):
        process = start(tmp_path, "abort", culprit, "", argv)
        _, err = process.communicate(timeout=120)
        assert process.returncode == expected, err
        assert (f"train video '{culprit}' (crashed" in err) == (expected == 75)
        assert empties(process.pid, 10)
    assert len(lines(tmp_path / "run" / "quarantine.jsonl")) == 1


@pytest.mark.parametrize("control", ["", "no preflight"])
def test_24_too_little_shared_memory_is_said_before_the_first_step(
    library: Path, tmp_path: Path, control: str
) -> None:
    """/dev/shm of 8 MB. Without the check (the control) a batch is lost, and the run stops."""
    around = ("unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=8m tmpfs /dev/shm && "$@"', "x")
    if subprocess.run([*around, "true"], capture_output=True).returncode:
        pytest.skip("the kernel allows no namespaces here")
    flags = ("--input_size", "128", "--patch_size", "32", "--batch_size", "8", "--n_epoch", "4")
    flags += ("--n_worker", "4", "--decode_timeout", "3")
    argv = command(library, tmp_path / "run", *flags)
    process = start(tmp_path, "abort", "none", control, argv, *around)
    _, err = process.communicate(timeout=120)
    if control:
        assert process.returncode == 75, err
        assert "a batch never came" in err and "No space left on device" in err
        return
    assert process.returncode == 2, err
    need = 9 * 8 * 3 * 4 * 128 * 128  # 4 workers with 2 batches each, and one in use
    assert f"need {need / 1e9:.2f} GB of /dev/shm" in err
    assert "--n_worker" in err and "--shm-size" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends orphans")
@pytest.mark.parametrize("control", ["", "no settling"])
def test_26_a_killed_trainer_leaves_no_process_and_no_shared_memory(
    library: Path, tmp_path: Path, control: str
) -> None:
    """Not even a worker that hangs; without the kernel's help (the control) that one stays."""
    flags = ("--n_epoch", "50", "--batch_size", "4", "--n_worker", "2", "--decode_timeout", "600")
    process = start(tmp_path, "stop", CULPRIT, control, command(library, tmp_path / "run", *flags))
    assert process.stdout is not None and process.stderr is not None
    line = ""
    while not line.startswith("pid"):
        line = process.stdout.readline()
        assert line, process.stderr.read()
    hanging = int(line.split()[1])
    theirs = group(process.pid)
    assert {process.pid, hanging} < set(theirs)
    process.kill()
    process.wait()
    try:
        assert empties(process.pid, 10 if not control else 1) == (not control)
        if control:
            assert hanging in group(process.pid)
        else:
            # torch_<process>_...: torch names it after the worker that has made it.
            left = [name for name in os.listdir("/dev/shm") if re.search(r"\d+", name)]
            assert [name for name in left if int(re.findall(r"\d+", name)[0]) in theirs] == []
    finally:
        for pid in group(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.stdout.close()
        process.stderr.close()
