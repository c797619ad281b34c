"""Store a video as a temporal pyramid, verified on the way. In isolated processes: no torch."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import av
from av.container import OutputContainer
from av.error import FFmpegError
from av.filter import Graph

from kinetics400.data import pyramid
from kinetics400.data.containers import open_video
from kinetics400.data.verify import (
    Refusal,
    Refused,
    Stream,
    VideoInfo,
    verified_frames,
    verify_video,
    with_source,
)
from kinetics400.errors import StorageError

MAX_FPS = 240  # of a stored video; what claims more is a broken header
# ITU-T H.273 code points: BT.2020 primaries, and the transfer functions of HDR video.
BT2020, PQ, HLG = 9, 16, 18
# Turned counterclockwise by so many degrees in the header, and whether mirrored → filters that put
# the pixels upright.
TURNS: dict[tuple[int, bool], list[tuple[str, str]]] = {
    (90, False): [("transpose", "cclock")],
    (180, False): [("hflip", ""), ("vflip", "")],
    (270, False): [("transpose", "clock")],
    (0, True): [("vflip", "")],
    (90, True): [("transpose", "clock_flip")],
    (180, True): [("hflip", "")],
    (270, True): [("transpose", "cclock_flip")],
}


@dataclass(frozen=True)
class EncodeSettings:
    """How videos are stored as pyramids."""

    short_side: int = 256
    """Pixels; larger videos are scaled down to it."""
    crf: int = 22
    """x264's constant rate factor: lower is better and larger."""
    preset: str = "veryfast"
    """x264's preset: slower is smaller."""
    keyframe_interval: int = 32
    """Frames between key frames, a multiple of 4."""
    enlarge: bool = False
    """Scale smaller videos up to the short side as well."""

    def problems(self) -> list[str]:
        """What is wrong with the settings, by the names of the flags."""
        interval, step = self.keyframe_interval, pyramid.P_INTERVAL
        rules = {
            f"--short_side {self.short_side} is not between 16 and 4320": 16
            <= self.short_side
            <= 4320,
            # 0, lossless, has no B frames and so no layers.
            f"--crf {self.crf} is not between 1 and 51": 1 <= self.crf <= 51,
            f"--keyframe_interval {interval} is not a multiple of {step} up to 1024": interval
            in range(step, 1025, step),
        }
        return [text for text, holds in rules.items() if not holds]


def transcode_video(source: str, target: str, settings: EncodeSettings) -> VideoInfo | Refused:
    """Verify `source` as `verify_video` does and write it to `target` as a pyramid.

    Rotation in the header is applied; a side becomes even; pixels become 8-bit 4:2:0 in the limited
    range, HDR as SDR in BT.709; a variable frame rate becomes the constant mean, each frame at its
    own time. Sample aspect ratios are left alone, as the loaders of the field do. The same source
    and settings give the same bytes.

    `target` holds nothing of use when the source is refused.

    Raises:
        StorageError: the disk is full or failing, or what is there is no pyramid.
    """

    def consume(stream: Stream) -> VideoInfo | Refused:
        encoder = Encoder(target, frame_rate(stream), settings)
        try:
            for frame, repeats in constant_rate(stream, encoder.rate):
                encoder.add(frame, repeats)
            encoder.finish()
        finally:
            encoder.close()
        info = encoder.info()
        if pyramid_frames(target) != info.n_frames:
            raise StorageError(f"{target} cannot be read back as it was written")
        return info

    return with_source(source, consume)


# Source, target, and how to store; without settings the source is verified and stays as it is.
Job = tuple[str, str, EncodeSettings | None]


def store_as_json(job: Job) -> dict[str, Any]:
    """Verify, and store unless told otherwise; for `run_isolated`.

    Returns:
        Fields of `VideoInfo` and "kind" ("pyramid" or "original"), fields of `Refused`, or
        "storage_error".
    """
    source, target, settings = job
    try:
        if settings is None:
            verdict = verify_video(source)
        else:
            verdict = transcode_video(source, target, settings)
    except StorageError as error:
        return {"storage_error": str(error)}
    if isinstance(verdict, Refused):
        return asdict(verdict)
    is_pyramid = settings is not None or pyramid_frames(source) == verdict.n_frames
    return {**asdict(verdict), "kind": "pyramid" if is_pyramid else "original"}


