"""No child outlives its parent, whatever either of them is doing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHILD = """
import os, signal, sys, time
from kinetics400.data.orphans import die_with_parent
parent = os.getpid()
child = os.fork()
if child == 0:
    if "--guarded" in sys.argv:
        die_with_parent(parent)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(os.getpid(), flush=True)
    time.sleep(60)
    os._exit(0)
time.sleep(60)
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends orphans")
@pytest.mark.parametrize("guarded", [True, False])
def test_a_child_ends_with_its_parent(guarded: bool) -> None:
    """The second case is the negative control: without the call it stays."""
    flags = ["--guarded"] if guarded else []
    parent = subprocess.Popen(
        [sys.executable, "-c", CHILD, *flags], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    end = time.monotonic() + (10 if guarded else 0.5)
    while is_alive(child) and time.monotonic() < end:
        time.sleep(0.02)
    left = is_alive(child)
    if left:
        os.kill(child, signal.SIGKILL)
    parent.stdout.close()
    assert left is not guarded


def test_a_child_whose_parent_is_gone_ends_at_once() -> None:
    code = (
        "import os; from kinetics400.data.orphans import die_with_parent; "
        "die_with_parent(os.getppid() + 1); print('still here')"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (told.returncode, told.stdout) == (1, "")
