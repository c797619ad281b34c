"""Videos are encoded here, then damaged byte by byte."""

import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from kinetics400.data.isolation import JobLimits, run_isolated
from kinetics400.data.transcode import Refused, VideoInfo, sniff, verify_as_json, verify_video


def encode(
    path: Path,
    *,
    n_frames: int = 60,
    size: tuple[int, int] = (96, 64),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    movflags: str = "",
    uneven: bool = False,
) -> bytes:
    width, height = size
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    container_options = {"movflags": movflags} if movflags else {}
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=30, options=options or {})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.time_base = Fraction(1, 90)
        for i in range(n_frames):
            frame = av.VideoFrame.from_ndarray(np.roll(noise, 2 * i, 1), format="rgb24")
            frame.pts = 3 * i + (i % 3 if uneven else 0)
            frame.time_base = Fraction(1, 90)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


def encode_audio(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for i in range(20):
            samples = np.zeros((1, 1024), np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 1024 * i
            container.mux(stream.encode(frame))  # type: ignore[attr-defined]
        container.mux(stream.encode(None))  # type: ignore[attr-defined]


def flip(data: bytes, n: int) -> bytes:
    rng, damaged = random.Random(n), bytearray(data)
    start, end = data.index(b"mdat") + 4, data.rindex(b"moov") - 4  # the coded frames
    for _ in range(n):
        damaged[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def huge_header(tmp_path: Path) -> bytes:
    """An AVI whose header claims 16384×16384 raw pixels."""
    data = bytearray(encode(tmp_path / "r.avi", n_frames=3, codec="rawvideo"))
    at = data.index(b"strf") + 8
    data[at + 4 : at + 12] = struct.pack("<ii", 16384, 16384)
    return bytes(data)


def huge_frames(tmp_path: Path) -> bytes:
    """Two honest frames, 8192×4352: a little over the cap."""
    with av.open(str(tmp_path / "h.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=30)
        stream.width, stream.height, stream.pix_fmt = 8192, 4352, "yuvj420p"
        for _ in range(2):
            frame = av.VideoFrame(8192, 4352, "yuvj420p")
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return (tmp_path / "h.avi").read_bytes()


BAD: dict[str, tuple[str, str, Callable[[Path], bytes]]] = {
    "empty": ("a.mp4", "empty file", lambda t: b""),
    "html": ("a.mp4", "not a video", lambda t: b"<!DOCTYPE html><html>404</html>"),
    "noise": ("a.avi", "not a video", lambda t: random.Random(0).randbytes(5000)),
    "ffconcat": ("a.mp4", "not a video", lambda t: b"ffconcat version 1.0\nfile canary.mp4\n"),
    "hls": ("a.mp4", "not a video", lambda t: b"#EXTM3U\n#EXTINF:1,\nfile:canary.mp4\n"),
    "dash": ("a.mp4", "not a video", lambda t: b'<?xml version="1.0"?><MPD></MPD>'),
    "png": ("a.mp4", "not a video", lambda t: b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "header_only": ("a.mp4", "truncated", lambda t: encode(t / "x.mp4")[:32]),
    "one_frame": ("a.mp4", "too short", lambda t: encode(t / "x.mp4", n_frames=1)),
    "huge_header": ("a.avi", "too large|damaged", huge_header),
    "huge_frames": ("a.avi", "too large", huge_frames),
    "no_moov": (
        "a.mp4",
        "truncated",
        lambda t: (data := encode(t / "x.mp4"))[: data.rindex(b"moov") - 4],
    ),
    "matroska_as_mp4": ("a.mp4", "wrong extension", lambda t: encode(t / "x.mkv")),
    "mp4_as_mkv": ("a.mkv", "wrong extension", lambda t: encode(t / "x.mp4")),
    "unknown_codec": (
        "a.mp4",
        "damaged",
        lambda t: encode(t / "x.mp4").replace(b"avc1\0", b"zzz1\0"),
    ),
    **{
        f"faststart_cut_to_{percent}": (
            "a.mp4",
            "truncated",
            lambda t, p=percent: (data := encode(t / "x.mp4", movflags="faststart"))[
                : len(data) * p // 100
            ],
        )
        for percent in (40, 60, 90, 99)
    },
    **{
        f"cut_{suffix}": (
            f"a.{suffix}",
            "truncated|damaged",
            lambda t, s=suffix, c=codec: (data := encode(t / f"x.{s}", codec=c))[
                : len(data) * 6 // 10
            ],
        )
        for suffix, codec in (("mkv", "libx264"), ("avi", "mpeg4"), ("webm", "libvpx-vp9"))
    },
    **{
        f"{n}_flipped_bits": (
            "a.mp4",
            "damaged",
            lambda t, n=n: flip(encode(t / "x.mp4"), n),
        )
        for n in (20, 200, 2000)
    },
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_file_is_refused_with_its_reason(tmp_path: Path, kind: str) -> None:
    encode(tmp_path / "canary.mp4")  # what the playlists point to
    name, reasons, make = BAD[kind]
    (tmp_path / "in").mkdir()
    data = make(tmp_path / "in")
    (tmp_path / name).write_bytes(data)
    verdict = verify_video(str(tmp_path / name))
    assert isinstance(verdict, Refused)
    assert verdict.reason in reasons.split("|")


def test_what_is_no_file_or_has_no_video_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.mp4")  # opening it would block for ever
    (tmp_path / "folder.mp4").mkdir()
    encode_audio(tmp_path / "audio.mp4")
    reasons = {
        name: verdict.reason
        for name in ("fifo.mp4", "folder.mp4", "audio.mp4", "absent.mp4")
        if isinstance(verdict := verify_video(str(tmp_path / name)), Refused)
    }
    assert reasons == {
        "fifo.mp4": "not a video",
        "folder.mp4": "not a video",
        "audio.mp4": "no video stream",
        "absent.mp4": "absent",
    }


ODDITIES: dict[str, tuple[str, dict]] = {
    "plain": ("a.mp4", {}),
    "faststart": ("a.mp4", {"movflags": "faststart"}),
    "fragmented": ("a.mp4", {"movflags": "frag_keyframe+empty_moov", "options": {"g": "10"}}),
    "b_frames": ("a.mp4", {"options": {"bf": "3", "b-pyramid": "normal"}}),
    "no_b_frames": ("a.mp4", {"options": {"bf": "0"}}),
    "open_gop": ("a.mp4", {"options": {"x264-params": "open-gop=1:keyint=10"}}),
    "variable_rate": ("a.mp4", {"uneven": True}),
    "two_frames": ("a.mp4", {"n_frames": 2}),
    "odd_size": ("a.mp4", {"size": (95, 63), "pix_fmt": "yuv444p"}),
    "portrait": ("a.mp4", {"size": (64, 160)}),
    "ten_bit": ("a.mp4", {"pix_fmt": "yuv420p10le"}),
    "full_range_422": ("a.mp4", {"pix_fmt": "yuvj422p"}),
    "mpeg4": ("a.mp4", {"codec": "mpeg4"}),
    "vp9_in_mp4": ("a.mp4", {"codec": "libvpx-vp9", "n_frames": 8}),
    "matroska": ("a.mkv", {}),
    "matroska_variable_rate": ("a.mkv", {"uneven": True}),
    "webm": ("a.webm", {"codec": "libvpx-vp9", "n_frames": 8}),
    "vp8": ("a.webm", {"codec": "libvpx", "n_frames": 8}),
    "avi": ("a.avi", {"codec": "mpeg4"}),
    "motion_jpeg": ("a.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    "capitals": ("A.MP4", {}),
    "name_like_an_option": ("-i concat:a|b %d.mp4", {}),
}


@pytest.mark.parametrize("kind", ODDITIES)
def test_valid_oddity_passes(tmp_path: Path, kind: str) -> None:
    name, arguments = ODDITIES[kind]
    data = encode(tmp_path / f"x{Path(name).suffix.lower()}", **arguments)
    (tmp_path / name).write_bytes(data)
    verdict = verify_video(str(tmp_path / name))
    assert isinstance(verdict, VideoInfo), verdict
    width, height = arguments.get("size", (96, 64))
    assert (verdict.n_frames, verdict.width, verdict.height, verdict.n_bytes) == (
        arguments.get("n_frames", 60),
        width,
        height,
        len(data),
    )
    if kind in ("plain", "matroska", "fragmented", "portrait"):
        assert verdict.fps == pytest.approx(30, rel=0.05)


def test_edit_list_that_hides_frames_passes(tmp_path: Path) -> None:
    """A clip cut out without re-encoding: the header counts frames that no player shows."""
    data = encode(tmp_path / "x.mp4", n_frames=60, options={"bf": "0"})
    at = data.index(b"elst") + 4
    scale = struct.unpack(">I", data[data.index(b"mvhd") + 16 :][:4])[0]
    timescale = struct.unpack(">I", data[data.index(b"mdhd") + 16 :][:4])[0]
    edited = bytearray(data)
    edited[at + 8 : at + 16] = struct.pack(">Ii", scale, timescale // 2)  # 1 s from 0.5 s on
    (tmp_path / "a.mp4").write_bytes(edited)
    verdict = verify_video(str(tmp_path / "a.mp4"))
    assert isinstance(verdict, VideoInfo), verdict
    assert 28 <= verdict.n_frames < 60


def test_one_flipped_bit_is_found_where_the_codec_has_checksums(tmp_path: Path) -> None:
    """FFmpeg's default is to deliver the frame (here: PNG with a wrong CRC)."""
    data = bytearray(encode(tmp_path / "a.avi", n_frames=4, codec="png", pix_fmt="rgb24"))
    assert isinstance(verify_video(str(tmp_path / "a.avi")), VideoInfo)
    data[data.index(b"IEND", len(data) // 2) - 7] ^= 1  # in the CRC of the chunk before
    (tmp_path / "a.avi").write_bytes(data)
    verdict = verify_video(str(tmp_path / "a.avi"))
    assert isinstance(verdict, Refused) and verdict.reason == "damaged"


def test_header_that_promises_a_longer_video_passes_when_all_frames_are_there(
    tmp_path: Path,
) -> None:
    data = bytearray(encode(tmp_path / "x.mp4"))
    for box, offset in ((b"mdhd", 20), (b"elst", 12), (b"mvhd", 20), (b"tkhd", 24)):
        at = data.index(box) + offset
        data[at : at + 4] = (2 * int.from_bytes(data[at : at + 4])).to_bytes(4)
    (tmp_path / "a.mp4").write_bytes(data)
    assert isinstance(verify_video(str(tmp_path / "a.mp4")), VideoInfo)


def test_relative_name_that_looks_like_a_protocol_is_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    encode(tmp_path / "x.mp4", n_frames=3)
    (tmp_path / "x.mp4").rename(tmp_path / "concat:x.mp4")
    assert isinstance(verify_video("concat:x.mp4"), VideoInfo)


def test_rotation_in_the_header_passes(tmp_path: Path) -> None:
    data = bytearray(encode(tmp_path / "x.mp4"))
    at = data.index(b"tkhd") + 4 + 40  # the 3×3 matrix, 16.16 fixed point
    one = 1 << 16
    data[at : at + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(data)
    assert isinstance(verify_video(str(tmp_path / "a.mp4")), VideoInfo)


def test_demuxer_comes_from_the_first_bytes(tmp_path: Path) -> None:
    for suffix, codec, demuxer in (
        ("mp4", "libx264", "mov"),
        ("mkv", "libx264", "matroska"),
        ("webm", "libvpx", "matroska"),
        ("avi", "mpeg4", "avi"),
    ):
        encode(tmp_path / f"a.{suffix}", n_frames=2, codec=codec)
        assert sniff(str(tmp_path / f"a.{suffix}")) == demuxer


def test_verification_runs_in_a_small_process(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes(huge_header(tmp_path))
    jobs = [str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")]
    limits = JobLimits(address_space=1 << 30)
    results = {r.job: r for r in run_isolated(verify_as_json, jobs, n_worker=1, limits=limits)}
    assert results[jobs[0]].value["n_frames"] == 60  # type: ignore[index]
    assert results[jobs[1]].value["reason"] == "wrong extension"  # type: ignore[index]


def test_module_needs_no_torch() -> None:
    code = "import sys, kinetics400.data.transcode as t; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
