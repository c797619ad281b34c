"""Check a library without decoding: lists, files, headers, records, duplicates. No torch."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kinetics400.data.checkup_journal import CheckupJournal
from kinetics400.data.checkup_lists import (
    UNLABELLED,
    Rows,
    by_likeness,
    check_labels,
    check_names,
    like,
    read_rows,
)
from kinetics400.data.findings import Finding
from kinetics400.data.headers import UNKNOWN, Header, probe, read_header
from kinetics400.data.isolation import run_isolated
from kinetics400.data.library import (
    HIDDEN,
    LOOKS_LIKE_KINETICS,
    PUBLISHED_COUNTS,
    SPLITS,
    quarantine_path,
    read_quarantine,
    split_root,
    video_files,
    videos_name,
)
from kinetics400.data.manifest import Manifest, read_manifest
from kinetics400.errors import InputError

# Counts of the copies in circulation, (train, val); data/README.md says where each comes from.
COPIES = {
    "OpenMMLab's on OpenDataLab": (PUBLISHED_COUNTS["train"], PUBLISHED_COUNTS["val"]),
    "CVDF's files": (240_258, 19_881),
    "CVDF's CSV files": (246_534, 19_906),
    "non-local's and SlowFast's": (234_643, 19_761),
    "Academic Torrents'": (240_618, 19_404),
    "MemDPC's": (232_422, 19_141),
}
EDGE_BYTES = 4096  # of either end, compared before whole files are
BATCH = 1000  # headers read between two reports of progress

Place = tuple[str, str]  # split, name


@dataclass(frozen=True)
class Rules:
    """What the data should be like."""

    num_classes: int = 400
    names: Sequence[str] | None = None
    """Class names by label."""
    clip_frames: int = 64
    """Frames that a clip spans; shorter videos repeat their last."""
    n_worker: int = 1


@dataclass
class Checkup:
    """What is known about a library so far."""

    library: Path
    rules: Rules
    roots: Mapping[str, str]
    """Folder that each split's names start from."""
    findings: list[Finding] = field(default_factory=list)
    tables: dict[str, Rows] = field(default_factory=dict)
    headers: dict[Place, Header] = field(default_factory=dict)
    manifests: dict[str, Manifest | None] = field(default_factory=dict)
    quarantined: dict[str, set[str]] = field(default_factory=dict)
    n_cached: int = 0
    """Headers that an earlier run had read."""
    stored_sums: dict[Place, str] = field(default_factory=dict)
    """SHA-256 of files as preprocessing stored them, of those that are still as long."""
    is_kept: bool = True
    """What was read is remembered."""

    def path(self, place: Place) -> str:
        """Where a video lies."""
        return os.path.join(self.roots[place[0]], place[1])

    def usable(self) -> Iterator[Place]:
        """Videos whose headers are in order."""
        return (place for place, header in self.headers.items() if not header.reason)


