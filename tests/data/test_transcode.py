"""What is stored: the right frames at the right times, upright, in plain pixels, as a pyramid.

Frames carry their number as a bar code, so that it can be read back after encoding.
"""

import hashlib
import io
import resource
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from kinetics400.data import pyramid, transcode
from kinetics400.data.transcode import EncodeSettings, store_as_json, stored_size, transcode_video
from kinetics400.data.verify import Refused, VideoInfo, verify_video
from kinetics400.errors import StorageError

Encode = Callable[..., bytes]
NTSC = Fraction(30000, 1001)
BITS = 8


# --- bar codes ------------------------------------------------------------------------------------


def bar_code(number: int, width: int, height: int) -> np.ndarray:
    """(H, W) grey: upright bars, a bright one for each bit that is set, the highest at the left."""
    bits = [number >> bit & 1 for bit in reversed(range(BITS))]
    bars = np.array([40 + 170 * bit for bit in bits], np.uint8)
    return np.tile(bars[np.arange(width) * BITS // width], (height, 1))


def write(
    path: Path,
    numbers: range,
    *,
    fps: int | Fraction = 30,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times: list[int] | None = None,
    options: dict[str, str] | None = None,
) -> str:
    """Encode bar codes; `times` in ms if the rate is not constant."""
    images = [bar_code(number, *size) for number in numbers]
    return write_images(
        path, images, fps=fps, codec=codec, pix_fmt=pix_fmt, times=times, options=options
    )


def write_images(
    path: Path,
    images: list[np.ndarray],
    *,
    fps: int | Fraction = 30,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times: list[int] | None = None,
    options: dict[str, str] | None = None,
) -> str:
    """Encode grey (H, W) images."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps), options=options or {})
        stream.height, stream.width = images[0].shape
        stream.pix_fmt = pix_fmt
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="gray")
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def read(path: Path | str) -> list[tuple[Fraction, int]]:
    """(time in seconds, number) of each frame, by a plain decode."""
    found = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            image = frame.to_ndarray(format="gray")
            places = (np.arange(BITS) * 2 + 1) * image.shape[1] // (2 * BITS)
            bright = image[image.shape[0] // 2, places] > 125
            number = int("".join("01"[int(bit)] for bit in bright), 2)
            found.append((frame.pts * frame.time_base, number))
    return found


def store(source: Path | str, target: Path, **settings: Any) -> VideoInfo:
    info = transcode_video(str(source), str(target), EncodeSettings(**settings))
    assert isinstance(info, VideoInfo), info
    return info


# --- frames and times -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 48), (48, 64)])
@pytest.mark.parametrize("fps", [24, 25, 28, NTSC, 30])
def test_frames_their_order_and_their_rate_are_kept(
    tmp_path: Path, fps: int | Fraction, size: tuple[int, int]
) -> None:
    source = write(tmp_path / "a.mp4", range(75), fps=fps, size=size)
    info = store(source, tmp_path / "o.mp4")
    assert read(tmp_path / "o.mp4") == [(k / Fraction(fps), k) for k in range(75)]
    n_bytes = (tmp_path / "o.mp4").stat().st_size
    assert info == VideoInfo(75, float(fps), *size, n_bytes)
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert container.streams.video[0].average_rate == fps
        assert container.streams.video[0].frames == 75


@pytest.mark.parametrize("fps", [24, 25, NTSC, 30, 60])
def test_times_rounded_to_milliseconds_are_a_constant_rate(
    tmp_path: Path, fps: int | Fraction
) -> None:
    """Matroska: 0, 33, 67, 100 ms, and no count of frames."""
    source = write(tmp_path / "a.mkv", range(100), fps=fps)
    with av.open(source) as container:
        times = [p.pts for p in container.demux(video=0) if p.pts is not None]
        assert container.streams.video[0].time_base == Fraction(1, 1000)
    assert len(set(np.diff(sorted(times)))) > 1 or 1000 % fps == 0
    store(source, tmp_path / "o.mp4")
    assert read(tmp_path / "o.mp4") == [(k / Fraction(fps), k) for k in range(100)]


@pytest.mark.parametrize(("codec", "options"), [("mpeg4", {}), ("libx264", {"bf": "2"})])
@pytest.mark.parametrize("fps", [25, NTSC])
def test_avi_takes_its_rate_from_the_header(
    tmp_path: Path, fps: int | Fraction, codec: str, options: dict[str, str]
) -> None:
    source = write(tmp_path / "a.avi", range(50), fps=fps, codec=codec, options=options)
    store(source, tmp_path / "o.mp4")
    assert read(tmp_path / "o.mp4") == [(k / Fraction(fps), k) for k in range(50)]


def uneven_times() -> dict[str, list[int]]:
    rng = np.random.default_rng(0)
    return {
        "jitter": (np.arange(80) * 40 + rng.integers(0, 30, 80)).tolist(),
        "pause": [*range(0, 1000, 40), *range(2500, 4000, 40)],
        "slow, then fast": [*range(0, 2000, 100), *range(2000, 3000, 20)],
        "random": np.cumsum(rng.integers(10, 120, 100)).tolist(),
        "late start": (500 + np.cumsum(rng.integers(20, 60, 60))).tolist(),
        "one long frame": [0, *range(3000, 4000, 33)],
    }


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("kind", uneven_times())
def test_variable_rate_becomes_constant_and_each_frame_stays_at_its_time(
    tmp_path: Path, kind: str, suffix: str
) -> None:
    times = uneven_times()[kind]
    source = write(tmp_path / f"a.{suffix}", range(len(times)), times=times)
    info = store(source, tmp_path / "o.mp4")
    seconds = np.array(times) / 1000 - times[0] / 1000
    stored = read(tmp_path / "o.mp4")
    tick = 1 / info.fps
    # The rate is the mean, and neither longer nor shorter.
    assert info.fps == pytest.approx((len(times) - 1) / seconds[-1], rel=1e-3)
    assert [float(time) for time, _ in stored] == pytest.approx(np.arange(len(stored)) * tick)
    assert float(stored[-1][0]) == pytest.approx(seconds[-1], abs=tick / 2 + 1e-3)
    for time, number in stored:
        # Shown is the last frame that has begun, looking half a frame ahead.
        begun = np.flatnonzero(seconds <= float(time) + tick / 2 + 1e-3)[-1]
        surely = np.flatnonzero(seconds <= float(time) + tick / 2 - 1e-3)[-1]
        assert surely <= number <= begun
    first_shown = {number: float(time) for time, number in reversed(stored)}
    for number, time in first_shown.items():
        assert abs(time - seconds[number]) <= tick / 2 + 1e-3
    # Left out is only what another frame replaces within the same place.
    for number in set(range(len(times))) - set(first_shown):
        assert seconds[number + 1] - seconds[number] <= tick + 1e-3


def test_a_header_with_the_wrong_rate_does_not_change_the_speed(tmp_path: Path) -> None:
    """The frames' times count: 50 frames over 5 s, whatever the encoder was told."""
    source = write(tmp_path / "a.mp4", range(50), fps=30, times=[100 * k for k in range(50)])
    info = store(source, tmp_path / "o.mp4")
    assert info.fps == 10
    assert read(tmp_path / "o.mp4") == [(Fraction(k, 10), k) for k in range(50)]


def test_absurd_rate_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "a.mp4", range(20), times=list(range(20)))  # 1000 frames/s
    verdict = transcode_video(source, str(tmp_path / "o.mp4"), EncodeSettings())
    assert isinstance(verdict, Refused)
    assert verdict.reason == "damaged" and "1000.0 frames per second" in verdict.detail


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "settings", "expected"),
    [
        ((340, 256), {}, (340, 256)),
        ((426, 240), {}, (426, 240)),  # smaller: as it is
        ((853, 480), {}, (454, 256)),  # 454.9 to the nearest even number
        ((1920, 1080), {}, (456, 256)),  # 455.1
        ((1080, 1920), {}, (256, 456)),
        ((640, 360), {}, (456, 256)),  # 455.1
        ((320, 240), {"short_side": 224}, (298, 224)),  # 298.7
        ((95, 63), {}, (96, 64)),  # odd sides grow by one
        ((17, 3), {}, (18, 4)),
        ((1, 1), {}, (2, 2)),
        ((64, 48), {"enlarge": True, "short_side": 96}, (128, 96)),
        ((64, 48), {"enlarge": False, "short_side": 96}, (64, 48)),
        ((4000, 10), {"short_side": 4}, (1600, 4)),
    ],
)
def test_size_of_the_stored_video(
    size: tuple[int, int], settings: dict[str, Any], expected: tuple[int, int]
) -> None:
    assert stored_size(*size, EncodeSettings(**settings)) == expected


