"""Find a loader's worker that hangs or dies in native code, and the video that it did it on.

A worker writes down which video it is about to decode where its parent can see it. No torch.
"""

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from typing import TypeVar

Item = TypeVar("Item")

DECODE_TIMEOUT = 60.0  # seconds; a clip takes some milliseconds, a sick disk's some seconds
LOOK_EVERY = 0.5  # seconds
_IDLE = -1


@dataclass(frozen=True)
class Culprit:
    """A video whose decoding has ended a worker."""

    index: int
    """Its row in the table."""
    reason: str
    """ "hung", "crashed" or "killed" (by SIGKILL: perhaps by the system, for want of memory)."""
    detail: str


class Heartbeats:
    """Which video each worker decodes, and since when, in memory that workers share with parents.

    Args:
        num_workers: of the loader; 0 decodes in the process itself, which has the only row.
    """

    def __init__(self, num_workers: int) -> None:
        self.num_rows = max(num_workers, 1)
        self._cells = get_context().RawArray("q", [_IDLE] * (3 * self.num_rows))

    @contextmanager
    def decoding(self, worker: int, video: int) -> Iterator[None]:
        """Note that a worker decodes a video; a death inside the block leaves the note."""
        start = 3 * worker
        self._cells[start : start + 3] = (os.getpid(), video, time.monotonic_ns())
        try:
            yield
        finally:
            self._cells[start + 1] = _IDLE

    def row(self, worker: int) -> tuple[int, int, int]:
        """Process, video (-1: none) and when it was begun (monotonic clock, ns)."""
        pid, video, since = self._cells[3 * worker : 3 * worker + 3]
        return pid, video, since


class WorkerWatch:
    """Kills workers that take too long over one video, and tells who ended which worker.

    Args:
        beats: the workers' notes.
        timeout: seconds that one video may take.
    """

    def __init__(self, beats: Heartbeats, *, timeout: float) -> None:
        self._beats = beats
        self._timeout = timeout
        self._workers: list[BaseProcess] = []
        self._hung: dict[int, Culprit] = {}  # by process
        self._stop = threading.Event()

    @contextmanager
    def watching(self, loader: Iterable[Item]) -> Iterator[Iterator[Item]]:
        """Start the loader and watch its workers while the block lasts."""
        before = set(active_children())
        items = iter(loader)
        self._workers = [child for child in active_children() if child not in before]
        thread = threading.Thread(target=self._look, name="worker watch", daemon=True)
        if self._workers:
            thread.start()
        try:
            yield items
        finally:
            self._stop.set()
            if self._workers:
                thread.join()

    def culprits(self) -> list[Culprit]:
        """Videos on which workers have ended so far."""
        found = []
        rows = [self._beats.row(worker) for worker in range(self._beats.num_rows)]
        decoding = {pid: video for pid, video, _ in rows if video != _IDLE}
        for process in self._workers:
            if process.exitcode in (None, 0, -signal.SIGTERM):  # that one comes from outside
                continue
            assert process.pid is not None and process.exitcode is not None
            if process.pid in self._hung:
                found.append(self._hung[process.pid])
            elif process.pid in decoding:
                found.append(Culprit(decoding[process.pid], *_cause(process.exitcode)))
        return found

    def is_broken(self) -> bool:
        """Whether a worker has ended before its time, on a video or not."""
        return any(process.exitcode not in (None, 0) for process in self._workers)

    def _look(self) -> None:
        seen: list[tuple[int, int, int] | None] = [None] * self._beats.num_rows
        while not self._stop.wait(LOOK_EVERY):
            for worker, before in enumerate(seen):
                row = self._beats.row(worker)
                seen[worker] = row
                pid, video, since = row
                seconds = (time.monotonic_ns() - since) / 1e9
                # Seen twice: a row that was being written says nothing.
                if row != before or video == _IDLE or seconds <= self._timeout or pid in self._hung:
                    continue
                detail = f"no frame after {seconds:.0f} s (--decode_timeout {self._timeout:g})"
                self._hung[pid] = Culprit(video, "hung", detail)
                os.kill(pid, signal.SIGKILL)  # the loader notices, and so does the training loop


def _cause(exitcode: int) -> tuple[str, str]:
    if exitcode == -signal.SIGKILL:
        return "killed", "killed by SIGKILL, perhaps by the system for want of memory"
    if exitcode < 0:
        return "crashed", f"killed by signal {-exitcode} ({signal.strsignal(-exitcode)})"
    return "crashed", f"its process ended with code {exitcode}"
