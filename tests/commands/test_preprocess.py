"""End to end, on archives of a few kilobytes made here."""

import gzip
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from kinetics400.__main__ import run_command
from kinetics400.commands.preprocess import preprocess
from kinetics400.commands.preprocess_report import SplitSummary, Summary, format_summary
from kinetics400.commands.progress import ProgressMeter
from kinetics400.config.preprocess import PreprocessConfig
from kinetics400.data import sources
from kinetics400.data.decode import VideoReader
from kinetics400.data.library import open_split, read_quarantine
from kinetics400.errors import DataError, InputError

ARCHIVE = "Kinetics-400.tar.gz"
LISTS = ("kinetics400_train_list_videos.txt", "kinetics400_val_list_videos.txt")
Tree = dict[str, bytes]
Visible = Callable[[Path], Tree]


def config(data_dir: Path, **options: object) -> PreprocessConfig:
    defaults = {"max_bad_share": 0.2, "n_worker": 1}
    return PreprocessConfig(data_dir=data_dir, **{**defaults, **options})  # type: ignore[arg-type]


def flags(data_dir: Path, *more: str) -> list[str]:
    return ["--data_dir", str(data_dir), "--max_bad_share", "0.2", "--n_worker", "1", *more]


def times(library: Path) -> dict[str, int]:
    """When each file was written, the hidden ones included."""
    return {str(f): f.stat().st_mtime_ns for f in library.rglob("*") if f.is_file()}


# --- what comes out -------------------------------------------------------------------------------


