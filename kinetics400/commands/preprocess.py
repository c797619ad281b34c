"""`preprocess`: archive → Kinetics-400/, every listed video decoded once, bad ones quarantined."""

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from kinetics400.commands.preprocess_report import SplitSummary, Summary, format_summary
from kinetics400.commands.progress import ProgressMeter
from kinetics400.config.parse import parse
from kinetics400.config.preprocess import PreprocessConfig
from kinetics400.data.annotations import VideoTable, format_list, overlap, parse_list
from kinetics400.data.archive import unpack
from kinetics400.data.housekeeping import Housekeeping, digest
from kinetics400.data.library import (
    ARCHIVE_NAME,
    LIBRARY_NAME,
    SPLITS,
    Quarantined,
    find_library,
    format_reasons,
    list_name,
    video_files,
    videos_name,
    write_quarantine,
)
from kinetics400.data.stream import find_archive, identity
from kinetics400.data.verification import plan, verify, videos_root
from kinetics400.errors import DataError, InputError, StorageError

# What an unpacked archive needs on disk: videos do not compress, and file systems round up.
DISK_GROWTH, DISK_MARGIN = 1.05, 64 << 20


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; failures propagate to `run_command`."""
    config = parse(
        PreprocessConfig,
        argv or [],
        prog="python -m data.preprocess",
        description="Unpack Kinetics-400 safely and keep the videos that decode. "
        "Repeating the command continues.",
    )
    summary = preprocess(config)
    print(format_summary(summary))
    return 0


def preprocess(config: PreprocessConfig) -> Summary:
    """Bring `data_dir` into the layout that training reads (README, "Data").

    Raises:
        InputError: no data, a hostile archive, bad list files; nothing was written.
        DataError: truncated archive, or more unusable videos than `max_bad_share`.
        StorageError: the disk is too small, full or failing.
    """
    _check(config)
    parts = find_archive(config.data_dir)
    library = config.data_dir / LIBRARY_NAME if parts else find_library(config.data_dir)
    if library is None:
        raise InputError(
            f"nothing to preprocess in {config.data_dir}: looked for {ARCHIVE_NAME}, for its parts "
            f"{ARCHIVE_NAME}.0000, .0001 …, and for an unpacked {LIBRARY_NAME} folder with "
            f"{list_name('train')}. data/README.md says where to get the dataset."
        )
    keeper = Housekeeping(library)
    with keeper.held():
        overrides = _read_overrides(config)
        if parts:
            _unpack_once(parts, keeper, config, overrides)
        originals = _find_lists(keeper, overrides)
        tables = _parse_lists(originals, config)
        videos, bad = plan(tables, keeper)
        if videos:
            with ProgressMeter("verifying", len(videos), "videos") as meter:
                bad += verify(
                    videos,
                    keeper,
                    n_worker=config.n_worker,
                    timeout=config.timeout,
                    progress=meter.update,
                )
        return _finish(originals, tables, bad, n_verified=len(videos), keeper=keeper, config=config)


def _check(config: PreprocessConfig) -> None:
    problems = []
    if not config.data_dir.is_dir():
        problems.append(f"--data_dir {config.data_dir} is not a folder")
    if not 0 <= config.max_bad_share <= 1:
        problems.append(f"--max_bad_share {config.max_bad_share} is not between 0 and 1")
    if config.num_classes < 1:
        problems.append(f"--num_classes {config.num_classes} is not positive")
    if config.n_worker is not None and config.n_worker < 1:
        problems.append(f"--n_worker {config.n_worker} is not positive")
    if not (math.isfinite(config.timeout) and config.timeout > 0):
        problems.append(f"--timeout {config.timeout} is not a positive number of seconds")
    if problems:
        raise InputError("; ".join(problems) + ".")


def _read_overrides(config: PreprocessConfig) -> dict[str, bytes]:
    """List files that the user gave, checked."""
    overrides = {}
    for split, path in (("train", config.train_list), ("val", config.val_list)):
        if path is None:
            continue
        if not path.is_file():
            raise InputError(f"--{split}_list {path} is not a file.")
        overrides[split] = path.read_bytes()
        parse_list(overrides[split], source=str(path), num_classes=config.num_classes)
    _parse_lists(overrides, config)  # also against each other
    return overrides


def _find_lists(keeper: Housekeeping, overrides: dict[str, bytes]) -> dict[str, bytes]:
    found = {split: overrides.get(split) or keeper.original_list(split) for split in SPLITS}
    missing = [split for split, data in found.items() if data is None]
    if missing:
        raise InputError(
            f"no {' and '.join(list_name(split) for split in missing)} in {keeper.library}. Put "
            f"{'them' if len(missing) > 1 else 'it'} there, or name another with "
            f"{' and '.join(f'--{split}_list' for split in missing)}."
        )
    return {split: data for split, data in found.items() if data is not None}


def _parse_lists(originals: dict[str, bytes], config: PreprocessConfig) -> dict[str, VideoTable]:
    tables = {
        split: parse_list(data, source=list_name(split), num_classes=config.num_classes)
        for split, data in originals.items()
    }
    if len(tables) == len(SPLITS) and (both := overlap(tables["train"], tables["val"])):
        raise InputError(
            f"{len(both)} video(s) stand in the train list and in the val list, so the model "
            f"would be scored on what it has seen: {', '.join(map(repr, both[:10]))}"
        )
    return tables


def _unpack_once(
    parts: list[Path], keeper: Housekeeping, config: PreprocessConfig, overrides: dict[str, bytes]
) -> None:
    """Unpack the archive, unless an earlier run has finished doing so."""
    archive = identity(parts)
    if keeper.read("unpacked.json").get("archive") == archive:
        return
    lists = dict(overrides)

    def on_list(split: str, data: bytes) -> None:
        lists.setdefault(split, data)
        _parse_lists(lists, config)

    compressed = sum(part.stat().st_size for part in parts)
    _check_disk(keeper.library, compressed)
    with ProgressMeter("unpacking", compressed, "bytes") as meter:
        result = unpack(
            parts,
            keeper.library,
            keeper.folder,
            on_list=on_list,
            required_lists=[split for split in SPLITS if split not in overrides],
            progress=meter.update,
        )
    keeper.store_archive_lists(result.lists)
    keeper.write("unpacked.json", {"archive": archive, "ignored": dict(result.ignored)})


def _check_disk(library: Path, compressed: int) -> None:
    folders = [library / videos_name(split) for split in SPLITS]
    there = sum(
        (folder / name).stat().st_size for folder in folders for name in video_files(folder)
    )
    need = int(compressed * DISK_GROWTH) + DISK_MARGIN - there
    free = shutil.disk_usage(library).free
    if free < need:
        raise StorageError(
            f"unpacking needs {need / 1e9:,.1f} GB in {library}, and {free / 1e9:,.1f} GB are "
            "free. Nothing was unpacked; free space, or make the folder a link to a larger disk."
        )


def _finish(
    originals: dict[str, bytes],
    tables: dict[str, VideoTable],
    bad: list[Quarantined],
    *,
    n_verified: int,
    keeper: Housekeeping,
    config: PreprocessConfig,
) -> Summary:
    """Quarantine, publish the lists, set the marker. Each step may be repeated after a kill."""
    bad = sorted(bad, key=lambda video: (SPLITS.index(video.split), video.path))
    refused = {(video.split, video.path) for video in bad}
    usable = {
        split: [(name, label) for name, label in table.rows() if (split, name) not in refused]
        for split, table in tables.items()
    }
    _check_share(tables, usable, bad, config)

    finals = {split: format_list(rows) for split, rows in usable.items()}
    keeper.store_originals(originals, finals)
    write_quarantine(keeper.quarantine_file, bad)
    for video in bad:
        root = videos_root(keeper.library, video.split)
        keeper.move_to_quarantine(video, os.path.join(root, video.path))
    keeper.publish_lists(finals)

    unpacked = keeper.read("unpacked.json")
    splits = {
        split: SplitSummary(
            listed=len(table),
            usable=len(usable[split]),
            unlisted=len(
                set(video_files(keeper.library / videos_name(split))).difference(
                    name for name, _ in usable[split]
                )
            ),
        )
        for split, table in tables.items()
    }
    done = {
        "archive": unpacked.get("archive", []),
        "lists": {split: digest(data) for split, data in finals.items()},
        "listed": {split: counts.listed for split, counts in splits.items()},
        "usable": {split: counts.usable for split, counts in splits.items()},
    }
    already_done = n_verified == 0 and keeper.read("done.json") == done
    if not already_done:
        keeper.write("done.json", done)
    return Summary(keeper.library, splits, bad, unpacked.get("ignored", {}), already_done)


def _check_share(
    tables: dict[str, VideoTable],
    usable: dict[str, list[tuple[str, int]]],
    bad: list[Quarantined],
    config: PreprocessConfig,
) -> None:
    listed = sum(len(table) for table in tables.values())
    empty = [split for split, rows in usable.items() if not rows]
    share = len(bad) / listed
    if share <= config.max_bad_share and not empty:
        return
    limit = f"more than --max_bad_share {config.max_bad_share:.2%} allows"
    if empty:
        limit = f"and none is left for {' and '.join(empty)}"
    raise DataError(
        f"{len(bad):,} of {listed:,} listed videos ({share:.2%}) cannot be used, {limit}. The "
        "lists were not written and nothing was moved; what was verified is remembered, so a "
        f"repeated command is quick.\n{format_reasons(bad)}"
    )
