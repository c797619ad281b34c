"""FAULTS 32 and 35: killed or out of space anywhere, a rerun gives the same tree.

Most runs here encode in a child made by fork, which dies before its n-th change to the disk.
"""

import contextlib
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from kinetics400.__main__ import run_command
from kinetics400.commands.preprocess import preprocess
from kinetics400.config.preprocess import PreprocessConfig
from kinetics400.data import intake
from kinetics400.data.shelf import Shelf
from kinetics400.errors import DataError, StorageError

ARCHIVE = "Kinetics-400.tar.gz"
LISTS = ("kinetics400_train_list_videos.txt", "kinetics400_val_list_videos.txt")
CHOSEN = ("t 0.mp4", "t 1.mp4", "class b/odd.avi", "bad.mp4", "-v0.mp4")
ENCODED = 5  # all of them are looked at
Tree = dict[str, bytes]
Visible = Callable[[Path], Tree]
Kill = Callable[[int, Callable[[], object]], int]


def run(data_dir: Path, **flags: object) -> None:
    defaults = {"max_bad_share": 0.2, "n_worker": 1}
    preprocess(PreprocessConfig(data_dir=data_dir, **{**defaults, **flags}))  # type: ignore[arg-type]


def few(files: Tree) -> Tree:
    """The chosen ones and the absent one, lists included."""
    names = {name for base in CHOSEN for name in (base, f"{base}.mp4")}
    chosen = {}
    for name, data in files.items():
        if name in LISTS:
            lines = data.decode().splitlines(keepends=True)
            data = "".join(ln for ln in lines if ln.rsplit(" ", 1)[0] in names).encode()
        elif name.partition("/")[2] not in names:
            continue
        chosen[name] = data
    return chosen


