"""One run per folder."""

import os
import subprocess
import sys
from pathlib import Path
from threading import Timer

import pytest

from kinetics400.engine.lock import LOCK, locked
from kinetics400.errors import InputError

HOLD = (
    "import sys; from pathlib import Path; from kinetics400.engine.lock import locked\n"
    "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)


def test_a_second_run_is_refused_until_the_first_has_ended_however_it_ended(
    tmp_path: Path,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        at_once = Timer(5, holder.kill)  # who waited for it would then have the folder
        at_once.start()
        with (
            pytest.raises(InputError, match=f"in use by process {holder.pid} on .*--save_dir"),
            locked(tmp_path),
        ):
            pytest.fail("two runs in one folder")
        assert holder.poll() is None
        at_once.cancel()
        holder.kill()
        holder.wait()
    with locked(tmp_path):  # the dead process's name in it does not matter
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    with locked(tmp_path):
        pass


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / LOCK).symlink_to(tmp_path / "victim")
    with pytest.raises(InputError, match=r"\.lock is a link"), locked(tmp_path):
        pytest.fail("followed")
    assert (tmp_path / "victim").read_text() == "precious"