def test_sides_are_the_nearest_even_numbers() -> None:
    for short_side in (64, 224, 256):
        for width in range(1, 700, 13):
            for height in range(1, 700, 17):
                stored = stored_size(width, height, EncodeSettings(short_side=short_side))
                factor = min(1.0, short_side / min(width, height))
                for side, found in zip((width, height), stored, strict=True):
                    assert found % 2 == 0 and found >= 2
                    assert abs(found - side * factor) <= 1 + 1e-9


@pytest.mark.parametrize(
    ("size", "pix_fmt", "settings", "expected"),
    [
        ((96, 64), "yuv420p", {"short_side": 32}, (48, 32)),
        ((64, 96), "yuv420p", {"short_side": 32}, (32, 48)),
        ((95, 63), "yuv444p", {}, (96, 64)),
        ((63, 95), "yuv444p", {"short_side": 48}, (48, 72)),
        ((64, 48), "yuv420p", {}, (64, 48)),
        ((64, 48), "yuv420p", {"short_side": 96, "enlarge": True}, (128, 96)),
    ],
)
def test_video_has_the_size_and_its_whole_picture(
    tmp_path: Path,
    size: tuple[int, int],
    pix_fmt: str,
    settings: dict[str, Any],
    expected: tuple[int, int],
) -> None:
    source = write(tmp_path / "a.mp4", range(10), size=size, pix_fmt=pix_fmt)
    info = store(source, tmp_path / "o.mp4", **settings)
    assert (info.width, info.height) == expected
    assert [number for _, number in read(tmp_path / "o.mp4")] == list(range(10))
    with av.open(str(tmp_path / "o.mp4")) as container:
        frame = next(container.decode(video=0))
        assert (frame.width, frame.height, frame.format.name) == (*expected, "yuv420p")


