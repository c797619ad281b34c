"""The function under test runs `eval`, so that each job can misbehave in its own way."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kinetics400.data import isolation
from kinetics400.data.isolation import JobLimits, Result, run_isolated

LIMITS = JobLimits(seconds=2.0, cpu_seconds=60, address_space=600 << 20)


def run(jobs: list[str], n_worker: int = 2, limits: JobLimits = LIMITS) -> dict[str, Result]:
    return {r.job: r for r in run_isolated(eval, jobs, n_worker=n_worker, limits=limits)}


def test_every_job_gets_its_result_whatever_the_others_do(capfd: pytest.CaptureFixture) -> None:
    segfault = "__import__('os').kill(__import__('os').getpid(), 11)"
    hang = "__import__('time').sleep(60)"
    greedy = "len(bytearray(10**10))"
    buggy = "1 // 0"
    good = [f"{i} * {i}" for i in range(20)]
    start = time.monotonic()
    results = run([good[0], segfault, hang, greedy, buggy, *good[1:]])
    assert time.monotonic() - start < 20
    assert [results[job].value for job in good] == [i * i for i in range(20)]
    assert all(results[job].failure is None for job in good)
    assert results[segfault].failure == "crashed" and "signal 11" in results[segfault].detail
    assert results[hang].failure == "hung"
    assert results[greedy].failure == "out of memory"
    assert results[buggy].failure == "crashed" and "code 1" in results[buggy].detail
    assert "ZeroDivisionError" in capfd.readouterr().err  # its traceback is not lost


def test_without_jobs_no_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "_Child", None)  # starting one would be an error
    assert run([]) == {}


def test_busy_loop_is_stopped_by_the_cpu_limit() -> None:
    job = "sum(1 for _ in iter(int, 1))"
    result = run([job], limits=JobLimits(seconds=30.0, cpu_seconds=1))[job]
    assert (result.failure, result.detail) == ("hung", "used all its CPU time")


def test_children_are_confined() -> None:
    def in_child(expression: str) -> object:
        return run([expression])[expression].value

    assert in_child("__import__('os').getsid(0)") != os.getsid(0)
    limit = "__import__('resource').getrlimit(__import__('resource').RLIMIT_AS)[0]"
    assert in_child(limit) == LIMITS.address_space
    assert in_child("[m in __import__('sys').modules for m in ('torch', 'numpy')]") == [
        False,
        False,
    ]


def test_files_beyond_the_limit_are_not_written(tmp_path: Path) -> None:
    job = f"open({str(tmp_path / 'f')!r}, 'wb', buffering=0).write(bytes(5000))"
    assert run([job], limits=JobLimits(file_bytes=1000))[job].value == 1000
    assert (tmp_path / "f").stat().st_size == 1000


def test_answers_that_are_not_json_kill_only_the_child() -> None:
    nonsense = "__import__('os').write(3, b'x' * 64) and None"
    assert run(["{1, 2}"])["{1, 2}"].failure == "crashed"
    assert run([nonsense, "7"])["7"].value == 7


def test_leaving_early_kills_the_children() -> None:
    jobs = ["__import__('os').getpid()", "__import__('time').sleep(60)"]
    results = run_isolated(eval, jobs, n_worker=2, limits=LIMITS)
    pid = next(results).value
    results.close()
    assert not alive(pid)


def test_jobs_are_taken_only_as_needed() -> None:
    taken = 0

    def endless() -> object:
        nonlocal taken
        while True:
            taken += 1
            yield "1"

    results = run_isolated(eval, endless(), n_worker=2, limits=LIMITS)
    for _ in range(10):
        next(results)
    results.close()
    assert taken <= 10 + 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killing_the_parent_leaves_no_orphan(tmp_path: Path, number: int) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import signal\n"
        "from kinetics400.data.isolation import run_isolated\n"
        "if __name__ == '__main__':\n"
        # A shell starts what runs in the background with this signal ignored.
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    jobs = ['__import__(\"os\").getpid()', '__import__(\"time\").sleep(60)'] * 2\n"
        "    for result in run_isolated(eval, jobs, n_worker=2):\n"
        "        print(result.value, flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.send_signal(number)
        parent.wait(10)
    deadline = time.monotonic() + 5
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie waiting to be reaped."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] != "Z"


def test_children_compute_with_one_thread_and_the_parent_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    job = "[__import__('os').environ[n + '_NUM_THREADS'] for n in ('OPENBLAS', 'MKL')]"
    assert run([job])[job].value == ["1", "1"]
    assert os.environ["MKL_NUM_THREADS"] == "3"
    assert "OPENBLAS_NUM_THREADS" not in os.environ


def test_children_have_no_network() -> None:
    """Nothing but the loopback of a namespace of their own."""
    around = ("unshare", "-n") if os.geteuid() == 0 else ("unshare", "-rn")
    if not shutil.which("unshare") or subprocess.run([*around, "true"]).returncode:
        pytest.skip("the kernel allows no namespaces here")
    job = "[line.split(':')[0].strip() for line in open('/proc/net/dev') if ':' in line]"
    assert run([job])[job].value == ["lo"]
    own = "__import__('os').readlink('/proc/self/ns/net')"
    assert run([own])[own].value != os.readlink("/proc/self/ns/net")
