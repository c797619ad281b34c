"""What is on disk: the layout of the dataset's folder, its splits, and what was quarantined."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kinetics400.data.annotations import VIDEO_SUFFIXES, VideoTable, read_list
from kinetics400.data.storage import read_json_lines, write_if_changed
from kinetics400.errors import InputError, MissingInput

LIBRARY_NAME = "Kinetics-400"
ARCHIVE_NAME = "Kinetics-400.tar.gz"
HIDDEN = ".preprocess"  # below the library: what data/housekeeping.py keeps, and the manifests
SPLITS = ("train", "val")
PUBLISHED_COUNTS = {"train": 240_436, "val": 19_796}
NAMES_SHOWN = 5
# From this many rows on a train list is taken for Kinetics-400's own, not for one laid out like it.
LOOKS_LIKE_KINETICS = 100_000


def list_name(split: str) -> str:
    """File name of a split's list."""
    return f"kinetics400_{split}_list_videos.txt"


def videos_name(split: str) -> str:
    """Folder name of a split's videos."""
    return f"videos_{split}"


def split_root(library: Path, split: str) -> Path:
    """Folder that a split's relative names start from: `videos_<split>`, or the library itself."""
    folder = library / videos_name(split)
    return folder if folder.is_dir() else library


def quarantine_path(library: Path) -> Path:
    """The file that names the videos that are not used."""
    return library / HIDDEN / "quarantine.jsonl"


def video_files(folder: Path) -> Iterator[str]:
    """Paths of all video files below `folder`, relative to it, with forward slashes."""
    for place, _, names in os.walk(folder):
        inner = os.path.relpath(place, folder)
        for name in names:
            if name.lower().endswith(VIDEO_SUFFIXES):
                yield name if inner == "." else f"{inner}/{name}"


def find_library(data_dir: Path | str) -> Path | None:
    """The folder with lists and videos: `data_dir` or Kinetics-400 below it; None if absent."""
    for folder in (Path(data_dir), Path(data_dir) / LIBRARY_NAME):
        if any((folder / part(s)).exists() for s in SPLITS for part in (list_name, videos_name)):
            return folder
    return None


def open_split(
    data_dir: Path | str,
    split: str,
    *,
    list_path: Path | str | None = None,
    num_classes: int,
) -> VideoTable:
    """Open a split's list; relative names start from `videos_<split>`, or beside it if absent.

    Args:
        data_dir: the folder with the lists, or the data root above it.
        split: "train" or "val".
        list_path: another list file for the same videos.
        num_classes: labels must be below this.

    Raises:
        InputError: folder or list is absent, or the list has bad lines.
    """
    candidates = (Path(data_dir), Path(data_dir) / LIBRARY_NAME)
    folder = find_library(data_dir)
    if list_path is None:
        if folder is None or not (folder / list_name(split)).is_file():
            looked = " and ".join(str(place / list_name(split)) for place in candidates)
            raise MissingInput(
                f"no {split} list: looked for {looked}. Put {ARCHIVE_NAME} into {data_dir} and "
                f"run 'python -m data.preprocess --data_dir {data_dir}'; data/README.md says "
                "where the dataset comes from."
            )
        list_path = folder / list_name(split)
    table = read_list(list_path, num_classes=num_classes)
    root = folder or Path(data_dir)
    if not root.is_dir():
        raise MissingInput(f"the data folder {root} does not exist.")
    return table.under(split_root(root, split))


@dataclass(frozen=True)
class Quarantined:
    """A video that is not used, and why."""

    split: str
    path: str
    """As it stands in the list file."""
    reason: str
    """One of a few kinds, for counting: "absent", "truncated", …"""
    detail: str = ""


def write_quarantine(path: Path | str, videos: list[Quarantined]) -> None:
    """Replace a quarantine file in one step."""
    lines = "".join(json.dumps(asdict(video)) + "\n" for video in videos)
    write_if_changed(path, lines.encode())


def read_quarantine(path: Path | str) -> list[Quarantined]:
    """Read a quarantine file; an absent one is empty.

    Raises:
        InputError: a row has unknown or missing fields.
    """
    try:
        return [Quarantined(**row) for row in read_json_lines(path)]
    except TypeError as error:
        raise InputError(f"{path} is not a quarantine file: {error}") from error


def format_reasons(bad: Sequence[Quarantined]) -> str:
    """A table: reason, how many, and the first names."""
    counts = Counter(video.reason for video in bad)
    lines = []
    for reason, count in counts.most_common():
        videos = [video for video in bad if video.reason == reason][:NAMES_SHOWN]
        names = "; ".join(
            f"{videos_name(video.split)}/{video.path}"
            + (f" ({video.detail})" if video.detail else "")
            for video in videos
        )
        more = " …" if count > NAMES_SHOWN else ""
        lines.append(f"    {count:>7,}  {reason:<16} {names}{more}")
    return "\n".join(lines)
