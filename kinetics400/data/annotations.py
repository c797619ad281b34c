"""List files ("<path> <label>" per line) and label names. No torch: for small processes."""

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np

from kinetics400.data.storage import write_atomic
from kinetics400.errors import InputError, MissingInput

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi")
SHOWN_PROBLEMS = 10
LONGEST_LINE = 4096  # PATH_MAX on Linux
# C0 and C1 controls would move a terminal's cursor; U+2028/9 break lines in some tools.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@cache
def label_names() -> tuple[str, ...]:
    """Return the 400 class names of Kinetics-400; the index is the label."""
    file = resources.files("kinetics400.data").joinpath("kinetics400_labels.txt")
    return tuple(file.read_text(encoding="utf-8").splitlines())


@dataclass(frozen=True, eq=False)
class PackedText:
    """Many short texts in two arrays instead of a Python list.

    A list costs each forked worker a private copy (reference counts touch every page): 44.5 MiB
    for Kinetics-400's names and labels, against 0.2 MiB for arrays.
    """

    blob: np.ndarray
    """All texts as UTF-8, end to end: (bytes,) uint8."""
    offsets: np.ndarray
    """Text i is blob[offsets[i]:offsets[i + 1]]: (texts + 1,) int64."""

    @classmethod
    def pack(cls, texts: Iterable[str]) -> "PackedText":
        """Pack texts, in order."""
        coded = [text.encode() for text in texts]
        offsets = np.zeros(len(coded) + 1, np.int64)
        np.cumsum([len(text) for text in coded], out=offsets[1:])
        return cls(np.frombuffer(b"".join(coded), np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> str:
        if not 0 <= i < len(self):
            raise IndexError(f"text {i} of {len(self)}")
        return self.blob[self.offsets[i] : self.offsets[i + 1]].tobytes().decode()


@dataclass(frozen=True, eq=False)
class VideoTable:
    """Videos and labels, in arrays that workers share."""

    names: PackedText
    """Paths as they stand in the list file."""
    labels: np.ndarray
    """(videos,) int64."""
    root: str = ""
    """Folder that relative names start from."""

    @classmethod
    def from_rows(cls, rows: Iterable[tuple[str, int]], root: str = "") -> "VideoTable":
        """Pack (name, label) pairs."""
        pairs = list(rows)
        labels = np.array([label for _, label in pairs], np.int64)
        return cls(PackedText.pack(name for name, _ in pairs), labels, root)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        """Path of video `i` as it stands in the list file."""
        return self.names[i]

    def path(self, i: int) -> str:
        """Path of video `i`, ready to open."""
        return os.path.join(self.root, self.name(i))

    def label(self, i: int) -> int:
        return int(self.labels[i])

    def rows(self) -> list[tuple[str, int]]:
        """All (name, label) pairs."""
        return [(self.name(i), self.label(i)) for i in range(len(self))]

    def digest(self) -> str:
        """sha256 of names and labels, in order; the folder does not count."""
        content = hashlib.sha256(self.names.blob.tobytes())
        content.update(self.names.offsets.tobytes())
        content.update(self.labels.tobytes())
        return content.hexdigest()

    def under(self, root: Path | str) -> "VideoTable":
        """The same videos with relative names starting from `root`."""
        return dataclasses.replace(self, root=os.path.abspath(root))


def read_list(path: Path | str, *, num_classes: int) -> VideoTable:
    """Read a list file, strictly; names stay as they are, relative ones have no root yet.

    Raises:
        InputError: the file is absent, empty, or has bad lines: the first ten are shown.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise MissingInput(f"the list file {path} does not exist.") from error
    except OSError as error:
        raise InputError(f"cannot read the list file {path}: {error.strerror}.") from error
    return parse_list(data, source=str(path), num_classes=num_classes)


def parse_list(data: bytes, *, source: str, num_classes: int) -> VideoTable:
    """Parse the bytes of a list file; `source` names it in messages.

    The label is what follows the last space, so "a b.mp4 3" is the video "a b.mp4".
    A byte order mark, CRLF and empty lines at the end are accepted.

    Raises:
        InputError: see `read_list`.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"list file {source}, line {number}: not UTF-8. Save it as UTF-8."
        ) from error
    # str.splitlines would also split at U+2028 and friends, inside a name.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1].strip(" "):
        lines.pop()
    if not lines:
        raise InputError(f"list file {source} is empty; each line should be '<path> <label>'.")

    # Searching the whole text once keeps 250,000 rows under a second.
    suspicious = CONTROL.search("".join(lines)) is not None or ".." in text
    first_line: dict[str, int] = {}
    rows: list[tuple[str, int]] = []
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        name, _, label_text = line.rpartition(" ")
        is_number = label_text.isdecimal() and label_text.isascii()
        good_label = is_number and int(label_text) < num_classes
        if not good_label or not name.endswith(VIDEO_SUFFIXES) or len(line) > LONGEST_LINE:
            problem = _problem(line, num_classes)
        else:
            problem = _problem(line, num_classes) if suspicious else None
        if problem is None and first_line.setdefault(name, number) != number:
            problem = f"{name!r} is already on line {first_line[name]}"
        if problem is None:
            rows.append((name, int(label_text)))
        else:
            problems.append(f"  line {number}: {problem}")
    if problems:
        shown = "\n".join(problems[:SHOWN_PROBLEMS])
        more = len(problems) - SHOWN_PROBLEMS
        raise InputError(
            f"list file {source} has {len(problems)} bad line(s) of {len(lines)}; each should be "
            f"'<path> <label>' with a label from 0 to {num_classes - 1}:\n{shown}"
            + (f"\n  … and {more} more" if more > 0 else "")
        )
    return VideoTable.from_rows(rows)


def _problem(line: str, num_classes: int) -> str | None:
    """What is wrong with a line, or None."""
    if len(line) > LONGEST_LINE:
        return f"{len(line)} characters long (at most {LONGEST_LINE})"
    if not line.strip(" "):
        return "empty"
    if control := CONTROL.search(line):
        return f"control character U+{ord(control[0]):04X} in {line!r}"
    name, _, label = line.rpartition(" ")
    if not name.strip(" "):
        return f"no label, or no path: {line!r}"
    if not (label.isascii() and label.isdecimal()):
        return f"label {label!r} is not a whole number: {line!r}"
    if int(label) >= num_classes:
        return f"label {label} is not in 0 … {num_classes - 1}: {line!r}"
    if not name.lower().endswith(VIDEO_SUFFIXES):
        return f"path {name!r} does not end in {', '.join(VIDEO_SUFFIXES)}"
    if ".." in name.split("/"):
        return f"'..' in the path {name!r}"
    return None


def overlap(train: VideoTable, val: VideoTable) -> list[str]:
    """Names that stand in both lists: such a video would be trained on and then scored."""
    return sorted({name for name, _ in train.rows()} & {name for name, _ in val.rows()})


def format_list(rows: Iterable[tuple[str, int]]) -> bytes:
    """The bytes of a list file."""
    return "".join(f"{name} {label}\n" for name, label in rows).encode()


def write_list(path: Path | str, rows: Iterable[tuple[str, int]]) -> None:
    """Write a list file in one step (see `write_atomic`)."""
    write_atomic(path, format_list(rows))
