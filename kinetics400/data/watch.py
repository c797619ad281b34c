"""Find a loader's worker that hangs or dies in native code, and the video that it did it on.

A worker writes down which video it is about to decode where its parent can see it. No torch.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

Item = TypeVar("Item")

DECODE_TIMEOUT = 60.0  # seconds; a clip takes some milliseconds, a sick disk's some seconds
LOOK_EVERY = 0.5  # seconds
DYING_SECONDS = 2.0  # from closing its files to having ended
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

    Attributes:
        culprits: videos on which workers have ended.
        is_broken: whether a worker has ended before its time, on a video or not.
        is_stalled: whether nothing has come although no worker had anything left to decode: a batch
            was lost on its way, as happens when shared memory is full.
    """

    def __init__(self, beats: Heartbeats, *, timeout: float) -> None:
        self._beats = beats
        self._timeout = timeout
        self._workers: list[BaseProcess] = []
        self._hung: dict[int, Culprit] = {}  # by process
        self._stop = threading.Event()
        self._waiting_since = math.inf
        self.culprits: list[Culprit] = []
        self.is_broken = False
        self.is_stalled = False

    @contextmanager
    def watching(self, loader: Iterable[Item]) -> Iterator[Iterator[Item]]:
        """Start the loader and watch its workers while the block lasts.

        torch raises a RuntimeError when a worker dies, wherever the block then is; it goes on to
        the caller, and `culprits` and `is_broken` tell what it was about.
        """
        thread = threading.Thread(target=self._look, name="worker watch", daemon=True)
        items: Any = None
        try:
            items = iter(loader)
            self._workers = list(getattr(items, "_workers", ()))  # torch's own list, none public
            if self._workers:
                thread.start()
            try:
                yield self._timed(items)
            except (EOFError, ConnectionError) as error:
                # A worker that dies while it hands a batch over is met here first.
                dying = wait([process.sentinel for process in self._workers], DYING_SECONDS)
                if not dying:
                    raise
                for process in self._workers:
                    if process.sentinel in dying:
                        process.join()  # the sentinel is ready a moment before there is a code
                raise RuntimeError("a DataLoader worker has died") from error
        except RuntimeError:
            handler = _default_sigchld()
            self._note_deaths()
            if items is not None:
                self._end_workers(items)
                signal.signal(signal.SIGCHLD, handler)
            raise
        finally:
            self._stop.set()
            if thread.is_alive():
                thread.join()

    def _timed(self, items: Iterator[Item]) -> Iterator[Item]:
        while True:
            self._waiting_since = time.monotonic()
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self._waiting_since = math.inf
            yield item

    def _note_deaths(self) -> None:
        rows = [self._beats.row(worker) for worker in range(self._beats.num_rows)]
        decoding = {pid: video for pid, video, _ in rows if video != _IDLE}
        ended = {process.pid: process.exitcode for process in self._workers}
        if not self._workers:  # torch was still giving out the first videos
            ended = {pid: _exit_code(pid) for pid in decoding}
        for pid, code in ended.items():
            if code in (None, 0):
                continue
            assert pid is not None and code is not None
            self.is_broken = True
            if pid in self._hung:
                self.culprits.append(self._hung[pid])
            elif pid in decoding and code != -signal.SIGTERM:
                # (Who sends SIGTERM means the run.)
                self.culprits.append(Culprit(decoding[pid], *_cause(code)))

    def _end_workers(self, items: Any) -> None:
        """They have nothing to save; and the loader must forget them, or it goes on raising."""
        if not self.is_broken:
            return
        for process in self._workers:
            process.kill()
            process.join()
        items._shutdown_workers()  # there is no public name for it

    def _look(self) -> None:
        seen: list[tuple[int, int, int] | None] = [None] * self._beats.num_rows
        last_busy = time.monotonic()
        while not self._stop.wait(LOOK_EVERY):
            now = time.monotonic()
            for worker, before in enumerate(seen):
                row = self._beats.row(worker)
                seen[worker] = row
                pid, video, since = row
                if video == _IDLE:
                    continue
                last_busy = now
                seconds = now - since / 1e9
                # Seen twice: a row that was being written says nothing.
                if row == before and seconds > self._timeout and pid not in self._hung:
                    detail = f"no frame after {seconds:.0f} s (--decode_timeout {self._timeout:g})"
                    self._hung[pid] = Culprit(video, "hung", detail)
                    os.kill(pid, signal.SIGKILL)  # the loader notices, and so does the loop
            if now - max(last_busy, self._waiting_since) > self._timeout:
                self.is_stalled = True
                self._workers[0].kill()
                return


def _default_sigchld() -> Any:
    """Take torch's handler away, which raises for every child that ends, whatever child."""
    while True:
        try:
            return signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        except RuntimeError:  # it was called once more before it was taken away
            continue


def _exit_code(pid: int) -> int | None:
    """Of a child, as `multiprocessing` counts; None while it runs. It can be asked again."""
    try:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def _cause(exitcode: int) -> tuple[str, str]:
    if exitcode == -signal.SIGKILL:
        return "killed", "killed by SIGKILL, perhaps by the system for want of memory"
    if exitcode < 0:
        return "crashed", f"killed by signal {-exitcode} ({signal.strsignal(-exitcode)})"
    return "crashed", f"its process ended with code {exitcode}"
