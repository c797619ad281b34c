"""Check-ups of lists: lines, labels, classes, names. No torch.

Everything that annotations.py refuses becomes a finding, and the good lines go on.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from kinetics400.data.annotations import parse_list
from kinetics400.data.findings import Finding
from kinetics400.data.library import SPLITS, list_name
from kinetics400.data.listing import find_csv, plain_class, rows_from_csv
from kinetics400.errors import InputError

Rows = list[tuple[str, int]]
UNLABELLED = -1
# CVDF's file names: a YouTube id and the seconds of the clip. OpenDataLab's copy has the bare id.
TIMED = re.compile(r"(.+)_\d{6}_\d{6}")
_LINE = re.compile(r"line 1: (.*)", re.DOTALL)


def read_rows(library: Path, split: str, num_classes: int) -> tuple[Rows | None, list[Finding]]:
    """The good lines of a split's list, None if there is no list, and what is wrong with others."""
    path = library / list_name(split)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None, [Finding("no list", split, "", f"{path.name} is not in {library}")]
    except OSError as error:
        return None, [Finding("no list", split, "", f"{path.name}: {error.strerror}")]
    try:
        return parse_list(data, source=path.name, num_classes=num_classes).rows(), []
    except InputError:
        return _line_by_line(data, split, num_classes)


def _line_by_line(data: bytes, split: str, num_classes: int) -> tuple[Rows, list[Finding]]:
    rows: Rows = []
    first_line: dict[str, int] = {}
    findings = []
    lines = data.removeprefix(b"\xef\xbb\xbf").rstrip(b" \r\n").split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = parse_list(line, source="", num_classes=num_classes).rows()[0]
        except InputError as error:
            told = _LINE.search(str(error))
            why = told[1].strip() if told else "empty"
            findings.append(Finding("bad list", split, "", f"line {number}: {why}"))
            continue
        if first_line.setdefault(row[0], number) == number:
            rows.append(row)
        else:
            why = f"line {number}: it is already on line {first_line[row[0]]}"
            findings.append(Finding("bad list", split, row[0], why))
    return rows, findings


# --- labels ---------------------------------------------------------------------------------------


def check_labels(
    library: Path, tables: Mapping[str, Rows], names: Sequence[str] | None, num_classes: int
) -> list[Finding]:
    """Hold the labels against what class folders and CSV annotations say.

    A list whose labels stand for the classes in another order trains without a complaint, and
    every published model is then wrong on it.
    """
    findings = []
    majorities: dict[str, dict[str, int]] = {}
    for split, rows in tables.items():
        given = {label for _, label in rows}
        if rows and (without := sorted(set(range(num_classes)) - given)):
            findings.append(Finding("class without videos", split, "", _classes(without, names)))
        class_of, refused = _evidence(library, split, rows, names)
        findings += refused
        majorities[split], strays = _majority(rows, class_of)
        findings += [
            Finding("wrong label", split, name, f"{label}, but others of {place!r} have {usual}")
            for name, label, place, usual in strays
        ]
    if names is not None:
        labels = {plain_class(name): label for label, name in enumerate(names)}
        for split, usual_of in majorities.items():
            wrong = {p: u for p, u in usual_of.items() if labels.get(plain_class(p), u) != u}
            if wrong:
                shown = (f"{p!r} is {u}, not {labels[plain_class(p)]}" for p, u in wrong.items())
                findings.append(_order(split, len(wrong), len(usual_of), shown))
    train, val = (majorities.get(split, {}) for split in SPLITS)
    if apart := {p: (train[p], val[p]) for p in train.keys() & val.keys() if train[p] != val[p]}:
        shown = (f"{p!r} is {t} in train and {v} in val" for p, (t, v) in sorted(apart.items()))
        findings.append(_order("val", len(apart), len(train.keys() & val.keys()), shown))
    return findings


def _order(split: str, n_wrong: int, n_known: int, shown: Iterable[str]) -> Finding:
    examples = ", ".join(list(shown)[:3])
    more = " …" if n_wrong > 3 else ""
    detail = f"{n_wrong} of {n_known} classes have another's number: {examples}{more}"
    return Finding("label order", split, "", detail)


