"""Libraries in place, and sources laid out in the ways of other copies and other datasets."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kinetics400.__main__ import run_command
from kinetics400.commands.preprocess import preprocess
from kinetics400.commands.preprocess_report import Summary
from kinetics400.config.preprocess import PreprocessConfig
from kinetics400.data.annotations import label_names
from kinetics400.data.decode import VideoReader
from kinetics400.data.library import open_split, read_quarantine
from kinetics400.data.manifest import read_manifest
from kinetics400.errors import DataError, InputError

LISTS = ("kinetics400_train_list_videos.txt", "kinetics400_val_list_videos.txt")
Tree = dict[str, bytes]
Visible = Callable[[Path], Tree]


def run(data_dir: Path, **flags: object) -> Summary:
    defaults = {"max_bad_share": 0.2, "n_worker": 1}
    return preprocess(PreprocessConfig(data_dir=data_dir, **{**defaults, **flags}))  # type: ignore[arg-type]


def videos(files: Tree) -> Tree:
    return {name: data for name, data in files.items() if name not in LISTS}


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything about a folder's files that a reader must leave alone."""
    return {
        str(file): (file.stat().st_mtime_ns, file.stat().st_ino, file.read_bytes())
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture
def unpacked(tmp_path: Path, corpus, write_files: Callable) -> Path:
    """An unpacked library."""
    library = tmp_path / "data/Kinetics-400"
    members = {name: data for name, data in corpus.members.items() if name != "README.md"}
    write_files(library, members)
    return library


# --- in place -------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels_up", [0, 1])
def test_pyramids_take_the_originals_places_and_these_move_aside(
    unpacked: Path,
    corpus,
    visible: Visible,
    inline,
    capsys: pytest.CaptureFixture[str],
    levels_up: int,
) -> None:
    before = videos(visible(unpacked))
    argv = ["--data_dir", str([unpacked, unpacked.parent][levels_up]), "--max_bad_share", "0.2"]
    assert run_command("preprocess", argv) == 0
    assert visible(unpacked) == {
        **corpus.stored,
        **{f"originals/{name}": data for name, data in before.items()},
    }
    out = capsys.readouterr().out
    assert str(unpacked / "originals") in out and "6 usable of 8 listed" in out
    inline.sources.clear()
    shown = snapshot(unpacked)
    assert run_command("preprocess", argv) == 0
    assert "already done" in capsys.readouterr().out
    assert snapshot(unpacked) == shown and not inline.sources
    # They are the user's to delete.
    shutil.rmtree(unpacked / "originals")
    assert run_command("preprocess", argv) == 0
    assert visible(unpacked) == corpus.stored and not inline.sources
    # And then a lost pyramid is lost.
    (unpacked / "videos_val/v1.mp4").unlink()
    bad = {video.path: video.reason for video in run(unpacked, max_bad_share=0.25).quarantined}
    assert bad == {"bad.mp4": "truncated", "gone.mp4": "absent", "v1.mp4": "absent"}
    assert b"v1.mp4" not in visible(unpacked)[LISTS[1]]


@pytest.mark.parametrize("spelling", ["..", "link"])
def test_library_named_as_its_own_source_is_in_place_however_it_is_spelled(
    tmp_path: Path, unpacked: Path, corpus, visible: Visible, inline, spelling: str
) -> None:
    before = videos(visible(unpacked))
    source = unpacked / "../Kinetics-400"
    if spelling == "link":
        source = tmp_path / "link"
        source.symlink_to(unpacked)
    run(unpacked.parent, source=source)
    assert visible(unpacked) == {
        **corpus.stored,
        **{f"originals/{name}": data for name, data in before.items()},
    }


def test_store_original_moves_nothing_and_leaves_out_the_damaged(
    unpacked: Path, corpus, visible: Visible, inline
) -> None:
    before = snapshot(unpacked)
    summary = run(unpacked.parent, store="original")
    assert visible(unpacked) == {**corpus.kept, "videos_train/bad.mp4": corpus.refused}
    train = summary.splits["train"]
    assert (train.listed, train.usable, train.unlisted, train.pyramids) == (8, 6, 1, 0)
    after = snapshot(unpacked)
    assert all(after[path] == before[path] for path in before if not path.endswith(".txt"))
    assert run(unpacked.parent, store="original").already_done
    # Changed in place: verified again, and only that one.
    (unpacked / "videos_val/v1.mp4").write_bytes(corpus.members["videos_val/v2.mp4"])
    inline.sources.clear()
    run(unpacked.parent, store="original")
    assert [Path(source).name for source in inline.sources] == ["v1.mp4"]


def test_store_original_after_pyramids_keeps_the_pyramids(
    unpacked: Path, corpus, visible: Visible, inline
) -> None:
    run(unpacked)
    before = visible(unpacked)
    summary = run(unpacked, store="original")
    assert visible(unpacked) == before
    assert (summary.splits["train"].usable, summary.splits["train"].pyramids) == (6, 6)


def test_new_files_and_a_new_list_are_taken_in(
    unpacked: Path, corpus, visible: Visible, inline
) -> None:
    run(unpacked)
    (unpacked / "videos_val/new.mp4").write_bytes(corpus.members["videos_val/v2.mp4"])
    listed = (unpacked / LISTS[1]).read_text()
    assert "-v0.mp4 0\n" in listed
    (unpacked / LISTS[1]).write_text(listed.replace("-v0.mp4 0\n", "") + "new.mp4 7\n")
    inline.sources.clear()
    summary = run(unpacked)
    assert len(inline.sources) == 1
    val = summary.splits["val"]
    assert (val.listed, val.usable, val.unlisted) == (4, 4, 1)
    shown = visible(unpacked)
    assert shown["videos_val/new.mp4"] == corpus.stored["videos_val/v2.mp4"]
    assert shown["originals/videos_val/new.mp4"] == corpus.members["videos_val/v2.mp4"]
    assert run(unpacked).already_done


@pytest.mark.parametrize("name", ["bad.mp4", "t 1.mp4", "class b/odd.avi"])
def test_original_put_in_an_old_ones_place_is_taken_and_the_old_one_kept(
    unpacked: Path, corpus, visible: Visible, inline, name: str
) -> None:
    """A damaged video downloaded anew, and a sound one exchanged."""
    run(unpacked)
    before = videos(visible(unpacked))
    better = corpus.members[
        "videos_train/class b/odd.avi" if "avi" in name else "videos_val/v3.mp4"
    ]
    (unpacked / "videos_train" / name).write_bytes(better)
    inline.sources.clear()
    summary = run(unpacked)
    assert len(inline.sources) == 1
    shown = visible(unpacked)
    assert shown[f"originals/videos_train/{name}"] == better
    old = corpus.members[f"videos_train/{name}"]
    assert shown[f"originals/videos_train/{name}~"] == old
    assert set(before.values()) - set(shown.values()) <= set(corpus.stored.values())
    if name == "bad.mp4":
        assert summary.splits["train"].usable == 7
        assert shown["videos_train/bad.mp4"] == corpus.stored["videos_val/v3.mp4"]


def test_library_copied_without_the_hidden_folder_is_verified_and_kept(
    tmp_path: Path, unpacked: Path, corpus, published: Visible, inline
) -> None:
    run(unpacked)
    before = published(unpacked)
    copy = tmp_path / "copy/Kinetics-400"
    for name, data in corpus.stored.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(data)
    old = snapshot(copy)
    inline.sources.clear()
    summary = run(tmp_path / "copy")
    assert snapshot(copy).items() >= old.items()  # not even touched
    assert len(inline.sources) == 10 and not (copy / "originals").exists()
    assert (summary.splits["train"].pyramids, summary.splits["val"].pyramids) == (6, 4)
    manifest = read_manifest(copy, "train")
    assert manifest is not None and manifest.is_pyramid.all()
    assert before[LISTS[0]] == (copy / LISTS[0]).read_bytes()
    torn = copy / "videos_val/v1.mp4"
    torn.write_bytes(torn.read_bytes()[:-200])
    run(tmp_path / "copy")
    (bad,) = read_quarantine(copy / ".preprocess/quarantine.jsonl")
    assert (bad.path, bad.reason) == ("v1.mp4", "truncated")


def test_list_with_absolute_paths_into_the_library_loses_no_original(
    unpacked: Path, corpus, visible: Visible, inline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pyramid's place is the original's own, however the list spells it."""
    before = videos(visible(unpacked))
    for split, name in zip(("train", "val"), LISTS, strict=True):
        lines = (unpacked / name).read_text().splitlines(keepends=True)
        folder = unpacked / f"videos_{split}"
        (unpacked / name).write_text("".join(f"{folder}/{line}" for line in lines))
    monkeypatch.chdir(unpacked.parent.parent)
    run(Path("data"))
    shown = visible(unpacked)
    assert sorted(before.values()) == sorted(d for n, d in shown.items() if "originals" in n)
    assert {n: d for n, d in shown.items() if "originals" not in n} == corpus.stored
    inline.sources.clear()
    run(Path("data"))
    assert not inline.sources
    run(Path("data"), crf=30)
    assert len(inline.sources) == 11  # from the originals, not from the pyramids
    shown = visible(unpacked)
    assert sorted(before.values()) == sorted(d for n, d in shown.items() if "originals" in n)


def test_nothing_that_we_did_not_write_is_overwritten(
    tmp_path: Path, corpus, write_archive: Callable, visible: Visible, unpacked: Path, inline
) -> None:
    """An archive beside an unpacked library: the archive is the source, the files move aside."""
    before = videos(visible(unpacked))
    write_archive(tmp_path / "data/Kinetics-400.tar.gz", corpus.members)
    run(tmp_path / "data")
    shown = visible(unpacked)
    for name, data in before.items():
        assert data in (shown.get(name), shown.get(f"originals/{name}")), name
    assert shown.items() >= videos(corpus.stored).items()


def test_links_among_the_split_folders_are_refused_before_anything_moves(
    tmp_path: Path, unpacked: Path, inline
) -> None:
    (unpacked / "videos_train").rename(tmp_path / "elsewhere")
    (unpacked / "videos_train").symlink_to(tmp_path / "elsewhere")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=r"videos_train is a link.*--source"):
        run(unpacked)
    assert snapshot(tmp_path) == before
    run(unpacked, store="original")  # which writes nothing there
    assert snapshot(tmp_path / "elsewhere").items() <= before.items()


def test_missing_lists_are_named(unpacked: Path, inline) -> None:
    (unpacked / LISTS[1]).unlink()
    before = sorted(unpacked.rglob("*"))
    with pytest.raises(InputError, match=r"videos_val has no list file.*--val_list"):
        run(unpacked)
    assert sorted(unpacked.rglob("*")) == before


# --- another folder -------------------------------------------------------------------------------


@pytest.mark.parametrize("naming", ["videos_train", "train"])
@pytest.mark.parametrize("between", ["_", " "])
def test_class_folders_become_a_library_with_lists(
    tmp_path: Path, corpus, write_files: Callable, visible: Visible, inline, naming: str, between
) -> None:
    """As mmaction2 lays them out, with the names that are hard to spell."""
    classes = ["massaging person's head", "shooting goal (soccer)", "zumba"]
    folders = [name.replace(" ", between) for name in classes]
    data = [corpus.members[f"videos_train/t {i}.mp4"] for i in range(4)]
    source = tmp_path / "source"
    train, val = naming, naming.replace("train", "val")
    write_files(
        source,
        {f"{train}/{folder}/a b_000001_000011.mp4": data[i] for i, folder in enumerate(folders)}
        | {f"{val}/{folders[1]}/v.mp4": data[3], f"{val}/{folders[1]}/notes.txt": b""},
    )
    before = snapshot(source)
    run(tmp_path / "out", source=source)
    library = tmp_path / "out/Kinetics-400"
    labels = [label_names().index(name) for name in classes]
    rows = sorted(zip(folders, labels, strict=True))
    assert visible(library) == {
        **{
            f"videos_train/{folder}/a b_000001_000011.mp4": corpus.stored[f"videos_train/t {i}.mp4"]
            for i, folder in enumerate(folders)
        },
        f"videos_val/{folders[1]}/v.mp4": corpus.stored["videos_train/t 3.mp4"],
        LISTS[0]: "".join(f"{f}/a b_000001_000011.mp4 {label}\n" for f, label in rows).encode(),
        LISTS[1]: f"{folders[1]}/v.mp4 {labels[1]}\n".encode(),
    }
    assert snapshot(source) == before
    assert run(tmp_path / "out", source=source).already_done
    table = open_split(tmp_path / "out", "train", num_classes=400)
    assert all(os.path.isfile(table.path(i)) for i in range(len(table)))


def test_other_containers_and_lists_as_ucf101_has_them(
    tmp_path: Path,
    make_video: Callable[..., Path],
    write_files: Callable,
    visible: Visible,
    inline,
) -> None:
    source = tmp_path / "UCF-101"
    kinds = {"avi": "mpeg4", "mkv": "libx264", "webm": "libvpx-vp9", "mp4": "libx264"}
    for number, (suffix, codec) in enumerate(kinds.items()):
        make_video(source / f"Apply Eye/v{number}.{suffix}", n_frames=9 + number, codec=codec)
    names = [f"Apply Eye/v{number}.{suffix}" for number, suffix in enumerate(kinds)]
    (tmp_path / "train.txt").write_text("".join(f"{name} {i}\n" for i, name in enumerate(names)))
    make_video(source / "Apply Eye/val.avi", n_frames=20, codec="mpeg4")
    (tmp_path / "val.txt").write_text("Apply Eye/val.avi 100\n")
    before = snapshot(source)
    run(
        tmp_path / "out",
        source=source,
        num_classes=101,
        train_list=tmp_path / "train.txt",
        val_list=tmp_path / "val.txt",
    )
    library = tmp_path / "out/Kinetics-400"
    stored = [name if name.endswith(".mp4") else f"{name}.mp4" for name in names]
    assert (library / LISTS[0]).read_text() == "".join(f"{n} {i}\n" for i, n in enumerate(stored))
    assert (library / LISTS[1]).read_text() == "Apply Eye/val.avi.mp4 100\n"
    manifest = read_manifest(library, "train")
    assert manifest is not None and [manifest.sources[i] for i in range(4)] == names
    for number, name in enumerate(stored):
        with VideoReader(library / "videos_train" / name) as reader:
            assert reader.is_pyramid and len(reader) == 9 + number
    assert snapshot(source) == before
    with pytest.raises(InputError, match="label 100 is not in 0"):
        run(
            tmp_path / "other",
            source=source,
            num_classes=51,
            train_list=tmp_path / "train.txt",
            val_list=tmp_path / "val.txt",
        )
    assert not (tmp_path / "other").exists()


def test_absolute_paths_are_stored_below_the_folder_that_they_share(
    tmp_path: Path, corpus, write_files: Callable, visible: Visible, inline
) -> None:
    place = tmp_path / "a disk"
    data = corpus.members
    write_files(
        place,
        {
            "one/x/v.mp4": data["videos_val/v1.mp4"],
            "two/v.mp4": data["videos_val/v2.mp4"],
            "val/w.mp4": data["videos_val/v3.mp4"],
        },
    )
    (tmp_path / "train.txt").write_text(f"{place}/one/x/v.mp4 1\n{place}/two/v.mp4 2\n")
    (tmp_path / "val.txt").write_text(f"{place}/val/w.mp4 3\n")
    before = snapshot(place)
    lists = {"train_list": tmp_path / "train.txt", "val_list": tmp_path / "val.txt"}
    run(tmp_path / "out", source=place, **lists)
    assert visible(tmp_path / "out/Kinetics-400") == {
        "videos_train/one/x/v.mp4": corpus.stored["videos_val/v1.mp4"],
        "videos_train/two/v.mp4": corpus.stored["videos_val/v2.mp4"],
        "videos_val/w.mp4": corpus.stored["videos_val/v3.mp4"],
        LISTS[0]: b"one/x/v.mp4 1\ntwo/v.mp4 2\n",
        LISTS[1]: b"w.mp4 3\n",
    }
    assert snapshot(place) == before
    assert run(tmp_path / "out", source=place, **lists).already_done


def test_two_videos_that_would_get_one_name_are_refused(
    tmp_path: Path, corpus, write_files: Callable, inline
) -> None:
    source = tmp_path / "source"
    write_files(source, {"v.avi": b"x", "v.avi.mp4": b"x", "w.mp4": b"x"})
    (source / LISTS[0]).write_text("v.avi 0\nv.avi.mp4 1\n")
    (source / LISTS[1]).write_text("w.mp4 0\n")
    with pytest.raises(InputError, match=r"'v\.avi' and 'v\.avi\.mp4'.*under one name"):
        run(tmp_path / "out", source=source)
    assert not inline.sources and not (tmp_path / "out").exists()
    (source / LISTS[0]).write_text(f"v.mp4 0\n{tmp_path}/v.mp4 1\n")
    with pytest.raises(InputError, match="under one name"):
        run(tmp_path / "out", source=source)


def test_source_with_pyramids_and_list_files_gives_a_complete_library(
    tmp_path: Path, corpus, write_files: Callable, visible: Visible, inline
) -> None:
    """Another's library is a source like any: its files are not taken at their word."""
    source = tmp_path / "theirs"
    write_files(source, corpus.stored)
    before = snapshot(source)
    summary = run(tmp_path / "mine", source=source)
    assert {s: c.usable for s, c in summary.splits.items()} == {"train": 6, "val": 4}
    library = tmp_path / "mine/Kinetics-400"
    assert visible(library).keys() == corpus.stored.keys()
    assert snapshot(source) == before
    for name in videos(corpus.stored):
        with VideoReader(library / name) as reader, VideoReader(source / name) as theirs:
            assert reader.is_pyramid and len(reader) == len(theirs)


def test_source_needs_lists_or_class_folders(
    tmp_path: Path, corpus, write_files: Callable, inline
) -> None:
    write_files(tmp_path / "flat", {"v.mp4": b"x"})
    write_files(tmp_path / "loose", {"train/v.mp4": b"x", "val/v.mp4": b"x"})
    write_files(tmp_path / "odd", {"train/nonsense/v.mp4": b"x", "val/zumba/v.mp4": b"x"})
    for name, message in (
        ("flat", "no kinetics400_train_list.*--train_list and --val_list"),
        ("loose", "do not lie in one folder per class"),
        ("odd", "no class: 'nonsense'"),
    ):
        with pytest.raises(InputError, match=message):
            run(tmp_path / "out", source=tmp_path / name)
        with pytest.raises(InputError, match=r"--store original.*--data_dir"):
            run(tmp_path / "out", source=tmp_path / name, store="original")
    assert not (tmp_path / "out").exists()


def test_archive_elsewhere_is_a_source_too(
    tmp_path: Path, corpus, write_archive: Callable, visible: Visible, inline
) -> None:
    path = write_archive(tmp_path / "download/any name.tgz", corpus.members)
    before = snapshot(path.parent)
    run(tmp_path / "out", source=path)
    assert visible(tmp_path / "out/Kinetics-400") == corpus.stored
    assert snapshot(path.parent) == before


# --- CVDF -----------------------------------------------------------------------------------------

HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"


@pytest.fixture
def cvdf(tmp_path: Path, corpus, write_archive: Callable) -> Path:
    """Two train archives, one for val, a replacement, and CSV files that know of more."""
    good = [corpus.members[f"videos_train/t {i}.mp4"] for i in range(5)]
    root = tmp_path / "k400"
    write_archive(
        root / "train/part_0.tar.gz",
        {"./a-_000001_000011.mp4": corpus.refused, "b_000002_000012.mp4": good[1]},
        top="",
    )
    write_archive(root / "train/part_1.tar.gz", {"c_000003_000013.mp4": good[2]}, top="./")
    write_archive(root / "val/part_0.tar.gz", {"d_000004_000014.mp4": good[3]}, top="./")
    write_archive(
        root / "replacement_for_corrupted_k400.tgz",
        {"a-_000001_000011.mp4": good[0], "unknown_000001_000011.mp4": good[4]},
        top="replacement/",
    )
    (root / "annotations").mkdir()
    train = "zumba,a-,1,11,train,0\nabseiling,b,2,12,train,0\nzumba,c,3,13,train,0\n"
    gone = "".join(f"zumba,gone{i},5,15,train,0\n" for i in range(7))
    (root / "annotations/train.csv").write_text(HEADER + gone + train)
    val = '"massaging person\'s head",d,4,14,validate,0\nzumba,gone,1,11,validate,0\n'
    (root / "annotations/val.csv").write_text(HEADER + val)
    (root / "annotations/test.csv").write_text("label\n")
    return root


def test_cvdf_download_becomes_a_library(
    tmp_path: Path, cvdf: Path, corpus, visible: Visible, inline, capsys
) -> None:
    before = snapshot(cvdf)
    argv = ["--source", str(cvdf), "--data_dir", str(tmp_path / "data")]
    assert run_command("preprocess", argv) == 0  # 8 lines of the CSV have no video: no matter
    head = label_names().index("massaging person's head")
    assert visible(tmp_path / "data/Kinetics-400") == {
        "videos_train/a-_000001_000011.mp4": corpus.stored["videos_train/t 0.mp4"],
        "videos_train/b_000002_000012.mp4": corpus.stored["videos_train/t 1.mp4"],
        "videos_train/c_000003_000013.mp4": corpus.stored["videos_train/t 2.mp4"],
        "videos_val/d_000004_000014.mp4": corpus.stored["videos_train/t 3.mp4"],
        LISTS[0]: b"a-_000001_000011.mp4 399\nb_000002_000012.mp4 0\nc_000003_000013.mp4 399\n",
        LISTS[1]: f"d_000004_000014.mp4 {head}\n".encode(),
    }
    out = capsys.readouterr().out
    assert "3 usable of 3 listed videos; 7 lines of the CSV have no video" in out
    assert "1 usable of 1 listed videos; 1 lines of the CSV have no video" in out
    assert "1 × .mp4" in out  # whom nobody lists
    assert snapshot(cvdf) == before
    inline.sources.clear()
    assert run_command("preprocess", argv) == 0
    again = capsys.readouterr().out
    assert "already done" in again and not inline.sources
    assert again.count("of the CSV have no video") == 2


def test_replacement_that_comes_later_and_a_part_that_changes(
    tmp_path: Path, cvdf: Path, corpus, visible: Visible, inline
) -> None:
    (cvdf / "replacement_for_corrupted_k400.tgz").rename(tmp_path / "later.tgz")
    summary = run(tmp_path / "data", source=cvdf, max_bad_share=0.4)
    assert [video.reason for video in summary.quarantined] == ["truncated"]
    (tmp_path / "later.tgz").rename(cvdf / "replacement_for_corrupted_k400.tgz")
    inline.sources.clear()
    assert not run(tmp_path / "data", source=cvdf).quarantined
    assert len(inline.sources) == 1  # the other archives are not read again
    os.utime(cvdf / "train/part_0.tar.gz")
    inline.sources.clear()
    # Its damaged video must not come back over the replacement.
    assert not run(tmp_path / "data", source=cvdf).quarantined
    assert not inline.sources
    shown = visible(tmp_path / "data/Kinetics-400")
    assert shown["videos_train/a-_000001_000011.mp4"] == corpus.stored["videos_train/t 0.mp4"]


def test_missing_cvdf_part_exits_2_before_anything_is_written(
    tmp_path: Path, cvdf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cvdf / "train/part_0.tar.gz").unlink()
    argv = ["--source", str(cvdf), "--data_dir", str(tmp_path / "data")]
    assert run_command("preprocess", argv) == 2
    assert "part_0.tar.gz" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("names", ["val.csv", "train.csv val.csv"])
def test_cvdf_without_annotations_is_refused_before_the_first_video(
    tmp_path: Path, cvdf: Path, inline, names: str
) -> None:
    for name in names.split():
        (cvdf / "annotations" / name).unlink()
    with pytest.raises(InputError, match=LISTS[1]):
        run(tmp_path / "data", source=cvdf)
    assert not inline.sources and not (tmp_path / "data").exists()


def test_bad_csv_is_refused_before_the_first_video(tmp_path: Path, cvdf: Path, inline) -> None:
    (cvdf / "annotations/val.csv").write_text(HEADER + "zumbaa,d,4,14,validate,0\n")
    with pytest.raises(InputError, match=r"val\.csv has 1 bad line.*\n  line 2: .*'zumbaa'"):
        run(tmp_path / "data", source=cvdf)
    assert not inline.sources and not (tmp_path / "data").exists()


def test_hostile_cvdf_archive_costs_only_what_was_in_it(
    tmp_path: Path, cvdf: Path, corpus, write_archive: Callable, visible: Visible, inline
) -> None:
    good = cvdf / "train/part_1.tar.gz"
    honest = good.read_bytes()
    video = corpus.members["videos_train/t 2.mp4"]
    write_archive(good, {"c_000003_000013.mp4": video}, links={"l.mp4": "/etc"}, top="./")
    with pytest.raises(InputError, match="link"):
        run(tmp_path / "data", source=cvdf)
    library = tmp_path / "data/Kinetics-400"
    assert sorted(visible(library)) == [
        "videos_train/a-_000001_000011.mp4",
        "videos_train/b_000002_000012.mp4",
    ]
    rows = (library / ".preprocess/journal.jsonl").read_text().splitlines()
    assert sorted(json.loads(row)["source"][0] for row in rows) == ["a", "b"]
    good.write_bytes(honest)
    inline.sources.clear()
    run(tmp_path / "data", source=cvdf)
    assert len(inline.sources) == 2
    assert len(visible(library)) == 6


def test_videos_that_are_listed_but_damaged_count_against_the_limit(
    tmp_path: Path, cvdf: Path, inline
) -> None:
    (cvdf / "replacement_for_corrupted_k400.tgz").unlink()
    with pytest.raises(DataError, match=r"1 of 4 listed videos \(25\.00%\)"):
        run(tmp_path / "data", source=cvdf)


def test_csv_named_by_the_user_works_with_class_folders(
    tmp_path: Path, cvdf: Path, corpus, write_files: Callable, visible: Visible, inline
) -> None:
    """As CVDF's arrange_by_classes.py leaves them, annotations elsewhere."""
    data = corpus.members
    write_files(
        tmp_path / "arranged",
        {
            "train/abseiling/b_000002_000012.mp4": data["videos_train/t 1.mp4"],
            "train/zumba/c_000003_000013.mp4": data["videos_train/t 2.mp4"],
            "val/massaging person's head/d_000004_000014.mp4": data["videos_train/t 3.mp4"],
        },
    )
    csv = {f"{split}_list": cvdf / f"annotations/{split}.csv" for split in ("train", "val")}
    summary = run(tmp_path / "data", source=tmp_path / "arranged", **csv)
    assert (summary.splits["train"].usable, summary.splits["train"].missing) == (2, 8)
    shown = visible(tmp_path / "data/Kinetics-400")
    assert shown[LISTS[0]] == b"abseiling/b_000002_000012.mp4 0\nzumba/c_000003_000013.mp4 399\n"
    assert re.fullmatch(rb"massaging person's head/d_\S+ \d+\n", shown[LISTS[1]])
