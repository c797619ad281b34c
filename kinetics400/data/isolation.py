"""Run a function over many jobs in child processes that may crash, hang or run out of memory.

No version of FFmpeg is free of memory errors, so bytes from the internet are decoded only here: the
isolation is the control. A child holds nothing but its job.
"""

import ctypes
import json
import math
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, SpawnContext
from typing import Any, Generic, TypeVar

from kinetics400.data.orphans import die_with_parent

Job = TypeVar("Job")
Value = TypeVar("Value")

CLONE_NEWUSER = 0x10000000  # linux/sched.h
CLONE_NEWNET = 0x40000000
BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
NO_JOB = object()
MAX_MESSAGE = 1 << 20  # bytes a child may send at once
START_SECONDS = 60.0  # to import the function's module on a busy machine


def cpu_count() -> int:
    """CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class JobLimits:
    """What one job may use."""

    seconds: float = 120.0
    """Wall clock; after it the child is killed."""
    cpu_seconds: int = 600
    address_space: int = 2 << 30
    """Bytes; beyond it allocations fail in the child."""
    file_bytes: int = 64 << 20
    """Largest file a job may write; standard error, where tracebacks go, may be one."""


@dataclass(frozen=True)
class Result(Generic[Job, Value]):
    """A job's value, or why it has none."""

    job: Job
    value: Value | None = None
    failure: str | None = None
    """ "crashed", "hung" or "out of memory"; None when the job returned."""
    detail: str = ""


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let numpy's BLAS in processes started meanwhile have one thread: there is one on each CPU."""
    before = {name: os.environ.get(name) for name in BLAS_THREADS}
    os.environ.update(dict.fromkeys(BLAS_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _Child:
    """One child process and the job it holds."""

    def __init__(self, function: Callable[[Any], Any], limits: JobLimits, *, fork: bool) -> None:
        context: ForkContext | SpawnContext = multiprocessing.get_context("spawn")
        if fork:
            context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(function, theirs, limits, os.getpid(), fork), daemon=True
        )
        with _one_thread():
            self.process.start()
        theirs.close()
        self.ready = False
        self.job: Any = None
        self.busy = False
        self.deadline = time.monotonic() + START_SECONDS

    def give(self, job: Any, seconds: float) -> bool:
        """Hand over a job; False if the child died idle (its pipe will say so)."""
        try:
            self.connection.send(job)
        except BrokenPipeError:
            return False
        self.job, self.busy = job, True
        self.deadline = time.monotonic() + seconds
        return True

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()

    def cause_of_death(self) -> tuple[str, str]:
        self.process.join(5.0)
        code = self.process.exitcode
        if code is None:
            return "crashed", "its process sent nonsense"
        if code < 0:
            if -code == signal.SIGXCPU:
                return "hung", "used all its CPU time"
            return "crashed", f"killed by signal {-code} ({signal.strsignal(-code)})"
        return "crashed", f"its process ended with code {code}"


def run_isolated(
    function: Callable[[Job], Value],
    jobs: Iterable[Job],
    *,
    n_worker: int,
    limits: JobLimits | None = None,
    fork: bool = False,
) -> Generator[Result[Job, Value], None, None]:
    """Yield one result per job, in order of completion.

    `function` is importable by name, its jobs can be pickled, and its values are plain JSON: a
    child that a hostile file has taken over must not be able to send this process a pickle.
    At most `n_worker` jobs are taken ahead of the results. A child that dies is replaced; its job
    fails. Leaving the iterator early, by an exception or `close()`, kills all children; should
    this process be killed, the kernel kills them (Linux), or they end at the closed pipe.

    With `fork` (on Linux; others ignore it) a child begins as a copy of this process: at once,
    where torch would take seconds to import, but with all that is in this process's memory, beyond
    which `address_space` counts then.

    Raises:
        RuntimeError: a child cannot even start.
    """
    limits = limits or JobLimits()
    fork = fork and sys.platform == "linux"
    queue = iter(jobs)
    first = next(queue, NO_JOB)
    if first is NO_JOB:
        return  # before any child is started
    returned: list[Any] = [first]
    children: list[_Child] = []
    exhausted = False
    try:
        while True:
            for child in children:
                if child.busy or not child.ready:
                    continue
                job = returned.pop() if returned else next(queue, NO_JOB)
                if job is NO_JOB:
                    exhausted = True
                elif not child.give(job, limits.seconds):
                    returned.append(job)
            more = bool(returned) or not exhausted
            if not more and not any(child.busy for child in children):
                return
            if more:
                children += [
                    _Child(function, limits, fork=fork) for _ in range(n_worker - len(children))
                ]
            yield from _collect(children)
    finally:
        for child in children:
            child.kill()


def _collect(children: list[_Child]) -> Iterator[Result]:
    """Wait for the next event, yield its results, and drop the children that died."""
    nearest = min((c.deadline for c in children if c.busy or not c.ready), default=None)
    timeout = None if nearest is None else max(0.0, nearest - time.monotonic())
    events = set(wait([c.connection for c in children], timeout))
    for child in list(children):
        if child.connection in events:
            try:
                message = json.loads(child.connection.recv_bytes(MAX_MESSAGE))
                if child.ready:
                    value, failure, detail = message
            except (EOFError, OSError, ValueError):
                failure, detail = child.cause_of_death()
            else:
                if child.ready:
                    child.busy = False
                    yield Result(child.job, value, failure, detail)
                child.ready = True
                continue
        elif (child.busy or not child.ready) and time.monotonic() >= child.deadline:
            failure, detail = "hung", "no answer within the time limit"
        else:
            continue
        children.remove(child)
        child.kill()
        if not child.ready:
            raise RuntimeError(f"a child process cannot start: it {failure} ({detail})")
        if child.busy:
            yield Result(child.job, None, failure, detail)


def _address_space() -> int:
    """Bytes that this process has mapped (Linux)."""
    with open("/proc/self/statm", encoding="ascii") as pages:
        return int(pages.read().split()[0]) * resource.getpagesize()


def _serve(
    function: Callable[[Any], Any],
    connection: Connection,
    limits: JobLimits,
    parent: int,
    is_copy: bool,
) -> None:
    """The child: confine itself, then answer jobs until the pipe closes."""
    os.setsid()  # Ctrl-C on the terminal is the parent's to handle
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent(parent)
    if sys.platform == "linux":
        # No network where the kernel allows it. Root needs no user namespace, and would lose its
        # right to read other users' files in one.
        flags = CLONE_NEWNET if os.geteuid() == 0 else CLONE_NEWUSER | CLONE_NEWNET
        ctypes.CDLL(None).unshare(flags)
        most = limits.address_space + (_address_space() if is_copy else 0)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_bytes, limits.file_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection.send_bytes(b"0")  # ready
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        used = math.ceil(time.process_time())
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (used + limits.cpu_seconds, hard))
        try:
            answer = [function(job), None, ""]
        except MemoryError:
            answer = [None, "out of memory", f"more than {limits.address_space >> 20} MiB"]
        connection.send_bytes(json.dumps(answer).encode())
