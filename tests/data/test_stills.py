"""Still pictures between two jumps, in numbers and in a video."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest

from kinetics400.data.annotations import label_names
from kinetics400.data.checkup import Rules, check_library
from kinetics400.data.checkup_full import check_pictures, examine
from kinetics400.data.findings import WARNING
from kinetics400.data.stills import ChangeMeter, still_spans

MOVES, STANDS = [5.0] * 20, [0.2] * 15


@pytest.mark.parametrize(
    ("changes", "spans"),
    [
        ([0.0, *MOVES, 30.0, *STANDS, 40.0, *MOVES], [(21, 36)]),
        ([0.0, *MOVES, 30.0, *STANDS, 40.0, *STANDS, 40.0, *MOVES], []),  # slides
        ([0.0, *MOVES, 30.0, *STANDS[:10], 40.0, *MOVES], []),  # eleven frames
        ([0.0, *MOVES, 30.0, *STANDS[:11], 40.0, *MOVES], [(21, 32)]),  # twelve
        ([0.0, *MOVES, 30.0, *STANDS, 8.0, *MOVES], []),  # it starts to move
        ([0.0, *MOVES, 8.0, *STANDS, 40.0, *MOVES], []),  # it came to rest
        ([0.0, *STANDS, 40.0, *MOVES], []),  # a title at the beginning
        ([0.0, *MOVES, 30.0, *STANDS], []),  # and one at the end
        ([0.0, *[0.5] * 20, 30.0, *STANDS, 40.0, *MOVES], []),  # nothing moved before
        ([0.0, *MOVES, 30.0, *STANDS, 40.0, *[0.5] * 20], []),  # nor after
        ([0.0, *[0.0, 9.0] * 40], []),  # each frame twice
        ([0.0, *(2 * [*MOVES, 30.0, *STANDS, 40.0]), *MOVES], [(21, 36), (58, 73)]),
        ([0.0], []),
        ([], []),
    ],
)
def test_spans(changes: Sequence[float], spans: list[tuple[int, int]]) -> None:
    assert still_spans(changes) == spans


def write(path: Path, frames: Sequence[np.ndarray]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "20", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def filmed(n_frames: int) -> list[np.ndarray]:
    """A camera that pans over a picture with edges."""
    rng = np.random.default_rng(3)
    canvas = rng.integers(0, 256, (12, 80, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    return [np.ascontiguousarray(canvas[:, 4 * i : 4 * i + 128]) for i in range(n_frames)]


def torn(image: np.ndarray) -> np.ndarray:
    """Its lower half smeared downwards, the rest in foreign blocks: what a lost packet leaves."""
    picture = image.copy()
    picture[48:] = picture[47]
    blocks = np.random.default_rng(5).integers(0, 256, (3, 8, 3), dtype=np.uint8)
    picture[:48] = blocks.repeat(16, 0).repeat(16, 1)
    return picture


def test_a_frozen_torn_picture_is_found_and_a_whole_video_is_not(tmp_path: Path) -> None:
    frames = filmed(100)
    whole = write(tmp_path / "whole.mp4", frames)
    frames[40:70] = [torn(frames[40])] * 30
    broken = write(tmp_path / "broken.mp4", frames)
    assert examine(str(whole))["stills"] == ""
    row = examine(str(broken))
    assert (row["reason"], row["stills"]) == ("", "40–69")


def test_the_check_up_names_the_video_and_its_frames(library: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(library, tmp_path / "Kinetics-400"))
    frames = filmed(100)
    frames[40:70] = [torn(frames[40])] * 30
    write(folder / "videos_val/val_02.mp4", frames)
    checkup = check_library(folder, Rules(4, label_names(), 4, 1))
    assert not checkup.findings
    (finding,) = check_pictures(checkup, 1)
    named = (finding.reason, finding.split, finding.path, finding.detail, finding.level)
    assert named == ("still picture", "val", "val_02.mp4", "frames 40–69", WARNING)


def test_changes_are_mean_grey_levels(tmp_path: Path) -> None:
    meter = ChangeMeter()
    for level in (10, 30, 25):
        grey = np.full((96, 128), level, np.uint8)
        meter.add(av.VideoFrame.from_ndarray(grey, format="gray"))
    assert meter.changes == pytest.approx([0, 20, 5], abs=1)
