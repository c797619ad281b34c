"""Decide whether a video is usable, by decoding all of it. Runs in isolated processes: no torch."""

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from kinetics400.data.containers import (
    SUFFIX_DEMUXER,
    TIMED_DEMUXERS,
    open_video,
    sniff,
    top_boxes,
)

# 8K UHD. Decoded frames beyond it are bombs, not clips.
MAX_PIXELS = 7680 * 4320
MIN_FRAMES = 2


@dataclass(frozen=True)
class VideoInfo:
    """A video that decodes from the first frame to the last."""

    n_frames: int
    fps: float
    width: int
    height: int
    n_bytes: int


@dataclass(frozen=True)
class Refused:
    """A video that is not usable: one of a few reasons, and the particulars."""

    reason: str
    detail: str = ""


@dataclass
class Stream:
    """A source that is being decoded, and what its header and packets promise."""

    container: InputContainer
    video: VideoStream
    context: VideoCodecContext
    n_packets: int
    times: list[int] | None
    """Sorted times of all frames that are shown, in units of the time base; None if unknown."""


class Refusal(Exception):
    """Carries the verdict out of the frames' iterator."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.verdict = Refused(reason, detail)


def verify_video(
    path: str, look: Callable[[av.VideoFrame], None] = lambda frame: None
) -> VideoInfo | Refused:
    """Decode every frame of the first video stream and compare with what the header promises.

    FFmpeg's tools exit 0 on a file cut to 60 % and on 200 flipped bits, so errors are made fatal
    (`err_detect=explode`) and frames are counted.

    Args:
        path: of the video.
        look: called with every frame, as it is shown.
    """

    def consume(stream: Stream) -> VideoInfo | Refused:
        n_frames = 0
        for frame in verified_frames(stream):
            look(frame)
            n_frames += 1
        rate = stream.video.average_rate or stream.video.guessed_rate or Fraction(0)
        size = (stream.context.width, stream.context.height)
        return VideoInfo(n_frames, float(rate), *size, os.path.getsize(path))

    return with_source(path, consume)


def with_source(path: str, consume: Callable[[Stream], VideoInfo | Refused]) -> VideoInfo | Refused:
    """Check the file, open it, hand it over; every failure of the source becomes a verdict."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return Refused("not a video", "not a regular file")
        if status.st_size == 0:
            return Refused("empty file")
        demuxer = sniff(path)
    except FileNotFoundError:
        return Refused("absent")
    except OSError as error:
        return Refused("unreadable", error.strerror or str(error))
    if demuxer is None:
        return Refused("not a video", "its first bytes are no MP4, Matroska/WebM or AVI")
    if demuxer != SUFFIX_DEMUXER.get(os.path.splitext(path)[1].lower()):
        return Refused("wrong extension", f"the content is {demuxer}")
    try:
        with open_video(path, demuxer, err_detect="explode") as container:
            return consume(_open_stream(container, demuxer))
    except Refusal as refusal:
        return refusal.verdict
    except FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
        return _diagnose(path, demuxer, status.st_size, error)


def _open_stream(container: InputContainer, demuxer: str) -> Stream:
    if not container.streams.video:
        raise Refusal("no video stream")
    video = container.streams.video[0]
    context: VideoCodecContext | None = video.codec_context  # the stub hides the None
    if context is None or video.time_base is None:
        raise Refusal("damaged", "no decoder or no time base")
    if context.width * context.height > MAX_PIXELS:
        raise Refusal("too large", f"{context.width}×{context.height} pixels per frame")
    context.thread_count = 1  # one process per core already
    context.options = {"err_detect": "explode+crccheck", "max_pixels": str(MAX_PIXELS)}
    shown = [p.pts for p in container.demux(video) if p.size > 0 and not p.is_discard]
    container.seek(0)
    known = sorted({pts for pts in shown if pts is not None})
    timed = demuxer in TIMED_DEMUXERS and len(known) == len(shown)
    return Stream(container, video, context, len(shown), known if timed else None)


def verified_frames(stream: Stream) -> Iterator[av.VideoFrame]:
    """All frames as they are shown; at the end they are held against the header.

    Raises:
        Refusal: a frame is corrupt, or frames are missing.
        FFmpegError: the decoder found an error.
    """
    n_frames = 0
    first: int | None = None
    end = 0
    for frame in stream.container.decode(stream.video):
        if frame.is_corrupt:
            raise Refusal("damaged", f"frame {n_frames} is corrupt")
        n_frames += 1
        if frame.pts is not None:
            first = frame.pts if first is None else min(first, frame.pts)
            end = max(end, frame.pts + (frame.duration or 0))
        yield frame
    assert stream.video.time_base is not None
    start = first or 0
    if stream.video.duration is None:  # Matroska's durations count from 0, not from the first frame
        start = min(start, 0)
    span = float((end - start) * stream.video.time_base)
    _check_complete(stream, n_frames, span)


def _check_complete(stream: Stream, n_frames: int, span: float) -> None:
    """What is missing against the packets, the header's frame count and its duration.

    The header alone proves nothing: AVI counts a frame too many, edit lists hide frames, and
    Matroska has no count; so a file is truncated when count (where there is one) and duration
    both say so.
    """
    promised = stream.video.frames
    if n_frames < MIN_FRAMES:
        raise Refusal("too short", f"{n_frames} frame(s) decode")
    if n_frames < stream.n_packets - max(1, stream.n_packets // 100):
        raise Refusal("damaged", f"{n_frames} of {stream.n_packets} frames decode")
    few = not promised or n_frames < promised - max(1, promised // 100)
    duration, tolerance = _promised_seconds(stream)
    if few and duration is not None and span < duration - tolerance:
        raise Refusal("truncated", f"{n_frames} frames end at {span:.2f} s of {duration:.2f} s")


def _promised_seconds(stream: Stream) -> tuple[float | None, float]:
    """Duration in the header and how much may be missing, both in seconds."""
    video, container = stream.video, stream.container
    if video.duration is not None and video.time_base is not None:
        duration = float(video.duration * video.time_base)
        return duration, 0.1 + 0.01 * duration
    # Matroska's tag: "00:00:10.333000000"
    if tag := re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", video.metadata.get("DURATION", "")):
        duration = float(tag[1]) * 3600 + float(tag[2]) * 60 + float(tag[3])
        return duration, 0.1 + 0.01 * duration
    if container.duration is not None:
        # Of all streams: the audio may well go on for longer than the video.
        duration = container.duration / av.time_base
        return duration, 0.5 + 0.1 * duration
    return None, 0.0


def _diagnose(path: str, demuxer: str, n_bytes: int, error: FFmpegError) -> Refused:
    """Say more than "invalid data" about an MP4 that FFmpeg gave up on."""
    if demuxer == "mov":
        boxes, end = top_boxes(path, n_bytes)
        if end > n_bytes:
            return Refused("truncated", f"{n_bytes:,} of at least {end:,} bytes")
        if b"moov" not in boxes:
            return Refused("truncated", "no index (moov box)")
    return Refused("damaged", error.strerror or type(error).__name__)
