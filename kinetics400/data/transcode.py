"""Decide whether a video is usable, by decoding all of it. Runs in isolated processes: no torch."""

import os
import re
import stat
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

# 8K UHD. Decoded frames beyond it are bombs, not clips.
MAX_PIXELS = 7680 * 4320
MIN_FRAMES = 2
# FFmpeg reads whatever its probe recognises, also playlists that open other files; so the
# demuxer is chosen here, from the file's first bytes, and never by FFmpeg.
SUFFIX_DEMUXER = {".mp4": "mov", ".mkv": "matroska", ".webm": "matroska", ".avi": "avi"}
# ISO base media files start with one of these boxes.
MOV_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp")


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


def sniff(path: str) -> str | None:
    """Demuxer name for a file's first bytes: "mov", "matroska", "avi", or None."""
    with open(path, "rb") as file:
        head = file.read(16)
    if head[4:8] in MOV_BOXES:
        return "mov"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    return None


def verify_video(path: str) -> VideoInfo | Refused:
    """Decode every frame of the first video stream and compare with what the header promises.

    FFmpeg's tools exit 0 on a file cut to 60 % and on 200 flipped bits, so errors are made fatal
    (`err_detect=explode`) and frames are counted.
    """
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
        return _decode_all(path, demuxer, status.st_size)
    except FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
        return _diagnose(path, demuxer, status.st_size, error)


def verify_as_json(path: str) -> dict[str, Any]:
    """`verify_video` for `run_isolated`: the fields of what it returned."""
    return asdict(verify_video(path))


def _decode_all(path: str, demuxer: str, n_bytes: int) -> VideoInfo | Refused:
    # "file:" so that a name like "concat:a|b.mp4" stays a name.
    with av.open(
        "file:" + path,
        format=demuxer,
        options={"protocol_whitelist": "file", "err_detect": "explode"},
        metadata_errors="replace",
    ) as container:
        if not container.streams.video:
            return Refused("no video stream")
        stream = container.streams.video[0]
        context: VideoCodecContext | None = stream.codec_context  # the stub hides the None
        if context is None or stream.time_base is None:
            return Refused("damaged", "no decoder or no time base")
        if context.width * context.height > MAX_PIXELS:
            return Refused("too large", f"{context.width}×{context.height} pixels per frame")
        context.thread_count = 1  # one process per core already
        context.options = {"err_detect": "explode+crccheck", "max_pixels": str(MAX_PIXELS)}
        n_packets = n_frames = 0
        first: int | None = None
        end = 0
        for packet in container.demux(stream):
            n_packets += packet.size > 0 and not packet.is_discard
            for frame in packet.decode():
                if frame.is_corrupt:
                    return Refused("damaged", f"frame {n_frames} is corrupt")
                n_frames += 1
                if frame.pts is not None:
                    first = frame.pts if first is None else min(first, frame.pts)
                    end = max(end, frame.pts + (frame.duration or 0))
        span = float((end - (first or 0)) * stream.time_base)
        fault = _shortfall(container, stream, n_packets, n_frames, span)
        if fault is not None:
            return fault
        rate = stream.average_rate or stream.guessed_rate or Fraction(0)
        return VideoInfo(n_frames, float(rate), context.width, context.height, n_bytes)


def _shortfall(
    container: InputContainer, stream: VideoStream, n_packets: int, n_frames: int, span: float
) -> Refused | None:
    """What is missing against the packets, the header's frame count and its duration.

    The header alone proves nothing: AVI counts a frame too many, edit lists hide frames, and
    Matroska has no count; so a file is truncated when count (where there is one) and duration
    both say so.
    """
    if n_frames < MIN_FRAMES:
        return Refused("too short", f"{n_frames} frame(s) decode")
    if n_frames < n_packets - max(1, n_packets // 100):
        return Refused("damaged", f"{n_frames} of {n_packets} frames decode")
    few = not stream.frames or n_frames < stream.frames - max(1, stream.frames // 100)
    duration, tolerance = _promised_seconds(container, stream)
    if few and duration is not None and span < duration - tolerance:
        return Refused("truncated", f"{n_frames} frames end at {span:.2f} s of {duration:.2f} s")
    return None


def _promised_seconds(container: InputContainer, stream: VideoStream) -> tuple[float | None, float]:
    """Duration in the header and how much may be missing, both in seconds."""
    if stream.duration is not None and stream.time_base is not None:
        duration = float(stream.duration * stream.time_base)
        return duration, 0.1 + 0.01 * duration
    # Matroska's tag: "00:00:10.333000000"
    if tag := re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", "")):
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
        boxes, end = _top_boxes(path, n_bytes)
        if end > n_bytes:
            return Refused("truncated", f"{n_bytes:,} of at least {end:,} bytes")
        if b"moov" not in boxes:
            return Refused("truncated", "no index (moov box)")
    return Refused("damaged", error.strerror or type(error).__name__)


def _top_boxes(path: str, n_bytes: int) -> tuple[list[bytes], int]:
    """Kinds of an MP4's top-level boxes, and where the last one says that it ends."""
    boxes: list[bytes] = []
    position = 0
    with open(path, "rb") as file:
        while position + 8 <= n_bytes and len(boxes) < 1000:
            file.seek(position)
            header = file.read(16)
            size = int.from_bytes(header[:4])
            if size == 1:  # 64-bit size follows
                size = int.from_bytes(header[8:16])
            elif size == 0:  # to the end of the file
                size = n_bytes - position
            boxes.append(header[4:8])
            if size < 8:
                break
            position += size
    return boxes, position
