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


def growth(dataset: ClipDataset, batch_size: int, epochs: int, first: int) -> tuple[int, int]:
    """Videos read in so many epochs, and bytes by which a worker's private memory grew.

    From batch `first` on: before, the worker writes to much for the first time.
    """
    layout = Layout(batch_size=batch_size)
    total = epochs * layout.steps_per_epoch(len(dataset))
    loader = train_loader(dataset, layout, start_step=0, total_steps=total, num_workers=1)
    batches = iter(loader)
    (worker,) = batches._workers  # type: ignore[attr-defined]
    gc.freeze()  # collecting would write to what this process shares with the worker
    n_read = before = after = 0
    for number, (batch, failures) in enumerate(batches):
        assert not failures
        n_read += len(batch.labels)
        if number == first:
            before = private_bytes(worker.pid)
        if number == total - 1 - PREFETCH:  # the last ones are on their way, and the worker ends
            after = private_bytes(worker.pid)
    assert before and after
    return n_read, after - before


def test_three_epochs_of_all_videos(
    monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    """The real loader with all rows; only the files are not there."""
    monkeypatch.setattr(dataset_module, "VideoReader", Still)
    rows = ((f"class {i % 400:03}/{i:011}_000{i % 10:03}.mp4", i % 400) for i in range(VIDEOS))
    dataset = clips(VideoTable.from_rows(rows, "/data/videos"), size=16)
    n_read, grown = growth(dataset, batch_size=256, epochs=3, first=20)
    assert n_read == 3 * (VIDEOS // 256) * 256
    record_property("figure", f"{grown / 2**20:.1f} MiB in {n_read:,} videos")
    assert grown <= MOST


def test_twenty_thousand_decoded_clips(make_video: Callable[..., Path], tmp_path: Path) -> None:
    """Opening and decoding keeps nothing either."""
    names = [make_video(tmp_path / f"{i}.mp4", seed=i).name for i in range(20)]
    dataset = clips(VideoTable.from_rows(((n, 0) for n in names), str(tmp_path)), size=48)
    n_read, grown = growth(dataset, batch_size=20, epochs=1000, first=100)
    assert n_read == 20_000
    assert grown <= MOST
