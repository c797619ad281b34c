"""End to end, on archives of a few kilobytes made here."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from kinetics400.__main__ import run_command
from kinetics400.commands.preprocess import preprocess
from kinetics400.commands.preprocess_report import SplitSummary, Summary, format_summary
from kinetics400.commands.progress import ProgressMeter
from kinetics400.config.preprocess import PreprocessConfig
from kinetics400.data.library import open_split, read_quarantine
from kinetics400.errors import DataError, InputError

ARCHIVE = "Kinetics-400.tar.gz"
LISTS = ("kinetics400_train_list_videos.txt", "kinetics400_val_list_videos.txt")


def encode(n_frames: int, seed: int) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(n_frames):
            frame = av.VideoFrame.from_ndarray(np.roll(noise, 2 * i, 1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


VIDEOS = [encode(12 + 3 * i, i) for i in range(3)]
BAD = VIDEOS[0][:-300]  # cut in the index

# Name in the archive → bytes. 12 listed videos, of which one is damaged and one is absent.
MEMBERS: dict[str, bytes] = {
    **{f"videos_train/t {i}.mp4": VIDEOS[i % 3] for i in range(6)},
    "videos_train/bad.mp4": BAD,
    LISTS[0]: b"".join(b"t %d.mp4 %d\n" % (i, i) for i in range(6)) + b"bad.mp4 6\ngone.mp4 7\n",
    "README.md": b"read me",
    **{f"videos_val/v{i}.mp4": VIDEOS[i % 3] for i in range(4)},
    LISTS[1]: b"".join(b"v%d.mp4 %d\n" % (i, i) for i in range(4)),
}
PUBLISHED = {
    LISTS[0]: b"".join(b"t %d.mp4 %d\n" % (i, i) for i in range(6)),
    LISTS[1]: MEMBERS[LISTS[1]],
    **{n: d for n, d in MEMBERS.items() if n.startswith("videos_") and d is not BAD},
}


def make_archive(folder: Path, members: dict[str, bytes], links: dict[str, str] | None = None):
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / ARCHIVE, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(f"Kinetics-400/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(f"Kinetics-400/{name}")
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)


def visible(library: Path) -> dict[str, bytes]:
    """What a user sees in Kinetics-400/."""
    return {
        str(file.relative_to(library)): file.read_bytes()
        for file in sorted(library.rglob("*"))
        if file.is_file() and ".preprocess" not in file.parts
    }


def config(data_dir: Path, **options: object) -> PreprocessConfig:
    defaults = {"max_bad_share": 0.2, "n_worker": 2}
    return PreprocessConfig(data_dir=data_dir, **{**defaults, **options})  # type: ignore[arg-type]


def test_archive_becomes_exactly_the_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_archive(tmp_path, MEMBERS)
    argv = ["--data_dir", str(tmp_path), "--max_bad_share", "0.2", "--n_worker", "2"]
    assert run_command("preprocess", argv) == 0
    library = tmp_path / "Kinetics-400"
    assert visible(library) == PUBLISHED
    assert sorted(os.listdir(library)) == sorted(
        [".preprocess", *LISTS, "videos_train", "videos_val"]
    )
    hidden = library / ".preprocess"
    assert (hidden / "quarantine/videos_train/bad.mp4").read_bytes() == BAD
    reasons = [(v.split, v.path, v.reason) for v in read_quarantine(hidden / "quarantine.jsonl")]
    assert reasons == [("train", "bad.mp4", "truncated"), ("train", "gone.mp4", "absent")]
    assert json.loads((hidden / "done.json").read_text())["usable"] == {"train": 6, "val": 4}
    out, err = capsys.readouterr()
    assert "6 usable of 8 listed" in out and "4 usable of 4 listed" in out
    assert "1  truncated" in out and "videos_train/gone.mp4" in out and "1 × .md" in out
    assert "240,436" not in out
    assert "unpacking: " in err and "verifying: 11 of 11 videos (100 %)" in err
    table = open_split(tmp_path, "train", num_classes=400)
    assert [Path(table.path(i)).is_file() for i in range(len(table))] == [True] * 6

    before = {f: (library / f).stat().st_mtime_ns for f in visible(library)}
    assert run_command("preprocess", argv) == 0
    out, err = capsys.readouterr()
    assert "already done" in out and "1  truncated" in out and err == ""
    assert {f: (library / f).stat().st_mtime_ns for f in visible(library)} == before


def test_split_parts_give_the_same_tree(tmp_path: Path) -> None:
    make_archive(tmp_path, MEMBERS)
    data = (tmp_path / ARCHIVE).read_bytes()
    (tmp_path / ARCHIVE).unlink()
    for i in range(4):
        part = data[len(data) * i // 4 : len(data) * (i + 1) // 4]
        (tmp_path / f"{ARCHIVE}.{i:04d}").write_bytes(part)
    preprocess(config(tmp_path))
    assert visible(tmp_path / "Kinetics-400") == PUBLISHED


KILLED = """
import os, signal, sys
left = int(sys.argv.pop(1))
def killing(real):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
for name in ("fsync", "rename", "replace"):
    setattr(os, name, killing(getattr(os, name)))