def test_archive_becomes_exactly_the_layout(
    tmp_path: Path,
    corpus,
    write_archive: Callable,
    visible: Visible,
    inline,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_archive(tmp_path / ARCHIVE, corpus.members)
    assert run_command("preprocess", flags(tmp_path)) == 0
    library = tmp_path / "Kinetics-400"
    assert visible(library) == corpus.stored
    assert sorted(os.listdir(library)) == sorted(
        [".preprocess", *LISTS, "videos_train", "videos_val"]
    )
    hidden = library / ".preprocess"
    assert (hidden / "quarantine/videos_train/bad.mp4").read_bytes() == corpus.refused
    reasons = [(v.split, v.path, v.reason) for v in read_quarantine(hidden / "quarantine.jsonl")]
    assert reasons == [("train", "bad.mp4", "truncated"), ("train", "gone.mp4", "absent")]
    assert json.loads((hidden / "done.json").read_text())["usable"] == {"train": 6, "val": 4}
    assert not (hidden / "incoming").exists()
    out, err = capsys.readouterr()
    assert "6 usable of 8 listed" in out and "4 usable of 4 listed" in out
    assert "1  truncated" in out and "videos_train/gone.mp4" in out and "1 × .md" in out
    assert "240,436" not in out
    assert "storing: " in err and "(100 %)" in err
    table = open_split(tmp_path, "train", num_classes=400)
    assert [Path(table.path(i)).is_file() for i in range(len(table))] == [True] * 6

    before = times(library)
    inline.sources.clear()
    assert run_command("preprocess", flags(tmp_path)) == 0
    out, err = capsys.readouterr()
    assert "already done" in out and "1  truncated" in out and "1 × .md" in out and err == ""
    assert times(library) == before and not inline.sources


def test_manifests_tell_what_is_on_disk(
    tmp_path: Path, corpus, write_archive: Callable, inline
) -> None:
    """Against an independent reading: numpy, hashlib, and a full decode."""
    write_archive(tmp_path / ARCHIVE, corpus.members)
    preprocess(config(tmp_path))
    library = tmp_path / "Kinetics-400"
    n_frames = {f"t {i}.mp4": 8 + i for i in range(5)} | {"class b/odd.avi.mp4": 13}
    n_frames |= {"-v0.mp4": 14, "v1.mp4": 15, "v2.mp4": 16, "v3.mp4": 17}
    for split, listed in zip(("train", "val"), LISTS, strict=True):
        with np.load(library / f".preprocess/manifest_{split}.npz", allow_pickle=False) as arrays:
            rows = dict(arrays)
        offsets, text = rows["names_offsets"], rows["names_utf8"].tobytes()
        names = [text[a:b].decode() for a, b in pairwise(offsets)]
        lines = [f"{n} {label}" for n, label in zip(names, rows["labels"], strict=True)]
        assert (library / listed).read_text().splitlines() == lines
        offsets, text = rows["sources_offsets"], rows["sources_utf8"].tobytes()
        originals = [text[a:b].decode() for a, b in pairwise(offsets)]
        for i, name in enumerate(names):
            path = library / f"videos_{split}" / name
            assert hashlib.sha256(path.read_bytes()).digest() == rows["sha256"][i].tobytes()
            assert path.stat().st_size == rows["n_bytes"][i]
            with av.open(str(path)) as container:
                frames = list(container.decode(video=0))
                assert container.streams.video[0].average_rate == rows["fps"][i] == 30
            assert len(frames) == rows["n_frames"][i] == n_frames[name]
            assert (frames[0].width, frames[0].height) == (rows["widths"][i], rows["heights"][i])
            assert originals[i] == (name.removesuffix(".mp4") if ".avi" in name else name)
            with VideoReader(path) as reader:
                assert reader.is_pyramid and rows["is_pyramid"][i]
                assert len(reader) == n_frames[name]


def test_same_tree_with_any_number_of_workers_order_and_parts_and_little_on_disk(
    tmp_path: Path,
    corpus,
    write_archive: Callable,
    published: Visible,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In real children. Originals are never all on disk."""
    members = list(corpus.members.items())
    most: dict[int, int] = {}
    spool = sources._spool

    def watched(content, path: Path) -> tuple[str, int]:
        result = spool(content, path)
        most[n_worker] = max(most.get(n_worker, 0), len(os.listdir(path.parent)))
        return result

    monkeypatch.setattr(sources, "_spool", watched)
    trees = []
    for n_worker, order in ((1, members), (2, members[::-1]), (3, members[5:] + members[:5])):
        data_dir = tmp_path / str(n_worker)
        path = write_archive(data_dir / ARCHIVE, dict(order))
        if n_worker == 3:
            data = path.read_bytes()
            path.unlink()
            for i in range(4):
                part = data[len(data) * i // 4 : len(data) * (i + 1) // 4]
                (data_dir / f"{ARCHIVE}.{i:04d}").write_bytes(part)
        preprocess(config(data_dir, n_worker=n_worker))
        trees.append(published(data_dir / "Kinetics-400"))
        assert not (data_dir / "Kinetics-400/.preprocess/incoming").exists()
    assert trees[0] == trees[1] == trees[2]
    assert corpus.stored.items() <= trees[0].items()
    # An original and what is made of it, per worker, and the next original.
    assert all(count <= 2 * n + 1 for n, count in most.items()), most


def test_store_original_keeps_the_bytes(
    tmp_path: Path, corpus, write_archive: Callable, visible: Visible, inline
) -> None:
    write_archive(tmp_path / ARCHIVE, corpus.members)
    summary = preprocess(config(tmp_path, store="original"))
    library = tmp_path / "Kinetics-400"
    assert visible(library) == corpus.kept
    assert (summary.splits["train"].usable, summary.splits["train"].pyramids) == (6, 0)
    assert (library / ".preprocess/quarantine/videos_train/bad.mp4").read_bytes() == corpus.refused
    assert preprocess(config(tmp_path, store="original")).already_done
    preprocess(config(tmp_path))  # and now as pyramids: these take the places of our own copies
    shown = visible(library)
    assert shown.pop("videos_train/class b/odd.avi") == corpus.kept["videos_train/class b/odd.avi"]
    assert shown == corpus.stored


def test_given_list_replaces_a_broken_one(
    tmp_path: Path, corpus, write_archive: Callable, inline
) -> None:
    members = {**corpus.members, LISTS[0]: b"broken\n"}
    write_archive(tmp_path / "data" / ARCHIVE, members)
    (tmp_path / "mine.txt").write_bytes(b"t 2.mp4 1\n")
    summary = preprocess(config(tmp_path / "data", train_list=tmp_path / "mine.txt"))
    assert summary.splits["train"].usable == 1
    assert (tmp_path / "data/Kinetics-400" / LISTS[0]).read_bytes() == b"t 2.mp4 1\n"


# --- repeating the command ------------------------------------------------------------------------


def test_other_settings_store_everything_anew_and_the_same_ones_nothing(
    tmp_path: Path, corpus, write_archive: Callable, visible: Visible, inline
) -> None:
    write_archive(tmp_path / ARCHIVE, corpus.members)
    library = tmp_path / "Kinetics-400"
    preprocess(config(tmp_path))
    for settings in ({"crf": 30}, {"short_side": 32}):
        inline.sources.clear()
        assert not preprocess(config(tmp_path, **settings)).already_done
        assert len(inline.sources) == 11
        shown = visible(library)
        assert shown.keys() == corpus.stored.keys()
        assert not any(shown[name] == corpus.stored[name] for name in shown if "/" in name)
        before = times(library)
        assert preprocess(config(tmp_path, **settings)).already_done
        assert times(library) == before
    with VideoReader(library / "videos_val/v1.mp4") as reader:
        assert (reader.height, reader.width) == (32, 42)
    preprocess(config(tmp_path))
    assert visible(library) == corpus.stored


def test_archive_is_not_needed_again(
    tmp_path: Path, corpus, write_archive: Callable, visible: Visible, inline
) -> None:
    write_archive(tmp_path / ARCHIVE, corpus.members)
    preprocess(config(tmp_path))
    (tmp_path / ARCHIVE).unlink()
    library = tmp_path / "Kinetics-400"
    before = times(library)
    inline.sources.clear()
    assert preprocess(config(tmp_path)).already_done
    assert times(library) == before and not inline.sources


def test_stored_video_that_is_gone_or_changed_comes_back_from_the_archive(
    tmp_path: Path, corpus, write_archive: Callable, visible: Visible, inline
) -> None:
    write_archive(tmp_path / ARCHIVE, corpus.members)
    preprocess(config(tmp_path))
    library = tmp_path / "Kinetics-400"
    (library / "videos_val/v1.mp4").unlink()
    torn = library / "videos_train/t 0.mp4"
    torn.write_bytes(torn.read_bytes()[:50])
    inline.sources.clear()
    summary = preprocess(config(tmp_path))
    assert len(inline.sources) == 2 and summary.ignored == {".md": 1}
    assert not summary.already_done
    assert visible(library) == corpus.stored


def test_new_archive_is_read_and_only_what_is_new_in_it_is_stored(
    tmp_path: Path, corpus, write_archive: Callable, visible: Visible, inline
) -> None:
    write_archive(tmp_path / ARCHIVE, corpus.members)
    preprocess(config(tmp_path))
    good = corpus.members["videos_train/t 4.mp4"]
    write_archive(tmp_path / ARCHIVE, {**corpus.members, "videos_train/bad.mp4": good})
    inline.sources.clear()
    summary = preprocess(config(tmp_path))
    assert len(inline.sources) == 1
    assert (summary.splits["train"].usable, summary.ignored) == (7, {".md": 1})
    shown = visible(tmp_path / "Kinetics-400")
    assert shown["videos_train/bad.mp4"] == corpus.stored["videos_train/t 4.mp4"]
    assert b"bad.mp4 6\n" in shown[LISTS[0]]


def test_users_new_list_replaces_ours(
    tmp_path: Path, corpus, write_archive: Callable, inline
) -> None:
    write_archive(tmp_path / ARCHIVE, corpus.members)
    preprocess(config(tmp_path))
    mine = tmp_path / "Kinetics-400" / LISTS[0]
    mine.write_bytes(b"t 0.mp4 9\nt 1.mp4 9\n")
    inline.sources.clear()
    train = preprocess(config(tmp_path)).splits["train"]
    assert (train.listed, train.usable, train.unlisted) == (2, 2, 4)
    assert mine.read_bytes() == b"t 0.mp4 9\nt 1.mp4 9\n" and not inline.sources


# --- damaged and hostile archives -----------------------------------------------------------------


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 16]) + data[position + 1 :]


@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        (lambda data: data[: len(data) * 2 // 3], 3, "truncated.*near byte"),
        (lambda data: data[:-4], 3, "truncated.*near byte"),
        (lambda data: flipped(data, len(data) - 6), 3, "damaged.*near byte"),
        (lambda data: data + b"junk", 3, "not gzip follows.*near byte"),
        (lambda data: gzip.compress(gzip.decompress(data) + b"more"), 3, "follows the end"),
        (lambda data: gzip.decompress(data), 2, "not a gzip"),
        (lambda data: b"<html>404</html>", 2, "not a gzip"),
    ],
)
def test_damaged_archive_keeps_what_was_complete_and_continues_with_a_good_one(
    tmp_path: Path,
    corpus,
    write_archive: Callable,
    visible: Visible,
    inline,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[bytes], bytes],
    code: int,
    message: str,
) -> None:
    path = write_archive(tmp_path / ARCHIVE, corpus.members)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert run_command("preprocess", flags(tmp_path)) == code
    told = capsys.readouterr().err.replace("\n", " ")
    assert re.search(message, told), told
    library = tmp_path / "Kinetics-400"
    assert library.exists() == (code == 3)
    kept = visible(library)
    assert kept.items() <= corpus.stored.items()
    assert not list(library.rglob("done.json")) and not list(library.rglob("archives.json"))
    inodes = {name: (library / name).stat().st_ino for name in kept}
    assert len(kept) >= 4 or code == 2

    path.write_bytes(whole)
    inline.sources.clear()
    assert run_command("preprocess", flags(tmp_path)) == 0
    assert visible(library) == corpus.stored
    assert {name: (library / name).stat().st_ino for name in kept} == inodes
    assert len(inline.sources) == 11 - len(kept) - (len(kept) >= 6)  # the bad one is known, too


def test_missing_part_exits_2_and_is_named(
    tmp_path: Path, corpus, write_archive: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_archive(tmp_path / ARCHIVE, corpus.members).read_bytes()
    (tmp_path / ARCHIVE).unlink()
    for i in (0, 2):
        (tmp_path / f"{ARCHIVE}.{i:04d}").write_bytes(data[i * 9000 : (i + 1) * 9000])
    before = sorted(os.listdir(tmp_path))
    assert run_command("preprocess", flags(tmp_path)) == 2
    assert f"{ARCHIVE}.0001" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == before


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


TOP = "Kinetics-400/"
HOSTILE = {
    "dotdot": tarfile.TarInfo(f"{TOP}../../evil.mp4"),
    "absolute": tarfile.TarInfo("/tmp/kinetics400_evil.mp4"),
    "symlink": special(f"{TOP}videos_train/l.mp4", tarfile.SYMTYPE, "/etc/passwd"),
    "symlinked folder": special(f"{TOP}videos_val/x", tarfile.SYMTYPE, "/etc"),
    "hardlink": special(f"{TOP}videos_train/l.mp4", tarfile.LNKTYPE, "../../secret"),
    "fifo": special(f"{TOP}videos_train/f.mp4", tarfile.FIFOTYPE),
    "device": special(f"{TOP}videos_train/d.mp4", tarfile.CHRTYPE),
    "newline": tarfile.TarInfo(f"{TOP}videos_val/a\nb.mp4"),
    "duplicate": tarfile.TarInfo(f"{TOP}videos_val/v1.mp4"),
    "case clash": tarfile.TarInfo(f"{TOP}videos_val/V1.mp4"),
    "deep": tarfile.TarInfo(f"{TOP}videos_val/a/b/c.mp4"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archive_exits_2_and_leaves_nothing(
    tmp_path: Path,
    corpus,
    inline,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    """The hostile member comes last, when everything else is encoded and in its place."""
    (tmp_path / "secret").write_text("secret")
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    with tarfile.open(data_dir / ARCHIVE, "w:gz", compresslevel=1) as tar:
        for name, data in corpus.members.items():
            info = tarfile.TarInfo(TOP + name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        tar.addfile(HOSTILE[kind])
    start = time.monotonic()
    assert run_command("preprocess", flags(data_dir)) == 2
    assert time.monotonic() - start < 5
    assert "refused" in capsys.readouterr().err
    assert len(inline.sources) == 11
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == [
        "data",
        f"data/{ARCHIVE}",
        "secret",
    ]
    assert not Path("/tmp/kinetics400_evil.mp4").exists()


def test_hostile_archive_takes_nothing_from_what_was_there(
    tmp_path: Path, corpus, write_archive: Callable, visible: Visible, inline
) -> None:
    """Neither the user's files nor an earlier archive's; in real children, which must end, too."""
    write_archive(tmp_path / ARCHIVE, corpus.members)
    library = tmp_path / "Kinetics-400"
    (library / "videos_val").mkdir(parents=True)
    (library / "videos_val/v1.mp4").write_bytes(b"the user's own")
    (library / "videos_val/mine.mp4").write_bytes(b"mine")
    preprocess(config(tmp_path))
    shown = visible(library)
    assert shown["originals/videos_val/v1.mp4"] == b"the user's own"  # in the way, not in danger
    journal = (library / ".preprocess/journal.jsonl").read_bytes()
    more = {**corpus.members, "videos_val/new.mp4": corpus.members["videos_val/v2.mp4"]}
    (library / "videos_val/new.mp4").write_bytes(b"also mine")
    write_archive(tmp_path / ARCHIVE, more, links={"l": "/etc"})
    with pytest.raises(InputError, match="link"):
        preprocess(config(tmp_path))
    assert visible(library) == {**shown, "videos_val/new.mp4": b"also mine"}
    assert (library / ".preprocess/journal.jsonl").read_bytes() == journal


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({LISTS[1]: b"v1.mp4\n"}, "line 1: no label"),
        ({LISTS[0]: b"t 0.mp4 400\n"}, "label 400 is not in 0 … 399"),
        ({LISTS[1]: b""}, "empty"),
        ({LISTS[1]: b"v1.mp4 0\nt 1.mp4 1\n"}, "'t 1.mp4'"),
        ({LISTS[1]: None}, LISTS[1]),
        ({LISTS[0]: b"\xff 0\n"}, "not UTF-8"),
    ],
)
def test_archive_with_unsuitable_lists_exits_2_and_leaves_nothing(
    tmp_path: Path,
    corpus,
    write_archive: Callable,
    inline,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, bytes | None],
    message: str,
) -> None:
    members = {n: d for n, d in {**corpus.members, **changes}.items() if d is not None}
    write_archive(tmp_path / "data" / ARCHIVE, members)
    assert run_command("preprocess", flags(tmp_path / "data")) == 2
    assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.rglob("*")] == ["data", ARCHIVE]


# --- wrong usage ----------------------------------------------------------------------------------


def test_no_data_exits_2_and_says_what_was_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("preprocess", ["--data_dir", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    for part in (ARCHIVE, "Kinetics-400", "data/README.md", "--source"):
        assert part in message
    assert run_command("preprocess", ["--data_dir", str(tmp_path / "no")]) == 2
    (tmp_path / "stray.mp4").touch()  # is nobody's dataset, unless it is named
    capsys.readouterr()
    assert run_command("preprocess", ["--data_dir", str(tmp_path)]) == 2
    assert "nothing to preprocess" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["stray.mp4"]


def test_wrong_flags_are_told_all_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {
        "--crf": "99",
        "--keyframe_interval": "30",
        "--short_side": "1",
        "--source": str(tmp_path / "absent"),
        "--max_bad_share": "2",
        "--n_worker": "0",
        "--timeout": "nan",
        "--num_classes": "0",
    }
    argv = [part for pair in wrong.items() for part in pair]
    (tmp_path / "file").touch()
    argv += ["--data_dir", str(tmp_path / "file")]
    assert run_command("preprocess", argv) == 2
    message = capsys.readouterr().err
    for flag in (*wrong, "--data_dir"):
        assert flag in message
    for flag, value in (("--preset", "nonsense"), ("--store", "x"), ("--data_dri", "x")):
        with pytest.raises(SystemExit) as stop:
            run_command("preprocess", ["--data_dir", str(tmp_path), flag, value])
        assert stop.value.code == 2
        assert flag in capsys.readouterr().err
    for interval in (0, -4, 2048):
        with pytest.raises(InputError, match="keyframe_interval"):
            preprocess(config(tmp_path, keyframe_interval=interval))
    assert os.listdir(tmp_path) == ["file"]


# --- bad videos, bad decoders ---------------------------------------------------------------------


def test_too_many_bad_videos_exit_3_and_a_repeated_command_is_quick(
    tmp_path: Path, corpus, write_archive: Callable, visible: Visible, inline
) -> None:
    write_archive(tmp_path / ARCHIVE, corpus.members)
    with pytest.raises(DataError, match=r"(?s)2 of 12 .*16\.67%.*bad\.mp4"):
        preprocess(config(tmp_path, max_bad_share=0.1))
    library = tmp_path / "Kinetics-400"
    assert not (library / LISTS[0]).exists() and not list(library.rglob("done.json"))
    inline.sources.clear()
    with pytest.raises(DataError):
        preprocess(config(tmp_path, max_bad_share=0.1))
    assert not preprocess(config(tmp_path, max_bad_share=2 / 12)).already_done
    assert not inline.sources
    assert visible(library) == corpus.stored


def test_split_without_a_usable_video_exits_3(
    tmp_path: Path, corpus, write_archive: Callable, inline
) -> None:
    members = {n: d for n, d in corpus.members.items() if "videos_val" not in n}
    write_archive(tmp_path / ARCHIVE, members)
    with pytest.raises(DataError, match="none is left for val"):
        preprocess(config(tmp_path, max_bad_share=1.0))


EVIL = """
import os, signal, time
from kinetics400.data.transcode import store_as_json
def store(job):
    source = open(job[0], "rb").read()
    if source == open(__file__ + ".crash", "rb").read():
        os.kill(os.getpid(), signal.SIGSEGV)
    if source == open(__file__ + ".hang", "rb").read():
        time.sleep(100)
    if source == open(__file__ + ".once", "rb").read() and not os.path.exists(__file__ + ".seen"):
        open(__file__ + ".seen", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)  # once, like a crowded machine
    return store_as_json(job)
"""


def test_decoder_that_crashes_or_hangs_costs_one_video(
    tmp_path: Path,
    corpus,
    write_archive: Callable,
    visible: Visible,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "evil_decoder.py").write_text(EVIL)
    for kind, name in (("crash", "t 1"), ("hang", "t 2"), ("once", "t 3")):
        data = corpus.members[f"videos_train/{name}.mp4"]
        (tmp_path / f"evil_decoder.py.{kind}").write_bytes(data)
    monkeypatch.syspath_prepend(tmp_path)
    import evil_decoder  # type: ignore[import-not-found]

    monkeypatch.setattr("kinetics400.data.intake.store_as_json", evil_decoder.store)
    write_archive(tmp_path / "data" / ARCHIVE, corpus.members)
    summary = preprocess(config(tmp_path / "data", timeout=1.0, max_bad_share=0.5, n_worker=2))
    reasons = {video.path: video.reason for video in summary.quarantined}
    assert reasons == {
        "bad.mp4": "truncated",
        "gone.mp4": "absent",
        "t 1.mp4": "crashed",
        "t 2.mp4": "hung",
    }
    library = tmp_path / "data/Kinetics-400"
    assert summary.splits["val"].usable == 4
    assert (library / "videos_train/t 3.mp4").read_bytes() == corpus.stored["videos_train/t 3.mp4"]
    assert sorted(os.listdir(library / ".preprocess/quarantine/videos_train")) == [
        "bad.mp4",
        "t 1.mp4",
        "t 2.mp4",
    ]


def test_failing_disk_stops_early(tmp_path: Path, corpus, write_archive: Callable, inline) -> None:
    names = [f"b{i}.mp4" for i in range(60)]
    lists = {LISTS[0]: "".join(f"{n} 0\n" for n in names).encode(), LISTS[1]: b"v1.mp4 0\n"}
    write_archive(tmp_path / ARCHIVE, {**{f"videos_train/{n}": b"\0" * 99 for n in names}, **lists})
    with pytest.raises(DataError, match="51 videos in a row"):
        preprocess(config(tmp_path, max_bad_share=1.0))
    assert len(inline.sources) == 51
    library = tmp_path / "Kinetics-400"
    assert not (library / LISTS[0]).exists() and not list(library.rglob("done.json"))


# --- the command as a process ---------------------------------------------------------------------


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_module_command_stops_in_order_on_sigterm_and_excludes_a_second(
    tmp_path: Path, corpus
) -> None:
    library = tmp_path / "Kinetics-400"
    (library / "videos_train").mkdir(parents=True)
    (library / "videos_val").mkdir()
    (library / "videos_val/v.mp4").write_bytes(corpus.members["videos_val/v1.mp4"])
    (library / LISTS[1]).write_text("v.mp4 0\n")
    for i in range(3000):
        os.link(library / "videos_val/v.mp4", library / f"videos_train/t{i}.mp4")
    (library / LISTS[0]).write_text("".join(f"t{i}.mp4 0\n" for i in range(3000)))
    command = [sys.executable, "-m", "data.preprocess", "--data_dir", str(tmp_path)]
    command += ["--store", "original", "--n_worker", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_until((library / ".preprocess/journal.jsonl").exists)
        second = subprocess.run(command, capture_output=True, text=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 75
        assert process.stderr is not None
        assert "repeat the command" in process.stderr.read()
    assert second.returncode == 2 and "another process" in second.stderr
    assert not (library / ".preprocess/done.json").exists()
    assert not (library / ".preprocess/incoming").exists()
    children = subprocess.run(["ps", "-eo", "ppid,args"], capture_output=True, text=True).stdout
    assert f" {process.pid} " not in children


def test_children_and_command_run_without_torch(
    tmp_path: Path, corpus, write_archive: Callable
) -> None:
    write_archive(tmp_path / ARCHIVE, corpus.members)
    code = f"""
        import sys
        from kinetics400.__main__ import run_command
        argv = ["--data_dir", {str(tmp_path)!r}, "--max_bad_share", "1", "--n_worker", "1"]
        if __name__ == "__main__":
            assert run_command("preprocess", argv) == 0
        assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True)


# --- the report -----------------------------------------------------------------------------------


def test_published_counts_are_shown_for_the_real_dataset() -> None:
    splits = {
        "train": SplitSummary(listed=240_000, usable=239_000, pyramids=239_000),
        "val": SplitSummary(listed=19_796, usable=19_700, unlisted=3, missing=7),
    }
    summary = Summary(
        Path("d"), "pyramid", splits, [], {}, originals=Path("d/originals"), already_done=False
    )
    text = format_summary(summary)
    assert "239,000 usable of 240,000 listed videos; Kinetics-400 has 240,436" in text
    assert "Kinetics-400 has 19,796; 7 lines of the CSV have no video; 3 files on disk" in text
    assert "d/originals" in text


def test_progress_line_has_rate_and_remaining_time() -> None:
    line = ProgressMeter("verifying", 20_000, "videos").line(5_000, 100.0)
    assert line == "verifying: 5,000 of 20,000 videos (25 %), 50.0 videos/s, 0:05:00 left"
    line = ProgressMeter("storing", 400 * 10**9, "bytes").line(100 * 10**9, 1000.0)
    assert line == "storing: 100,000.0 of 400,000.0 MB (25 %), 100.0 MB/s, 0:50:00 left"
