"""What a video's header says, read without FFmpeg and remembered between runs. No torch.

An MP4 is read by a small parser that touches a bounded number of bytes and believes none of them;
other containers, and MP4s that it cannot follow, are opened in isolated processes.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext

from kinetics400.data.containers import SUFFIX_DEMUXER, open_video, sniff_bytes
from kinetics400.data.verify import MAX_PIXELS, MIN_FRAMES, Refused

HEAD_BYTES = 64 << 10  # the first read; most indexes are in it, or the whole of a short file
MAX_INDEX = 16 << 20  # bytes of a moov box that are read: an hour of video has 4 MB
MAX_BOXES = 4096  # read in one file; a moov box of Kinetics has about 40
MAX_DEPTH = 8
CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"mvex")
# Kinds that matter when they reach beyond the end; players ignore the others behind the index.
CONTENT = (b"moov", b"mdat", b"moof")
UNKNOWN = -1


@dataclass(frozen=True)
class Header:
    """One file's header: what is wrong with it, or how many frames it promises."""

    n_bytes: int
    mtime_ns: int
    reason: str = ""
    """One of verify's reasons; empty for none."""
    detail: str = ""
    n_frames: int = UNKNOWN
    """UNKNOWN where the header does not say (Matroska, fragmented MP4)."""
    open_question: bool = False
    """The parser cannot tell: FFmpeg is to be asked, in an isolated process."""

    def refused(self, reason: str, detail: str = "") -> "Header":
        """The same file, not usable."""
        return replace(self, reason=reason, detail=detail)


class Box(NamedTuple):
    """A box of an MP4: its kind, and where its content lies."""

    kind: bytes
    start: int
    end: int


class _Confusing(Exception):
    """More boxes, or deeper ones, than a sane file has."""


