"""Keep a run safe from videos that hang or crash the decoder: name them, stop, skip them next time.

A worker that dies takes its batch with it, and the other ranks would wait for that for ever; so the
run stops in order (exit code 75), and repeating the command continues without the video.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from kinetics400.data.annotations import VideoTable
from kinetics400.data.dataset import ClipDataset, ViewDataset
from kinetics400.data.library import Quarantined, read_quarantine
from kinetics400.data.storage import append_json_lines
from kinetics400.data.watch import DECODE_TIMEOUT, Heartbeats, WorkerWatch
from kinetics400.errors import DataError, Stopped

Item = TypeVar("Item")

# The system kills the largest process when memory is short: once proves nothing against a video.
STRIKES = {"killed": 2}


class VideoGuard:
    """Watches a run's workers, and remembers the videos that ended one.

    Args:
        save_dir: where quarantine.jsonl lies; None remembers nothing.
        num_workers: of each loader.
        timeout: seconds that the decoding of one video may take.
    """

    def __init__(
        self, save_dir: Path | None, *, num_workers: int, timeout: float = DECODE_TIMEOUT
    ) -> None:
        self._file = None if save_dir is None else save_dir / "quarantine.jsonl"
        self._num_workers = num_workers
        self._timeout = timeout
        self._known = self._rows()

    def beats(self) -> Heartbeats:
        """Where the workers of one loader note what they decode."""
        return Heartbeats(self._num_workers)

    def quarantined(self, split: str, table: VideoTable) -> dict[int, str]:
        """Videos of a split that are not to be opened, with the reason.

        They keep their places in the epoch's order, and others stand in for them: so all other
        samples of the run stay what they were.
        """
        reasons = {
            row.path: f"{row.reason}, {row.detail}"
            for row in self._known
            if row.split == split and _is_out(row, self._known)
        }
        if not reasons:
            return {}
        places = ((i, table.name(i)) for i in range(len(table)))
        return {i: reasons[name] for i, name in places if name in reasons}

    @contextmanager
    def watching(
        self, loader: Iterable[Item], dataset: ClipDataset | ViewDataset, split: str
    ) -> Iterator[Iterator[Item]]:
        """Start a loader; while the block lasts, no worker hangs and none dies unexplained.

        Raises:
            Stopped: a video has ended a worker, of this rank or another; it is named.
            DataError: the same where nothing can be remembered.
        """
        assert dataset.beats is not None
        watch = WorkerWatch(dataset.beats, timeout=self._timeout)
        try:
            with watch.watching(loader) as items:
                yield items
        except RuntimeError as error:
            # torch raises it when a worker dies, wherever the training loop then is; a rank whose
            # peer has stopped for this reason finds its connection closed.
            found = [
                Quarantined(split, dataset.table.name(one.index), one.reason, one.detail)
                for one in watch.culprits
            ]
            if self._file is not None and found:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                append_json_lines(self._file, [asdict(row) for row in found])
            new = self._rows()[len(self._known) :] if self._file is not None else found
            if new and os.environ.get("LOCAL_RANK", "0") != "0":
                # Rank 0 finds its connection closed, and says why it stops. Were this an error, the
                # launcher would kill rank 0 first; and tearing the connections down, as an orderly
                # exit does, may abort.
                sys.stderr.flush()
                os._exit(0)
            if new:
                raise self._verdict(new) from error
            if watch.is_stalled:
                raise Stopped(
                    "the loader's workers had nothing left to decode, and yet a batch never came: "
                    "look for their errors above (is /dev/shm full?). Repeat the command to "
                    "continue, with a lower --n_worker if need be."
                ) from error
            if watch.is_broken:
                raise Stopped(
                    "a loader's worker was ended from outside; repeat the command to continue."
                ) from error
            raise

    def _verdict(self, rows: list[Quarantined]) -> Exception:
        named = "; ".join(
            f"{row.split} video {row.path!r} ({row.reason}: {row.detail})" for row in rows
        )
        if self._file is None:
            return DataError(
                f"decoding ended a worker: {named}. Run `python -m data.preprocess`, or take the "
                "video from the list."
            )
        known = self._rows()
        what = (
            "without it" if all(_is_out(row, known) for row in rows) else "and tries it once more"
        )
        return Stopped(
            f"decoding ended a worker: {named}. It stands in {self._file}; repeating the command "
            f"continues {what}."
        )

    def _rows(self) -> list[Quarantined]:
        return [] if self._file is None else read_quarantine(self._file)


def _is_out(row: Quarantined, rows: Sequence[Quarantined]) -> bool:
    """Whether a video has struck often enough."""
    alike = [(one.split, one.path, one.reason) for one in rows]
    return alike.count((row.split, row.path, row.reason)) >= STRIKES.get(row.reason, 1)
