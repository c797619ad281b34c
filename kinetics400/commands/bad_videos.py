"""Videos that cannot be read while a run is going: counted, journalled, named at the end."""

from collections import Counter
from pathlib import Path

from kinetics400.commands.plan import Run
from kinetics400.data.dataset import MAX_SUBSTITUTES, Unreadable
from kinetics400.data.storage import append_json_lines, read_json_lines
from kinetics400.engine.agreement import Agreement
from kinetics400.engine.log import RunLog
from kinetics400.errors import DataError

NAMED_AT_END = 20


class BadVideos:
    """What became of the videos that other ones had to stand in for."""

    def __init__(self, agreement: Agreement, run: Run, log: RunLog) -> None:
        self._agreement = agreement
        self._file = journal(run)
        self._steps_per_epoch = run.schedule.steps_per_epoch
        self._share = run.config.data.max_bad_share
        self._most = self._share * self._steps_per_epoch * run.schedule.global_batch_size
        self._log = log
        self._epoch = -1
        self._count = 0
        self._gave_up = False

    def record(self, step: int, failures: list[Unreadable]) -> None:
        """Note what this rank met while loading a step's clips."""
        if (epoch := step // self._steps_per_epoch) != self._epoch:
            self._epoch, self._count = epoch, 0
        self._count += len(failures)
        self._gave_up |= any(bad.gave_up for bad in failures)
        append_json_lines(
            self._file,
            [{"step": step, "path": bad.path, "reason": bad.reason} for bad in failures],
        )
        for bad in failures:
            self._log.say(f"replaced a video that cannot be read: {bad.reason}")

    def check(self, step: int) -> None:
        """Add up over ranks, and stop all of them together when it is too much.

        Raises:
            DataError: this epoch has had more than `--max_bad_share`, or many failed in a row.
        """
        epoch = step // self._steps_per_epoch
        own = [self._count if epoch == self._epoch else 0, int(self._gave_up)]
        count, gave_up = map(sum, zip(*self._agreement.gather(own), strict=True))
        if count <= self._most and not gave_up:
            return
        why = f"more than --max_bad_share {self._share:g} allows"
        if gave_up:
            why = f"{MAX_SUBSTITUTES + 1} videos in a row cannot be read"
        raise DataError(
            f"{count} videos of epoch {epoch} could not be read: {why}. They are listed in "
            f"{self._file}. Check that the data folder is there and whole, run "
            "`python -m data.preprocess` again, or raise --max_bad_share"
        )


def journal(run: Run) -> Path:
    """The file that gets a line for every video that could not be read."""
    return run.config.saving.save_dir / "bad_videos.jsonl"


def format_bad_videos(run: Run) -> str | None:
    """All attempts of a run in one message: which videos failed, and how often; None if none."""
    times = Counter(row["path"] for row in read_json_lines(journal(run)))
    if not times:
        return None
    named = [f"  {path}" + (f" ({n} times)" if n > 1 else "") for path, n in times.most_common()]
    more = [f"  … and {len(named) - NAMED_AT_END} more"] if len(named) > NAMED_AT_END else []
    return "\n".join(
        [
            f"{len(times)} video(s) could not be read and were replaced by others, "
            f"{sum(times.values())} times in all (reasons: {journal(run)}):",
            *named[:NAMED_AT_END],
            *more,
        ]
    )
