"""Video file to frames: any index, exact, by presentation time. Runs in the loader's workers.

Shapes: T frames, H, W, C channels (RGB).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.plane import VideoPlane
from av.video.reformatter import VideoReformatter

from kinetics400.data import pyramid
from kinetics400.data.containers import TIMED_DEMUXERS, open_video, sniff
from kinetics400.data.sampling import Box


class DecodeError(Exception):
    """A video that cannot be opened, or lacks frames its index promises."""


class Scratch:
    """Memory that is used again and again, for frames that are soon scaled.

    Memory fresh from the system costs as much as scaling does: every page of it is cleared at the
    first touch.
    """

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        """An uint8 array of this shape, with anything in it; the array before it is lost."""
        size = math.prod(shape)
        if size > len(self._bytes):
            self._bytes = np.empty(size, np.uint8)
        return self._bytes[:size].reshape(shape)


class VideoReader:
    """Read frames of one video by index; every frame is the one that a full decode gives.

    A temporal pyramid (data/pyramid.py) needs no index: times and key frames follow from the
    numbers, and only the widest layer that holds all frames asked for is decoded.

    Of other files the packets are indexed first, without decoding: sorted presentation times are
    the frame numbers. Reading seeks to the key frame before the first frame wanted and matches by
    time. Files without usable times are decoded from the start.

    Use as a context manager. Not to be carried across a fork.

    Attributes:
        height: of a frame, pixels.
        width: of a frame, pixels.
        fps: frames per second; 0.0 if the file does not tell.

    Raises:
        DecodeError: the file is absent, is no video, or has no frames.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = str(path)
        # One converter for all frames: setting it up costs more than converting a small frame.
        self._to_rgb = VideoReformatter()
        with self._damage():
            demuxer = sniff(self._path)
        if demuxer is None:
            raise DecodeError(f"{self._path!r} is no MP4, Matroska/WebM or AVI")
        self._demuxer = demuxer
        # A pyramid's header says all; looking at its packets as well doubles the time to open it.
        self._container = self._open(analyzeduration="0")
        try:
            self._interval = self._find_pyramid()
            if self._interval is None:
                self._container.close()
                self._container = self._open()
                self._index()
            self.height, self.width = self._stream.height, self._stream.width
            self.fps = float(self._stream.average_rate or self._stream.guessed_rate or 0)
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._container.close()

    def __len__(self) -> int:
        """Number of frames."""
        return self._length

    @property
    def is_pyramid(self) -> bool:
        """Whether the file is a temporal pyramid, so that layers are read by themselves."""
        return self._interval is not None

    def read(
        self,
        indices: Sequence[int],
        box: Box | None = None,
        *,
        scratch: "Scratch | None" = None,
    ) -> np.ndarray:
        """Decode frames by index, in the order given, repeats allowed.

        Args:
            indices: T frame numbers in [0, len).
            box: the part of each frame to return; None for all of it.
            scratch: memory for the result, which the next reading with it overwrites.

        Returns:
            (T, H, W, C) uint8, H and W being the box's.

        Raises:
            DecodeError: a frame is missing or damaged, or frames differ in size.
        """
        box = box or Box(0, 0, self.height, self.width)
        # All are decoded before the first is converted: taking turns makes both slower (measured).
        frames = dict(self.frames(indices))
        shape = (len(indices), box.height, box.width, 3)
        out = np.empty(shape, np.uint8) if scratch is None else scratch.array(shape)
        place: dict[int, int] = {}
        for i, index in enumerate(indices):
            frame = frames[index]
            if (frame.height, frame.width) != (self.height, self.width):
                size = f"{frame.width}×{frame.height} after {self.width}×{self.height}"
                raise DecodeError(f"{self._path!r} changes its frame size: {size}")
            if index in place:
                out[i] = out[place[index]]
            else:
                out[i] = self._rgb(frame, box)
                place[index] = i
        return out

    def frames(self, indices: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decode frames by index: each once, with its index, in the pixel format of the file.

        Raises:
            DecodeError: a frame is missing or damaged.
        """
        left = set(indices)
        if not left:
            raise ValueError("no frames asked for")
        decoded = self._pyramid_frames(left) if self._interval else self._frames_from(min(left))
        for number, frame in decoded:
            if number in left:
                left.remove(number)
                yield number, frame
            if not left:
                return
        raise DecodeError(f"{self._path!r} lacks frames {sorted(left)[:5]} of {self._length}")

    def _rgb(self, frame: av.VideoFrame, box: Box) -> np.ndarray:
        """(box.height, box.width, C) of one frame; valid until the frame is gone."""
        top, left, height, width = box
        is_even = frame.width % 2 == frame.height % 2 == 0
        if frame.format.name == "yuv420p" and is_even and not frame.interlaced_frame:
            # Convert no more than the box needs. Its corner moves to an even place, because two by
            # two pixels share their colour.
            frame = _cropped(frame, top - top % 2, left - left % 2, height + 1, width + 1)
            top, left = top % 2, left % 2
        # One thread: the loader's workers already fill the cores, and a converter with threads
        # that is collected after a fork waits in the child for threads that are not there.
        plane = self._to_rgb.reformat(frame, format="rgb24", threads=1).planes[0]
        part = _rows(plane)[top : top + height, 3 * left : 3 * (left + width)]
        return part.reshape(height, width, 3)

    # --- opening ----------------------------------------------------------------------------------

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except (FFmpegError, OSError, ValueError) as error:
            raise DecodeError(f"{self._path!r} cannot be read: {error}") from error

    def _open(self, **options: str) -> InputContainer:
        with self._damage():
            container = open_video(self._path, self._demuxer, **options)
        if not container.streams.video:
            container.close()
            raise DecodeError(f"{self._path!r} has no video stream")
        self._stream = container.streams.video[0]
        context: VideoCodecContext | None = self._stream.codec_context  # the stub hides the None
        if context is None:
            container.close()
            raise DecodeError(f"{self._path!r} is in a coding that cannot be decoded")
        context.thread_count = 1
        return container

    def _find_pyramid(self) -> int | None:
        """The keyframe interval if the header is a pyramid's, whose frames it then describes."""
        interval = pyramid.marked_interval(self._container.metadata.get("comment", ""))
        stream = self._stream
        if interval is None or not stream.frames or not stream.average_rate or stream.start_time:
            return None
        assert stream.time_base is not None
        tick = 1 / (stream.time_base * stream.average_rate)  # units of time from frame to frame
        if tick.denominator != 1:
            return None
        self._tick, self._length = int(tick), stream.frames
        stream.codec_context.options = {"err_detect": "explode"}
        return interval

    def _index(self) -> None:
        times: list[int | None] = []
        keys: list[int] = []
        with self._damage():
            for packet in self._container.demux(self._stream):
                if packet.size and not packet.is_discard:
                    times.append(packet.pts)
                    if packet.is_keyframe and packet.pts is not None:
                        keys.append(packet.pts)
        known = sorted(time for time in times if time is not None)
        self._exact = (
            self._demuxer in TIMED_DEMUXERS and bool(keys) and len(set(known)) == len(times)
        )
        if self._exact:
            self._number = {time: index for index, time in enumerate(known)}
            self._keys = sorted((self._number[time], time) for time in keys)
            self._length = len(known)
        else:
            self._length = sum(1 for _ in self._frames_from_start())
        if self._length == 0:
            raise DecodeError(f"{self._path!r} has no frames")

    # --- any video --------------------------------------------------------------------------------

    def _frames_from_start(self) -> Iterator[tuple[int, av.VideoFrame]]:
        self._container.close()
        self._container = self._open()  # some containers cannot seek, not even to their start
        with self._damage():
            yield from enumerate(self._container.decode(self._stream))

    def _frames_from(self, first: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Numbered frames from the key frame at or before `first`, in order of presentation."""
        if not self._exact:
            yield from self._frames_from_start()
            return
        time = max((key for key in self._keys if key[0] <= first), default=self._keys[0])[1]
        with self._damage():
            self._container.seek(time, stream=self._stream)
            for frame in self._container.decode(self._stream):
                if frame.pts in self._number:
                    yield self._number[frame.pts], frame

    # --- pyramids ---------------------------------------------------------------------------------

    def _pyramid_frames(self, wanted: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """The wanted frames and those that their layer needs, numbered."""
        assert self._interval is not None
        wanted = set(wanted)
        layer = pyramid.layer_of(wanted)
        codec = self._stream.codec_context
        # Layer 4 looks at the headers of B frames only; the other layers are sent what they need.
        codec.skip_frame = "BIDIR" if layer == pyramid.P_INTERVAL else "DEFAULT"
        groups = sorted({number // self._interval for number in wanted})
        runs = [0, *(i for i, (a, b) in enumerate(pairwise(groups), 1) if b > a + 1), len(groups)]
        with self._damage():
            for start, stop in pairwise(runs):
                self._container.seek(
                    groups[start] * self._interval * self._tick, stream=self._stream
                )
                packets = self._container.demux(self._stream)
                for group in groups[start:stop]:
                    for packet in self._group_packets(packets, group, layer, wanted):
                        for frame in packet.decode():
                            yield self._number_of(frame), frame
                for frame in codec.decode(None):  # what it held back to sort
                    yield self._number_of(frame), frame

    def _number_of(self, timed: av.VideoFrame | Packet) -> int:
        if timed.pts is None or timed.pts % self._tick:
            raise DecodeError(f"{self._path!r} has a frame at a time that no frame has")
        return timed.pts // self._tick

    def _group_packets(
        self, packets: Iterator[Packet], group: int, layer: int, wanted: set[int]
    ) -> Iterator[Packet]:
        """A group's packets that the layer needs, up to the last one wanted."""
        assert self._interval is not None
        first = group * self._interval
        length = min(self._interval, self._length - first)
        left = sum(first <= number < first + length for number in wanted)
        for number in pyramid.decoding_order(length):
            packet = next(packets, None)
            if packet is None or packet.pts is None or self._number_of(packet) != first + number:
                raise DecodeError(f"{self._path!r} is not the temporal pyramid that it says it is")
            if left and pyramid.is_needed(number, length, layer):
                yield packet
            left -= first + number in wanted
            if not left and first + length > max(wanted):
                return  # no group follows whose packets would have to be reached


def _cropped(
    frame: av.VideoFrame, top: int, left: int, least_height: int, least_width: int
) -> av.VideoFrame:
    """Part of a yuv420p frame of even sides, sharing its memory; `top` and `left` are even."""
    height = min(least_height + least_height % 2, frame.height - top)
    width = min(least_width + least_width % 2, frame.width - left)
    planes = []
    for plane, by in zip(frame.planes, (1, 2, 2), strict=True):
        bottom, right = top + height, left + width
        planes.append(_rows(plane)[top // by : bottom // by, left // by : right // by])
    part = av.VideoFrame.from_dlpack(planes, "yuv420p", width, height)
    part.colorspace, part.color_range = frame.colorspace, frame.color_range
    return part


def _rows(plane: VideoPlane) -> np.ndarray:
    """A plane's bytes, (rows, bytes in a row with its padding), without a copy."""
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
