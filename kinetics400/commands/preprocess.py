"""`preprocess`: originals → Kinetics-400/, every video verified and stored, or quarantined."""

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kinetics400.commands.preprocess_finish import finish, finish_shard
from kinetics400.commands.preprocess_intake import take_archives, take_folder
from kinetics400.commands.preprocess_lists import Lists
from kinetics400.commands.preprocess_report import (
    ShardSummary,
    Summary,
    format_shard,
    format_summary,
)
from kinetics400.config.parse import parse
from kinetics400.config.preprocess import PreprocessConfig
from kinetics400.data.housekeeping import Housekeeping
from kinetics400.data.intake import Intake, Run, describe
from kinetics400.data.isolation import cpu_count
from kinetics400.data.library import ARCHIVE_NAME, LIBRARY_NAME, SPLITS, find_library, list_name
from kinetics400.data.merge import merge_shards
from kinetics400.data.ray_pool import EVERY_CPU, ray_pool
from kinetics400.data.shards import Shard, parse_shard, slurm_shard
from kinetics400.data.sources import ArchiveUnit, Cvdf, Folder, find_source
from kinetics400.data.transcode import EncodeSettings
from kinetics400.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; failures propagate to `run_command`."""
    config = parse(
        PreprocessConfig,
        argv or [],
        prog="python -m data.preprocess",
        description="Verify every video of Kinetics-400 (or of data laid out like it) and store "
        "it for fast training. Repeating the command continues.",
    )
    shard = _chosen_shard(config.shard)
    print(
        format_summary(preprocess(config))
        if shard is None
        else format_shard(preprocess_shard(config, shard))
    )
    return 0


def preprocess(config: PreprocessConfig) -> Summary:
    """Bring `data_dir` into the layout that training reads (README, "Data").

    What shards have stored is taken in; what they have not is stored now.

    Raises:
        InputError: no data, a hostile archive, bad list files; nothing was written.
        DataError: truncated archive, or more unusable videos than `max_bad_share`.
        StorageError: the disk is too small, full or failing.
    """
    with _opened(config, None) as (source, lists, intake):
        if isinstance(source, Folder):
            tables = take_folder(source, lists, intake)
        else:
            take_archives(source, lists, intake)
            tables = lists.settle(
                {split: [n for s, n in intake.rows if s == split] for split in SPLITS}
            )
        return finish(lists, tables, intake, config.max_bad_share)


def preprocess_shard(config: PreprocessConfig, shard: Shard) -> ShardSummary:
    """Store one share of the videos; lists and manifests are for a run without shards to write.

    Raises:
        InputError, DataError, StorageError: see `preprocess`.
    """
    with _opened(config, shard) as (source, lists, intake):
        if isinstance(source, Folder):
            take_folder(source, lists, intake)
        else:
            take_archives(source, lists, intake)
        return finish_shard(shard, lists, intake)


@contextmanager
def _opened(
    config: PreprocessConfig, shard: Shard | None
) -> Iterator[tuple[ArchiveUnit | Cvdf | Folder, Lists, Intake]]:
    """Check the flags, hold the library, and have the source, the lists and the intake."""
    _check(config)
    source, library = _locate(config)
    settings = encode_settings(config)
    keeper = Housekeeping(library, shard)
    with keeper.held(), keeper.working(), _executor(config, keeper) as (run, n_worker):
        if shard is None and (unfinished := merge_shards(keeper, describe(settings))):
            print(
                f"preprocess: shards that have not finished: {', '.join(unfinished[:10])}"
                f"{' …' if len(unfinished) > 10 else ''}. What they have not stored is stored now.",
                file=sys.stderr,
            )
        lists = Lists(config, keeper)
        yield (
            source,
            lists,
            Intake(keeper, settings, n_worker=n_worker, timeout=config.timeout, run=run),
        )


@contextmanager
def _executor(config: PreprocessConfig, keeper: Housekeeping) -> Iterator[tuple[Run | None, int]]:
    """What runs the jobs, None for processes of this machine, and how many at the same time."""
    if config.executor == "local":
        yield None, config.n_worker or cpu_count()
        return
    with ray_pool(config.ray_address, keeper.incoming) as pool:
        yield pool, config.n_worker or EVERY_CPU


def _chosen_shard(flag: str | None) -> Shard | None:
    """The share to store: the flag's, or else the SLURM array's; None for a whole run."""
    if flag is not None:
        shard = parse_shard(flag)
        return shard if shard.count > 1 else None
    found = slurm_shard(os.environ)
    if found is not None:
        print(
            f"preprocess: this is a task of a SLURM array, so --shard {found} (--shard 1/1 is a "
            "whole run).",
            file=sys.stderr,
        )
    return found


def encode_settings(config: PreprocessConfig) -> EncodeSettings | None:
    """How to store videos; None to keep the originals."""
    if config.store == "original":
        return None
    return EncodeSettings(
        short_side=config.short_side,
        crf=config.crf,
        preset=config.preset,
        keyframe_interval=config.keyframe_interval,
        enlarge=config.enlarge,
    )


def _check(config: PreprocessConfig) -> None:
    checks = {
        f"--data_dir {config.data_dir} is not a folder": config.data_dir.is_dir()
        or (config.source is not None and not config.data_dir.exists()),
        f"--source {config.source} does not exist": config.source is None or config.source.exists(),
        f"--max_bad_share {config.max_bad_share} is not between 0 and 1": 0
        <= config.max_bad_share
        <= 1,
        f"--num_classes {config.num_classes} is not positive": config.num_classes >= 1,
        f"--n_worker {config.n_worker} is not positive": config.n_worker is None
        or config.n_worker >= 1,
        f"--timeout {config.timeout} is not a positive number of seconds": math.isfinite(
            config.timeout
        )
        and config.timeout > 0,
    }
    problems = [text for text, holds in checks.items() if not holds]
    settings = encode_settings(config)
    problems += settings.problems() if settings else []
    if problems:
        raise InputError("; ".join(problems) + ".")


def _locate(config: PreprocessConfig) -> tuple[ArchiveUnit | Cvdf | Folder, Path]:
    """Where the originals are, and the library that gets the videos."""
    place = config.source or config.data_dir
    source = find_source(place)
    unpacked = find_library(place)
    if source is None or isinstance(source, Folder):
        if unpacked is not None:
            source = Folder(unpacked)  # data/Kinetics-400 rather than data/
        elif config.source is None:
            source = None  # loose videos below data/ are nobody's dataset
    if source is None:
        raise InputError(
            f"nothing to preprocess in {place}: looked for {ARCHIVE_NAME}, for its parts "
            f"{ARCHIVE_NAME}.0000, .0001 …, for CVDF's train/part_*.tar.gz, and for an unpacked "
            f"{LIBRARY_NAME} folder with {list_name('train')} (or, named with --source, any folder "
            "of videos). data/README.md says where to get the dataset."
        )
    if config.source is None and isinstance(source, Folder):
        return source, source.root
    if isinstance(source, Folder) and config.store == "original":
        raise InputError(
            "--store original verifies files where they are: leave out --source and name their "
            "folder with --data_dir."
        )
    return source, config.data_dir / LIBRARY_NAME
