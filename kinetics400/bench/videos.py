"""Videos to measure on: find them, describe them, make Kinetics-like ones.

No torch: they are made in small isolated processes.
Shapes: H, W, C channels (red, green, blue, unused).
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import Interpolation, VideoReformatter

from kinetics400.data.annotations import VIDEO_SUFFIXES
from kinetics400.data.isolation import run_isolated
from kinetics400.errors import InputError

WIDTH, HEIGHT, FPS, NUM_FRAMES = 340, 256, 30, 300
# x264 as most re-encodings of YouTube's videos set it, a keyframe every 250; but 20 instead of 23,
# for the bits that real ones spend on the artefacts of the encodings before.
ORIGINAL_OPTIONS = {
    **{"preset": "medium", "crf": "20", "g": "250", "threads": "1"},
    "x264-params": "cpu-independent=1",  # otherwise the bytes differ from call to call
}
# The scene is drawn on a larger canvas, so that motion has fractions of a pixel after scaling.
CANVAS_HEIGHT, CANVAS_WIDTH = 1080, 1400
WINDOW_SCALE = 1.9
GRAIN_SHIFT = 64  # grain is one field of noise, shifted by up to so many pixels in every frame


@dataclass(frozen=True)
class Scene:
    """What happens in a made video. Rates are per second, lengths in pixels of the canvas."""

    pan: float
    """How quickly the camera swings from side to side, radians per second; 0 on a tripod."""
    shake: float
    """Standard deviation of the hand's step from frame to frame."""
    zoom: float
    """Amplitude of the zoom, as a part of the frame's width."""
    sway: float
    """Amplitude of waves that bend the picture: local motion, as of water, leaves, cloth."""
    num_objects: int
    """Objects that cross the picture, each with a texture that flows over it."""
    contrast: float
    """Standard deviation of the textures, in grey levels."""
    grain: float = 0.7
    """Standard deviation of the film's noise, in grey levels."""
    cut: int = NUM_FRAMES
    """Frame at which the picture jumps; NUM_FRAMES never."""


# Chosen so that the results resemble real Kinetics clips (four of 340×256 to 426×240, 10 s) in what
# matters here: 0.34 to 1.1 Mbit/s; decord takes 59 to 156 ms for 16 frames at stride 4; the store
# takes 74 to 102 % of their bytes at 38 to 41 dB.
SCENES = (
    Scene(pan=0.5, shake=3.0, zoom=0.15, sway=2.0, num_objects=2, contrast=16),
    Scene(pan=1.1, shake=6.0, zoom=0.3, sway=7.0, num_objects=3, contrast=25),
    Scene(pan=0.0, shake=0.5, zoom=0.0, sway=1.0, num_objects=3, contrast=17, cut=190),
)


@dataclass(frozen=True)
class VideoFacts:
    """What a video file holds, by its header and its packets; nothing is decoded."""

    path: str
    codec: str
    width: int
    height: int
    fps: float
    num_frames: int
    keyframes: list[int]
    """Positions among the packets."""
    num_bytes: int

    @property
    def kbit_per_sec(self) -> float:
        """Of the whole file, sound included."""
        return self.num_bytes * 8e-3 * self.fps / self.num_frames


# --- finding and describing -----------------------------------------------------------------------


def find_videos(folder: Path) -> list[str]:
    """Paths of the videos in a folder, sorted.

    Raises:
        InputError: it is no folder, or there are none.
    """
    if not folder.is_dir():
        raise InputError(f"--videos {folder} is not a folder")
    found = sorted(str(path) for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES)
    if not found:
        raise InputError(f"--videos {folder} holds no video ({', '.join(VIDEO_SUFFIXES)})")
    return found


