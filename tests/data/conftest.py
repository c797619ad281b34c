"""Damaged files, valid oddities and pyramids, made here. Fixtures only: nothing is imported."""

import importlib
import io
import os
import random
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest
from PIL import Image

from kinetics400.data.transcode import EncodeSettings, transcode_video
from kinetics400.data.verify import VideoInfo

ONE = 1 << 16  # in the 16.16 fixed point of MP4's matrices


def _encode(
    path: Path,
    *,
    n_frames: int = 60,
    size: tuple[int, int] = (96, 64),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    movflags: str = "",
    uneven: bool = False,
    first: int = 0,
    sound: float = 0.0,
) -> bytes:
    """Encode moving noise at 30 frames/s from tick `first` on; `sound` in seconds of silence.

    Ticks are of 1/90 s, in AVI of 1/30 s: it would fill those between with empty frames.
    """
    width, height = size
    per_frame = 1 if path.suffix == ".avi" else 3
    tick = Fraction(1, 30 * per_frame)
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    container_options = {"movflags": movflags} if movflags else {}
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=30, options=options or {})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.time_base = tick
        silence = container.add_stream("aac", rate=16000) if sound else None
        for i in range(n_frames):
            frame = av.VideoFrame.from_ndarray(np.roll(noise, 2 * i, 1), format="rgb24")
            frame.pts = first + per_frame * i + (i % 3 if uneven else 0)
            frame.time_base = tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if silence is not None:
            _add_silence(container, silence, int(sound * 16000))
    return path.read_bytes()


