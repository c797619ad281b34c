"""`run_isolated` on a Ray cluster: the same isolated children, on whichever node has a free CPU.

A task per video, not `ray.util.multiprocessing.Pool`, whose map is lost with the first node: here
the loss of a node is known for each video that was on it, and costs nothing but doing it again. Ray
workers only start the isolated children and watch them; FFmpeg never runs in a worker itself.
"""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kinetics400 import __version__
from kinetics400.data.isolation import NO_JOB, JobLimits, Result, run_isolated
from kinetics400.data.storage import write_atomic
from kinetics400.data.transcode import Job
from kinetics400.errors import InputError, Stopped

EVERY_CPU = sys.maxsize  # as `n_worker`: as many jobs as the cluster has CPUs at the time
CONNECT_SECONDS = 60.0
PROBE_SECONDS = 60.0  # for a node to start a worker, import the package and look
WAIT_SECONDS = 1.0  # so soon SIGTERM takes effect
CPUS_EVERY = 5.0  # seconds from one look at the cluster's size to the next
ATTEMPTS = 10  # at one job; a node dies by accident, not with the same video every time

_children: dict[str, Any] = {}  # of a Ray worker: its isolated child, kept from job to job


class RayPool:
    """A cluster that is connected and sees the library.

    Calling it does what `run_isolated` does, for jobs (source, target, settings); the results'
    jobs have targets of their own, a new one for each attempt: a node that was given up may still
    be writing.

    Args:
        token: a file in the library; a node that sees it sees the library.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self._n_cpus = 0
        self._counted = -CPUS_EVERY

    def __call__(
        self,
        function: Callable[[Job], Any],
        jobs: Iterable[Job],
        *,
        n_worker: int,
        limits: JobLimits | None = None,
    ) -> Generator[Result[Job, Any], None, None]:
        """See `run_isolated`.

        Raises:
            InputError: a node does not see the library or an original.
            Stopped: one video has lost its node time and again.
        """
        import ray

        limits = limits or JobLimits()
        do = ray.remote(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")(_do)
        queue = iter(jobs)
        lost: list[tuple[Job, int]] = []
        running: dict[Any, tuple[Job, int]] = {}
        exhausted = False
        try:
            while True:
                most = self._count_cpus() if n_worker == EVERY_CPU else n_worker
                while len(running) < most and (lost or not exhausted):
                    taken: Any = lost.pop() if lost else (next(queue, NO_JOB), 1)
                    job, attempt = taken
                    if job is NO_JOB:
                        exhausted = True
                        break
                    job = _with_own_target(job)
                    running[do.remote(function, limits, self.token, job)] = job, attempt
                if not running:
                    return
                with _sigterm_after():
                    ready, _ = ray.wait(list(running), timeout=WAIT_SECONDS)
                    answers = [(running.pop(done), _answer(done)) for done in ready]
                for (job, attempt), answer in answers:
                    if answer is None and attempt == ATTEMPTS:
                        raise Stopped(
                            f"{ATTEMPTS} nodes or Ray workers died with {job[0]}; see Ray's logs "
                            "for why (their memory?), then repeat the command to continue."
                        )
                    if answer is None:
                        lost.append((job, attempt + 1))
                    elif "result" in answer:
                        yield Result(job, *answer["result"])
                    elif answer["unseen"] == self.token or os.path.exists(answer["unseen"]):
                        raise InputError(_not_shared(answer["node"], answer["unseen"]))
                    else:  # nor is the original here: somebody has removed it
                        yield from run_isolated(function, [job], n_worker=1, limits=limits)
        finally:
            for left in running:
                ray.cancel(left, force=True)

    def _count_cpus(self) -> int:
        import ray

        if time.monotonic() - self._counted >= CPUS_EVERY:
            self._counted = time.monotonic()
            self._n_cpus = int(ray.cluster_resources().get("CPU", 0))
        return max(1, self._n_cpus)  # one waits for nodes to come (back)


@contextmanager
def ray_pool(address: str, folder: Path) -> Iterator[RayPool]:
    """Connect to a cluster and make sure that all its nodes see `folder`.

    Raises:
        InputError: Ray is not installed or does not answer, or a node cannot do the work.
    """
    if find_spec("ray") is None:
        raise InputError("--executor ray needs Ray on every node: pip install 'kinetics400[ray]'.")
    _check_answers(address)
    import ray

    with _sigterm_after():
        ray.init(address=address, logging_level=logging.ERROR)
    token = folder / f"cluster-{uuid.uuid4().hex}"
    try:
        write_atomic(token, "")
        with _sigterm_after():
            _check_nodes(str(token))
        yield RayPool(str(token))
    finally:
        ray.shutdown()
        token.unlink(missing_ok=True)


@contextmanager
def _sigterm_after() -> Iterator[None]:
    """Let SIGTERM take effect after the block, and leave its handler as it was.

    Ray puts a handler of its own there, and makes a `SystemError` of what a handler raises.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
    if came:
        signal.raise_signal(signal.SIGTERM)