def describe(path: str) -> VideoFacts:
    """Read a file's header and packets.

    Raises:
        ValueError: it has no video stream, or cannot be opened.
    """
    try:
        with av.open(path, options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video:
                raise ValueError(f"{path} has no video stream")
            stream = container.streams.video[0]
            packets = [packet.is_keyframe for packet in container.demux(stream) if packet.size]
            rate = stream.average_rate or stream.guessed_rate
            if not packets or not rate:
                raise ValueError(f"{path} has no frames or no frame rate")
            return VideoFacts(
                path=path,
                codec=stream.codec_context.name,
                width=stream.width,
                height=stream.height,
                fps=float(rate),
                num_frames=len(packets),
                keyframes=[number for number, is_key in enumerate(packets) if is_key],
                num_bytes=os.path.getsize(path),
            )
    except FFmpegError as error:
        raise ValueError(f"{path} cannot be opened: {error.strerror}") from error


# --- making ---------------------------------------------------------------------------------------


def make_videos(folder: Path, count: int, *, seed: int = 0) -> list[str]:
    """Make `count` Kinetics-like videos, on all cores; the same numbers give the same pictures."""
    paths = [str(folder / f"made_{number}.mp4") for number in range(count)]
    n_worker = min(count, os.cpu_count() or 1)
    for result in run_isolated(_make, list(enumerate(paths, seed)), n_worker=n_worker):
        if result.failure is not None:
            raise RuntimeError(f"{result.job} cannot be made: {result.failure} ({result.detail})")
    return paths


def _make(job: tuple[int, str]) -> None:
    """One video: its seed, which also chooses the scene, and its path."""
    seed, path = job
    make_video(path, SCENES[seed % len(SCENES)], seed=seed)


def make_video(path: str, scene: Scene, *, seed: int, num_frames: int = NUM_FRAMES) -> None:
    """Film a scene: 340×256, 30 fps, H.264."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=ORIGINAL_OPTIONS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame in film(scene, seed, num_frames):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def film(scene: Scene, seed: int, num_frames: int) -> Iterator[av.VideoFrame]:
    """Frames of a scene, 4:2:0."""
    rng = np.random.default_rng(seed)
    canvas = texture(rng, CANVAS_HEIGHT, CANVAS_WIDTH, scene.contrast)
    objects = [MovingObject(rng, scene.contrast) for _ in range(scene.num_objects)]
    hand = np.cumsum(rng.standard_normal((num_frames, 2)), axis=0) * scene.shake
    hand -= np.linspace(0, 1, num_frames)[:, None] * hand[-1]  # back where it began
    size = (HEIGHT + GRAIN_SHIFT, WIDTH + GRAIN_SHIFT)
    grain = (rng.standard_normal(size) * scene.grain).round().astype(np.int16)
    to_yuv = VideoReformatter()
    for number in range(num_frames):
        view = look(canvas, scene, number / FPS, hand[number], after_cut=number >= scene.cut)
        for moving in objects:
            moving.draw(view, number / FPS)
        frame = av.VideoFrame.from_ndarray(view, format="rgba")
        small = to_yuv.reformat(
            frame, WIDTH, HEIGHT, "yuv420p", interpolation=Interpolation.BICUBIC, threads=1
        )
        planes = small.to_ndarray()  # luma rows, then chroma
        down, across = rng.integers(0, GRAIN_SHIFT, 2)
        luma = planes[:HEIGHT] + grain[down : down + HEIGHT, across : across + WIDTH]
        planes[:HEIGHT] = luma.clip(0, 255)
        yield av.VideoFrame.from_ndarray(planes, format="yuv420p")


def look(
    canvas: np.ndarray, scene: Scene, seconds: float, hand: np.ndarray, *, after_cut: bool
) -> np.ndarray:
    """The part of the canvas (H, W, C) that the camera sees; after a cut quite another one."""
    scale = WINDOW_SCALE * (1 + scene.zoom * math.sin(0.7 * seconds))
    height, width = round(HEIGHT * scale), round(WIDTH * scale)
    swing = scene.pan * seconds + (2.5 if after_cut else 0.0)
    free = np.array(canvas.shape[:2]) - (height, width) - 2 * math.ceil(scene.sway)
    centre = free / 2 * (1 + 0.8 * np.array([math.sin(0.6 * swing + 1), math.sin(swing + 2)]))
    top, left = (centre + hand).clip(0, free).astype(int) + math.ceil(scene.sway)
    rows, columns = np.arange(height), np.arange(width)
    bend_across = scene.sway * np.sin(rows / 23 + 3.1 * seconds)
    bend_down = scene.sway * np.sin(columns / 31 + 2.3 * seconds)
    row = (top + rows)[:, None] + bend_down.astype(int)
    column = (left + columns) + bend_across.astype(int)[:, None]
    pixels = canvas.view(np.uint32)[..., 0].ravel()  # whole pixels: one gather instead of four
    view = pixels[row * canvas.shape[1] + column]
    return view[..., None].view(np.uint8)


class MovingObject:
    """A blob that wanders through the picture while its texture flows over it."""

    FLOW = 150  # pixels that the texture flows to either side

    def __init__(self, rng: np.random.Generator, contrast: float) -> None:
        self.height, self.width = rng.integers(160, 320, 2)
        rows, columns = np.ogrid[-1 : 1 : self.height * 1j, -1 : 1 : self.width * 1j]
        lobes, turn = rng.integers(2, 6), rng.uniform(0, math.tau)
        outline = 0.8 + 0.2 * np.sin(lobes * np.arctan2(rows, columns) + turn)
        self.inside = (np.hypot(rows, columns) < outline)[..., None]
        self.texture = texture(
            rng, self.height + 2 * self.FLOW, self.width + 2 * self.FLOW, contrast
        )
        self.rates, self.phases = rng.uniform(0.5, 1.5, 4), rng.uniform(0, math.tau, 4)

    def draw(self, view: np.ndarray, seconds: float) -> None:
        """Paint it into the picture (H, W, C)."""
        place = (1 + 0.9 * np.sin(self.rates * seconds + self.phases)) / 2
        free = np.array([*view.shape[:2], *self.texture.shape[:2]]).reshape(2, 2)
        free -= (self.height, self.width)
        (top, left), (down, across) = (place.reshape(2, 2) * free).astype(int)
        part = self.texture[down : down + self.height, across : across + self.width]
        target = view[top : top + self.height, left : left + self.width]
        np.copyto(target, part, where=self.inside)


def texture(rng: np.random.Generator, height: int, width: int, contrast: float) -> np.ndarray:
    """Patches of colour with sharp borders, and detail over them: (H, W, C) uint8.

    Both have the spectra of photographs: amplitudes fall with a power of the frequency.
    """
    patches = np.digitize(_spectral_noise(rng, height, width, 1.8), (-0.8, 0.0, 0.8))
    palette = 120 + rng.uniform(-45, 45, (4, 1)) + rng.uniform(-25, 25, (4, 3))
    detail = contrast * _spectral_noise(rng, height, width, 1.2) * (1 + 0.5 * (patches % 2))
    picture = np.empty((height, width, 4), np.uint8)
    for channel in range(3):
        picture[..., channel] = (palette[patches, channel] + detail).clip(0, 255)
    picture[..., 3] = 0
    return picture


def _spectral_noise(
    rng: np.random.Generator, height: int, width: int, exponent: float
) -> np.ndarray:
    """Noise whose amplitude falls with frequency**-exponent; mean 0, standard deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf  # no mean
    phases = np.exp(1j * rng.uniform(0, math.tau, frequency.shape))
    noise = np.fft.irfft2(frequency**-exponent * phases, s=(height, width))
    return noise / noise.std()
