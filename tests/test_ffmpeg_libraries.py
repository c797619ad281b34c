"""`benchmarks/ffmpeg_libraries.py`: the system's names lead to the libraries of PyAV's wheel."""

import os
import subprocess
import sys
from pathlib import Path

import av

ROOT = Path(__file__).parents[1]
# In a process of its own: where libraries are searched is read once, when it starts.
ASK = """
import ctypes, sys
codec = ctypes.CDLL(sys.argv[1])
print(codec.avcodec_version())
"""


def test_a_program_that_asks_for_ffmpeg_finds_pyavs(tmp_path: Path) -> None:
    script = str(ROOT / "benchmarks/ffmpeg_libraries.py")
    for _ in range(2):  # a second time over what is there
        made = subprocess.run(
            [sys.executable, script, str(tmp_path / "links")],
            capture_output=True,
            text=True,
            check=True,
        )
    major, minor, micro = av.library_versions["libavcodec"]
    asked = subprocess.run(
        [sys.executable, "-c", ASK, f"libavcodec.so.{major}"],
        env={**os.environ, "LD_LIBRARY_PATH": made.stdout.strip()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.stdout.split() == [str(major << 16 | minor << 8 | micro)], asked.stderr
