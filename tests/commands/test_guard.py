"""Which videos a run leaves out, by what its quarantine says."""

import json
from pathlib import Path

import pytest

from kinetics400.commands.guard import VideoGuard
from kinetics400.data.annotations import VideoTable
from kinetics400.errors import InputError

TABLE = VideoTable.from_rows([("a.mp4", 0), ("b c.mp4", 1), ("d.mp4", 2)])


def guard(folder: Path, *rows: tuple[str, str, str]) -> VideoGuard:
    """One that finds (split, path, reason) in its file."""
    lines = [
        json.dumps({"split": split, "path": path, "reason": reason, "detail": "why"})
        for split, path, reason in rows
    ]
    (folder / "quarantine.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return VideoGuard(folder, num_workers=1)


def test_a_video_of_another_split_stays(tmp_path: Path) -> None:
    own = guard(tmp_path, ("val", "a.mp4", "hung"), ("train", "b c.mp4", "crashed"))
    assert own.quarantined("train", TABLE) == {1: "crashed, why"}
    assert own.quarantined("val", TABLE) == {0: "hung, why"}


def test_being_killed_counts_the_second_time(tmp_path: Path) -> None:
    once = guard(tmp_path, ("train", "a.mp4", "killed"), ("train", "d.mp4", "killed"))
    assert once.quarantined("train", TABLE) == {}
    twice = guard(tmp_path, *[("train", "a.mp4", "killed")] * 2, ("val", "d.mp4", "killed"))
    assert twice.quarantined("train", TABLE) == {0: "killed, why"}


def test_a_video_that_left_the_list_is_forgotten(tmp_path: Path) -> None:
    assert guard(tmp_path, ("train", "gone.mp4", "hung")).quarantined("train", TABLE) == {}


def test_a_file_that_is_no_quarantine_is_refused(tmp_path: Path) -> None:
    (tmp_path / "quarantine.jsonl").write_text('{"video": "a.mp4"}\n')
    with pytest.raises(InputError, match="quarantine"):
        VideoGuard(tmp_path, num_workers=1)


def test_without_a_folder_nothing_is_remembered() -> None:
    assert VideoGuard(None, num_workers=1).quarantined("train", TABLE) == {}
