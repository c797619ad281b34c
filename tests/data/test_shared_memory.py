"""What a loader's workers need of /dev/shm."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kinetics400.data import shared_memory
from kinetics400.data.shared_memory import clip_bytes, needed_bytes, shortage


def test_the_promised_pretraining_needs_five_gigabytes_per_device() -> None:
    """Batch 64, 16 workers, 2 batches each ahead: 4.9 GB, and one batch that is being used."""
    one = clip_bytes(16, 224)
    assert one == 2_408_448
    need = needed_bytes(clips_per_batch=64, bytes_per_clip=one, num_workers=16)
    assert need == 33 * 64 * one
    assert 4.9e9 < need - 64 * one < 5.0e9
    eight = needed_bytes(clips_per_batch=64, bytes_per_clip=one, num_workers=16, num_loaders=8)
    assert eight == 8 * need


def test_without_workers_nothing_is_shared() -> None:
    assert needed_bytes(clips_per_batch=64, bytes_per_clip=10, num_workers=0, num_loaders=8) == 0


def test_three_fifths_of_what_is_free_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "free_bytes", lambda: 1000)
    assert shortage(600) is None
    message = shortage(601)
    assert message is not None
    assert "--n_worker" in message and "--shm-size" in message


def test_a_system_without_a_limit_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "FOLDER", Path("/no such folder"))
    assert shortage(1 << 60) is None


def test_a_small_file_system_is_seen() -> None:
    """As in a container: /dev/shm of 8 MB, in a mount namespace of its own."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare to make a small /dev/shm with")
    code = "from kinetics400.data.shared_memory import free_bytes; print(free_bytes())"
    mount = "mount -t tmpfs -o size=8m tmpfs /dev/shm"
    command = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$0" -c "$1"', sys.executable, code]
    told = subprocess.run(command, capture_output=True, text=True)
    if "unshare failed" in told.stderr or "permission denied" in told.stderr:
        pytest.skip("the kernel allows no namespaces here")
    assert told.returncode == 0, told.stderr
    assert int(told.stdout) == 8 << 20
