"""Time `kinetics400 doctor` on as many entries as Kinetics-400 has: `make doctor-proof`.

Every entry is a file of its own, a small MP4 whose bytes differ from all others'. Three runs of the
command: with nothing remembered, killed halfway and continued, and with everything remembered.
"""

import io
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from kinetics400.data.library import list_name, videos_name
from kinetics400.data.storage import write_atomic
from kinetics400.data.synthetic import encode_video

N_TRAIN, N_VAL = 226_739, 19_796  # 246,535 in all
NUM_CLASSES = 400


def make_library(folder: Path, n_train: int, n_val: int) -> None:
    """Write lists and videos; a free box behind each index tells the files apart."""
    buffer = io.BytesIO()
    encode_video(np.zeros((64, 16, 16, 3), np.uint8), buffer, Fraction(30))
    video = buffer.getvalue()
    for split, count in (("train", n_train), ("val", n_val)):
        root = folder / videos_name(split)
        root.mkdir(parents=True)
        lines = []
        for i in range(count):
            name = f"{split[0]}{i:010}.mp4"
            mark = (16).to_bytes(4) + b"free" + (i * 2 + (split == "val")).to_bytes(8)
            descriptor = os.open(root / name, os.O_WRONLY | os.O_CREAT)
            os.write(descriptor, video + mark)
            os.close(descriptor)
            lines.append(f"{name} {i % NUM_CLASSES}\n")
        (folder / list_name(split)).write_text("".join(lines))


def command(folder: Path) -> list[str]:
    """The doctor's command line."""
    return [sys.executable, "-m", "kinetics400", "doctor", "--data_dir", str(folder)]


def timed(folder: Path, report: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds of one run, by the clock and of CPU, and its report."""
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run([*command(folder), "--json", str(report)], capture_output=True, text=True)
    seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1)}, json.loads(
        report.read_text()
    )


def killed_and_continued(folder: Path, report: Path) -> tuple[int, dict[str, float]]:
    """Rows remembered by a run that was killed, and seconds of the run after it."""
    journal = folder / ".preprocess/doctor_headers.jsonl"
    journal.unlink()
    process = subprocess.Popen(
        command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 50_000):
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rows = journal.read_bytes().count(b"\n")
    return rows, timed(folder, report)[0]


def main(target: Path, scratch: Path | None) -> None:
    """Measure and write the JSON."""
    with tempfile.TemporaryDirectory(dir=scratch) as temporary:
        folder, report = Path(temporary) / "Kinetics-400", Path(temporary) / "report.json"
        start = time.monotonic()
        make_library(folder, N_TRAIN, N_VAL)
        making = time.monotonic() - start
        first, found = timed(folder, report)
        second, again = timed(folder, report)
        assert found["counts"] == again["counts"] == {}, found["counts"]
        rows, continued = killed_and_continued(folder, report)
        result = {
            "n_videos": N_TRAIN + N_VAL,
            "cores": len(os.sched_getaffinity(0)),
            "making_seconds": round(making, 1),
            "first": first,
            "second": second,
            "killed_after_rows": rows,
            "continued": continued,
        }
    write_atomic(target, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