# --- frame rate -----------------------------------------------------------------------------------


def frame_rate(stream: Stream) -> Fraction:
    """Frames per second of the stored video: the header's if the frames keep to it, or the mean.

    Raises:
        Refusal: no rate can be told, or an absurd one.
    """
    rates = [rate for rate in (stream.video.average_rate, stream.video.guessed_rate) if rate]
    if stream.times is not None and len(stream.times) > 1:
        base = stream.video.time_base
        assert base is not None
        mean = 1 / ((stream.times[-1] - stream.times[0]) * base / (len(stream.times) - 1))
        rates = [rate for rate in rates if _keeps_to(stream.times, base, rate)]
        rates.append(mean.limit_denominator(1001))
    if not rates or not 0 < rates[0] <= MAX_FPS:
        raise Refusal("damaged", f"{float(rates[0]) if rates else 'no'} frames per second")
    return rates[0]


def _keeps_to(times: list[int], base: Fraction, rate: Fraction) -> bool:
    """Whether frame k is shown within half a frame of k / rate."""
    tick = base * rate  # frames per unit of time
    first = times[0]
    return all(abs((time - first) * tick - k) < Fraction(1, 2) for k, time in enumerate(times))


def constant_rate(stream: Stream, rate: Fraction) -> Iterator[tuple[av.VideoFrame, int]]:
    """Frames and how often each is shown at a constant rate, 0 for those that are skipped.

    Frame k of the result is shown at k / rate. A source frame goes to the place nearest to its
    time, the later one where two meet; a place without one repeats the frame before it. So at a
    rate that the source keeps to, every frame is shown once.
    """
    frames = verified_frames(stream)
    if stream.times is None:
        for frame in frames:
            yield frame, 1
        return
    assert stream.video.time_base is not None
    tick, start = stream.video.time_base * rate, stream.times[0]
    before: av.VideoFrame | None = None
    place = 0
    for frame in frames:
        assert frame.pts is not None
        # Half up, not Python's half to even; a frame never goes back before its predecessor.
        here = max(place, int((frame.pts - start) * tick + Fraction(1, 2)))
        if before is not None:
            yield before, here - place
        before, place = frame, here
    if before is not None:
        yield before, 1


# --- writing --------------------------------------------------------------------------------------


