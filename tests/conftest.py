"""Small videos and a small dataset, encoded here. Fixtures only: nothing is imported from here."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

# Before torch is imported, and for every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import av
import numpy as np
import pytest


def _encode(
    path: Path,
    *,
    n_frames: int = 48,
    height: int = 48,
    width: int = 64,
    fps: int | str = 30,
    seed: int = 0,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    times: list[int] | None = None,
    title: str = "",
) -> Path:
    """Encode moving noise, every frame unlike the others; `times` in ticks of 1/90 s if uneven."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    texture = coarse.repeat(-(-height // 6), axis=0).repeat(-(-width // 8), axis=1)
    texture = texture[:height, :width]
    step = rng.integers(1, 4)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=container_options or {}) as container:
        container.metadata["title"] = title
        stream = container.add_stream(codec, rate=Fraction(fps), options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1  # threads would not survive a loader's fork
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 90)
        for i in range(n_frames):
            image = np.roll(texture, int(step) * i, axis=1).copy()
            image[:4] = 255 * i // max(1, n_frames - 1)  # the frame's number as brightness
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 90)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    """`make_video(path, n_frames=, height=, width=, fps=, seed=, codec=, options= …)`."""
    return _encode


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preprocessed folder: 24 + 8 videos, 4 labels, one short and one portrait in each split.

    Shared by the whole session: copy it before changing anything in it.
    """
    folder = tmp_path_factory.mktemp("data") / "Kinetics-400"
    for split, count in (("train", 24), ("val", 8)):
        rows = []
        for i in range(count):
            name = f"{split}_{i:02}.mp4"
            height, width = (64, 48) if i == 1 else (48, 64)
            _encode(
                folder / f"videos_{split}" / name,
                n_frames=5 if i == 0 else 40 + i,
                height=height,
                width=width,
                seed=100 * (split == "val") + i,
            )
            rows.append(f"{name} {i % 4}\n")
        (folder / f"kinetics400_{split}_list_videos.txt").write_text("".join(rows))
    return folder


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny_flags() -> tuple[str, ...]:
    """A model that learns something in a second."""
    return (
        *("--model_name", "tiny", "--input_size", "32", "--patch_size", "8", "--num_frames", "4"),
        *("--sampling_rate", "2", "--lr", "1e-3", "--accelerator", "cpu"),
    )


@pytest.fixture(scope="session")
def start_run(library: Path, tiny_flags: tuple[str, ...]) -> Callable[..., subprocess.Popen[str]]:
    """`start_run("pretrain", save_dir, *flags, prelude="")`: a tiny model, in its own processes.

    `prelude` is Python, run by every rank before the command; `launcher` starts the script instead
    of Python. Standard output and error are pipes; the processes are a group.
    """

    def start(
        command: str,
        save_dir: Path,
        *flags: str,
        prelude: str = "",
        launcher: tuple[str, ...] = (sys.executable,),
    ) -> subprocess.Popen[str]:
        root = Path(__file__).resolve().parents[1]
        code = save_dir.with_suffix(".py")
        code.parent.mkdir(parents=True, exist_ok=True)
        code.write_text(
            f"import os, sys, time\nfrom kinetics400.__main__ import run_command\n{prelude}\n"
            f"sys.exit(run_command({command!r}, sys.argv[1:]))\n"
        )
        where = ("--data_dir", str(library), "--save_dir", str(save_dir))
        paths = [str(root), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        return subprocess.Popen(
            [*launcher, str(code), *tiny_flags, *where, *flags],
            cwd=root,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


@pytest.fixture(scope="session")
def outcome() -> Callable[..., tuple[int, str, str]]:
    """`code, out, err = outcome(process)`, of what `start_run` has started.

    A run that stands still is no slow one: it has `timeout` seconds, far more than a busy machine
    needs, and then the test fails with the stacks of all its processes.
    """

    def outcome(process: subprocess.Popen[str], timeout: float = 600) -> tuple[int, str, str]:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            for entry in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(ProcessLookupError):
                    if os.getpgid(int(entry.name)) == process.pid:
                        os.kill(int(entry.name), signal.SIGUSR2)
                        time.sleep(0.5)  # one after the other
            os.killpg(process.pid, signal.SIGKILL)
            _, err = process.communicate()
            pytest.fail(f"still running after {timeout} seconds:\n{err}")
        return process.returncode, out, err

    return outcome
