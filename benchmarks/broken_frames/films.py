"""Videos in memory: make them, read them, encode them. No torch.

T frames, H, W pixels; luma (T, H, W) and chroma (T, 2, H/2, W/2), uint8.
"""

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from kinetics400.bench import videos
from kinetics400.bench.videos import FPS, HEIGHT, WIDTH, MovingObject, Scene, look, texture
from kinetics400.data.motion import MOTION_CLASSES, draw_scene, render_video

GRAIN_SHIFT = 64  # pixels


@dataclass
class Film:
    """A video in memory."""

    luma: np.ndarray
    chroma: np.ndarray

    def __len__(self) -> int:
        return len(self.luma)

    def copy(self) -> "Film":
        return Film(self.luma.copy(), self.chroma.copy())

    def __getitem__(self, frames: slice | Sequence[int]) -> "Film":
        return Film(self.luma[frames], self.chroma[frames])


def joined(*parts: Film) -> Film:
    """One after the other."""
    return Film(
        np.concatenate([part.luma for part in parts]),
        np.concatenate([part.chroma for part in parts]),
    )


def from_frames(frames: Iterable[av.VideoFrame]) -> Film:
    """Collect 4:2:0 frames of one size, both sides multiples of four."""
    luma, chroma = [], []
    for frame in frames:
        planes = frame.to_ndarray(format="yuv420p")
        height, width = planes.shape[0] * 2 // 3, planes.shape[1]
        luma.append(planes[:height])
        chroma.append(planes[height:].reshape(2, height // 2, width // 2))
    return Film(np.stack(luma), np.stack(chroma))


def to_frames(film: Film) -> Iterable[av.VideoFrame]:
    """Its pictures as frames, 4:2:0."""
    height, width = film.luma.shape[1:]
    for luma, chroma in zip(film.luma, film.chroma, strict=True):
        planes = np.concatenate([luma, chroma.reshape(height // 2, width)])
        yield av.VideoFrame.from_ndarray(np.ascontiguousarray(planes), format="yuv420p")


def scaled(film: Film, height: int) -> Film:
    """Resize, bicubic, keeping the shape of the picture as far as multiples of four allow."""
    width = round(film.luma.shape[2] * height / film.luma.shape[1] / 4) * 4
    reformatter = VideoReformatter()
    return from_frames(
        reformatter.reformat(frame, width, height, "yuv420p", interpolation="BICUBIC", threads=1)
        for frame in to_frames(film)
    )


def encode(film: Film, path: str | io.BytesIO, options: dict[str, str]) -> None:
    """Write an H.264 MP4; the same bytes every time."""
    with av.open(path, "w", format="mp4", container_options={"fflags": "+bitexact"}) as container:
        params = {"x264-params": "cpu-independent=1"}
        stream = container.add_stream(
            "libx264", rate=FPS, options={"threads": "1", **params, **options}
        )
        stream.height, stream.width = film.luma.shape[1:]
        stream.pix_fmt = "yuv420p"
        for frame in to_frames(film):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def read(path: str | io.BytesIO, *, most: int, size: tuple[int, int] | None = None) -> Film:
    """Decode the first frames of a video at a size (height, width), multiples of four.

    Without a size: its own, scaled down to the short side HEIGHT where it is larger.
    """
    reformatter = VideoReformatter()
    frames = []
    with av.open(path) as container:
        for frame in container.decode(video=0):
            scale = min(HEIGHT / min(frame.width, frame.height), 1)
            own = (round(side * scale / 4) * 4 for side in (frame.height, frame.width))
            height, width = size or own
            frames.append(
                reformatter.reformat(frame, width, height, "yuv420p", interpolation="BICUBIC")
            )
            if len(frames) == most:
                break
    return from_frames(frames)


# --- making ---------------------------------------------------------------------------------------


def draw_film(rng: np.random.Generator, n_frames: int) -> Film:
    """One take: textures, built things or smooth shades, under a camera that moves or does not."""
    if rng.random() < 0.2:
        return _shades(rng, n_frames)
    still = rng.random() < 0.3
    scene = Scene(
        pan=0.0 if still else rng.uniform(0, 1.6),
        shake=rng.choice([0.0, 0.5]) if still else rng.uniform(0, 8),
        zoom=0.0 if still else rng.uniform(0, 0.3),
        sway=rng.uniform(0, 8) * (rng.random() < 0.6),
        num_objects=int(rng.integers(0, 5)),
        contrast=rng.uniform(8, 38),
        grain=rng.choice([0.0, 0.7, 2.0, 5.0], p=[0.2, 0.4, 0.3, 0.1]),
    )
    canvas = texture(rng, videos.CANVAS_HEIGHT, videos.CANVAS_WIDTH, scene.contrast)
    if rng.random() < 0.5:
        build(rng, canvas)
    return from_frames(_take(rng, canvas, scene, n_frames))


def build(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Put walls, windows, boards and lettering into a canvas (H, W, C)."""
    for _ in range(int(rng.integers(5, 60))):
        height, width = np.exp(rng.uniform(math.log(12), math.log(400), 2)).astype(int)
        top, left = rng.integers(0, canvas.shape[0] - 12), rng.integers(0, canvas.shape[1] - 12)
        part = canvas[top : top + height, left : left + width, :3]
        kind = rng.random()
        colour = rng.integers(15, 240, 3)
        if kind < 0.4:
            part[:] = (0.35 * part + 0.65 * colour).astype(np.uint8)
        elif kind < 0.7:
            part[:] = colour
        elif kind < 0.85:  # bars
            period = int(rng.integers(8, 40))
            along = np.arange(part.shape[int(rng.integers(2))]) % period < period // 2
            target = part[along] if len(along) == len(part) else part[:, along]
            target = (0.3 * target + 0.7 * colour).astype(np.uint8)
            if len(along) == len(part):
                part[along] = target
            else:
                part[:, along] = target
        else:
            lettering(rng, part, colour)


def lettering(rng: np.random.Generator, part: np.ndarray, colour: np.ndarray) -> None:
    """Write lines of signs made of strokes into a picture (H, W, 3)."""
    size = int(rng.integers(10, 40))
    stroke = max(size // 6, 1)
    for top in range(4, part.shape[0] - size, size * 3 // 2):
        for left in range(4, part.shape[1] - size, size * 4 // 5):
            if rng.random() < 0.15:
                continue
            sign = part[top : top + size, left : left + size * 2 // 3]
            for _ in range(3):
                at = int(rng.integers(0, size - stroke))
                if rng.random() < 0.5:
                    sign[at : at + stroke] = colour
                else:
                    at = at * 2 // 3
                    sign[:, at : at + stroke] = colour


def _take(
    rng: np.random.Generator, canvas: np.ndarray, scene: Scene, n_frames: int
) -> Iterable[av.VideoFrame]:
    """As videos.film, over a given canvas."""
    objects = [MovingObject(rng, scene.contrast) for _ in range(scene.num_objects)]
    hand = np.cumsum(rng.standard_normal((n_frames, 2)), axis=0) * scene.shake
    size = (HEIGHT + GRAIN_SHIFT, WIDTH + GRAIN_SHIFT)
    grain = (rng.standard_normal(size) * scene.grain).round().astype(np.int16)
    start = rng.uniform(0, 20)
    to_yuv = VideoReformatter()
    for number in range(n_frames):
        view = look(canvas, scene, start + number / FPS, hand[number], after_cut=False)
        for moving in objects:
            moving.draw(view, start + number / FPS)
        frame = av.VideoFrame.from_ndarray(view, format="rgba")
        small = to_yuv.reformat(frame, WIDTH, HEIGHT, "yuv420p", interpolation="BICUBIC", threads=1)
        planes = small.to_ndarray()
        down, across = rng.integers(0, GRAIN_SHIFT, 2)
        luma = planes[:HEIGHT] + grain[down : down + HEIGHT, across : across + WIDTH]
        planes[:HEIGHT] = luma.clip(0, 255)
        yield av.VideoFrame.from_ndarray(planes, format="yuv420p")


def _shades(rng: np.random.Generator, n_frames: int) -> Film:
    """The embedded motion dataset: smooth shades, one thing that moves."""
    key = tuple(int(part) for part in rng.integers(0, 2**31, 2))
    scene = draw_scene(int(rng.integers(len(MOTION_CLASSES))), key)
    scene = replace(scene, width=WIDTH, height=HEIGHT, n_frames=n_frames)
    noise = rng.choice([0.0, 0.7, 2.0])
    frames = render_video(scene)
    if noise:
        grain = (rng.standard_normal(frames.shape[1:3]) * noise).round().astype(np.int16)
        shifts = rng.integers(0, GRAIN_SHIFT, (n_frames, 2))
        for image, shift in zip(frames, shifts, strict=True):
            image[:] = (image + np.roll(grain, shift, (0, 1))[..., None]).clip(0, 255)
    return from_frames(av.VideoFrame.from_ndarray(image, format="rgb24") for image in frames)
