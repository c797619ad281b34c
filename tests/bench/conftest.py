"""Videos of a few frames, a reader that counts, and a store. Fixtures only: nothing is imported."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kinetics400.bench.store import Store
from kinetics400.data.transcode import EncodeSettings, transcode_video


@pytest.fixture(scope="session")
def original(make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """An H.264 video of 100 frames, 80×64, with a key frame every 40 and B frames."""
    path = tmp_path_factory.mktemp("original") / "video.mp4"
    return str(make_video(path, n_frames=100, height=64, width=80, options={"g": "40"}))


@pytest.fixture(scope="session")
def store(
    original: str, make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Store:
    """Two videos and their pyramids; nothing was timed."""
    folder = tmp_path_factory.mktemp("store")
    short = str(make_video(folder / "short.mp4", n_frames=40, seed=3))
    pyramids = []
    for number, source in enumerate((original, short)):
        pyramids.append(str(folder / f"{number}.mp4"))
        transcode_video(source, pyramids[-1], EncodeSettings(crf=12))
    return Store([original, short], pyramids, refused={}, encodings=[])
