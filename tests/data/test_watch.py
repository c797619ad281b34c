"""Workers that hang, crash or are killed while they decode a video."""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, dataloader, get_worker_info

from kinetics400.data import watch
from kinetics400.data.watch import Heartbeats, WorkerWatch

TIMEOUT = 0.6


class Unsendable:
    """The queue's thread fails on it, and says so on standard error only."""

    def __reduce__(self) -> Any:
        raise OSError("No space left on device")


class Work(Dataset[Any]):
    """One item, the sixth if not said, does something to the process that decodes it."""

    def __init__(self, fault: str | None, num_workers: int, *, at: int = 5) -> None:
        self.fault = fault
        self.at = at
        self.beats = Heartbeats(num_workers)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        worker = get_worker_info()
        with self.beats.decoding(worker.id if worker else 0, index):
            if self.fault == "steady":
                time.sleep(TIMEOUT / 3)
            elif index == self.at and self.fault is not None:
                FAULTS[self.fault]()
        return Unsendable() if index == 5 and self.fault == "lost" else index


def asleep() -> None:
    time.sleep(60)


def slowly() -> None:
    time.sleep(0.4)


def wrongly() -> None:
    raise ValueError("this video")


FAULTS = {
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "spinning": lambda: [None for _ in iter(int, 1)],
    "crashed": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "aborted": os.abort,
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "terminated": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "left": lambda: os._exit(7),
    "asleep": asleep,
    "slow": slowly,
    "lost": lambda: None,
    "wrong": wrongly,
}


def consume(
    work: Work, num_workers: int, *, pause: float = 0.0, batch_size: int | None = None
) -> tuple[list[Any], WorkerWatch]:
    """All items, watched; what the loader raises is the caller's."""
    loader = DataLoader(
        work,
        batch_size=batch_size,
        num_workers=num_workers,
        generator=torch.Generator(),
        multiprocessing_context="fork" if num_workers else None,
    )
    own = WorkerWatch(work.beats, timeout=TIMEOUT)
    found = []
    FOUND.append(own)
    with own.watching(loader) as items:
        for item in items:
            found.append(item)
            time.sleep(pause if len(found) == 3 else 0)
    return found, own


FOUND: list[WorkerWatch] = []


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(watch, "LOOK_EVERY", 0.05)
    yield
    FOUND.clear()


@pytest.mark.parametrize(
    ("fault", "reason", "detail"),
    [
        ("stopped", "hung", "--decode_timeout 0.6"),
        ("spinning", "hung", "--decode_timeout 0.6"),
        ("crashed", "crashed", "Segmentation fault"),
        ("aborted", "crashed", "Aborted"),
        ("left", "crashed", "code 7"),
        ("killed", "killed", "memory"),
    ],
)
def test_the_video_that_ended_a_worker_is_named(fault: str, reason: str, detail: str) -> None:
    started = time.monotonic()
    with pytest.raises(RuntimeError):
        consume(Work(fault, 2), 2)
    assert time.monotonic() - started < TIMEOUT + 5
    (own,) = FOUND
    assert own.is_broken
    (culprit,) = own.culprits
    assert (culprit.index, culprit.reason) == (5, reason)
    assert detail in culprit.detail


@pytest.mark.parametrize("fault", ["crashed", "left", "killed"])
def test_a_worker_may_die_before_the_loader_has_started(
    monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """torch raises inside its own constructor then, and nobody has seen the list of workers."""
    reset = dataloader._MultiProcessingDataLoaderIter._reset

    def slow_reset(self: Any, loader: Any, first_iter: bool = False) -> None:
        reset(self, loader, first_iter)
        time.sleep(2)

    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter, "_reset", slow_reset)
    work = Work(fault, 2, at=1)
    before = signal.getsignal(signal.SIGCHLD)
    try:
        with pytest.raises(RuntimeError):
            consume(work, 2)
    finally:
        signal.signal(signal.SIGCHLD, before)
    (own,) = FOUND
    assert own.is_broken
    (culprit,) = own.culprits
    assert culprit.index == 1
    assert culprit.reason == ("killed" if fault == "killed" else "crashed")


