"""What the store costs: bytes, luma PSNR, and the time of encoding against a bare loop.

No torch: the encodings run in one small isolated process, as preprocessing does.
Shapes: H, W.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import zip_longest
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from kinetics400.data.isolation import run_isolated
from kinetics400.data.pyramid import encoder_options
from kinetics400.data.transcode import EncodeSettings, stored_size, transcode_video
from kinetics400.errors import StorageError

IDENTICAL_DB = 100.0  # stands for infinity, so that a mean over frames stays a number


WARM_UP = -1  # the repeat that is not counted: it loads libraries and starts the process


@dataclass(frozen=True)
class Job:
    """One encoding."""

    video: int
    repeat: int
    kind: str
    """"product" or "bare"."""
    source: str
    target: str
    settings: EncodeSettings


@dataclass(frozen=True)
class Encoding:
    """How long one encoding took, start-up of the process excluded."""

    video: int
    repeat: int
    kind: str
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Store:
    """The videos that were accepted, and what it took to store them."""

    originals: list[str]
    pyramids: list[str]
    refused: dict[str, str]
    """Path of an original → why preprocessing, or the bare loop, did not take it."""
    encodings: list[Encoding]
    """`video` counts in `originals`."""


# --- in the child ---------------------------------------------------------------------------------


def encode(job: Job) -> dict[str, Any]:
    """Do a job in the isolated process; what it took and what it gave, as JSON."""
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        if job.kind == "product":
            answer = asdict(transcode_video(job.source, job.target, job.settings))
        else:
            answer = bare_loop(job.source, job.target, job.settings)
    except StorageError as error:
        answer = {"storage_error": str(error)}
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "answer": answer}


def bare_loop(source: str, target: str, settings: EncodeSettings) -> dict[str, Any]:
    """Decode, scale, encode with the same settings of x264, and nothing else: no verification."""
    options = encoder_options(settings.crf, settings.preset, settings.keyframe_interval)
    n_frames = 0
    try:
        with av.open(source) as reader, av.open(target, "w", format="mp4") as writer:
            video = reader.streams.video[0]
            video.codec_context.thread_count = 1
            rate = video.average_rate or video.guessed_rate or Fraction(30)
            output = writer.add_stream("libx264", rate=rate, options=options)
            size = stored_size(video.width, video.height, settings)
            output.width, output.height, output.pix_fmt = *size, "yuv420p"
            to_size = VideoReformatter()
            for frame in reader.decode(video):
                picture = _scaled(to_size, frame, *size)
                # Not the source's frame types, or they would decide where B and key frames go.
                picture.pict_type, picture.pts, picture.time_base = 0, n_frames, 1 / rate
                writer.mux(output.encode(picture))
                n_frames += 1
            writer.mux(output.encode())
    except FFmpegError as error:
        return {"reason": "the bare loop failed", "detail": error.strerror or ""}
    return {"n_frames": n_frames}


def _scaled(scaler: VideoReformatter, frame: av.VideoFrame, width: int, height: int) -> Any:
    """The frame in the store's size and pixel format."""
    return scaler.reformat(
        frame,
        width,
        height,
        "yuv420p",
        interpolation=Interpolation.BICUBIC,
        dst_color_range=ColorRange.MPEG,
        threads=1,
    )


# --- in the parent --------------------------------------------------------------------------------


def measure_store(
    sources: Sequence[str], folder: Path, settings: EncodeSettings, *, repeats: int
) -> Store:
    """Encode every source `repeats` times both ways, alternating, in one isolated process.

    The child inherits this thread's core. The pyramids stay in `folder`.

    Raises:
        StorageError: the disk is full or failing.
    """
    pyramids = [str(folder / f"{number}.mp4") for number in range(len(sources))]
    refused: dict[str, str] = {}
    done: list[Encoding] = []

    def jobs() -> Iterator[Job]:
        for video, repeat, kind in _order(len(sources), repeats):
            target = pyramids[video] if kind == "product" else str(folder / "bare.mp4")
            if sources[video] not in refused:
                yield Job(video, repeat, kind, sources[video], target, settings)

    for result in run_isolated(encode, jobs(), n_worker=1):
        job, value = result.job, result.value
        problem = f"{result.failure} ({result.detail})" if value is None else _problem(value)
        if problem:
            refused[job.source] = problem
        elif value is not None and job.repeat != WARM_UP:
            times = value["seconds"], value["cpu_seconds"]
            done.append(Encoding(job.video, job.repeat, job.kind, *times))
    kept = [video for video, source in enumerate(sources) if source not in refused]
    return Store(
        originals=[sources[video] for video in kept],
        pyramids=[pyramids[video] for video in kept],
        refused=refused,
        encodings=[replace(one, video=kept.index(one.video)) for one in done if one.video in kept],
    )


def _order(num_videos: int, repeats: int) -> Iterator[tuple[int, int, str]]:
    """(video, repeat, kind) of every job; which kind goes first alternates.

    The product goes first at first: it has the better reasons for what it refuses.
    """
    kinds = ("product", "bare")
    yield 0, WARM_UP, "product"
    for repeat in range(repeats):
        for video in range(num_videos):
            for kind in reversed(kinds) if repeat % 2 else kinds:
                yield video, repeat, kind


def _problem(value: dict[str, Any]) -> str | None:
    answer = value["answer"]
    if "storage_error" in answer:
        raise StorageError(answer["storage_error"])
    if "reason" in answer:
        return f"{answer['reason']}: {answer['detail']}"
    return None


def seconds_per_video(encodings: Sequence[Encoding], kind: str) -> float:
    """CPU seconds for one video: the median over repeats of the mean over videos."""
    repeats = {one.repeat for one in encodings}
    means = [
        np.mean([o.cpu_seconds for o in encodings if o.repeat == repeat and o.kind == kind])
        for repeat in repeats
    ]
    return float(np.median(means))


def luma_psnr(original: str, stored: str) -> float | None:
    """Mean over the frames of the luma's PSNR, dB; None where the frames do not correspond.

    The reference is the original, scaled to the stored size (bicubic). Frames are paired in order,
    which means nothing where a variable frame rate was made constant, or pixels were turned.
    """
    values = []
    scaler = VideoReformatter()
    with av.open(original) as source, av.open(stored) as store:
        for container in (source, store):
            container.streams.video[0].codec_context.thread_count = 1
        for before, after in zip_longest(source.decode(video=0), store.decode(video=0)):
            if before is None or after is None or before.rotation:
                return None
            reference = _luma(_scaled(scaler, before, after.width, after.height))
            error = np.mean(np.square(reference - _luma(after)))
            values.append(10 * math.log10(255**2 / error) if error else IDENTICAL_DB)
    return float(np.mean(values)) if values else None


def _luma(frame: av.VideoFrame) -> np.ndarray:
    """(H, W) float32."""
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    return rows[: frame.height, : frame.width].astype(np.float32)
