"""Planted faults: each is named with its reason, and nothing else is named."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kinetics400.data import checkup as checkup_module
from kinetics400.data.annotations import label_names
from kinetics400.data.checkup import COPIES, Rules, check_library, counts, which_copy
from kinetics400.data.checkup_full import check_pictures
from kinetics400.data.library import Quarantined, quarantine_path, write_quarantine
from kinetics400.data.manifest import Manifest, manifest_path

TRAIN, VAL = "videos_train", "videos_val"
NAMES = ("abseiling", "air drumming", "answering questions", "applauding")
RULES = Rules(num_classes=4, names=NAMES, clip_frames=4)
Found = set[tuple[str, str, str]]


def file_of(library: Path, name: str) -> Path:
    return library / f"videos_{name.split('_')[0]}" / name


def list_of(library: Path, split: str) -> Path:
    return library / f"kinetics400_{split}_list_videos.txt"


def found(library: Path, rules: Rules = RULES) -> Found:
    checkup = check_library(library, rules)
    return {(f.reason, f.split, f.path) for f in checkup.findings}


@pytest.fixture
def raw(library: Path, tmp_path: Path) -> Path:
    """As it comes out of the archive."""
    return Path(shutil.copytree(library, tmp_path / "raw" / "Kinetics-400"))


@pytest.fixture
def stored(raw: Path) -> Path:
    """With the records of preprocessing."""
    return record(raw)


def record(raw: Path) -> Path:
    """Write what preprocessing writes about the files as they are."""
    (raw / ".preprocess").mkdir()
    for split in ("train", "val"):
        rows, labels = [], []
        for line in list_of(raw, split).read_text().splitlines():
            name, label = line.split()
            data = file_of(raw, name).read_bytes()
            row = {"path": name, "source": name, "n_frames": 40, "fps": 30.0, "width": 64}
            row |= {"height": 48, "n_bytes": len(data), "kind": "original"}
            rows.append(row | {"sha256": hashlib.sha256(data).hexdigest()})
            labels.append(int(label))
        manifest_path(raw, split).write_bytes(Manifest.from_rows(rows, labels).to_bytes())
    (raw / ".preprocess/journal.jsonl").write_text("{}\n")
    (raw / ".preprocess/done.json").write_text("{}")
    return raw


# --- faults ---------------------------------------------------------------------------------------


def write(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def plant(library: Path) -> object:
        path = file_of(library, name)
        return path.write_bytes(change(path.read_bytes()))

    return plant


def edit(split: str, change: Callable[[str], str]) -> Callable[[Path], object]:
    def plant(library: Path) -> object:
        path = list_of(library, split)
        text = path.read_text()
        assert change(text) != text
        return path.write_text(change(text))

    return plant


def add(split: str, line: str) -> Callable[[Path], object]:
    return edit(split, lambda text: f"{text}{line}\n")


def then(*plants: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda library: [plant(library) for plant in plants]


def copy(source: str, target: str) -> Callable[[Path], object]:
    def plant(library: Path) -> object:
        place = library / target
        place.parent.mkdir(exist_ok=True)
        return shutil.copy(file_of(library, source), place)

    return plant


def remove(name: str) -> Callable[[Path], object]:
    return lambda library: file_of(library, name).unlink()


def into_classes(library: Path, classes: dict[int, str]) -> None:
    """Move all videos into folders of their classes, in files and lists."""
    for split in ("train", "val"):
        lines = []
        for line in list_of(library, split).read_text().splitlines():
            name, label = line.split()
            place = f"{classes[int(label)]}/{name}"
            target = library / f"videos_{split}" / place
            target.parent.mkdir(exist_ok=True)
            file_of(library, name).rename(target)
            lines.append(f"{place} {label}\n")
        list_of(library, split).write_text("".join(lines))


def one(reason: str, split: str = "train", path: str = "train_05.mp4") -> Found:
    return {(reason, split, path)}


@dataclass(frozen=True)
class Fault:
    plant: Callable[[Path], object]
    expected: Found


def cut_index(data: bytes) -> bytes:
    return data[: data.rindex(b"moov") - 4]


def other_handler(data: bytes) -> bytes:
    return data.replace(b"vide", b"soun")


def torn_table(data: bytes) -> bytes:
    at = data.index(b"stsz") + 12
    return data[:at] + b"\x7f" + data[at + 1 :]


ID = "0wR5jVB-WPk"
FAULTS = {
    # files
    "absent": Fault(remove("train_05.mp4"), one("absent")),
    "absent_val": Fault(remove("val_03.mp4"), one("absent", "val", "val_03.mp4")),
    "empty": Fault(write("train_05.mp4", lambda d: b""), one("empty file")),
    "web_page": Fault(write("train_05.mp4", lambda d: b"<html>404</html>"), one("not a video")),
    "zeros": Fault(write("train_05.mp4", lambda d: bytes(len(d))), one("not a video")),
    "playlist": Fault(
        write("train_05.mp4", lambda d: b"ffconcat version 1.0\nfile x\n"), one("not a video")
    ),
    "no_index": Fault(write("train_05.mp4", cut_index), one("truncated")),
    "cut_half": Fault(write("train_05.mp4", lambda d: d[: len(d) // 2]), one("truncated")),
    "cut_by_a_byte": Fault(write("train_05.mp4", lambda d: d[:-1]), one("truncated")),
    "head_only": Fault(write("train_05.mp4", lambda d: d[:28]), one("truncated")),
    "sound_only": Fault(write("train_05.mp4", other_handler), one("no video stream")),
    "torn_table": Fault(write("train_05.mp4", torn_table), one("damaged")),
    "matroska_as_mp4": Fault(
        write("train_05.mp4", lambda d: b"\x1a\x45\xdf\xa3" + d), one("wrong extension")
    ),
    "avi_as_mp4": Fault(
        write("train_05.mp4", lambda d: b"RIFF\0\0\0\0AVI LIST"), one("wrong extension")
    ),
    "folder": Fault(
        then(remove("train_05.mp4"), lambda lib: file_of(lib, "train_05.mp4").mkdir()),
        one("not a video"),
    ),
    "dangling_link": Fault(
        then(remove("train_05.mp4"), lambda lib: file_of(lib, "train_05.mp4").symlink_to("gone")),
        one("absent"),
    ),
    "fifo": Fault(
        then(remove("train_05.mp4"), lambda lib: os.mkfifo(file_of(lib, "train_05.mp4"))),
        one("not a video"),
    ),
    "unlisted": Fault(
        copy("train_05.mp4", f"{TRAIN}/x.mp4"),
        one("unlisted", "train", "x.mp4"),
    ),
    "unlisted_below": Fault(
        copy("val_02.mp4", f"{VAL}/more/x.mp4"), one("unlisted", "val", "more/x.mp4")
    ),
    # the same video twice
    "duplicate": Fault(
        then(copy("train_05.mp4", f"{TRAIN}/twin.mp4"), add("train", "twin.mp4 1")),
        one("duplicate", "train", "twin.mp4"),
    ),
    "in_both_by_content": Fault(
        then(copy("train_05.mp4", f"{VAL}/other.mp4"), add("val", "other.mp4 1")),
        one("in both splits", "val", "other.mp4"),
    ),
    "in_both_by_name": Fault(
        then(
            copy("val_02.mp4", f"{TRAIN}/val_02.mp4"),
            add("train", "val_02.mp4 2"),
            lambda lib: (lib / TRAIN / "val_02.mp4").write_bytes(
                file_of(lib, "val_02.mp4").read_bytes() + b"\0\0\0\x0cfree1234"
            ),
        ),
        one("in both splits", "val", "val_02.mp4"),
    ),
    "two_names": Fault(
        then(
            copy("train_05.mp4", f"{TRAIN}/{ID}.mp4"),
            copy("train_06.mp4", f"{TRAIN}/{ID}_000010_000020.mp4"),
            remove("train_05.mp4"),
            remove("train_06.mp4"),
            edit(
                "train",
                lambda t: t.replace("train_05", ID).replace("train_06", f"{ID}_000010_000020"),
            ),
        ),
        one("two names", "train", f"{ID}_000010_000020.mp4"),
    ),
    "two_names_across": Fault(
        then(
            copy("train_05.mp4", f"{TRAIN}/{ID}.mp4"),
            copy("val_03.mp4", f"{VAL}/{ID}_000010_000020.mp4"),
            remove("train_05.mp4"),
            remove("val_03.mp4"),
            edit("train", lambda t: t.replace("train_05", ID)),
            edit("val", lambda t: t.replace("val_03", f"{ID}_000010_000020")),
        ),
        one("in both splits", "val", f"{ID}_000010_000020.mp4"),
    ),
    "case": Fault(
        then(
            copy("train_05.mp4", f"{TRAIN}/TRAIN_06.mp4"),
            remove("train_05.mp4"),
            edit("train", lambda t: t.replace("train_05", "TRAIN_06")),
        ),
        one("differs in case", "train", "train_06.mp4"),
    ),
    # lists
    "no_list": Fault(lambda lib: list_of(lib, "val").unlink(), one("no list", "val", "")),
    "no_label": Fault(add("train", "y.mp4"), one("bad list", "train", "")),
    "label_too_high": Fault(add("train", "y.mp4 4"), one("bad list", "train", "")),
    "label_negative": Fault(add("train", "y.mp4 -1"), one("bad list", "train", "")),
    "label_float": Fault(add("val", "y.mp4 1.0"), one("bad list", "val", "")),
    "no_video_name": Fault(add("train", "y.txt 1"), one("bad list", "train", "")),
    "parent_folder": Fault(add("train", "../y.mp4 1"), one("bad list", "train", "")),
    "control_character": Fault(add("train", "y\x07.mp4 1"), one("bad list", "train", "")),
    "empty_line": Fault(edit("train", lambda t: "\n" + t), one("bad list", "train", "")),
    "listed_twice": Fault(add("train", "train_05.mp4 1"), one("bad list")),
    "not_utf8": Fault(
        lambda lib: list_of(lib, "val").write_bytes(
            b"\xe9.mp4 1\n" + list_of(lib, "val").read_bytes()
        ),
        one("bad list", "val", ""),
    ),
    "no_videos_of_a_class": Fault(
        edit("val", lambda t: t.replace(" 3\n", " 2\n")), one("class without videos", "val", "")
    ),
    # labels
    "one_wrong_label": Fault(
        then(
            lambda lib: into_classes(lib, dict(enumerate(NAMES))),
            edit(
                "train", lambda t: t.replace("abseiling/train_08.mp4 0", "abseiling/train_08.mp4 2")
            ),
        ),
        one("wrong label", "train", "abseiling/train_08.mp4"),
    ),
    "labels_in_another_order": Fault(
        lambda lib: into_classes(
            lib, {0: "applauding", 1: "air_drumming", 2: "answering questions", 3: "abseiling"}
        ),
        one("label order", "train", "") | one("label order", "val", ""),
    ),
    "csv_says_otherwise": Fault(
        lambda lib: (lib / "val.csv").write_text(
            "label,youtube_id,time_start,time_end,split\n"
            + "".join(f"{NAMES[(i + 1) % 4]},val_{i:02},0,10,val\n" for i in range(8))
        ),
        one("label order", "val", ""),
    ),
    "bad_csv": Fault(
        lambda lib: (lib / "val.csv").write_text("label,youtube_id\nabseiling,x\n"),
        one("bad list", "val", ""),
    ),
}


def test_a_good_library_has_no_findings(raw: Path) -> None:
    assert found(raw) == set()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named_and_nothing_else(fault: str, raw: Path) -> None:
    FAULTS[fault].plant(raw)
    assert found(raw) == FAULTS[fault].expected


def test_many_faults_at_once_are_all_named(raw: Path) -> None:
    names = [
        fault
        for fault in FAULTS
        if FAULTS[fault].expected <= one(next(iter(FAULTS[fault].expected))[0])
    ]
    kinds = ["empty", "web_page", "cut_half", "sound_only", "zeros", "torn_table"]
    assert set(kinds) <= set(names)
    expected = set()
    for number, kind in enumerate(kinds, 10):
        name = f"train_{number}.mp4"
        path = file_of(raw, name)
        scratch = file_of(raw, "train_05.mp4")
        good = scratch.read_bytes()
        FAULTS[kind].plant(raw)
        path.write_bytes(scratch.read_bytes())
        scratch.write_bytes(good)
        expected |= {(reason, "train", name) for reason, _, _ in FAULTS[kind].expected}
    assert found(raw) == expected


# --- a preprocessed tree --------------------------------------------------------------------------

GROWN = write("train_05.mp4", lambda d: d + b"\0\0\0\x0cfree1234")
STORED_FAULTS = {
    "size_changed": Fault(GROWN, one("size changed")),
    "list_edited": Fault(
        edit("train", lambda t: t.replace("train_05.mp4 1\n", "")),
        one("list and manifest differ", "train", "") | one("unlisted"),
    ),
    "label_edited": Fault(
        edit("train", lambda t: t.replace("train_05.mp4 1", "train_05.mp4 2")),
        one("list and manifest differ", "train", ""),
    ),
    "unfinished": Fault(
        lambda lib: (lib / ".preprocess/done.json").unlink(), one("unfinished", "train", "")
    ),
    "bad_manifest": Fault(
        lambda lib: manifest_path(lib, "val").write_bytes(b"PK\x03\x04"),
        one("bad record", "val", ""),
    ),
    "bad_quarantine": Fault(
        lambda lib: quarantine_path(lib).write_text('{"path": 3}\n'), one("bad record", "train", "")
    ),
    "quarantined": Fault(
        lambda lib: write_quarantine(
            quarantine_path(lib), [Quarantined("train", "g.mp4", "absent")]
        ),
        one("quarantined", "train", "g.mp4"),
    ),
    "duplicate": Fault(
        then(copy("train_05.mp4", f"{TRAIN}/twin.mp4"), add("train", "twin.mp4 1")),
        one("duplicate", "train", "twin.mp4") | one("list and manifest differ", "train", ""),
    ),
    "absent": Fault(remove("train_05.mp4"), one("absent")),
    "cut": Fault(write("train_05.mp4", lambda d: d[:-9]), one("truncated") | one("size changed")),
}


def test_a_good_preprocessed_library_has_no_findings(stored: Path) -> None:
    assert found(stored) == set()


@pytest.mark.parametrize("fault", STORED_FAULTS)
def test_a_fault_of_a_preprocessed_tree_is_named(fault: str, stored: Path) -> None:
    STORED_FAULTS[fault].plant(stored)
    assert found(stored) == STORED_FAULTS[fault].expected


def test_a_quarantined_file_on_disk_is_not_called_unlisted(stored: Path) -> None:
    copy("train_05.mp4", f"{TRAIN}/bad.mp4")(stored)
    write_quarantine(quarantine_path(stored), [Quarantined("train", "bad.mp4", "damaged", "why")])
    assert found(stored) == one("quarantined", "train", "bad.mp4")


def test_equal_sizes_need_no_reading_where_sums_are_stored(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [file_of(raw, name).stat().st_size for name in ("train_05.mp4", "train_06.mp4")]
    for name, size in zip(("train_05.mp4", "train_06.mp4"), sizes, strict=True):
        padding = max(sizes) + 8 - size
        box = padding.to_bytes(4) + b"free" + bytes(padding - 8)
        file_of(raw, name).write_bytes(file_of(raw, name).read_bytes() + box)
    record(raw)

    def unexpected(*arguments: object) -> str:
        raise AssertionError(arguments)

    monkeypatch.setattr(checkup_module, "_edges", unexpected)
    assert found(raw) == set()


def test_no_process_is_started_for_mp4s(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(*arguments: object, **named: object) -> object:
        raise AssertionError(arguments)

    monkeypatch.setattr(checkup_module, "run_isolated", unexpected)
    assert found(raw) == set()


def test_other_containers_are_opened_in_isolated_processes(
    raw: Path, make_video: Callable[..., Path]
) -> None:
    make_video(raw / TRAIN / "good.mkv")
    make_video(raw / TRAIN / "bad.mkv")
    data = (raw / TRAIN / "bad.mkv").read_bytes()
    (raw / TRAIN / "bad.mkv").write_bytes(data.replace(b"matroska", b"metroska"))
    add("train", "good.mkv 1\nbad.mkv 1")(raw)
    assert found(raw) == one("damaged", "train", "bad.mkv")


# --- what is no fault -----------------------------------------------------------------------------


def test_a_folder_of_many_labels_is_no_class(raw: Path) -> None:
    into_classes(raw, dict.fromkeys(range(4), "part_0"))
    assert found(raw) == set()


def test_bare_names_may_recur_in_other_folders(raw: Path) -> None:
    for split, name, place in (("train", "train_05", "a/1"), ("val", "val_03", "b/1")):
        target = raw / f"videos_{split}" / f"{place}.mp4"
        target.parent.mkdir()
        file_of(raw, f"{name}.mp4").rename(target)
        edit(split, lambda text, n=name, p=place: text.replace(n, p))(raw)
    assert found(raw) == set()


def test_splits_that_number_classes_differently_need_no_names(raw: Path) -> None:
    into_classes(raw, {0: "a", 1: "b", 2: "c", 3: "d"})
    without = Rules(num_classes=4, clip_frames=4)
    assert found(raw, without) == set()
    swapped = {"a/": " 1", "b/": " 0"}
    lines = list_of(raw, "val").read_text().splitlines()
    lines = [line[:-2] + swapped.get(line[:2], line[-2:]) for line in lines]
    list_of(raw, "val").write_text("\n".join(lines))
    assert found(raw, without) == one("label order", "val", "")


def test_a_file_whose_end_cannot_be_read_is_named(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy("train_05.mp4", f"{TRAIN}/twin.mp4")(raw)
    add("train", "twin.mp4 1")(raw)
    pread = os.pread

    def failing(descriptor: int, count: int, at: int) -> bytes:
        if count == checkup_module.EDGE_BYTES and "twin" in os.readlink(
            f"/proc/self/fd/{descriptor}"
        ):
            raise OSError(errno.EIO, "Input/output error")
        return pread(descriptor, count, at)

    monkeypatch.setattr(os, "pread", failing)
    assert found(raw) == one("unreadable", "train", "twin.mp4")


# --- what else is known ---------------------------------------------------------------------------


def test_short_videos_are_noted(raw: Path) -> None:
    rules = Rules(num_classes=4, names=NAMES, clip_frames=6)
    assert found(raw, rules) == {("short", s, f"{s}_00.mp4") for s in ("train", "val")}


def test_an_absent_video_is_looked_for(raw: Path) -> None:
    file_of(raw, "train_05.mp4").rename(raw / TRAIN / "Train_05.mp4")
    details = {f.reason: f.detail for f in check_library(raw, RULES).findings}
    assert details["absent"] == "perhaps Train_05.mp4"


def test_a_changed_file_is_read_again_and_others_are_not(raw: Path) -> None:
    first = check_library(raw, RULES)
    assert (first.n_cached, first.is_kept) == (0, True)
    write("train_05.mp4", cut_index)(raw)
    second = check_library(raw, RULES)
    assert second.n_cached == 31
    assert {f.path for f in second.findings} == {"train_05.mp4"}


def test_what_is_remembered_is_found_again(raw: Path) -> None:
    write("train_05.mp4", cut_index)(raw)
    first = found(raw)
    again = check_library(raw, RULES)
    assert again.n_cached == 32
    assert {(f.reason, f.split, f.path) for f in again.findings} == first


def test_a_torn_or_foreign_memory_is_no_harm(raw: Path) -> None:
    found(raw)
    journal = raw / ".preprocess/doctor_headers.jsonl"
    rows = journal.read_text().splitlines()
    rows[0] = '{"path": ["x"], "n_bytes": 1, "mtime_ns": 0}'
    rows[1] = json.dumps({"path": "train/train_01.mp4", "n_bytes": 1, "mtime_ns": 1})
    journal.write_text("\n".join(rows)[:-7])
    assert found(raw) == set()


def test_copies_are_recognised() -> None:
    for name, (train, val) in COPIES.items():
        assert which_copy({"train": train, "val": val}) == f"{name} copy"
    assert COPIES["OpenMMLab's on OpenDataLab"] == (240_436, 19_796)
    near = which_copy({"train": 240_430, "val": 19_797})
    assert near is not None and "OpenMMLab" in near and "-6 and +1" in near
    assert which_copy({"train": 9537, "val": 3783}) is None


def test_counts_tell_listed_and_in_order(raw: Path) -> None:
    remove("train_05.mp4")(raw)
    table = counts(check_library(raw, RULES))
    assert table["train"] == {"listed": 24, "quarantined": 0, "in_order": 23}
    assert table["val"] == {"listed": 8, "quarantined": 0, "in_order": 8}


def test_all_400_names_in_order_raise_nothing(raw: Path) -> None:
    into_classes(raw, {i: name.replace(" ", "_") for i, name in enumerate(label_names()[:4])})
    reasons = {reason for reason, _, _ in found(raw, Rules(names=label_names(), clip_frames=4))}
    assert reasons == {"class without videos"}


# --- decoding -------------------------------------------------------------------------------------


def test_full_finds_what_headers_do_not_show(stored: Path) -> None:
    def zero_the_middle(data: bytes) -> bytes:
        start, end = data.index(b"mdat") + 4, data.rindex(b"moov") - 4
        middle = (start + end) // 2
        return data[:middle] + bytes(end - middle) + data[end:]

    def another_comment(data: bytes) -> bytes:  # decodes as before
        return data.replace(b"Lavf", b"Lavg")

    write("train_05.mp4", zero_the_middle)(stored)
    write("val_03.mp4", another_comment)(stored)
    checkup = check_library(stored, RULES)
    assert checkup.findings == []
    expected = {
        ("damaged", "train", "train_05.mp4"),
        ("content changed", "train", "train_05.mp4"),
        ("content changed", "val", "val_03.mp4"),
    }
    done: list[int] = []
    first = check_pictures(checkup, 1, done.append)
    assert {(f.reason, f.split, f.path) for f in first} == expected
    assert done == list(range(33))
    done.clear()
    assert {
        (f.reason, f.split, f.path) for f in check_pictures(checkup, 1, done.append)
    } == expected
    assert done == [32]  # all remembered