def test_a_worker_that_is_ended_from_outside_accuses_nobody() -> None:
    with pytest.raises(RuntimeError):
        consume(Work("terminated", 2), 2)
    (own,) = FOUND
    assert own.is_broken
    assert own.culprits == []


@pytest.mark.parametrize("fault", [None, "slow"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_sound_videos_are_left_alone(fault: str | None, num_workers: int) -> None:
    found, own = consume(Work(fault, num_workers), num_workers)
    assert found == list(range(12))
    assert (own.culprits, own.is_broken) == ([], False)


def test_a_worker_that_waits_for_its_parent_does_not_hang() -> None:
    """Its note goes with the video: an idle worker has none, however long nobody asks it."""
    found, own = consume(Work(None, 2), 2, pause=3 * TIMEOUT)
    assert found == list(range(12))
    assert own.culprits == []


def test_a_batch_may_take_longer_than_a_video() -> None:
    """Six videos of a fifth of a second each: the parent waits, the worker is busy."""
    found, own = consume(Work("steady", 1), 1, batch_size=6)
    assert [len(batch) for batch in found] == [6, 6]
    assert not own.is_broken


def test_a_batch_that_is_lost_on_its_way_is_not_waited_for() -> None:
    """As when shared memory is full: the worker goes on, and what it made is gone."""
    started = time.monotonic()
    with pytest.raises(RuntimeError):
        consume(Work("lost", 2), 2)
    assert time.monotonic() - started < TIMEOUT + 5
    (own,) = FOUND
    assert own.is_stalled
    assert own.culprits == []


@pytest.mark.parametrize("error", [EOFError, ConnectionResetError])
def test_a_worker_may_die_while_it_hands_a_batch_over(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Its parent finds the connection closed before the system says that the worker has ended."""

    def broken(self: Any) -> Any:
        raise error

    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter, "_next_data", broken)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        consume(Work("killed", 1, at=1), 1)
    (own,) = FOUND
    (culprit,) = own.culprits
    assert (culprit.index, culprit.reason) == (1, "killed")


def test_a_closed_connection_is_no_death(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be somebody else's."""
    monkeypatch.setattr(watch, "DYING_SECONDS", 0.1)

    def broken(self: Any) -> Any:
        raise EOFError

    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter, "_next_data", broken)
    with pytest.raises(EOFError):
        consume(Work(None, 1), 1)
    assert not FOUND[0].is_broken


def test_an_error_is_no_death() -> None:
    """An exception travels to the parent as always, and takes the worker's note along."""
    work = Work("wrong", 1)
    with pytest.raises(ValueError, match="this video"):
        consume(work, 1)
    (own,) = FOUND
    assert own.culprits == []
    assert work.beats.row(0)[1] == -1


def test_without_the_watch_a_hanging_worker_is_waited_for() -> None:
    """The negative control: nothing else ends it."""
    loader = DataLoader(
        Work("asleep", 1), batch_size=None, num_workers=1, generator=torch.Generator(), timeout=2
    )
    with pytest.raises(RuntimeError, match="timed out"):
        list(loader)


class Torn:
    """Notes as they look while they are written: each new video has the time of an old one."""

    num_rows = 1

    def __init__(self) -> None:
        self.looks = 0

    def row(self, worker: int) -> tuple[int, int, int]:
        self.looks += 1
        return os.getpid(), self.looks, 0


def test_a_row_that_is_being_written_accuses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[Any] = []
    monkeypatch.setattr(os, "kill", lambda *args: killed.append(args))
    beats: Any = Torn()
    own = WorkerWatch(beats, timeout=TIMEOUT)
    looks = iter([False] * 20 + [True])
    monkeypatch.setattr(own._stop, "wait", lambda seconds: next(looks))
    own._look()
    assert (beats.looks, killed) == (20, [])


def test_notes_are_seen_across_processes() -> None:
    beats = Heartbeats(3)
    assert beats.row(1)[1] == -1
    child = os.fork()
    if child == 0:
        with beats.decoding(1, 42):
            os._exit(0)
    os.waitpid(child, 0)
    assert beats.row(1)[:2] == (child, 42)
    assert [beats.row(worker)[1] for worker in (0, 2)] == [-1, -1]