def test_frames_that_change_their_size_are_stored_in_the_first_ones(
    tmp_path: Path, growing: Path
) -> None:
    info = store(growing, tmp_path / "o.mp4")
    assert (info.n_frames, info.width, info.height) == (20, 64, 48)
    with av.open(str(tmp_path / "o.mp4")) as container:
        images = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    assert {image.shape for image in images} == {(48, 64)}
    assert np.mean(images, axis=(1, 2)) == pytest.approx(np.arange(0, 200, 10), abs=4)


# --- rotation -------------------------------------------------------------------------------------

# (a, b, c, d) of the header, and PyAV's angle: counterclockwise, "in degrees".
MATRICES = {
    "upright": ((1, 0, 0, 1), 0),
    "a quarter clockwise": ((0, 1, -1, 0), -90),
    "half": ((-1, 0, 0, -1), -180),
    "a quarter counterclockwise": ((0, -1, 1, 0), 90),
    "mirrored left to right": ((-1, 0, 0, 1), -180),
    "mirrored top to bottom": ((1, 0, 0, -1), 0),
    "transposed": ((0, 1, 1, 0), -90),
    "transposed along the other diagonal": ((0, -1, -1, 0), 90),
}


def shown(image: np.ndarray, a: int, b: int, c: int, d: int) -> np.ndarray:
    """Move each pixel (x, y) to (a x + c y, b x + d y), as ISO 14496-12 says, y pointing down."""
    y, x = np.indices(image.shape)
    to_x, to_y = a * x + c * y, b * x + d * y
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    out = np.zeros((to_y.max() + 1, to_x.max() + 1), image.dtype)
    out[to_y, to_x] = image
    return out