class Encoder:
    """Scales frames and writes them as a pyramid."""

    def __init__(self, target: str, rate: Fraction, settings: EncodeSettings) -> None:
        self.rate = rate
        self.n_frames = 0
        self._target = target
        self._settings = settings
        self._output: OutputContainer | None = None
        self._filter: tuple[tuple[int, int, str], Graph] | None = None

    def add(self, frame: av.VideoFrame, repeats: int) -> None:
        """Append a frame `repeats` times."""
        if not repeats:
            return
        if self._output is None:
            self._open(frame)
        picture = self._converted(frame)
        for _ in range(repeats):
            # The source's frame types must not decide the pyramid's.
            picture.pict_type = 0
            picture.pts, picture.time_base = self.n_frames, 1 / self.rate
            self.n_frames += 1
            self._mux(picture)

    def finish(self) -> None:
        """Write what the encoder still holds, and the index."""
        self._mux(None)
        self.close()

    def close(self) -> None:
        if self._output is not None:
            with _writing(self._target):
                self._output.close()

    def info(self) -> VideoInfo:
        """What was written."""
        width, height = self._video.width, self._video.height
        n_bytes = os.path.getsize(self._target)
        return VideoInfo(self.n_frames, float(self.rate), width, height, n_bytes)

    def _mux(self, picture: av.VideoFrame | None) -> None:
        assert self._output is not None
        with _writing(self._target):
            self._output.mux(self._video.encode(picture))

    def _open(self, frame: av.VideoFrame) -> None:
        settings = self._settings
        interval = settings.keyframe_interval
        self._size = stored_size(frame.width, frame.height, settings)
        with _writing(self._target):
            self._output = av.open(
                self._target,
                "w",
                format="mp4",
                container_options={"fflags": "+bitexact", "movflags": "+faststart"},
            )
        self._output.metadata["comment"] = pyramid.mark(interval)
        video = self._output.add_stream(
            "libx264",
            rate=self.rate,
            options=pyramid.encoder_options(settings.crf, settings.preset, interval),
        )
        first = self._converted(frame)
        video.width, video.height, video.pix_fmt = first.width, first.height, "yuv420p"
        context = video.codec_context
        context.time_base = 1 / self.rate
        context.color_range, context.colorspace = first.color_range, first.colorspace
        context.color_primaries, context.color_trc = first.color_primaries, first.color_trc
        self._video = video

    def _converted(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The frame upright, in the stored size and pixel format."""
        kind = (frame.width, frame.height, frame.format.name)
        if self._filter is None or self._filter[0] != kind:
            self._filter = kind, _graph(frame, self._size)
        frame.time_base = Fraction(1)  # what the graph was told; the encoder sets the times
        graph = self._filter[1]
        graph.vpush(frame)
        return graph.vpull()


@contextmanager
def _writing(target: str) -> Iterator[None]:
    """Tell a failing disk from a video that x264 will not take."""
    try:
        yield
    except (FFmpegError, OSError) as error:
        if isinstance(error, MemoryError):
            raise
        reason = error.strerror or type(error).__name__
        if isinstance(error, OSError):
            raise StorageError(f"{target}: {reason}") from error
        raise Refusal("cannot be encoded", reason) from error


def stored_size(width: int, height: int, settings: EncodeSettings) -> tuple[int, int]:
    """Width and height of the stored video before it is turned upright; both even.

    >>> stored_size(853, 480, EncodeSettings())
    (454, 256)
    >>> stored_size(95, 63, EncodeSettings())
    (96, 64)
    """
    factor = Fraction(settings.short_side, min(width, height))
    if factor > 1 and not settings.enlarge:
        factor = Fraction(1)
    wide, high = (max(2, 2 * int(side * factor / 2 + Fraction(1, 2))) for side in (width, height))
    return wide, high


def _graph(frame: av.VideoFrame, size: tuple[int, int]) -> Graph:
    """Filters that bring frames like this one into the stored form."""
    scale = f"{size[0]}:{size[1]}:flags=bicubic+accurate_rnd:out_range=tv"
    if frame.color_trc in (PQ, HLG) or frame.color_primaries == BT2020:
        scale += ":out_color_matrix=bt709:out_primaries=bt709:out_transfer=bt709"
    graph = Graph()
    graph.threads = 1
    # Not graph.add_buffer: it leaves out the colours, and BT.709 would come out as BT.601.
    source = graph.add(
        "buffer",
        video_size=f"{frame.width}x{frame.height}",
        pix_fmt=frame.format.name,
        time_base="1",
        colorspace=str(int(frame.colorspace)),
        range=str(int(frame.color_range)),
    )
    turn = frame.rotation % 360, _is_mirrored(frame)
    steps = [("scale", scale), ("format", "yuv420p"), *TURNS.get(turn, [])]
    nodes = [source, *(graph.add(*step) for step in steps), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()
    return graph


def _is_mirrored(frame: av.VideoFrame) -> bool:
    """Whether the header's matrix (x' = a x + c y, y' = b x + d y) has a negative determinant."""
    try:
        matrix = frame.side_data["DISPLAYMATRIX"]  # type: ignore[typeddict-item]
    except (KeyError, ValueError):  # none, or next to data that PyAV cannot name: a JPEG's EXIF
        return False
    a, b, _, c, d = struct.unpack("=5i", memoryview(matrix)[:20])
    return bool(a * d < b * c)


def pyramid_frames(path: str) -> int | None:
    """Number of frames if a file is a temporal pyramid, packet for packet; None if it is not."""
    try:
        with open_video(path, "mov") as container:
            interval = pyramid.marked_interval(container.metadata.get("comment", ""))
            if interval is None or not container.streams.video:
                return None
            video = container.streams.video[0]
            if video.time_base is None or not video.average_rate:
                return None
            tick = 1 / (video.time_base * video.average_rate)
            written = [p.pts / tick for p in container.demux(video) if p.pts is not None]
    except FFmpegError:
        return None
    expected = [
        start + number
        for start in range(0, len(written), interval)
        for number in pyramid.decoding_order(min(interval, len(written) - start))
    ]
    return len(written) if written == expected else None