def check_library(
    library: Path, rules: Rules, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Checkup:
    """Check everything that needs no decoding; nothing in the library is changed.

    What headers said is remembered below `.preprocess`, so that a killed check-up continues.

    Args:
        library: the folder with lists and videos.
        rules: what to expect.
        on_progress: called with (headers read, videos in all).
    """
    roots = {split: str(split_root(library, split)) for split in SPLITS}
    checkup = Checkup(library, rules, roots)
    _read_records(checkup)
    listed: dict[str, Rows] = {}
    for split in SPLITS:
        rows, findings = read_rows(library, split, rules.num_classes)
        checkup.findings += findings
        if rows is None:  # not preprocessed yet: the files can be checked all the same
            root = library / videos_name(split)
            files = sorted(video_files(root)) if root.is_dir() else []
            rows = [(name, UNLABELLED) for name in files]
        else:
            listed[split] = rows
        checkup.tables[split] = rows
    checkup.findings += check_labels(library, listed, rules.names, rules.num_classes)
    checkup.findings += check_names(listed)
    journal = CheckupJournal(library, "doctor_headers.jsonl")
    checkup.is_kept = journal.is_kept
    try:
        _read_headers(checkup, journal, on_progress)
        _check_headers(checkup)
        _check_manifests(checkup)
        checkup.stored_sums = _stored_sums(checkup)
        _check_content(checkup, journal)
    finally:
        journal.flush()
    return checkup


# --- records --------------------------------------------------------------------------------------


def _read_records(checkup: Checkup) -> None:
    """What preprocessing left behind."""
    library, hidden = checkup.library, checkup.library / HIDDEN
    for split in SPLITS:
        try:
            checkup.manifests[split] = read_manifest(library, split)
        except InputError as error:
            checkup.manifests[split] = None
            checkup.findings.append(Finding("bad record", split, "", str(error)))
    checkup.quarantined = {split: set() for split in SPLITS}
    try:
        for video in read_quarantine(quarantine_path(library)):
            detail = f"{video.reason}: {video.detail}" if video.detail else video.reason
            checkup.findings.append(Finding("quarantined", video.split, video.path, detail))
            checkup.quarantined.setdefault(video.split, set()).add(video.path)
    except InputError as error:
        checkup.findings.append(Finding("bad record", "train", "", str(error)))
    if (hidden / "journal.jsonl").exists() and not (hidden / "done.json").exists():
        checkup.findings.append(
            Finding("unfinished", "train", "", "preprocessing was stopped before its end")
        )


def _check_manifests(checkup: Checkup) -> None:
    """Hold lists and files against the manifests."""
    for split, manifest in checkup.manifests.items():
        if manifest is None:
            continue
        rows = checkup.tables[split]
        known = {manifest.names[i]: i for i in range(len(manifest))}
        labels = {name: label for name, label in rows if label != UNLABELLED}
        apart = len(labels.keys() ^ known.keys())
        moved = sum(manifest.labels[known[n]] != labels[n] for n in labels.keys() & known.keys())
        if labels and (apart or moved):
            detail = f"{apart} name(s) stand in one of them only, {moved} label(s) differ"
            checkup.findings.append(Finding("list and manifest differ", split, "", detail))
        for name, i in known.items():
            header = checkup.headers.get((split, name))
            if header is None or header.reason in ("absent", "unreadable"):
                continue
            if header.n_bytes != manifest.n_bytes[i]:
                detail = f"{header.n_bytes:,} bytes, {manifest.n_bytes[i]:,} when it was stored"
                checkup.findings.append(Finding("size changed", split, name, detail))


# --- headers --------------------------------------------------------------------------------------


def _read_headers(
    checkup: Checkup, journal: CheckupJournal, on_progress: Callable[[int, int], None]
) -> None:
    places = [(split, name) for split, rows in checkup.tables.items() for name, _ in rows]
    on_progress(0, len(places))
    # Threads: on a network disk the time goes into waiting.
    with ThreadPoolExecutor(max(1, checkup.rules.n_worker)) as pool:
        for start in range(0, len(places), BATCH):
            batch = places[start : start + BATCH]
            read = list(
                pool.map(lambda p: _known_or_read(checkup.path(p), _key(p), journal), batch)
            )
            asked = [
                place
                for place, (header, _) in zip(batch, read, strict=True)
                if header.open_question
            ]
            answers = _ask(checkup, asked)
            for place, (header, is_cached) in zip(batch, read, strict=True):
                header = answers.get(place, header)
                checkup.headers[place] = header
                checkup.n_cached += is_cached
                if not is_cached and header.reason not in ("absent", "unreadable"):
                    _remember(journal, place, header)
            on_progress(start + len(batch), len(places))


def _key(place: Place) -> str:
    return "/".join(place)


def _known_or_read(path: str, key: str, journal: CheckupJournal) -> tuple[Header, bool]:
    """A file's header, and whether an earlier run had read it."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return read_header(path), False
    row = journal.get(key, status.st_size, status.st_mtime_ns)
    if row is not None and {"reason", "detail", "n_frames"} <= row.keys():
        values = (row["reason"], row["detail"], row["n_frames"])
        return Header(status.st_size, status.st_mtime_ns, *values), True
    return read_header(path), False


def _remember(journal: CheckupJournal, place: Place, header: Header, **more: Any) -> None:
    values = {"reason": header.reason, "detail": header.detail, "n_frames": header.n_frames}
    journal.add(_key(place), header.n_bytes, header.mtime_ns, **values, **more)


def _ask(checkup: Checkup, places: Sequence[Place]) -> dict[Place, Header]:
    """FFmpeg's answers about files that the parser cannot read, from isolated processes."""
    paths: dict[str, list[Place]] = defaultdict(list)
    for place in places:
        paths[checkup.path(place)].append(place)
    answers: dict[Place, Header] = {}
    if not paths:  # starting processes takes longer than a thousand headers
        return answers
    for result in run_isolated(probe, list(paths), n_worker=checkup.rules.n_worker):
        for place in paths[result.job]:
            status = os.stat(result.job)
            header = Header(status.st_size, status.st_mtime_ns)
            if result.value is None:
                answers[place] = header.refused(result.failure or "crashed", result.detail)
            else:
                answers[place] = replace(header, **result.value)
    return answers


def _check_headers(checkup: Checkup) -> None:
    for split, rows in checkup.tables.items():
        root = split_root(checkup.library, split)
        has_folder = root.name == videos_name(split)
        files = set(video_files(root)) if has_folder else set()
        near = by_likeness(files)
        for name, _ in rows:
            header = checkup.headers[split, name]
            if header.reason == "absent" and not header.detail:
                header = replace(header, detail=like(name, near))
            if header.reason:
                checkup.findings.append(Finding(header.reason, split, name, header.detail))
            elif UNKNOWN < header.n_frames < checkup.rules.clip_frames:
                detail = f"{header.n_frames} frames; a clip spans {checkup.rules.clip_frames}"
                checkup.findings.append(Finding("short", split, name, detail))
        known = {name for name, _ in rows} | checkup.quarantined.get(split, set())
        checkup.findings += [Finding("unlisted", split, name) for name in sorted(files - known)]


# --- content --------------------------------------------------------------------------------------


def _check_content(checkup: Checkup, journal: CheckupJournal) -> None:
    """Find the same content under two names: by size, then both ends, then all of it."""
    sizes: dict[int, list[Place]] = defaultdict(list)
    for place in checkup.usable():
        sizes[checkup.headers[place].n_bytes].append(place)
    sums = checkup.stored_sums
    for same in sizes.values():
        if len(same) < 2:
            continue
        if all(place in sums for place in same):
            groups = _grouped(same, sums.__getitem__)
        else:
            near = _grouped(same, lambda place: _edges(checkup, journal, place))
            groups = [g for part in near for g in _grouped(part, lambda p: _sha256(checkup, p))]
        for (first_split, first_name), *others in groups:
            for split, name in others:
                across = split != first_split
                detail = f"the same bytes as {videos_name(first_split)}/{first_name}"
                reason = "in both splits" if across else "duplicate"
                checkup.findings.append(Finding(reason, split, name, detail))


def _stored_sums(checkup: Checkup) -> dict[Place, str]:
    """See `Checkup.stored_sums`."""
    return {
        (split, manifest.names[i]): manifest.sha256[i].tobytes().hex()
        for split, manifest in checkup.manifests.items()
        if manifest is not None
        for i in range(len(manifest))
        if (header := checkup.headers.get((split, manifest.names[i]))) is not None
        and header.n_bytes == manifest.n_bytes[i]
    }


def _grouped(places: Sequence[Place], key: Callable[[Place], str]) -> list[list[Place]]:
    """Places with equal keys, two or more."""
    groups: dict[str, list[Place]] = defaultdict(list)
    for place in places:
        groups[key(place)].append(place)
    return [group for group in groups.values() if len(group) > 1]


def _edges(checkup: Checkup, journal: CheckupJournal, place: Place) -> str:
    """A digest of a file's first and last bytes, remembered."""
    header = checkup.headers[place]
    row = journal.get(_key(place), header.n_bytes, header.mtime_ns)
    if row is not None and "edges" in row:
        return str(row["edges"])
    try:
        with open(checkup.path(place), "rb", buffering=0) as file:
            descriptor = file.fileno()
            edges = os.pread(descriptor, EDGE_BYTES, 0)
            edges += os.pread(descriptor, EDGE_BYTES, max(0, header.n_bytes - EDGE_BYTES))
    except OSError as error:
        return _unreadable(checkup, place, error)
    digest = hashlib.sha256(edges).hexdigest()[:32]
    _remember(journal, place, header, edges=digest)
    return digest


def _sha256(checkup: Checkup, place: Place) -> str:
    try:
        with open(checkup.path(place), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return _unreadable(checkup, place, error)


def _unreadable(checkup: Checkup, place: Place, error: OSError) -> str:
    """Note a file whose head could be read and whose rest cannot; a key that nothing equals."""
    checkup.findings.append(Finding("unreadable", *place, error.strerror or str(error)))
    return "/".join(place)


# --- which copy it is -----------------------------------------------------------------------------


def which_copy(listed: Mapping[str, int]) -> str | None:
    """Say which known copy of Kinetics-400 has these counts; None if it is another dataset."""
    train, val = listed.get("train", 0), listed.get("val", 0)
    if train < LOOKS_LIKE_KINETICS:
        return None
    distance = {name: abs(train - known[0]) + abs(val - known[1]) for name, known in COPIES.items()}
    name = min(distance, key=distance.__getitem__)
    if distance[name] == 0:
        return f"{name} copy"
    known = COPIES[name]
    return (
        f"no known copy; nearest {name}, with {known[0]:,} and {known[1]:,}: "
        f"{train - known[0]:+,} and {val - known[1]:+,}"
    )


def counts(checkup: Checkup) -> dict[str, dict[str, int]]:
    """Per split: lines of the list, quarantined, and videos whose headers are in order."""
    usable = [split for split, _ in checkup.usable()]
    return {
        split: {
            "listed": len(checkup.tables[split]),
            "quarantined": len(checkup.quarantined.get(split, ())),
            "in_order": usable.count(split),
        }
        for split in SPLITS
    }
