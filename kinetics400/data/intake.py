"""Bring originals into the library: verified and stored in isolated processes, journalled, placed.

Every video is one unit of work. Its result is written beside the library, made durable, renamed
into place and journalled, in this order, so that a kill costs the videos of the last seconds and no
others.
"""

import hashlib
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from kinetics400.data.housekeeping import Housekeeping
from kinetics400.data.isolation import JobLimits, Result, run_isolated
from kinetics400.data.library import (
    Quarantined,
    format_reasons,
    split_root,
    video_files,
    videos_name,
)
from kinetics400.data.pyramid import is_marked
from kinetics400.data.shelf import Shelf
from kinetics400.data.sources import Original
from kinetics400.data.storage import disk_errors
from kinetics400.data.transcode import EncodeSettings, Job, store_as_json
from kinetics400.data.verify import VideoInfo
from kinetics400.errors import DataError, StorageError

FAULTS_IN_A_ROW = 50  # so many undecodable videos one after another are a failing disk
JOURNAL_EVERY = 100  # videos
JOURNAL_SECONDS = 10.0
DOUBTFUL = 16  # videos that crashed or hung and wait for a second chance
LARGEST_STORED = 4 << 30  # bytes of one stored video

Run = Callable[..., Generator[Result[Job, dict[str, Any]], None, None]]