@pytest.mark.parametrize("size", [(64, 48), (48, 64)])
@pytest.mark.parametrize("kind", MATRICES)
def test_rotation_in_the_header_is_applied(
    tmp_path: Path, turned: Callable[..., bytes], kind: str, size: tuple[int, int]
) -> None:
    matrix, angle = MATRICES[kind]
    picture = bar_code(0b11010000, *size)  # brighter at the left
    picture[: size[1] // 3] = 128  # and grey at the top
    write_images(tmp_path / "x.mp4", [picture] * 5)
    data = turned((tmp_path / "x.mp4").read_bytes(), *matrix)
    (tmp_path / "a.mp4").write_bytes(data)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert next(container.decode(video=0)).rotation == angle
    expected = shown(picture, *matrix)
    info = store(tmp_path / "a.mp4", tmp_path / "o.mp4")
    assert (info.height, info.width) == expected.shape
    with av.open(str(tmp_path / "o.mp4")) as container:
        frame = next(container.decode(video=0))
    assert frame.rotation == 0
    found = frame.to_ndarray(format="gray").astype(int)
    assert np.abs(found - expected).mean() < 8  # what encoding costs
    wrong = [shown(picture, *other) for other, _ in MATRICES.values() if other != matrix]
    assert all(np.abs(found - w).mean() > 20 for w in wrong if w.shape == found.shape)


def test_angle_that_is_no_quarter_turn_is_left_alone(
    tmp_path: Path, turned: Callable[..., bytes]
) -> None:
    write(tmp_path / "x.mp4", range(5))
    data = bytearray((tmp_path / "x.mp4").read_bytes())
    at = data.index(b"tkhd") + 44
    eighth = round(2**16 / 2**0.5)
    data[at : at + 36] = struct.pack(">9i", eighth, eighth, 0, -eighth, eighth, 0, 0, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(data)
    store(tmp_path / "a.mp4", tmp_path / "o.mp4")
    assert [number for _, number in read(tmp_path / "o.mp4")] == list(range(5))


def test_rotation_beside_a_photographs_metadata_is_applied(tmp_path: Path) -> None:
    """Motion JPEG with EXIF, which PyAV cannot name; orientation 6 is a quarter clockwise."""
    picture = bar_code(0b11010000, 64, 48)
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg = io.BytesIO()
    Image.fromarray(picture).convert("RGB").save(jpeg, "JPEG", exif=exif, quality=95)
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for i in range(5):
            packet = av.Packet(jpeg.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, i, i, Fraction(1, 30)
            packet.is_keyframe = True
            container.mux(packet)
    info = store(tmp_path / "a.avi", tmp_path / "o.mp4")
    assert (info.width, info.height) == (48, 64)
    with av.open(str(tmp_path / "o.mp4")) as container:
        found = next(container.decode(video=0)).to_ndarray(format="gray").astype(int)
    assert np.abs(found - shown(picture, 0, 1, -1, 0)).mean() < 8


# --- pixels ---------------------------------------------------------------------------------------


def write_planes(
    path: Path, pix_fmt: str, rows: list[tuple[int, ...]], codec: str = "libx264", **color: int
) -> str:
    """64×48 frames of equally high bands, each of one colour (a number per plane).

    `color` holds attributes of a codec context and of its frames.
    """
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        for name, value in color.items():
            setattr(stream.codec_context, name, value)
        for i in range(6):
            frame = av.VideoFrame(64, 48, pix_fmt)
            n_bytes = 1 if frame.format.components[0].bits == 8 else 2
            for plane, *values in zip(frame.planes, *rows, strict=True):
                size = plane.buffer_size // n_bytes // len(values)
                plane.update(b"".join(v.to_bytes(n_bytes, "little") * size for v in values))
            frame.pts, frame.time_base = i, Fraction(1, 30)
            for name, value in color.items():
                setattr(frame, name, value)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def means(path: Path, n_bands: int = 1) -> list[list[float]]:
    """Of each band of the third frame, the three planes' means."""
    with av.open(str(path)) as container:
        frame = list(container.decode(video=0))[2]
    assert frame.format.name == "yuv420p"
    assert frame.color_range in (0, 1)  # unknown, or limited: what a player takes it for
    found = []
    for plane in frame.planes:
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, -1)
        bands = rows[:, : plane.width].reshape(n_bands, -1)
        found.append(bands.mean(axis=1).tolist())
    return [list(values) for values in zip(*found, strict=True)]


# From full to limited range (ITU-R BT.601): 219 steps of brightness from 16 on, 224 of colour.
LIMITED = (16 + 120 * 219 / 255, 128 + (100 - 128) * 224 / 255, 128 + (150 - 128) * 224 / 255)
FULL = {"color_range": 2}


@pytest.mark.parametrize(
    ("pix_fmt", "values", "codec", "color", "expected"),
    [
        ("yuv420p", (120, 100, 150), "libx264", {}, (120, 100, 150)),
        ("yuv422p", (120, 100, 150), "libx264", {}, (120, 100, 150)),
        ("yuv444p", (120, 100, 150), "libx264", {}, (120, 100, 150)),
        ("yuv420p10le", (480, 400, 600), "libx264", {}, (120, 100, 150)),
        ("yuv422p10le", (480, 400, 600), "libx265", {}, (120, 100, 150)),
        ("yuv444p12le", (1920, 1600, 2400), "libx265", {}, (120, 100, 150)),
        ("yuvj420p", (120, 100, 150), "libx264", {}, LIMITED),
        ("yuvj422p", (120, 100, 150), "mjpeg", {}, LIMITED),
        ("yuv420p", (120, 100, 150), "libx264", FULL, LIMITED),
        ("yuv444p10le", (480, 400, 600), "libx264", FULL, LIMITED),
        ("gray", (120,), "libx264", {}, (120, 128, 128)),
    ],
)
def test_pixels_become_8_bit_4_2_0_of_limited_range(
    tmp_path: Path,
    pix_fmt: str,
    values: tuple[int, ...],
    codec: str,
    color: dict[str, int],
    expected: tuple[float, ...],
) -> None:
    source = write_planes(tmp_path / "a.mp4", pix_fmt, [values], codec, **color)
    store(source, tmp_path / "o.mp4")
    assert means(tmp_path / "o.mp4")[0] == pytest.approx(expected, abs=1.5)


def pq_code(nits: float) -> int:
    """10-bit limited-range code of a grey (SMPTE ST 2084)."""
    y = (nits / 10000) ** (2610 / 16384)
    signal = ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375
    return round(64 + 876 * signal)


BT2020 = {"color_primaries": 9, "colorspace": 9}


def tags(path: Path) -> tuple[int, int, int]:
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    return frame.color_primaries, frame.color_trc, frame.colorspace


def test_hdr_becomes_sdr(tmp_path: Path) -> None:
    """100 nits is a bright grey. Its code taken as it is would come out as a dark one."""
    greys = [(pq_code(nits), 512, 512) for nits in (1, 10, 100, 203)]
    assert pq_code(100) / 4 == pytest.approx(127, abs=1)
    source = write_planes(
        tmp_path / "a.mp4", "yuv420p10le", greys, "libx265", **BT2020, color_trc=16
    )
    store(source, tmp_path / "o.mp4", crf=10)
    bands = means(tmp_path / "o.mp4", 4)
    assert all(band[1:] == pytest.approx([128, 128], abs=2) for band in bands)
    luma = [band[0] for band in bands]
    assert luma == sorted(luma) and luma[0] > 30
    assert luma[2] > 165
    assert luma[3] == pytest.approx(235, abs=4)  # reference white (ITU-R BT.2408) is white
    assert tags(tmp_path / "o.mp4") == (1, 1, 1)  # BT.709


def test_wide_gamut_becomes_the_ordinary_one(tmp_path: Path) -> None:
    """The same coordinates are a paler colour in BT.709 than in BT.2020."""
    red = [(400, 480, 640)]
    source = write_planes(tmp_path / "a.mp4", "yuv420p10le", red, **BT2020, color_trc=1)
    store(source, tmp_path / "o.mp4")
    assert means(tmp_path / "o.mp4")[0][2] > 160 + 5
    assert tags(tmp_path / "o.mp4") == (1, 1, 1)


@pytest.mark.parametrize("matrix", [1, 5, 6, 7])  # BT.709, two of BT.601, SMPTE 240M
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p"])
def test_colours_of_sdr_keep_values_and_matrix(tmp_path: Path, matrix: int, pix_fmt: str) -> None:
    """They stay as they are, and the header goes on to say what they mean."""
    color = {"colorspace": matrix, "color_primaries": matrix, "color_trc": matrix}
    source = write_planes(tmp_path / "a.mp4", pix_fmt, [(120, 100, 150)], **color)
    store(source, tmp_path / "o.mp4", short_side=32)
    assert tags(tmp_path / "o.mp4") == (matrix,) * 3
    assert means(tmp_path / "o.mp4")[0] == pytest.approx((120, 100, 150), abs=1)


# --- the file -------------------------------------------------------------------------------------


def test_same_source_gives_the_same_bytes_in_any_process(
    tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    """Where x264 may use AVX-512, every second encode of this one was another."""
    source = str(make_video(tmp_path / "a.mp4", n_frames=90, height=120, width=160))
    target = tmp_path / "o.mp4"
    digests = set()
    for _ in range(5):
        store(source, target)
        digests.add(hashlib.sha256(target.read_bytes()).hexdigest())
    assert b" threads=1 " in target.read_bytes()  # x264 says so; more would follow the machine
    code = (
        "import sys; from kinetics400.data.transcode import *;"
        "transcode_video(sys.argv[1], sys.argv[2], EncodeSettings())"
    )
    subprocess.run([sys.executable, "-c", code, source, str(target)], check=True)
    digests.add(hashlib.sha256(target.read_bytes()).hexdigest())
    assert len(digests) == 1


def boxes(data: bytes) -> list[bytes]:
    """Kinds of an MP4's outermost boxes."""
    found, at = [], 0
    while at < len(data):
        found.append(data[at + 4 : at + 8])
        at += int.from_bytes(data[at : at + 4])
    return found


def test_index_comes_first(tmp_path: Path) -> None:
    """A reader needs no seek, and a cut file is known by its first bytes."""
    store(write(tmp_path / "a.mp4", range(40)), tmp_path / "o.mp4")
    kinds = boxes((tmp_path / "o.mp4").read_bytes())
    assert kinds.index(b"moov") < kinds.index(b"mdat")
    assert boxes((tmp_path / "a.mp4").read_bytes())[-1] == b"moov"  # else this would show nothing


def check_pyramid(path: Path, n_frames: int, interval: int = 32) -> None:
    """Hold a plain decode against the pattern in the module's docstring."""
    with av.open(str(path)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        assert container.metadata["comment"] == pyramid.mark(interval)
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.start_time == 0
        tick = 1 / (stream.time_base * stream.average_rate)
        keys = {p.pts / tick for p in container.demux(stream) if p.is_keyframe}
        container.seek(0)
        frames = list(container.decode(stream))
    assert [frame.pts / tick for frame in frames] == list(range(n_frames))
    assert keys == set(range(0, n_frames, interval))
    for number, frame in enumerate(frames):
        in_group = number % interval
        last = min(interval, n_frames - number + in_group) - 1
        letter = av.video.frame.PictureType(frame.pict_type).name
        if in_group == 0:
            assert letter == "I"
        elif in_group % 4 == 0 or in_group == last:
            assert letter == "P"
        else:
            assert letter == "B"


@pytest.mark.parametrize("interval", [4, 12, 32])
def test_settings_reach_the_encoder(tmp_path: Path, encode: Encode, interval: int) -> None:
    encode(tmp_path / "a.mp4")
    store(tmp_path / "a.mp4", tmp_path / "o.mp4", keyframe_interval=interval)
    check_pyramid(tmp_path / "o.mp4", 60, interval)
    small = store(tmp_path / "a.mp4", tmp_path / "o.mp4", keyframe_interval=interval, crf=40)
    check_pyramid(tmp_path / "o.mp4", 60, interval)
    large = store(tmp_path / "a.mp4", tmp_path / "o.mp4", keyframe_interval=interval, crf=15)
    assert small.n_bytes < large.n_bytes / 2
    other = store(tmp_path / "a.mp4", tmp_path / "p.mp4", keyframe_interval=interval, crf=15)
    assert other.n_bytes == large.n_bytes
    slow = store(tmp_path / "a.mp4", tmp_path / "p.mp4", crf=15, preset="slow")
    assert slow.n_bytes != store(tmp_path / "a.mp4", tmp_path / "p.mp4", crf=15).n_bytes


def test_valid_oddity_becomes_a_pyramid(tmp_path: Path, oddity: Any) -> None:
    info = store(oddity.path, tmp_path / "o.mp4")
    assert info.n_frames == oddity.n_frames
    check_pyramid(tmp_path / "o.mp4", oddity.n_frames)
    assert verify_video(str(tmp_path / "o.mp4")) == info
    assert (info.width, info.height) == tuple(side + side % 2 for side in oddity.size)
    assert info.fps == pytest.approx(30, rel=0.05)


def test_bad_file_is_refused_as_verification_refuses_it(tmp_path: Path, bad: Any) -> None:
    verdict = transcode_video(str(bad.path), str(tmp_path / "o.mp4"), EncodeSettings())
    assert isinstance(verdict, Refused)
    assert verdict.reason in bad.reasons
    assert verdict == verify_video(str(bad.path))


# --- storage --------------------------------------------------------------------------------------


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """As on a disk that fills up: later bytes are not written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("n_bytes", [0, 30, 500, 5000])
def test_full_disk_is_not_the_videos_fault(tmp_path: Path, encode: Encode, n_bytes: int) -> None:
    encode(tmp_path / "a.mp4", size=(160, 120))
    source, target = str(tmp_path / "a.mp4"), str(tmp_path / "o.mp4")
    with largest_file(n_bytes), pytest.raises(StorageError, match="File too large"):
        transcode_video(source, target, EncodeSettings())
    assert isinstance(transcode_video(source, target, EncodeSettings()), VideoInfo)
    assert (tmp_path / "o.mp4").stat().st_size > 5000


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("/dev/full", "No space left on device"),
        ("absent/o.mp4", "No such file or directory"),
        ("a.mp4/o.mp4", "Not a directory"),
        (".", "Is a directory"),
    ],
)
def test_target_that_cannot_be_written_is_not_the_videos_fault(
    tmp_path: Path, target: str, reason: str
) -> None:
    source = write(tmp_path / "a.mp4", range(40))
    with pytest.raises(StorageError, match=reason):
        transcode_video(source, str(tmp_path / target), EncodeSettings())


def test_lack_of_memory_is_not_the_videos_fault() -> None:
    with pytest.raises(MemoryError), transcode._writing("o.mp4"):
        raise av.error.MemoryError(12, "Cannot allocate memory")


def test_what_x264_will_not_take_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "a.mp4", range(5))
    verdict = transcode_video(source, str(tmp_path / "o.mp4"), EncodeSettings(preset="nonsense"))
    assert isinstance(verdict, Refused) and verdict.reason == "cannot be encoded"


@pytest.mark.parametrize("params", ["keyint=16:min-keyint=16:bframes=3", "bframes=2:b-adapt=0"])
def test_a_file_that_x264_wrote_otherwise_is_not_passed_off_as_a_pyramid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: str
) -> None:
    source = write(tmp_path / "a.mp4", range(40))
    options = {"preset": "veryfast", "x264-params": params}
    monkeypatch.setattr(pyramid, "encoder_options", lambda *settings: options)
    with pytest.raises(StorageError, match="cannot be read back as it was written"):
        transcode_video(source, str(tmp_path / "o.mp4"), EncodeSettings())


# --- for isolated processes -----------------------------------------------------------------------


def test_answer_says_what_kind_of_file_was_kept(tmp_path: Path) -> None:
    source, target = write(tmp_path / "a.mp4", range(40)), str(tmp_path / "o.mp4")
    kept = store_as_json((source, target, None))
    assert (kept["kind"], kept["n_frames"]) == ("original", 40)
    assert not Path(target).exists()
    stored = store_as_json((source, target, EncodeSettings()))
    assert (stored["kind"], stored["n_bytes"]) == ("pyramid", Path(target).stat().st_size)
    again = store_as_json((target, "", None))  # made elsewhere, and taken over as it is
    assert again == stored


def test_answer_tells_refusal_from_a_full_disk(tmp_path: Path) -> None:
    source = write(tmp_path / "a.mp4", range(40))
    assert (
        "No space left" in store_as_json((source, "/dev/full", EncodeSettings()))["storage_error"]
    )
    absent = str(tmp_path / "absent.mp4")
    assert store_as_json((absent, "/dev/full", EncodeSettings()))["reason"] == "absent"
