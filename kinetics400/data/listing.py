"""Lists of videos from what other copies ship: CVDF's CSV files, and one folder per class."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from kinetics400.data.annotations import SHOWN_PROBLEMS, label_names
from kinetics400.errors import InputError

# CVDF's columns; others (split, is_cc) may follow.
CSV_COLUMNS = ("label", "youtube_id", "time_start", "time_end")
# Where its download scripts put the CSV files.
ANNOTATION_FOLDERS = ("annotations", ".")


def find_csv(root: Path, split: str) -> Path | None:
    """The CSV annotations of a split that lie beside the videos."""
    places = [root / folder / f"{split}.csv" for folder in ANNOTATION_FOLDERS]
    return next((path for path in places if path.is_file()), None)


def read_names(path: Path | None, num_classes: int) -> tuple[str, ...] | None:
    """Class names, by label: of a file, or Kinetics-400's; None when nobody knows them.

    Raises:
        InputError: the file cannot be read or has another number of names.
    """
    if path is None:
        return label_names() if num_classes == len(label_names()) else None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--label_names {path} cannot be read: {error}") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != num_classes:
        raise InputError(
            f"--label_names {path} has {len(names)} names, --num_classes is {num_classes}"
        )
    return names


def rows_from_csv(
    data: bytes, *, source: str, names: Sequence[str] | None
) -> list[tuple[str, int]]:
    """(file name, label) of each line of CVDF's CSV: `<id>_<start>_<end>.mp4`, six digits each.

    Raises:
        InputError: it is no such CSV, or has unknown classes or bad times: the first ten are shown.
    """
    if names is None:
        raise InputError(f"{source} gives classes by name: pass --label_names")
    labels = {plain_class(name): label for label, name in enumerate(names)}
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        missing = [name for name in CSV_COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise InputError(f"{source} lacks the column(s) {', '.join(missing)}")
        lines = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{source} is no CSV in UTF-8: {error}") from error
    rows, problems = [], []
    for number, line in enumerate(lines, 2):
        label = labels.get(plain_class(line["label"] or ""))
        start, end = line["time_start"] or "", line["time_end"] or ""
        if label is None:
            problems.append(f"  line {number}: unknown class {line['label']!r}")
        elif not (start.isdecimal() and end.isdecimal()):
            problems.append(f"  line {number}: times {start!r}, {end!r} are not whole seconds")
        else:
            rows.append((f"{line['youtube_id']}_{int(start):06d}_{int(end):06d}.mp4", label))
    if problems:
        shown = "\n".join(problems[:SHOWN_PROBLEMS])
        raise InputError(f"{source} has {len(problems)} bad line(s) of {len(lines)}:\n{shown}")
    return rows


def rows_on_disk(
    rows: Iterable[tuple[str, int]], files: Iterable[str]
) -> tuple[list[tuple[str, int]], int]:
    """Rows whose video exists, named as it lies (perhaps in a folder), and how many do not.

    Args:
        rows: what `rows_from_csv` returned.
        files: paths below the split's folder.
    """
    place = {file.rpartition("/")[2]: file for file in sorted(files, reverse=True)}
    rows = list(rows)
    found = [(place[name], label) for name, label in rows if name in place]
    return found, len(rows) - len(found)


def rows_from_folders(
    files: Iterable[str], *, source: str, names: Sequence[str] | None
) -> list[tuple[str, int]]:
    """(path, label) of videos that lie in one folder per class, with spaces or underscores.

    Args:
        files: paths below the split's folder.
        source: the folder, for messages.
        names: class names by label; None to number the folders in alphabetical order.

    Raises:
        InputError: videos lie outside of class folders, or folders are no classes.
    """
    files = sorted(files)
    folders = {file.partition("/")[0] for file in files if "/" in file}
    loose = [file for file in files if "/" not in file]
    if loose or not folders:
        raise InputError(
            f"{source} has no list file, and its videos do not lie in one folder per class "
            f"({len(loose)} lie in none). Name lists with --train_list and --val_list."
        )
    labels = {plain_class(name): label for label, name in enumerate(names or sorted(folders))}
    unknown = sorted(folder for folder in folders if plain_class(folder) not in labels)
    if unknown:
        raise InputError(
            f"{source} has {len(unknown)} folder(s) that are no class: "
            f"{', '.join(map(repr, unknown[:SHOWN_PROBLEMS]))}. Name the classes with "
            "--label_names."
        )
    return [(file, labels[plain_class(file.partition("/")[0])]) for file in files]


def plain_class(name: str) -> str:
    """A class name, whether it is written with spaces or with underscores."""
    return name.replace("_", " ").strip().casefold()