class Intake:
    """Takes originals in and remembers what became of each.

    Args:
        keeper: the library's housekeeping, held.
        settings: how to store videos; None verifies them and keeps the files as they are.
        n_worker: processes at the same time.
        timeout: seconds per video.
        run: has the work done; `run_isolated`, or what keeps its contract on other machines.
    """

    def __init__(
        self,
        keeper: Housekeeping,
        settings: EncodeSettings | None,
        *,
        n_worker: int,
        timeout: float,
        run: Run | None = None,
    ) -> None:
        self.keeper = keeper
        self.settings = settings
        self.n_worker = n_worker
        self.run = run or run_isolated
        self.limits = JobLimits(
            seconds=timeout, cpu_seconds=math.ceil(timeout) + 1, file_bytes=LARGEST_STORED
        )
        self.kind = "original" if settings is None else "pyramid"
        self.description = describe(settings)
        self.rows = keeper.journal_rows()
        self.n_new = 0
        self._pending: list[dict[str, Any]] = []
        self._last_journal = time.monotonic()
        self._in_a_row: list[Quarantined] = []
        self._number = 0

    def is_finished(self, original: Original) -> bool:
        """Whether an earlier run has dealt with this very video in this very way."""
        row = self.rows.get((original.split, original.name))
        if row is None or row["settings"] != self.description:
            return False
        if (row["source_bytes"], row["source_sha256"], row["source_mtime_ns"]) != _source(original):
            return False
        return "reason" in row or self.is_stored(row)

    def is_stored(self, row: dict[str, Any]) -> bool:
        """Whether a row's video is there, as far as its size tells."""
        try:
            return os.stat(self.keeper.stored_path(row)).st_size == row["n_bytes"]
        except OSError:
            return False

    def is_done_without_source(self, split: str, name: str) -> bool:
        """Whether a video is stored in this very way, whatever became of its original."""
        row = self.rows.get((split, name))
        if row is None or "reason" in row or row["settings"] != self.description:
            return False
        return row["kind"] == "pyramid" and self.is_stored(row)

    def is_our_pyramid(self, split: str, name: str, path: Path) -> bool:
        """Whether a file is the pyramid that an earlier run has made of a video."""
        row = self.rows.get((split, name), {})
        ours = row.get("kind") == "pyramid" and self.keeper.stored_path(row) == path
        return ours and self.is_stored(row)

    def archives_with_missing(self) -> set[str]:
        """The archives out of which videos came that are gone, or were changed."""
        return {
            row["archive"]
            for row in self.rows.values()
            if row["source_sha256"] and "reason" not in row and not self.is_stored(row)
        }

    def names_by_archive(self) -> dict[str, set[tuple[str, str]]]:
        """Archive → (split, name) of all videos that came in it."""
        names: dict[str, set[tuple[str, str]]] = defaultdict(set)
        for key, row in self.rows.items():
            names[row["archive"]].add(key)
        return names

    def stored_bytes(self, keys: Iterable[tuple[str, str]] | None = None) -> int:
        """What the videos we have stored take on disk: all, or those with these (split, name)."""
        rows = [self.rows.get(key, {}) for key in (self.rows if keys is None else keys)]
        ours = [row for row in rows if row.get("kind") == "pyramid" or row.get("archive")]
        return sum(row["n_bytes"] for row in ours if "reason" not in row and self.is_stored(row))

    def known_names(self, split: str) -> list[str]:
        """Names of the originals that are or were in the library."""
        names = {name for s, name in self.rows if s == split}
        names.update(video_files(split_root(self.keeper.library, split)))
        names.update(video_files(self.keeper.originals / videos_name(split)))
        # v.avi.mp4 beside v.avi is its pyramid, perhaps of a run that was killed before it said so.
        return sorted(names - {stored_name(name) for name in names if stored_name(name) != name})

    def take(
        self,
        originals: Iterable[Original],
        shelf: Shelf,
        done: Callable[[int], None] = lambda n_done: None,
    ) -> None:
        """Store every original that no earlier run has dealt with.

        Args:
            originals: taken one by one, not many more than are being worked on.
            shelf: places the results.
            done: called with the number of videos dealt with, after each.

        Raises:
            DataError: so many failures in a row that the disk must be suspected.
            StorageError: the library cannot be written.
        """
        doubtful: list[Original] = []
        try:
            with closing(self._results(originals, self.n_worker)) as results:
                for original, result in results:
                    if result.failure in ("crashed", "hung"):
                        # A crowded machine crashes and hangs innocent jobs: once more, alone.
                        Path(result.job[1]).unlink(missing_ok=True)
                        doubtful.append(original)
                        if len(doubtful) >= DOUBTFUL:
                            self._retry(doubtful, shelf, done)
                            doubtful = []
                        continue
                    self._settle(original, result, shelf)
                    done(self.n_new)
            self._retry(doubtful, shelf, done)
        finally:
            self._journal(shelf)

    def _retry(self, doubtful: list[Original], shelf: Shelf, done: Callable[[int], None]) -> None:
        if not doubtful:
            return
        with closing(self._results(doubtful, 1)) as results:
            for original, result in results:
                self._settle(original, result, shelf)
                done(self.n_new)

    def _results(
        self, originals: Iterable[Original], n_worker: int
    ) -> Generator[tuple[Original, Result[Job, dict[str, Any]]], None, None]:
        running: dict[str, Original] = {}

        def jobs() -> Iterator[Job]:
            for original in originals:
                if self.is_finished(original):
                    _discard(original)
                    continue
                running[original.path] = original
                self._number += 1
                target = self.keeper.incoming / f"stored-{self._number}.mp4"
                yield original.path, str(target), None if original.is_stored else self.settings

        work = self.run(store_as_json, jobs(), n_worker=n_worker, limits=self.limits)
        with closing(work) as results:
            for result in results:
                yield running.pop(result.job[0]), result

    def _settle(
        self, original: Original, result: Result[Job, dict[str, Any]], shelf: Shelf
    ) -> None:
        """Place what was stored, or set the original aside; and write it down."""
        value = result.value if result.failure is None else None
        if value is not None and "storage_error" in value:
            raise StorageError(
                f"{value['storage_error']}. Nothing half-written was kept; free space or repair "
                "the disk, then repeat the command: it continues."
            )
        size, sha256, mtime = _source(original)
        row: dict[str, Any] = {
            "split": original.split,
            "source": original.name,
            "source_bytes": size,
            "source_sha256": sha256,
            "source_mtime_ns": mtime,
            "archive": original.archive,
            "settings": self.description,
        }
        target = Path(result.job[1])
        if value is None:
            row |= {"reason": result.failure or "crashed", "detail": result.detail}
        elif "reason" in value:
            row |= {name: str(value[name]) for name in ("reason", "detail")}
        elif original.is_stored and value["kind"] != "pyramid":
            row |= {"reason": "damaged", "detail": "it says that it is a pyramid and is none"}
        else:
            row |= self._place(original, value, target, shelf)
        if "reason" in row:
            if original.sha256 is not None:
                parts = self.keeper.quarantine_parts(original.split, original.name)
                shelf.place(Path(original.path).name, parts)
            self._check_streak(Quarantined(original.split, original.name, row["reason"]))
        else:
            self._in_a_row = []
        with suppress(FileNotFoundError):
            target.unlink()
        self.rows[original.split, original.name] = row
        self._pending.append(row)
        self.n_new += 1
        overdue = time.monotonic() - self._last_journal > JOURNAL_SECONDS
        if len(self._pending) >= JOURNAL_EVERY or overdue:
            self._journal(shelf)

    def _place(
        self, original: Original, value: dict[str, Any], target: Path, shelf: Shelf
    ) -> dict[str, Any]:
        kept = self.settings is None or original.is_stored
        path = original.name if kept else stored_name(original.place or original.name)
        parts = (videos_name(original.split), *path.split("/"))
        if not kept:
            digest = file_sha256(target)
            shelf.place(target.name, parts, self._aside(original, path))
            _discard(original)
        elif original.sha256 is not None:
            digest = original.sha256
            shelf.place(Path(original.path).name, parts)
        else:
            digest = file_sha256(Path(original.path))
        # What comes from a child is not to be trusted with the names of things.
        facts = {field.name: value[field.name] for field in fields(VideoInfo)}
        return {"path": path, **facts, "kind": value["kind"], "sha256": digest}

    def _aside(self, original: Original, path: str) -> tuple[str, ...] | None:
        """Where a file in a pyramid's place must move: None if there is none, or it is ours."""
        place = self.keeper.library / videos_name(original.split) / path
        if not os.path.lexists(place) or is_marked(str(place)):
            return None
        row = self.rows.get((original.split, original.name), {})
        if row.get("path") == path and (row["source_sha256"] or row["kind"] == "pyramid"):
            return None
        return self.keeper.aside_path(original.split, path).relative_to(self.keeper.library).parts

    def _journal(self, shelf: Shelf) -> None:
        shelf.sync()
        self.keeper.add_rows(self._pending)
        self._pending = []
        self._last_journal = time.monotonic()

    def _check_streak(self, bad: Quarantined) -> None:
        self._in_a_row.append(bad)
        if len(self._in_a_row) > FAULTS_IN_A_ROW:
            raise DataError(
                f"{len(self._in_a_row)} videos in a row do not decode, which looks like a failing "
                "disk or the wrong kind of files. The lists were not written.\n"
                f"{format_reasons(self._in_a_row)}"
            )


def describe(settings: EncodeSettings | None) -> str:
    """The way of storing, as the journal holds it: other settings mean storing anew."""
    if settings is None:
        return "original"
    return ",".join(f"{name}={value}" for name, value in asdict(settings).items())


def stored_name(name: str) -> str:
    """Name of the pyramid of a video: its own, with .mp4 appended where it has another suffix.

    >>> stored_name("a b.mp4"), stored_name("x/v.avi")
    ('a b.mp4', 'x/v.avi.mp4')
    """
    return name if name.endswith(".mp4") else f"{name}.mp4"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with disk_errors(f"reading {path}"), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _source(original: Original) -> tuple[int, str | None, int]:
    """What tells one version of a source from another."""
    return original.n_bytes, original.sha256, original.mtime_ns


def _discard(original: Original) -> None:
    """Remove a spooled file; others are the user's."""
    if original.sha256 is not None:
        os.unlink(original.path)