def _check_answers(address: str) -> None:
    """Connect in another process first: where nobody answers, Ray waits for ever or aborts."""
    code = "import sys, ray; ray.init(address=sys.argv[1], logging_level=40)"
    command = [sys.executable, "-c", code, address]
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=CONNECT_SECONDS
        )
    except subprocess.TimeoutExpired:
        reason = f"no answer within {CONNECT_SECONDS:.0f} s"
    else:
        if ran.returncode == 0:
            return
        reason = (ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"])[-1]
    raise InputError(
        f"--ray_address {address}: no Ray cluster there ({reason}). Start one with 'ray start "
        "--head' and 'ray start --address HOST:6379' on the other nodes, and run this command on "
        "one of them; docs/clusters.md has examples."
    )


def _check_nodes(token: str) -> None:
    """Ask every node whether it sees the library and has the same versions."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = ray.remote(num_cpus=0, max_retries=0)(_probe)
    nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]
    if not nodes:
        raise InputError("--executor ray: no node of the cluster has a CPU.")
    asked = {}
    for node in nodes:
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        asked[probe.options(scheduling_strategy=here).remote(token)] = name
    ready, waiting = ray.wait(list(asked), num_returns=len(asked), timeout=PROBE_SECONDS)
    for late in waiting:
        raise InputError(f"node {asked[late]} does not answer within {PROBE_SECONDS:.0f} s.")
    ours = json.loads(_probe(token))
    for answered in ready:
        try:
            theirs = json.loads(ray.get(answered))
        except ray.exceptions.RayTaskError as error:
            last = str(error).strip().splitlines()[-1]
            raise InputError(
                f"node {asked[answered]} cannot run kinetics400 ({last}). Install it there as "
                "here, or lay the checkout on storage that all nodes see."
            ) from error
        except ray.exceptions.TaskUnschedulableError:
            continue  # it died a moment ago
        except _died():
            continue
        if not theirs["sees"]:
            raise InputError(_not_shared(asked[answered], token))
        if theirs != ours:
            raise InputError(
                f"node {asked[answered]} has {theirs['versions']}, this process "
                f"{ours['versions']}: install the same, or videos are stored differently."
            )


def _not_shared(node: str, path: str) -> str:
    return (
        f"node {node} does not see {path}. Sources and --data_dir must lie on storage that all "
        "nodes see under one path (docs/clusters.md)."
    )


def _answer(done: Any) -> dict[str, Any] | None:
    """What a task has to say; None if its node or worker died, which says nothing of the video."""
    import ray

    try:
        return json.loads(ray.get(done))
    except _died():
        return None


def _died() -> tuple[type[Exception], ...]:
    """What Ray raises for a task whose node or worker is no more."""
    from ray import exceptions as errors

    return (
        *(errors.NodeDiedError, errors.WorkerCrashedError, errors.LocalRayletDiedError),
        *(errors.OutOfMemoryError, errors.ObjectLostError),
    )


def _with_own_target(job: Job) -> Job:
    source, target, settings = job
    base, suffix = os.path.splitext(target)
    return source, f"{base}-{uuid.uuid4().hex}{suffix}", settings


# --- on the nodes: values travel back as JSON -----------------------------------------------------


def _probe(token: str) -> str:
    versions = {"kinetics400": __version__, "PyAV": version("av")}
    return json.dumps({"sees": os.path.exists(token), "versions": versions})


def _do(function: Callable[[Job], Any], limits: JobLimits, token: str, job: Job) -> str:
    """Have one job done by this worker's isolated child."""
    for path in (token, job[0]):
        if not os.path.exists(path):
            return json.dumps({"unseen": path, "node": socket.gethostname()})
    if _children.get("for") != (function, limits):
        # The child would run the Ray worker's own script once more, and hold what that imports.
        sys.modules["__main__"].__dict__.pop("__file__", None)
        _children["for"] = function, limits
        _children["results"] = run_isolated(function, _given(), n_worker=1, limits=limits)
    _children["job"] = job
    result = next(_children["results"])
    return json.dumps({"result": [result.value, result.failure, result.detail]})


def _given() -> Iterator[Job]:
    """`run_isolated` takes a job when the one before has its result, and no sooner."""
    while True:
        yield _children["job"]
