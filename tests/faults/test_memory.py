"""A worker's memory over epochs of all of Kinetics-400's videos. `make faults` runs it."""

import gc
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from kinetics400.data import dataset as dataset_module
from kinetics400.data.annotations import VideoTable
from kinetics400.data.dataset import ClipDataset
from kinetics400.data.loader import Layout, train_loader
from kinetics400.data.sampling import Box
from kinetics400.data.shared_memory import PREFETCH

pytestmark = pytest.mark.campaign

VIDEOS = 246_535
MOST = 5 * 2**20
Record = Callable[[str, object], None]


class Still:
    """Stands in for a reader of videos, to go through all of them in a minute."""

    height, width, fps = 16, 16, 30.0

    def __init__(self, path: str) -> None:
        self._shade = hash(path) % 256

    def __enter__(self) -> "Still":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __len__(self) -> int:
        return 300

    def read(self, indices: Sequence[int], *_: object, **__: object) -> np.ndarray:
        return np.full((len(indices), self.height, self.width, 3), self._shade, np.uint8)


def clips(table: VideoTable, size: int) -> ClipDataset:
    return ClipDataset(
        table,
        sample_frames=lambda length, fps, u: [int(u[0] * (length - 1)), length - 1],
        num_frame_draws=1,
        num_frames=2,
        sample_box=lambda height, width, u: Box(0, 0, size, size),
        num_box_draws=1,
        size=size,
        antialias=False,
        seed=0,
    )


def private_bytes(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * sum(int(size) for size in re.findall(r"Private_\w+: +(\d+) kB", text))


def levels(dataset: ClipDataset, num_batches: int) -> list[int]:
    """Least private bytes of a worker in each tenth of so many batches of 256 videos."""
    layout = Layout(batch_size=256)
    loader = train_loader(dataset, layout, start_step=0, total_steps=num_batches, num_workers=1)
    batches = iter(loader)
    (worker,) = batches._workers  # type: ignore[attr-defined]
    gc.freeze()  # collecting would write to what this process shares with the worker
    sizes = []
    for number, (_, failures) in enumerate(batches):
        assert not failures
        if number < num_batches - PREFETCH:  # the last ones are on their way, and the worker ends
            sizes.append(private_bytes(worker.pid))
    step = len(sizes) // 10
    return [min(sizes[start : start + step]) for start in range(0, 10 * step, step)]


def of_rows(count: int) -> ClipDataset:
    rows = ((f"class {i % 400:03}/{i:011}_000{i % 10:03}.mp4", i % 400) for i in range(count))
    return clips(VideoTable.from_rows(rows, "/data/videos"), size=16)


def test_three_epochs_of_all_videos(
    monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    """The real loader with all rows; only the files are not there. Beside a list of 512.

    A worker takes 20 MiB for itself in its first batches, whatever the list.
    """
    monkeypatch.setattr(dataset_module, "VideoReader", Still)
    batches = 3 * (VIDEOS // 256)
    few, many = levels(of_rows(512), batches // 4), levels(of_rows(VIDEOS), batches)
    for_rows, grown = many[-1] - few[-1], many[-1] - many[1]
    record_property(
        "figure",
        f"{for_rows / 2**20:.1f} MiB for the rows, {grown / 2**20:.1f} MiB more after "
        f"{256 * batches:,} videos",
    )
    assert for_rows <= MOST
    assert grown <= MOST