@pytest.fixture
def journal_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were thousands of videos."""
    monkeypatch.setattr(intake, "JOURNAL_EVERY", 2)


def journalled(library: Path) -> int:
    journal = library / ".preprocess/journal.jsonl"
    return len(journal.read_text().splitlines()) if journal.exists() else 0


def assert_clean(library: Path) -> None:
    assert not list(library.rglob("*.tmp"))
    assert not (library / ".preprocess/incoming").exists()


# --- an archive -----------------------------------------------------------------------------------

# Of one run, from the first folder made to the last one removed; opening a file that must not be a
# link counts twice.
N_CHANGES = 126


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, corpus, write_archive: Callable, published: Visible
) -> Tree:
    """What a run that nobody kills publishes; in real children, to be independent."""
    data_dir = tmp_path_factory.mktemp("undisturbed")
    write_archive(data_dir / ARCHIVE, few(corpus.members))
    run(data_dir)
    return published(data_dir / "Kinetics-400")


@pytest.mark.usefixtures("journal_often")
@pytest.mark.parametrize("step", range(1, N_CHANGES + 1, 3))
def test_archive_killed_before_any_change_to_the_disk(
    tmp_path: Path,
    corpus,
    undisturbed: Tree,
    write_archive: Callable,
    visible: Visible,
    published: Visible,
    inline,
    killed_at: Kill,
    step: int,
) -> None:
    write_archive(tmp_path / ARCHIVE, few(corpus.members))
    library, expected = tmp_path / "Kinetics-400", few(corpus.stored)
    assert killed_at(step, lambda: run(tmp_path)) == 0
    there = visible(library)
    assert there.items() <= expected.items()  # nothing torn, nothing strange
    assert there == expected or not (library / ".preprocess/done.json").exists()
    known = journalled(library)
    run(tmp_path)
    assert len(inline.sources) == ENCODED - known
    assert published(library) == undisturbed
    assert_clean(library)


@pytest.mark.usefixtures("inline", "journal_often")
def test_the_kills_above_cover_the_whole_run(
    tmp_path: Path, corpus, write_archive: Callable, killed_at: Kill
) -> None:
    write_archive(tmp_path / ARCHIVE, few(corpus.members))
    assert killed_at(0, lambda: run(tmp_path)) == N_CHANGES


@pytest.mark.usefixtures("inline", "journal_often")
def test_the_kills_above_would_catch_files_written_in_place(
    tmp_path: Path,
    corpus,
    write_archive: Callable,
    visible: Visible,
    killed_at: Kill,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The negative control: without staging and renaming, torn files bear final names."""

    def write_in_place(shelf: Shelf, staged: str, parts: tuple[str, ...], aside=None) -> int:
        data = (library / ".preprocess/incoming" / staged).read_bytes()
        path = library.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.write(data[: len(data) // 2])
            file.flush()
            os.fsync(file.fileno())
            file.write(data[len(data) // 2 :])
        return len(data)

    monkeypatch.setattr(Shelf, "place", write_in_place)
    for step in range(5, 40):
        library = tmp_path / str(step) / "Kinetics-400"
        write_archive(library.parent / ARCHIVE, few(corpus.members))
        killed_at(step, partial(run, library.parent))
        if not visible(library).items() <= few(corpus.stored).items():
            return
    raise AssertionError("no kill has left a torn file")


@pytest.mark.usefixtures("inline", "journal_often")
def test_killed_while_storing_anew_with_other_settings(
    tmp_path: Path,
    corpus,
    write_archive: Callable,
    visible: Visible,
    published: Visible,
    undisturbed: Tree,
    killed_at: Kill,
) -> None:
    """Old and new pyramids stand side by side then; either run must sort them out."""
    write_archive(tmp_path / ARCHIVE, few(corpus.members))
    library = tmp_path / "Kinetics-400"
    run(tmp_path, crf=40)
    coarse = visible(library)
    for step in (20, 50, 80):
        assert killed_at(step, lambda: run(tmp_path)) == 0
        for name, data in visible(library).items():
            assert data in (coarse[name], few(corpus.stored)[name])
        run(tmp_path, crf=40)
        assert visible(library) == coarse
    assert killed_at(60, lambda: run(tmp_path)) == 0
    run(tmp_path)
    assert published(library) == undisturbed


# --- a library in place ---------------------------------------------------------------------------


@pytest.mark.usefixtures("inline", "journal_often")
@pytest.mark.parametrize("flat", [False, True], ids=["in folders", "beside the lists"])
def test_library_in_place_killed_anywhere_loses_no_original(
    tmp_path: Path,
    corpus,
    write_files: Callable,
    visible: Visible,
    killed_at: Kill,
    flat: bool,
) -> None:
    members = few(corpus.members)
    expected = few(corpus.stored)
    originals = {name: data for name, data in members.items() if name not in LISTS}
    for step in range(1, 84, 3):  # to the last change
        library = tmp_path / str(step) / "Kinetics-400"
        write_files(
            library,
            {n.partition("/")[2] if flat and n not in LISTS else n: d for n, d in members.items()},
        )
        assert killed_at(step, partial(run, library)) == 0
        there = sorted(visible(library).values())
        assert all(data in there for data in originals.values()), step
        run(library)
        assert visible(library) == {
            **expected,
            **{f"originals/{name}": data for name, data in originals.items()},
        }, step
        assert_clean(library)


@pytest.mark.usefixtures("inline", "journal_often")
def test_class_folders_in_place_killed_anywhere_give_the_same_lists(
    tmp_path: Path, corpus, write_files: Callable, visible: Visible, killed_at: Kill
) -> None:
    """What tells the labels moves aside, and pyramids of .avi files are no videos of their own."""
    members = corpus.members
    files = {
        "videos_train/zumba/a.avi": members["videos_train/class b/odd.avi"],
        "videos_train/zumba/b.mp4": members["videos_train/t 0.mp4"],
        "videos_train/abseiling/c.mp4": members["videos_train/t 1.mp4"],
        "videos_val/zumba/d.mp4": members["videos_val/v1.mp4"],
    }
    expected = {
        LISTS[0]: b"abseiling/c.mp4 0\nzumba/a.avi.mp4 399\nzumba/b.mp4 399\n",
        LISTS[1]: b"zumba/d.mp4 399\n",
        "videos_train/zumba/a.avi.mp4": corpus.stored["videos_train/class b/odd.avi.mp4"],
        "videos_train/zumba/b.mp4": corpus.stored["videos_train/t 0.mp4"],
        "videos_train/abseiling/c.mp4": corpus.stored["videos_train/t 1.mp4"],
        "videos_val/zumba/d.mp4": corpus.stored["videos_val/v1.mp4"],
        **{f"originals/{name}": data for name, data in files.items()},
    }
    for step in range(6, 66, 4):
        library = tmp_path / str(step) / "Kinetics-400"
        write_files(library, files)
        assert killed_at(step, partial(run, library)) == 0
        run(library)
        assert visible(library) == expected, step


# --- CVDF -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("journal_often")
def test_cvdf_killed_anywhere_keeps_the_replacements(
    tmp_path: Path,
    corpus,
    write_archive: Callable,
    visible: Visible,
    inline,
    killed_at: Kill,
) -> None:
    """Each archive is read once or again; who was replaced stays so."""
    good = [corpus.members[f"videos_train/t {i}.mp4"] for i in range(4)]
    names = [f"{c * 11}_000001_000011.mp4" for c in "abcd"]
    stored = [corpus.stored[f"videos_train/t {i}.mp4"] for i in range(4)]
    source = tmp_path / "cvdf"
    parts = {
        "train/part_0.tar.gz": {names[0]: corpus.refused, names[1]: good[1]},
        "train/part_1.tar.gz": {names[2]: good[2], names[1]: good[0]},  # has it a second time
        "val/part_0.tar.gz": {names[3]: good[3]},
        "replacement_for_corrupted_k400.tgz": {names[0]: good[0]},
    }
    for name, members in parts.items():
        write_archive(source / name, members, top="./")
    for split, rows in (("train", names[:3]), ("val", names[3:])):
        lines = [f"zumba,{name[:11]},1,11,{split}\n" for name in rows]
        text = "label,youtube_id,time_start,time_end,split\n" + "".join(lines)
        (source / f"{split}.csv").write_text(text)
    before = visible(source)
    expected = {
        **{f"videos_train/{names[i]}": stored[i] for i in range(3)},
        f"videos_val/{names[3]}": stored[3],
        LISTS[0]: "".join(f"{name} 399\n" for name in names[:3]).encode(),
        LISTS[1]: f"{names[3]} 399\n".encode(),
    }
    for step in range(2, 120, 5):
        data_dir = tmp_path / str(step)
        if killed_at(step, partial(run, data_dir, source=source)) > 0:
            assert step > 100
            break
        library = data_dir / "Kinetics-400"
        known = journalled(library)
        inline.sources.clear()
        run(data_dir, source=source)
        assert visible(library) == expected, step
        assert len(inline.sources) == 4 - known, step
        assert_clean(library)
    assert visible(source) == before  # it is only read


# --- real processes -------------------------------------------------------------------------------


def children_of(pid: int) -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.add(int(stat.parent.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# What makes the work on tiny videos last long enough to be killed in.
SLOW = {"enlarge": True, "preset": "veryslow"}


@pytest.fixture(scope="module")
def undisturbed_slow(
    tmp_path_factory: pytest.TempPathFactory, corpus, write_archive: Callable, published: Visible
) -> Tree:
    data_dir = tmp_path_factory.mktemp("undisturbed")
    write_archive(data_dir / ARCHIVE, few(corpus.members))
    run(data_dir, **SLOW)
    return published(data_dir / "Kinetics-400")


@pytest.mark.parametrize("number", range(3))
def test_killed_while_children_encode_leaves_no_orphan_and_continues(
    tmp_path: Path,
    corpus,
    undisturbed_slow: Tree,
    write_archive: Callable,
    published: Visible,
    inline,
    number: int,
) -> None:
    write_archive(tmp_path / ARCHIVE, few(corpus.members))
    flags = ["--data_dir", str(tmp_path), "--max_bad_share", "0.2", "--n_worker", "2"]
    flags += ["--enlarge", "--preset", "veryslow"]
    library = tmp_path / "Kinetics-400"
    incoming = library / ".preprocess/incoming"
    with subprocess.Popen(
        [sys.executable, "-m", "data.preprocess", *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        # The first may be at work before the second has been started.
        wait_until(
            lambda: (
                (list(incoming.glob("stored-*")) and len(children_of(process.pid)) >= 2)
                or process.poll() is not None
            )
        )
        children = children_of(process.pid)
        time.sleep(random.Random(number).uniform(0, 0.03))
        process.kill()
    assert len(children) >= 2
    wait_until(lambda: not any(map(is_alive, children)), seconds=10)
    assert not (library / ".preprocess/done.json").exists()
    run(tmp_path, **SLOW)
    assert published(library) == undisturbed_slow
    assert_clean(library)


# --- a full disk (FAULTS 35) ----------------------------------------------------------------------


@pytest.mark.usefixtures("inline", "journal_often")
def test_full_disk_at_any_moment_stops_in_order_and_can_be_continued(
    tmp_path: Path,
    corpus,
    undisturbed: Tree,
    write_archive: Callable,
    visible: Visible,
    published: Visible,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_archive(tmp_path / ARCHIVE, few(corpus.members))
    library, fsync, calls = tmp_path / "Kinetics-400", os.fsync, 0
    argv = ["--data_dir", str(tmp_path), "--max_bad_share", "0.2", "--n_worker", "1"]

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    for failing in range(1, 40, 3):
        calls = 0
        code = run_command("preprocess", argv)
        if calls < failing:
            break
        assert code == 74, failing
        message = capsys.readouterr().err
        assert "No space left on device" in message and "Traceback" not in message
        assert visible(library).items() <= few(corpus.stored).items()
        assert_clean(library)
        if failing % 2:
            shutil.rmtree(library, ignore_errors=True)
    else:
        raise AssertionError("the disk was never large enough")
    assert code == 0 and failing > 12
    assert published(library) == undisturbed


def test_encoder_that_cannot_write_stops_the_run_and_blames_no_video(
    tmp_path: Path,
    corpus,
    undisturbed: Tree,
    write_archive: Callable,
    published: Visible,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A child's RLIMIT_FSIZE fails in the same place as a full disk, in FFmpeg's own write."""
    write_archive(tmp_path / ARCHIVE, few(corpus.members))
    argv = ["--data_dir", str(tmp_path), "--max_bad_share", "0.2", "--n_worker", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(intake, "LARGEST_STORED", 1000)
        assert run_command("preprocess", argv) == 74
    message = capsys.readouterr().err
    assert "File too large" in message and "repeat the command" in message
    library = tmp_path / "Kinetics-400"
    assert journalled(library) == 0 and not list(library.rglob("*.mp4"))
    assert_clean(library)
    assert run_command("preprocess", argv) == 0
    assert published(library) == undisturbed


def test_disk_that_is_too_small_is_noticed_before_anything_is_written(
    tmp_path: Path,
    corpus,
    write_archive: Callable,
    write_files: Callable,
    visible: Visible,
    inline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where originals take the room already: they stay, and the pyramids come on top."""
    monkeypatch.setattr("kinetics400.commands.preprocess_intake.DISK_MARGIN", 0)
    write_archive(tmp_path / "a" / ARCHIVE, few(corpus.members))
    write_files(tmp_path / "b/Kinetics-400", few(corpus.members))
    videos = sum(len(d) for n, d in few(corpus.members).items() if n not in LISTS)
    archive_bytes = (tmp_path / "a" / ARCHIVE).stat().st_size
    for data_dir, source_bytes in ((tmp_path / "a", archive_bytes), (tmp_path / "b", videos)):
        before = sorted(data_dir.rglob("*"))
        for share, fits in ((0.89, False), (0.91, True)):
            free = int(source_bytes * share)
            usage = shutil._ntuple_diskusage(10**12, 0, free)  # type: ignore[attr-defined]
            monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
            if fits:
                run(data_dir)
                continue
            with pytest.raises(StorageError, match=r"GB are free\. Nothing was written"):
                run(data_dir)
            assert sorted(data_dir.rglob("*")) == before
            assert not inline.sources
        inline.sources.clear()
    # What is finished needs no room, and what is replaced gives its own back.
    usage = shutil._ntuple_diskusage(10**12, 0, int(videos * 0.3))  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    run(tmp_path / "b")
    run(tmp_path / "b", crf=30)
    # But what is finished gives none to what is new.
    library = tmp_path / "b/Kinetics-400"
    write_files(library, {"videos_val/new.mp4": bytes(videos)})
    (library / LISTS[1]).write_text("-v0.mp4 0\nnew.mp4 1\n")
    stored = sum(len(data) for name, data in visible(library).items() if "videos_t" in name[:9])
    usage = shutil._ntuple_diskusage(10**12, 0, int(videos * 0.9) - stored // 2)  # type: ignore[attr-defined]
    with pytest.raises(StorageError, match="Nothing was written"):
        run(tmp_path / "b", crf=30)
    (library / LISTS[1]).write_text("-v0.mp4 0\n")
    usage = shutil._ntuple_diskusage(10**12, 10**12, 0)  # type: ignore[attr-defined]
    monkeypatch.setattr("kinetics400.commands.preprocess_intake.DISK_MARGIN", 10**6)
    run(tmp_path / "b", crf=30)


def test_rows_in_the_journal_are_whole_or_ignored(
    tmp_path: Path, corpus, write_archive: Callable, inline
) -> None:
    write_archive(tmp_path / ARCHIVE, few(corpus.members))
    run(tmp_path)
    journal = tmp_path / "Kinetics-400/.preprocess/journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    assert all(json.loads(line)["settings"] for line in lines)
    journal.write_text("".join(lines[:-1]) + lines[-1][:-20])  # torn by a power failure
    (journal.parent / "archives.json").unlink()
    inline.sources.clear()
    run(tmp_path)
    assert len(inline.sources) == 1
    with pytest.raises(DataError):
        run(tmp_path, max_bad_share=0.01)
