"""Which listed videos are usable: what earlier runs found, and the rest decoded in isolation."""

import math
import os
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinetics400.data.annotations import VideoTable
from kinetics400.data.housekeeping import Housekeeping
from kinetics400.data.isolation import JobLimits, Result, run_isolated
from kinetics400.data.library import Quarantined, format_reasons, videos_name
from kinetics400.data.verify import verify_as_json
from kinetics400.errors import DataError

FAULTS_IN_A_ROW = 50  # so many undecodable videos one after another are a failing disk
JOURNAL_EVERY = 100  # videos


@dataclass(frozen=True)
class Video:
    """A listed video that is still to be verified."""

    split: str
    name: str
    path: str
    size: int
    mtime_ns: int


def plan(
    tables: dict[str, VideoTable], keeper: Housekeeping
) -> tuple[list[Video], list[Quarantined]]:
    """Videos that no earlier run has verified, and those that are absent."""
    verified, quarantined = keeper.verified(), keeper.quarantined()
    todo, bad = [], []
    for split, table in tables.items():
        table = table.under(videos_root(keeper.library, split))
        for i in range(len(table)):
            name, path = table.name(i), table.path(i)
            try:
                status = os.stat(path)
            except OSError as error:
                detail = "" if isinstance(error, FileNotFoundError) else error.strerror or ""
                absent = Quarantined(split, name, "absent", detail)
                bad.append(quarantined.get((split, name), absent))
                continue
            if verified.get((split, name)) != (status.st_size, status.st_mtime_ns):
                todo.append(Video(split, name, path, status.st_size, status.st_mtime_ns))
    return todo, bad


def videos_root(library: Path, split: str) -> Path:
    """Folder that a split's relative names start from (the rule of `open_split`)."""
    folder = library / videos_name(split)
    return folder if folder.is_dir() else library


def verify(
    videos: list[Video],
    keeper: Housekeeping,
    *,
    n_worker: int | None,
    timeout: float,
    progress: Callable[[int], None],
) -> list[Quarantined]:
    """Decode every video in isolation; returns those that are not usable.

    Args:
        videos: what `plan` returned.
        keeper: its journal gets the usable ones, also when this call is interrupted.
        n_worker: processes at the same time; None for one per CPU.
        timeout: seconds per video.
        progress: called with the number of videos done.

    Raises:
        DataError: so many failures in a row that the disk must be suspected.
    """
    if not videos:
        return []
    n_worker = min(n_worker or cpu_count(), len(videos))
    limits = JobLimits(seconds=timeout, cpu_seconds=math.ceil(timeout) + 1)
    bad: list[Quarantined] = []
    good: list[dict[str, Any]] = []
    doubtful: list[Video] = []
    in_a_row = done = 0
    try:
        for results in (
            _results(videos, n_worker, limits),
            # A crowded machine crashes and hangs innocent jobs: they get a second chance, alone.
            _results(doubtful, 1, limits),
        ):
            with closing(results):  # at once: no child outlives an exception here
                for video, result in results:
                    done += 1
                    if result.failure in ("crashed", "hung") and done <= len(videos):
                        doubtful.append(video)
                        continue
                    progress(done - len(doubtful))
                    verdict = _judge(video, result)
                    if isinstance(verdict, Quarantined):
                        bad.append(verdict)
                        in_a_row += 1
                        _check_streak(in_a_row, bad)
                    else:
                        in_a_row = 0
                        good.append(verdict)
                    if len(good) >= JOURNAL_EVERY:
                        keeper.add_verified(good)
                        good = []
    finally:
        if good:
            keeper.add_verified(good)
    return bad


def cpu_count() -> int:
    """CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _results(
    videos: list[Video], n_worker: int, limits: JobLimits
) -> Generator[tuple[Video, Result[str, dict[str, Any]]], None, None]:
    if not videos:
        return
    by_path = {video.path: video for video in videos}
    with closing(
        run_isolated(verify_as_json, list(by_path), n_worker=n_worker, limits=limits)
    ) as results:
        for result in results:
            yield by_path[result.job], result


def _judge(video: Video, result: Result[str, dict[str, Any]]) -> Quarantined | dict[str, Any]:
    """A row for the journal of usable videos, or the reason against it."""
    if result.failure is not None or result.value is None:
        return Quarantined(video.split, video.name, result.failure or "crashed", result.detail)
    if "reason" in result.value:
        return Quarantined(video.split, video.name, **result.value)
    row = {"split": video.split, "path": video.name, "size": video.size}
    return {**row, "mtime_ns": video.mtime_ns, **result.value}


def _check_streak(in_a_row: int, bad: list[Quarantined]) -> None:
    if in_a_row > FAULTS_IN_A_ROW:
        raise DataError(
            f"{in_a_row} videos in a row do not decode, which looks like a failing disk or the "
            f"wrong kind of files. Nothing was quarantined.\n{format_reasons(bad)}"
        )