if __name__ == "__main__":
    from kinetics400.__main__ import run_command
    sys.exit(run_command("preprocess", sys.argv[1:]))
"""


@pytest.mark.parametrize("calls", [1, 2, 9, 20, 26, 32, 35, 38, 41, 44, 47, 50, 53])
def test_killed_anywhere_a_rerun_gives_the_same_tree(tmp_path: Path, calls: int) -> None:
    make_archive(tmp_path, MEMBERS)
    library = tmp_path / "Kinetics-400"
    argv = ["--data_dir", str(tmp_path), "--max_bad_share", "0.2", "--n_worker", "2"]
    code = subprocess.run(
        [sys.executable, "-c", KILLED, str(calls), *argv], capture_output=True
    ).returncode
    done = (library / ".preprocess/done.json").exists()
    assert code == -signal.SIGKILL and not done
    for name, data in visible(library).items():
        if not name.startswith("."):  # a temporary file, replaced by the next run
            assert data == {**MEMBERS, **PUBLISHED}[name], f"{name} is torn"
    assert run_command("preprocess", argv) == 0
    assert visible(library) == PUBLISHED
    assert not list(library.rglob("*.tmp"))


def test_rerun_verifies_only_what_is_new(tmp_path: Path) -> None:
    make_archive(tmp_path, MEMBERS)
    preprocess(config(tmp_path))
    journal = tmp_path / "Kinetics-400/.preprocess/verified.jsonl"
    assert len(journal.read_text().splitlines()) == 10
    (tmp_path / "Kinetics-400/videos_val/v1.mp4").write_bytes(VIDEOS[2])
    (tmp_path / "Kinetics-400/.preprocess/done.json").unlink()
    preprocess(config(tmp_path))
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len(rows) == 11 and rows[-1]["path"] == "v1.mp4"


def test_truncated_archive_keeps_what_was_complete_and_continues(tmp_path: Path) -> None:
    make_archive(tmp_path, MEMBERS)
    whole = (tmp_path / ARCHIVE).read_bytes()
    (tmp_path / ARCHIVE).write_bytes(whole[: len(whole) // 2])
    argv = ["--data_dir", str(tmp_path), "--max_bad_share", "0.2"]
    assert run_command("preprocess", argv) == 3
    library = tmp_path / "Kinetics-400"
    kept = visible(library)
    assert kept and kept.items() < MEMBERS.items()
    assert not list(library.rglob("done.json")) and not list(library.rglob("unpacked.json"))
    inode = (library / "videos_train/t 0.mp4").stat().st_ino
    (tmp_path / ARCHIVE).write_bytes(whole)
    assert run_command("preprocess", argv) == 0
    assert visible(library) == PUBLISHED
    assert (library / "videos_train/t 0.mp4").stat().st_ino == inode


def replaced(**changes: bytes | None) -> dict[str, bytes]:
    by_split = {"train": LISTS[0], "val": LISTS[1]}
    members = {**MEMBERS, **{by_split[split]: data for split, data in changes.items()}}
    return {name: data for name, data in members.items() if data is not None}


@pytest.mark.parametrize(
    ("members", "links", "message"),
    [
        ({**MEMBERS, "../../evil.mp4": b"x"}, {}, "'..'"),
        (MEMBERS, {"videos_train/l.mp4": "/etc/passwd"}, "link"),
        (replaced(val=b"v0.mp4\n"), {}, "line 1: no label"),
        (replaced(train=b"t 0.mp4 400\n"), {}, "label 400 is not in 0 … 399"),
        (replaced(val=b""), {}, "empty"),
        (replaced(val=b"v0.mp4 0\nt 1.mp4 1\n"), {}, "'t 1.mp4'"),
        (replaced(val=None), {}, LISTS[1]),
    ],
)
def test_unsuitable_archive_exits_2_and_writes_nothing(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    members: dict[str, bytes],
    links: dict[str, str],
    message: str,
) -> None:
    make_archive(tmp_path / "data", members, links)
    assert run_command("preprocess", ["--data_dir", str(tmp_path / "data")]) == 2
    assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.rglob("*")] == ["data", ARCHIVE]


def test_no_data_exits_2_and_says_what_was_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("preprocess", ["--data_dir", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert ARCHIVE in message and "Kinetics-400" in message and "data/README.md" in message
    assert run_command("preprocess", ["--data_dir", str(tmp_path / "no")]) == 2
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"--max_bad_share 2.*--n_worker 0"):
        preprocess(config(tmp_path, max_bad_share=2.0, n_worker=0))


def test_unknown_flag_exits_2() -> None:
    with pytest.raises(SystemExit) as stop:
        run_command("preprocess", ["--data_dri", "x"])
    assert stop.value.code == 2


def test_too_many_bad_videos_exit_3_and_leave_the_rest_for_later(tmp_path: Path) -> None:
    make_archive(tmp_path, MEMBERS)
    with pytest.raises(DataError, match=r"(?s)2 of 12 .*16\.67%.*bad\.mp4"):
        preprocess(config(tmp_path, max_bad_share=0.1))
    library = tmp_path / "Kinetics-400"
    assert (library / "videos_train/bad.mp4").exists()
    assert not (library / LISTS[0]).exists()
    journal = (library / ".preprocess/verified.jsonl").read_text()
    assert len(journal.splitlines()) == 10
    assert not preprocess(config(tmp_path, max_bad_share=2 / 12)).already_done
    assert visible(library) == PUBLISHED
    assert (library / ".preprocess/verified.jsonl").read_text() == journal


def test_unpacked_folder_is_verified_in_place(tmp_path: Path) -> None:
    library = tmp_path / "Kinetics-400"
    for name, data in MEMBERS.items():
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_bytes(data)
    (library / "README.md").unlink()
    summary = preprocess(config(library))  # the folder itself is a data_dir, too
    assert visible(library) == PUBLISHED
    assert summary.splits["train"] == SplitSummary(listed=8, usable=6, unlisted=0)
    assert preprocess(config(tmp_path)).already_done


def test_the_users_new_list_replaces_ours(tmp_path: Path) -> None:
    make_archive(tmp_path, MEMBERS)
    preprocess(config(tmp_path))
    mine = tmp_path / "Kinetics-400" / LISTS[0]
    mine.write_bytes(b"t 0.mp4 9\nt 1.mp4 9\n")
    summary = preprocess(config(tmp_path))
    assert summary.splits["train"] == SplitSummary(listed=2, usable=2, unlisted=4)
    assert mine.read_bytes() == b"t 0.mp4 9\nt 1.mp4 9\n"


def test_given_list_replaces_a_broken_one(tmp_path: Path) -> None:
    make_archive(tmp_path / "data", replaced(train=b"broken\n"))
    (tmp_path / "mine.txt").write_bytes(b"t 2.mp4 1\n")
    summary = preprocess(config(tmp_path / "data", train_list=tmp_path / "mine.txt"))
    assert summary.splits["train"].usable == 1
    assert (tmp_path / "data/Kinetics-400" / LISTS[0]).read_bytes() == b"t 2.mp4 1\n"


def test_full_disk_is_noticed_before_unpacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_archive(tmp_path, MEMBERS)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 10**6))  # type: ignore[attr-defined]
    assert run_command("preprocess", ["--data_dir", str(tmp_path)]) == 74
    assert os.listdir(tmp_path) == [ARCHIVE]


EVIL = """
import os, signal, time
from kinetics400.data.verify import verify_as_json
def verify(path):
    if path.endswith("t 1.mp4"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if path.endswith("t 2.mp4"):
        time.sleep(100)
    if path.endswith("v1.mp4") and not os.path.exists(path + ".seen"):
        open(path + ".seen", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)  # once, like a crowded machine
    return verify_as_json(path)
"""


def test_decoder_that_crashes_or_hangs_costs_one_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil_decoder.py").write_text(EVIL)
    monkeypatch.syspath_prepend(tmp_path)
    import evil_decoder  # type: ignore[import-not-found]

    monkeypatch.setattr("kinetics400.data.verification.verify_as_json", evil_decoder.verify)
    make_archive(tmp_path / "data", MEMBERS)
    summary = preprocess(config(tmp_path / "data", timeout=1.5, max_bad_share=0.5))
    reasons = {video.path: video.reason for video in summary.quarantined}
    assert reasons == {
        "bad.mp4": "truncated",
        "gone.mp4": "absent",
        "t 1.mp4": "crashed",
        "t 2.mp4": "hung",
    }
    assert summary.splits["val"].usable == 4


def test_failing_disk_stops_early(tmp_path: Path) -> None:
    names = [f"b{i}.mp4" for i in range(60)]
    lists = {LISTS[0]: "".join(f"{n} 0\n" for n in names).encode(), LISTS[1]: MEMBERS[LISTS[1]]}
    make_archive(tmp_path, {**{f"videos_train/{n}": b"\0" * 99 for n in names}, **lists})
    with pytest.raises(DataError, match="51 videos in a row"):
        preprocess(config(tmp_path, max_bad_share=1.0))
    assert (tmp_path / "Kinetics-400/videos_train/b0.mp4").exists()


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_module_command_stops_in_order_on_sigterm_and_excludes_a_second(tmp_path: Path) -> None:
    library = tmp_path / "Kinetics-400"
    (library / "videos_train").mkdir(parents=True)
    (library / "videos_val").mkdir()
    (library / "videos_val/v.mp4").write_bytes(VIDEOS[0])
    (library / LISTS[1]).write_text("v.mp4 0\n")
    for i in range(3000):
        os.link(library / "videos_val/v.mp4", library / f"videos_train/t{i}.mp4")
    (library / LISTS[0]).write_text("".join(f"t{i}.mp4 0\n" for i in range(3000)))
    command = [sys.executable, "-m", "data.preprocess", "--data_dir", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_until((library / ".preprocess/verified.jsonl").exists)
        second = subprocess.run(command, capture_output=True, text=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 75
        assert process.stderr is not None
        assert "repeat the command" in process.stderr.read()
    assert second.returncode == 2 and "another process" in second.stderr
    assert not (library / ".preprocess/done.json").exists()
    children = subprocess.run(["ps", "-eo", "ppid,args"], capture_output=True, text=True).stdout
    assert f" {process.pid} " not in children


def test_published_counts_are_shown_for_the_real_dataset() -> None:
    splits = {"train": SplitSummary(240_000, 239_000, 0), "val": SplitSummary(19_796, 19_700, 3)}
    text = format_summary(Summary(Path("d"), splits, [], {}, already_done=False))
    assert "239,000 usable of 240,000 listed videos; Kinetics-400 has 240,436" in text
    assert "Kinetics-400 has 19,796; 3 files on disk are not listed" in text


def test_progress_line_has_rate_and_remaining_time() -> None:
    line = ProgressMeter("verifying", 20_000, "videos").line(5_000, 100.0)
    assert line == "verifying: 5,000 of 20,000 videos (25 %), 50.0 videos/s, 0:05:00 left"
    line = ProgressMeter("unpacking", 400 * 10**9, "bytes").line(100 * 10**9, 1000.0)
    assert line == "unpacking: 100,000.0 of 400,000.0 MB (25 %), 100.0 MB/s, 0:50:00 left"


def test_children_and_command_run_without_torch(tmp_path: Path) -> None:
    make_archive(tmp_path, MEMBERS)
    code = f"""
        import sys
        from kinetics400.__main__ import run_command
        argv = ["--data_dir", {str(tmp_path)!r}, "--max_bad_share", "1"]
        assert run_command("preprocess", argv) == 0
        assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True)