def _classes(labels: Sequence[int], names: Sequence[str] | None) -> str:
    shown = ", ".join(f"{label} ({names[label]})" if names else str(label) for label in labels[:5])
    return f"{len(labels)}: {shown}{' …' if len(labels) > 5 else ''}"


def _evidence(
    library: Path, split: str, rows: Rows, names: Sequence[str] | None
) -> tuple[Callable[[str], str | None], list[Finding]]:
    """A function from a video's name to its class's name, and what is wrong with the CSV."""
    path = find_csv(library, split)
    by_id: dict[str, int] = {}
    refused = []
    if path is not None and names is not None:
        try:
            csv_rows = rows_from_csv(path.read_bytes(), source=path.name, names=names)
            by_id = {video_id(name): label for name, label in csv_rows}
        except (InputError, OSError) as error:
            refused = [Finding("bad list", split, "", str(error))]

    def class_of(name: str) -> str | None:
        if names is not None and video_id(name) in by_id:
            return names[by_id[video_id(name)]]
        return name.rpartition("/")[0].rpartition("/")[2] or None

    return class_of, refused


def _majority(
    rows: Rows, class_of: Callable[[str], str | None]
) -> tuple[dict[str, int], list[tuple[str, int, str, int]]]:
    """Class name → its usual label; and the strays: (name, label, class, usual label)."""
    votes: dict[str, Counter[int]] = defaultdict(Counter)
    placed = [(name, label, place) for name, label in rows if (place := class_of(name))]
    for _, label, place in placed:
        votes[place][label] += 1
    # A folder of many labels is no class: videos in part_0/, part_1/ …
    usual = {p: v.most_common(1)[0][0] for p, v in votes.items() if 2 * max(v.values()) > v.total()}
    strays = [
        (name, label, place, usual[place])
        for name, label, place in placed
        if place in usual and label != usual[place]
    ]
    return usual, strays


# --- names ----------------------------------------------------------------------------------------


def video_id(name: str) -> str:
    """The id in a file's name, without the seconds if they stand there.

    >>> video_id("abseiling/0wR5jVB-WPk_000417_000427.mp4"), video_id("0wR5jVB-WPk.mp4")
    ('0wR5jVB-WPk', '0wR5jVB-WPk')
    """
    stem = name.rpartition("/")[2].split(".")[0]
    timed = TIMED.fullmatch(stem)
    return timed[1] if timed else stem


def is_timed(name: str) -> bool:
    """Whether a file's name tells the seconds of its clip."""
    return TIMED.fullmatch(name.rpartition("/")[2].split(".")[0]) is not None


def check_names(tables: Mapping[str, Rows]) -> list[Finding]:
    """Find videos that stand twice, under one name, two schemes, or two cases."""
    findings = []
    places: dict[str, list[tuple[str, str]]] = defaultdict(list)
    folded: dict[tuple[str, str], str] = {}
    for split, rows in tables.items():
        for name, _ in rows:
            places[video_id(name)].append((split, name))
            other = folded.setdefault((split, name.casefold()), name)
            if other != name:
                findings.append(Finding("differs in case", split, name, f"like {other}"))
    for known in places.values():
        (first_split, first_name), *others = known
        for split, name in others:
            if split != first_split:
                # The same bare name in two class folders is two videos: content tells.
                if name == first_name or is_timed(name) or is_timed(first_name):
                    detail = f"in the {first_split} list as {first_name}"
                    findings.append(Finding("in both splits", split, name, detail))
            elif is_timed(name) != is_timed(first_name):
                findings.append(Finding("two names", split, name, f"also {first_name}"))
    return findings


def like(name: str, files: Mapping[str, str]) -> str:
    """Where an absent video may lie instead, among files by id and by name in small letters."""
    found = files.get(name.casefold()) or files.get(video_id(name))
    return f"perhaps {found}" if found else ""


def by_likeness(files: Iterable[str]) -> dict[str, str]:
    """What `like` looks in."""
    table: dict[str, str] = {}
    for file in files:
        table.setdefault(video_id(file), file)
        table[file.casefold()] = file
    return table
