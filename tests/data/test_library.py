import pickle
from pathlib import Path

import pytest

from kinetics400.data.annotations import VideoTable
from kinetics400.data.library import (
    Quarantined,
    find_library,
    format_reasons,
    open_split,
    read_quarantine,
    split_root,
    video_files,
    write_quarantine,
)
from kinetics400.data.storage import append_json_lines, read_json_lines, write_atomic
from kinetics400.errors import InputError, StorageError


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "Kinetics-400"
    (folder / "videos_train").mkdir(parents=True)
    (folder / "kinetics400_train_list_videos.txt").write_text("a b.mp4 3\n/abs/c.mp4 399\n")
    (folder / "kinetics400_val_list_videos.txt").write_text("v.mp4 1\n")
    return folder


@pytest.mark.parametrize("levels_up", [0, 1])
def test_split_opens_from_the_folder_and_from_the_root_above(library: Path, levels_up: int) -> None:
    start = [library, library.parent][levels_up]
    table = open_split(start, "train", num_classes=400)
    assert len(table) == 2
    assert table.path(0) == str(library / "videos_train" / "a b.mp4")
    assert table.name(0) == "a b.mp4"
    assert (table.label(0), table.label(1)) == (3, 399)
    assert table.path(1) == "/abs/c.mp4"


def test_paths_start_beside_the_list_without_a_videos_folder(library: Path) -> None:
    assert open_split(library, "val", num_classes=400).path(0) == str(library / "v.mp4")


def test_paths_are_absolute_for_a_relative_data_dir(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(library.parent.parent)
    table = open_split("data", "train", num_classes=400)
    assert table.path(0) == str(library / "videos_train" / "a b.mp4")


def test_another_list_keeps_the_videos_folder(library: Path, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("z.mp4 0\n")
    table = open_split(library, "train", list_path=tmp_path / "few.txt", num_classes=400)
    assert table.path(0) == str(library / "videos_train" / "z.mp4")


def test_absent_data_names_both_places_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        open_split(tmp_path / "data", "val", num_classes=400)
    for part in (
        "data/kinetics400_val_list_videos.txt",
        "data/Kinetics-400/kinetics400_val_list_videos.txt",
        "python -m data.preprocess",
    ):
        assert part in str(error.value)


def test_table_survives_pickling_and_is_small() -> None:
    rows = [(f"abcdefghijk_{i:06d}.mp4", i % 400) for i in range(10_000)]
    table = VideoTable.from_rows(rows, root="/r")
    packed = pickle.dumps(table)
    assert len(packed) < 10_000 * (22 + 16) + 2000  # names, offset and label, nothing per row
    copy = pickle.loads(packed)
    assert copy.rows() == rows and copy.path(9_999) == "/r/abcdefghijk_009999.mp4"


def test_index_beyond_the_table_is_an_error() -> None:
    table = VideoTable.from_rows([("a.mp4", 0)])
    for index in (-1, 1):
        with pytest.raises(IndexError):
            table.path(index)


def test_quarantine_file_round_trip(tmp_path: Path) -> None:
    rows = [
        Quarantined("train", "ü b.mp4", "damaged", "frame 3"),
        Quarantined("val", "c", "absent"),
    ]
    file = tmp_path / "q.jsonl"
    assert read_quarantine(file) == []
    write_quarantine(file, rows)
    assert read_quarantine(file) == rows
    file.write_text('{"path": "a"}\n')
    with pytest.raises(InputError, match="not a quarantine file"):
        read_quarantine(file)


def test_unchanged_quarantine_file_is_not_written_again(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    write_quarantine(file, [Quarantined("val", "c", "absent")])
    before = file.stat()
    write_quarantine(file, [Quarantined("val", "c", "absent")])
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    write_quarantine(file, [])
    assert file.read_bytes() == b""


def test_reasons_are_counted_and_the_first_names_shown() -> None:
    bad = [Quarantined("train", f"{i}.mp4", "absent") for i in range(1200)]
    bad.append(Quarantined("val", "x.mp4", "damaged", "frame 3"))
    first, second = format_reasons(bad).splitlines()
    assert first.split()[:2] == ["1,200", "absent"] and first.endswith("videos_train/4.mp4 …")
    assert second.endswith("videos_val/x.mp4 (frame 3)")


def test_video_files_are_found_at_any_depth(tmp_path: Path) -> None:
    for name in ("a.mp4", "B.AVI", "deep/er/c d.webm", "deep/e.mkv", "notes.txt", "a.mp4~"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert sorted(video_files(tmp_path)) == ["B.AVI", "a.mp4", "deep/e.mkv", "deep/er/c d.webm"]
    assert list(video_files(tmp_path / "absent")) == []


def test_library_is_recognised_by_a_list_or_a_folder_of_videos(tmp_path: Path) -> None:
    assert find_library(tmp_path) is None
    (tmp_path / "Kinetics-400/videos_val").mkdir(parents=True)
    assert find_library(tmp_path) == tmp_path / "Kinetics-400"
    assert split_root(tmp_path / "Kinetics-400", "train") == tmp_path / "Kinetics-400"
    (tmp_path / "kinetics400_train_list_videos.txt").touch()
    assert find_library(tmp_path) == tmp_path


def test_torn_last_line_costs_only_itself(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    append_json_lines(file, [{"n": 1}, {"n": 2}])
    file.write_bytes(file.read_bytes()[:-4])  # killed in the middle of the second line
    append_json_lines(file, [{"n": 3}])
    assert read_json_lines(file) == [{"n": 1}, {"n": 3}]


def test_failed_write_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "list.txt"
    write_atomic(target, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match=r"list\.txt.*No space left"):
        write_atomic(target, "new")
    assert target.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["list.txt"]
