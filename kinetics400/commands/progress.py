"""A progress bar on a terminal, a plain line now and then everywhere else."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

PLAIN_EVERY = 30.0  # seconds


class _Rate(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "–/s")


class ProgressMeter:
    """How far a long job is, its rate and its remaining time, on standard error.

    Args:
        what: what is being done, e.g. "verifying".
        total: units in all.
        unit: "bytes" or a plural noun.
    """

    def __init__(self, what: str, total: int, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self._start = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns: list[ProgressColumn] = [SpinnerColumn(), TextColumn("{task.description}")]
            columns += [BarColumn()]
            if unit == "bytes":
                columns += [DownloadColumn(), TransferSpeedColumn()]
            else:
                columns += [MofNCompleteColumn(), _Rate()]
            self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
            self._task = self._bar.add_task(what, total=total)

    def __enter__(self) -> "ProgressMeter":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int) -> None:
        """Say that `done` units of the total are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
            return
        now = time.monotonic()
        if now - self._last_line >= PLAIN_EVERY or done >= self.total:
            self._last_line = now
            print(self.line(done, now - self._start), file=sys.stderr, flush=True)

    def line(self, done: int, seconds: float) -> str:
        """The plain line, e.g. "verifying: 500 of 2,000 videos (25 %), 50.0/s, 0:00:30 left"."""
        rate = done / seconds if seconds > 0 else 0.0
        left = (self.total - done) / rate if rate > 0 else 0.0
        scale, unit = (1e6, "MB") if self.unit == "bytes" else (1, self.unit)
        digits = 1 if self.unit == "bytes" else 0
        hours, minutes, secs = int(left) // 3600, int(left) % 3600 // 60, int(left) % 60
        return (
            f"{self.what}: {done / scale:,.{digits}f} of {self.total / scale:,.{digits}f} {unit} "
            f"({100 * done / max(1, self.total):.0f} %), {rate / scale:,.1f} {unit}/s, "
            f"{hours}:{minutes:02}:{secs:02} left"
        )