def read_header(path: str) -> Header:
    """Look at a file's first bytes and, if it is an MP4, at its index. Never raises."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        is_link = os.path.islink(path)
        return Header(0, 0, "absent", "a link that leads nowhere" if is_link else "")
    except (OSError, ValueError) as error:
        return Header(0, 0, "unreadable", getattr(error, "strerror", None) or str(error))
    header = Header(status.st_size, status.st_mtime_ns)
    if not stat.S_ISREG(status.st_mode):
        return header.refused("not a video", "not a regular file")
    if status.st_size == 0:
        return header.refused("empty file")
    try:
        with open(path, "rb", buffering=0) as file:
            return _judge(_Bytes(file.fileno(), status.st_size), path, header)
    except OSError as error:
        return header.refused("unreadable", error.strerror or str(error))


class _Bytes:
    """A file by position; what lies in its head is read once."""

    def __init__(self, descriptor: int, n_bytes: int) -> None:
        self.descriptor, self.n_bytes = descriptor, n_bytes
        self.head = os.pread(descriptor, HEAD_BYTES, 0)

    def at(self, start: int, count: int) -> bytes:
        if start + count <= len(self.head):
            return self.head[start : start + count]
        if start >= self.n_bytes:
            return b""
        return os.pread(self.descriptor, count, start)


def _judge(data: _Bytes, path: str, header: Header) -> Header:
    demuxer = sniff_bytes(data.head[:16])
    if demuxer is None:
        return header.refused("not a video", _what_it_is(data.head))
    if demuxer != SUFFIX_DEMUXER.get(os.path.splitext(path)[1].lower()):
        return header.refused("wrong extension", f"the content is {demuxer}")
    if demuxer != "mov":
        promised = _promised_bytes(data.head, demuxer)
        if promised > header.n_bytes:
            return header.refused("truncated", f"{header.n_bytes:,} of {promised:,} bytes")
        return replace(header, open_question=True)
    try:
        return _judge_mp4(data, header)
    except _Confusing:
        return replace(header, open_question=True)


def _what_it_is(head: bytes) -> str:
    start = head[:512].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page: the download failed"
    if not any(head[:512]):
        return "zeros: the download, or the disk, failed"
    return "its first bytes are no MP4, Matroska/WebM or AVI"


def _promised_bytes(head: bytes, demuxer: str) -> int:
    """Where an AVI's RIFF chunk or a Matroska's segment says that it ends; 0 for nowhere."""
    if demuxer == "avi":
        return 8 + int.from_bytes(head[4:8], "little")
    position = 0
    for _ in range(8):  # the EBML header, perhaps a void, then the segment
        kind_bytes = 9 - (head[position : position + 1] or b"\0")[0].bit_length()
        at = position + kind_bytes
        first = (head[at : at + 1] or b"\0")[0]
        size_bytes = 9 - first.bit_length()
        if kind_bytes > 4 or size_bytes > 8:
            return 0
        size = int.from_bytes(head[at : at + size_bytes]) & ((1 << 7 * size_bytes) - 1)
        if head[position:at] == b"\x18\x53\x80\x67":
            is_open = size == (1 << 7 * size_bytes) - 1  # a stream: nobody knew
            return 0 if is_open else at + size_bytes + size
        position = at + size_bytes + size
    return 0


# --- MP4 ------------------------------------------------------------------------------------------


def _judge_mp4(data: _Bytes, header: Header) -> Header:
    n_bytes = header.n_bytes
    index: Box | None = None
    is_fragmented = False
    end = 0
    for box in _top_boxes(data):
        if box.end > n_bytes:
            if box.kind in CONTENT or index is None:
                return header.refused("truncated", f"{n_bytes:,} of at least {box.end:,} bytes")
            break
        index = index or (box if box.kind == b"moov" else None)
        is_fragmented |= box.kind == b"moof"
        end = box.end
    if index is None:
        return header.refused("truncated", f"no index (moov box) in {end:,} bytes")
    size = index.end - index.start
    if size > MAX_INDEX:
        raise _Confusing
    return _judge_index(data.at(index.start, size), header, is_fragmented=is_fragmented)


def _top_boxes(data: _Bytes) -> Iterator[Box]:
    position = 0
    for _ in range(MAX_BOXES):
        box = _box(data.at(position, 16), position, data.n_bytes)
        if box is None:
            return
        yield box
        position = box.end
    raise _Confusing


def _box(first: bytes, position: int, limit: int) -> Box | None:
    """The box whose first 16 bytes these are; None where no box can be."""
    if len(first) < 8:
        return None
    size, start = int.from_bytes(first[:4]), position + 8
    if size == 1:  # 64 bits follow
        if len(first) < 16:
            return None
        size, start = int.from_bytes(first[8:16]), position + 16
    elif size == 0:  # to the end
        size = limit - position
    return Box(first[4:8], start, position + size) if position + size >= start else None


@dataclass
class _Track:
    handler: bytes = b""
    n_frames: int = UNKNOWN
    pixels: int = 0
    is_torn: bool = False
    """A table promises more than its box holds."""
    last_chunk: int = 0


def _judge_index(moov: bytes, header: Header, *, is_fragmented: bool) -> Header:
    tracks: list[_Track] = []
    budget = [MAX_BOXES]
    is_fragmented |= _walk(moov, 0, len(moov), tracks, budget, 0)
    videos = [track for track in tracks if track.handler == b"vide"]
    if not videos:
        return header.refused("no video stream")
    track = videos[0]
    if track.is_torn:
        return header.refused("damaged", "the index promises more frames than it holds")
    if track.pixels > MAX_PIXELS:
        return header.refused("too large", f"{track.pixels:,} pixels per frame")
    if is_fragmented:
        return header
    if track.n_frames == UNKNOWN:
        return header.refused("damaged", "the index counts no frames")
    if track.last_chunk >= header.n_bytes:
        return header.refused(
            "truncated", f"frames lie at byte {track.last_chunk:,} of {header.n_bytes:,}"
        )
    if track.n_frames < MIN_FRAMES:
        return header.refused("too short", f"{track.n_frames} frame(s) in the index")
    return replace(header, n_frames=track.n_frames)


def _walk(
    moov: bytes, start: int, end: int, tracks: list[_Track], budget: list[int], depth: int
) -> bool:
    """Visit the boxes in [start, end); returns whether the file says that it is fragmented."""
    if depth > MAX_DEPTH:
        raise _Confusing
    is_fragmented = False
    while start < end:
        budget[0] -= 1
        if budget[0] < 0:
            raise _Confusing
        box = _box(moov[start : start + 16], start, end)
        if box is None or box.end > end:
            if tracks:
                tracks[-1].is_torn = True
            return is_fragmented
        if box.kind == b"trak":
            tracks.append(_Track())
        if box.kind in CONTAINERS:
            is_fragmented |= box.kind == b"mvex"
            is_fragmented |= _walk(moov, box.start, box.end, tracks, budget, depth + 1)
        elif tracks:
            _read_table(moov, box, tracks[-1])
        start = box.end
    return is_fragmented


def _read_table(moov: bytes, box: Box, track: _Track) -> None:
    """Take what matters out of one box. Numbers are big-endian; 4 bytes of version come first."""
    at, size = box.start, box.end - box.start

    def number(offset: int, count: int = 4) -> int:
        return int.from_bytes(moov[at + offset : min(at + offset + count, box.end)])

    if box.kind == b"hdlr" and not track.handler:  # QuickTime repeats it in minf, for data
        track.handler = moov[at + 8 : at + 12]
    elif box.kind in (b"stsz", b"stz2"):
        track.n_frames = number(8)
        bits = 0 if number(4) and box.kind == b"stsz" else 32
        bits = moov[at + 7] if box.kind == b"stz2" and size > 7 else bits
        track.is_torn |= size < 12 or (track.n_frames * bits + 7) // 8 > size - 12
    elif box.kind in (b"stco", b"co64"):
        width = 4 if box.kind == b"stco" else 8
        count = number(4)
        track.is_torn |= count * width > size - 8
        if count and not track.is_torn:
            track.last_chunk = number(8 + (count - 1) * width, width)
    elif box.kind == b"stsd" and track.handler == b"vide":
        # Of the first entry: 8 bytes of size and kind, 24 more, then width and height.
        track.pixels = number(8 + 32, 2) * number(8 + 34, 2)


# --- other containers, in isolated processes ------------------------------------------------------


def probe(path: str) -> dict[str, Any]:
    """Ask FFmpeg; returns fields of `Header`. Runs in an isolated process."""
    verdict, n_frames = _probed(path)
    return {"reason": verdict.reason, "detail": verdict.detail, "n_frames": n_frames}


def _probed(path: str) -> tuple[Refused, int]:
    try:
        with open(path, "rb") as file:
            demuxer = sniff_bytes(file.read(16))
        if demuxer is None:
            return Refused("not a video", "it changed while it was read"), UNKNOWN
        with open_video(path, demuxer, err_detect="explode") as container:
            if not container.streams.video:
                return Refused("no video stream"), UNKNOWN
            video = container.streams.video[0]
            context: VideoCodecContext | None = video.codec_context  # the stub hides the None
            if context is None:
                return Refused("damaged", "no decoder"), UNKNOWN
            if context.width * context.height == 0:  # FFmpeg believed neither
                return Refused("damaged", "pictures without a size"), UNKNOWN
            if context.width * context.height > MAX_PIXELS:
                return Refused("too large", f"{context.width}×{context.height} pixels"), UNKNOWN
            return Refused(""), video.frames or UNKNOWN
    except FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
        return Refused("damaged", error.strerror or type(error).__name__), UNKNOWN
    except OSError as error:
        return Refused("unreadable", error.strerror or str(error)), UNKNOWN