def _add_silence(container, stream, n_samples: int) -> None:
    for start in range(0, n_samples, 1024):
        samples = np.zeros((1, 1024), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _turned(data: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """An MP4 that says: show pixel (x, y) at (a x + c y, b x + d y) (ISO 14496-12, tkhd)."""
    turned = bytearray(data)
    at = turned.index(b"tkhd") + 4 + 40
    fields = (a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30)
    turned[at : at + 36] = struct.pack(">9i", *fields)
    return bytes(turned)


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """`encode(path, n_frames=, size=, codec=, pix_fmt=, options=, movflags=, uneven= …)`."""
    return _encode


@pytest.fixture(scope="session")
def turned() -> Callable[..., bytes]:
    """`turned(mp4_bytes, a, b, c, d)`: the same with another matrix in its header."""
    return _turned


@pytest.fixture(scope="session")
def make_pyramid(make_video: Callable[..., Path]) -> Callable[..., Path]:
    """`make_pyramid(path, settings=, n_frames= …)`: a video of `make_video`, stored."""

    def make(path: Path, settings: EncodeSettings | None = None, **arguments) -> Path:
        source = make_video(path.with_name(path.stem + "_source.mp4"), **arguments)
        info = transcode_video(str(source), str(path), settings or EncodeSettings())
        assert isinstance(info, VideoInfo), info
        return path

    return make


@pytest.fixture
def growing(tmp_path: Path) -> Path:
    """A WebM of 10 frames of 64×48 and 10 of 128×96: VP8 may change its size at a key frame.

    Frame k has the brightness 10 k.
    """
    path = tmp_path / "growing.webm"
    tick = Fraction(1, 30)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for start, (width, height) in ((0, (64, 48)), (10, (128, 96))):
            codec = av.CodecContext.create("libvpx", "w")
            codec.width, codec.height, codec.pix_fmt = width, height, "yuv420p"
            codec.time_base, codec.framerate = tick, 30
            packets = []
            for number in range(start, start + 10):
                image = np.full((height, width), 10 * number, np.uint8)
                frame = av.VideoFrame.from_ndarray(image, format="gray").reformat(format="yuv420p")
                frame.pts, frame.time_base = number, tick
                packets += codec.encode(frame)
            for packet in [*packets, *codec.encode(None)]:
                packet.stream = stream
                container.mux(packet)
    return path


# --- damaged files --------------------------------------------------------------------------------


def _mdat(data: bytes) -> tuple[int, int]:
    """Where the coded frames begin and end in an MP4 of `_encode` without faststart."""
    return data.index(b"mdat") + 4, data.rindex(b"moov") - 4


def _flip(data: bytes, n: int) -> bytes:
    rng, damaged = random.Random(n), bytearray(data)
    start, end = _mdat(data)
    for _ in range(n):
        damaged[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _without(data: bytes, start: float, stop: float) -> bytes:
    """Coded frames of which a part, in shares of their bytes, is zero: a download with a hole."""
    damaged = bytearray(data)
    first, end = _mdat(data)
    start, stop = (first + int(share * (end - first)) for share in (start, stop))
    damaged[start:stop] = bytes(stop - start)
    return bytes(damaged)


def _without_tags(data: bytes) -> bytes:
    """Matroska that tells how long it is, and not how long its pictures are."""
    return data.replace(b"DURATION", b"NOISATED")


def _moved_index(data: bytes) -> bytes:
    """The index points 1000 bytes too far."""
    damaged = bytearray(data)
    at = data.index(b"stco") + 12
    damaged[at : at + 4] = (int.from_bytes(data[at : at + 4]) + 1000).to_bytes(4)
    return bytes(damaged)


def _without_first_packet(scratch: Path) -> bytes:
    """H.264 that begins between two key frames: decoders show nothing until the second."""
    _encode(scratch / "x.mp4", options={"g": "12", "bf": "0"})
    with (
        av.open(str(scratch / "x.mp4")) as given,
        av.open(str(scratch / "y.mp4"), "w") as container,
    ):
        stream = container.add_stream_from_template(given.streams.video[0])
        for packet in list(given.demux(given.streams.video[0]))[1:]:
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    return (scratch / "y.mp4").read_bytes()


def _huge_header(scratch: Path) -> bytes:
    """An AVI whose header claims 16384×16384 raw pixels."""
    data = bytearray(_encode(scratch / "r.avi", n_frames=3, codec="rawvideo"))
    at = data.index(b"strf") + 8
    data[at + 4 : at + 12] = struct.pack("<ii", 16384, 16384)
    return bytes(data)


def _huge_frames(scratch: Path) -> bytes:
    """Two honest frames, 8192×4352: a little over the cap."""
    with av.open(str(scratch / "h.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=30)
        stream.width, stream.height, stream.pix_fmt = 8192, 4352, "yuvj420p"
        for _ in range(2):
            frame = av.VideoFrame(8192, 4352, "yuvj420p")
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return (scratch / "h.avi").read_bytes()


def _growing_to_huge(scratch: Path) -> bytes:
    """The header and the first frame are honest and small."""
    with av.open(str(scratch / "g.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for i, size in enumerate([(64, 48), (64, 48), (8192, 4352)]):
            jpeg = io.BytesIO()
            Image.new("RGB", size).save(jpeg, "JPEG")
            packet = av.Packet(jpeg.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, i, i, Fraction(1, 30)
            packet.is_keyframe = True
            container.mux(packet)
    return (scratch / "g.avi").read_bytes()


def _audio_only(scratch: Path) -> bytes:
    with av.open(str(scratch / "s.mp4"), "w") as container:
        _add_silence(container, container.add_stream("aac", rate=16000), 20 * 1024)
    return (scratch / "s.mp4").read_bytes()


def _wrong_checksum(scratch: Path) -> bytes:
    """One bit in the CRC of a PNG frame; FFmpeg's default is to deliver the frame."""
    data = bytearray(_encode(scratch / "p.avi", n_frames=4, codec="png", pix_fmt="rgb24"))
    data[data.index(b"IEND", len(data) // 2) - 7] ^= 1
    return bytes(data)


def _cut(scratch: Path, percent: int, suffix: str = "mp4", **arguments) -> bytes:
    data = _encode(scratch / f"x.{suffix}", **arguments)
    return data[: len(data) * percent // 100]


def _plain(scratch: Path) -> bytes:
    return _encode(scratch / "x.mp4")


HEVC = {"codec": "libx265", "options": {"x265-params": "log-level=none", "preset": "ultrafast"}}
AV1 = {"codec": "libsvtav1", "options": {"preset": "11", "svtav1-params": "lp=1"}}

# Name, the reasons that are right, content.
BAD: dict[str, tuple[str, str, Callable[[Path], bytes]]] = {
    "empty": ("a.mp4", "empty file", lambda s: b""),
    "html": ("a.mp4", "not a video", lambda s: b"<!DOCTYPE html><html>404</html>"),
    "noise": ("a.avi", "not a video", lambda s: random.Random(0).randbytes(5000)),
    "zeros": ("a.mp4", "not a video", lambda s: bytes(5000)),
    "ffconcat": ("a.mp4", "not a video", lambda s: b"ffconcat version 1.0\nfile canary.mp4\n"),
    "hls": ("a.mp4", "not a video", lambda s: b"#EXTM3U\n#EXTINF:1,\nfile:canary.mp4\n"),
    "dash": ("a.mp4", "not a video", lambda s: b'<?xml version="1.0"?><MPD></MPD>'),
    "png": ("a.mp4", "not a video", lambda s: b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "wave": ("a.avi", "not a video", lambda s: b"RIFF\x24\0\0\0WAVEfmt " + bytes(100)),
    "zip": ("a.mkv", "not a video", lambda s: b"PK\x03\x04" + bytes(100)),
    "raw_stream": ("a.mp4", "not a video", lambda s: _encode(s / "x.h264")),
    "audio_only": ("a.mp4", "no video stream", _audio_only),
    "header_only": ("a.mp4", "truncated", lambda s: _plain(s)[:32]),
    "one_frame": ("a.mp4", "too short", lambda s: _encode(s / "x.mp4", n_frames=1)),
    "huge_header": ("a.avi", "too large|damaged", _huge_header),
    "huge_frames": ("a.avi", "too large", _huge_frames),
    "growing_to_huge": ("a.avi", "damaged", _growing_to_huge),
    "no_moov": ("a.mp4", "truncated", lambda s: (d := _plain(s))[: d.rindex(b"moov") - 4]),
    "matroska_as_mp4": ("a.mp4", "wrong extension", lambda s: _encode(s / "x.mkv")),
    "mp4_as_mkv": ("a.mkv", "wrong extension", _plain),
    "mp4_as_avi": ("a.avi", "wrong extension", _plain),
    "unknown_codec": ("a.mp4", "damaged", lambda s: _plain(s).replace(b"avc1\0", b"zzz1\0")),
    "wrong_checksum": ("a.avi", "damaged", _wrong_checksum),
    "hole": ("a.mp4", "damaged", lambda s: _without(_plain(s), 0.4, 0.5)),
    "no_end": ("a.mp4", "damaged", lambda s: _without(_plain(s), 0.7, 1.0)),
    "moved_index": ("a.mp4", "damaged", lambda s: _moved_index(_plain(s))),
    "cut_out": (
        "a.mp4",
        "truncated",
        lambda s: (d := _encode(s / "x.mp4", movflags="faststart"))[: len(d) // 2] + d[-5000:],
    ),
    "no_first_key_frame": ("a.mp4", "damaged", _without_first_packet),
    "other_document": (
        "a.mkv",
        "damaged",
        lambda s: _encode(s / "x.mkv").replace(b"matroska", b"metroska"),
    ),
    "cut_without_tags": (
        "a.mkv",
        "truncated",
        lambda s: _without_tags(_cut(s, 60, "mkv")),
    ),
    "cut_late_start": ("a.mkv", "truncated", lambda s: _cut(s, 60, "mkv", first=90)),
    **{
        f"faststart_cut_to_{percent}": (
            "a.mp4",
            "truncated",
            lambda s, p=percent: _cut(s, p, movflags="faststart"),
        )
        for percent in (40, 60, 90, 99)
    },
    **{
        f"cut_{suffix}": (
            f"a.{suffix}",
            "truncated|damaged",
            lambda s, x=suffix, c=codec: _cut(s, 60, x, codec=c),
        )
        for suffix, codec in (("mkv", "libx264"), ("avi", "mpeg4"), ("webm", "libvpx-vp9"))
    },
    **{
        f"{n}_flipped_bits": ("a.mp4", "damaged", lambda s, n=n: _flip(_plain(s), n))
        for n in (20, 200, 2000)
    },
    "200_flipped_bits_hevc": (
        "a.mp4",
        "damaged",
        lambda s: _flip(_encode(s / "x.mp4", **HEVC), 200),
    ),
    **{
        f"{n}_flipped_bits_mpeg4": (
            "a.mp4",
            "damaged",
            lambda s, n=n: _flip(_encode(s / "x.mp4", codec="mpeg4"), n),
        )
        for n in (4, 200)  # of 4 the decoder makes no error, only a mark on the frame
    },
}
# Made in place: there is no content.
NO_FILE: dict[str, tuple[str, Callable[[Path], None]]] = {
    "absent": ("absent", lambda path: None),
    "folder": ("not a video", Path.mkdir),
    "fifo": ("not a video", os.mkfifo),  # opening it would block for ever
}


_contents: dict[str, bytes] = {}  # made once


@dataclass(frozen=True)
class Bad:
    kind: str
    path: Path
    reasons: set[str]


@pytest.fixture(params=[*BAD, *NO_FILE])
def bad(request: pytest.FixtureRequest, tmp_path: Path) -> Bad:
    """A file that is not usable, and the reasons that are right."""
    _encode(tmp_path / "canary.mp4")  # what the playlists point to
    if request.param in NO_FILE:
        reason, make = NO_FILE[request.param]
        make(tmp_path / "a.mp4")
        return Bad(request.param, tmp_path / "a.mp4", {reason})
    name, reasons, content = BAD[request.param]
    if request.param not in _contents:
        (tmp_path / "scratch").mkdir()
        _contents[request.param] = content(tmp_path / "scratch")
    (tmp_path / name).write_bytes(_contents[request.param])
    return Bad(request.param, tmp_path / name, set(reasons.split("|")))


# --- valid oddities -------------------------------------------------------------------------------


def _second_from_the_middle(data: bytes) -> bytes:
    """A second cut out of an MP4 by its edit list alone: the header counts frames never shown."""
    edited = bytearray(data)
    at = data.index(b"elst") + 12
    scale = int.from_bytes(data[data.index(b"mvhd") + 16 :][:4])
    timescale = int.from_bytes(data[data.index(b"mdhd") + 16 :][:4])
    edited[at : at + 8] = struct.pack(">Ii", scale, timescale // 2)
    return bytes(edited)


ODDITIES: dict[str, tuple[str, dict]] = {
    "plain": ("a.mp4", {}),
    "faststart": ("a.mp4", {"movflags": "faststart"}),
    "fragmented": ("a.mp4", {"movflags": "frag_keyframe+empty_moov", "options": {"g": "10"}}),
    "b_frames": ("a.mp4", {"options": {"bf": "3", "b-pyramid": "normal"}}),
    "no_b_frames": ("a.mp4", {"options": {"bf": "0"}}),
    "open_gop": ("a.mp4", {"options": {"x264-params": "open-gop=1:keyint=10"}}),
    "interlaced": ("a.mp4", {"options": {"x264-params": "tff=1"}}),
    "variable_rate": ("a.mp4", {"uneven": True}),
    "late_start": ("a.mp4", {"first": 500}),
    "two_frames": ("a.mp4", {"n_frames": 2}),
    "odd_size": ("a.mp4", {"size": (95, 63), "pix_fmt": "yuv444p"}),
    "tiny": ("a.mp4", {"size": (17, 3), "pix_fmt": "yuv444p"}),
    "portrait": ("a.mp4", {"size": (64, 160)}),
    "ten_bit": ("a.mp4", {"pix_fmt": "yuv420p10le"}),
    "full_range_422": ("a.mp4", {"pix_fmt": "yuvj422p"}),
    "grey": ("a.mp4", {"pix_fmt": "gray"}),
    "edit_list": (
        "a.mp4",
        {"options": {"bf": "0"}, "edit": _second_from_the_middle, "n_shown": 30},
    ),
    "longer_sound": ("a.mp4", {"sound": 3.0}),
    "mpeg4": ("a.mp4", {"codec": "mpeg4"}),
    "hevc": ("a.mp4", HEVC),
    "hevc_ten_bit": ("a.mp4", {**HEVC, "pix_fmt": "yuv420p10le"}),
    "vp9_in_mp4": ("a.mp4", {"codec": "libvpx-vp9", "n_frames": 8}),
    "matroska": ("a.mkv", {}),
    "matroska_variable_rate": ("a.mkv", {"uneven": True}),
    "matroska_late_start": ("a.mkv", {"first": 90}),
    "matroska_longer_sound": ("a.mkv", {"sound": 3.0}),
    "matroska_without_tags": ("a.mkv", {"sound": 2.4, "edit": _without_tags}),
    "av1": ("a.mkv", {**AV1, "n_frames": 12}),
    "webm": ("a.webm", {"codec": "libvpx-vp9", "n_frames": 8}),
    "vp8": ("a.webm", {"codec": "libvpx", "n_frames": 8}),
    "avi": ("a.avi", {"codec": "mpeg4"}),
    "avi_h264": ("a.avi", {"options": {"bf": "2"}}),
    "motion_jpeg": ("a.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    "capitals": ("A.MP4", {}),
    "name_like_an_option": ("-i concat:a|b %d.mp4", {}),
}


@dataclass(frozen=True)
class Oddity:
    kind: str
    path: Path
    n_frames: int
    size: tuple[int, int]


@pytest.fixture(params=ODDITIES)
def oddity(request: pytest.FixtureRequest, tmp_path: Path) -> Oddity:
    """A file that is unusual and fine."""
    name, given = ODDITIES[request.param]
    arguments = {key: given[key] for key in given.keys() - {"edit", "n_shown"}}
    data = _encode(tmp_path / f"x{Path(name).suffix.lower()}", **arguments)
    (tmp_path / name).write_bytes(given["edit"](data) if "edit" in given else data)
    return Oddity(
        request.param,
        tmp_path / name,
        given.get("n_shown", given.get("n_frames", 60)),
        given.get("size", (96, 64)),
    )


# --- broken pictures ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken_frames() -> Iterator[dict[str, ModuleType]]:
    """The modules of `make broken-proof`, by name: they make the videos, and judge."""
    folder = Path(__file__).resolve().parents[2] / "benchmarks/broken_frames"
    names = ("films", "damage", "edits", "truth", "sets", "measure")
    sys.path.insert(0, str(folder))
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(folder))
        for name in names:
            sys.modules.pop(name, None)
