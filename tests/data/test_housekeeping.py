"""Locks and folders; what is remembered is tested through `preprocess`."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from kinetics400.data.housekeeping import Housekeeping
from kinetics400.data.shards import Shard
from kinetics400.errors import InputError


def test_run_that_stores_nothing_leaves_no_folder(tmp_path: Path) -> None:
    with Housekeeping(tmp_path / "data/library").held():
        assert (tmp_path / "data/library/.preprocess/lock").exists()
    assert os.listdir(tmp_path) == []


def test_shard_in_a_new_library_is_not_swept_away_by_a_run(tmp_path: Path) -> None:
    keeper = Housekeeping(tmp_path / "library")
    with keeper.held():
        (keeper.shards_folder / "1-of-2").mkdir(parents=True)
    assert keeper.shards() == [Shard(1, 2)]
    assert (keeper.home / "lock").exists()


def test_lock_that_its_holder_removes_meanwhile_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two processes would hold two files, one of which has no name."""
    keeper, flock, calls = Housekeeping(tmp_path), fcntl.flock, []

    def flock_late(descriptor: int, operation: int) -> None:
        if not calls:
            (keeper.home / "lock").unlink()
        calls.append(operation)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock_late)
    with keeper.held():
        assert len(calls) == 2 and (keeper.home / "lock").exists()
        with pytest.raises(InputError, match="another process"), Housekeeping(tmp_path).held():
            pass


def test_file_system_without_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with (
        pytest.raises(InputError, match=r"lock cannot be locked \(No locks available\)"),
        Housekeeping(tmp_path).held(),
    ):
        pass
    assert not [name for name in os.listdir("/proc/self/fd") if _leads_to(name, tmp_path)]


def _leads_to(descriptor: str, folder: Path) -> bool:
    path = f"/proc/self/fd/{descriptor}"
    return os.path.lexists(path) and os.readlink(path).startswith(str(folder))
