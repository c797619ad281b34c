"""Video file to frames: any index, exact, by presentation time. Runs in the loader's workers.

Shapes: T frames, H, W, C channels (RGB).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter

# Containers that store when each frame is shown.
TIMED_CONTAINERS = {"mov", "mp4", "matroska", "webm"}


class DecodeError(Exception):
    """A video that cannot be opened, or lacks frames its index promises."""


class VideoReader:
    """Read frames of one video by index.

    The packets are indexed first, without decoding: sorted presentation times are the frame
    numbers. Reading seeks to the key frame before the first frame wanted and matches by time, so
    every frame is the one that a full decode gives. Files without usable times are decoded from
    the start.

    Use as a context manager. Not to be carried across a fork.

    Raises:
        DecodeError: the file is absent, is no video, or has no frames.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = str(path)
        self._container = self._open()
        # One converter for all frames: setting it up costs more than converting a small frame.
        self._to_rgb = VideoReformatter()
        try:
            self._index()
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

    def _open(self) -> InputContainer:
        try:
            return av.open(
                self._path, options={"protocol_whitelist": "file"}, metadata_errors="replace"
            )
        except (FFmpegError, OSError, ValueError) as error:
            raise DecodeError(f"{self._path!r} cannot be opened: {error}") from error

    def _index(self) -> None:
        if not self._container.streams.video:
            raise DecodeError(f"{self._path!r} has no video stream")
        self._stream = self._container.streams.video[0]
        if self._stream.codec_context is None:
            raise DecodeError(f"{self._path!r} is in a coding that cannot be decoded")
        self._stream.codec_context.thread_count = 1
        self.height, self.width = self._stream.height, self._stream.width
        times: list[int | None] = []
        keys: list[int] = []
        try:
            for packet in self._container.demux(self._stream):
                if packet.size and not packet.is_discard:
                    times.append(packet.pts)
                    if packet.is_keyframe and packet.pts is not None:
                        keys.append(packet.pts)
        except FFmpegError as error:
            raise DecodeError(f"{self._path!r} is damaged: {error}") from error
        known = sorted(time for time in times if time is not None)
        # Other containers (AVI) store no presentation times, and what FFmpeg makes up can be wrong.
        timed = not TIMED_CONTAINERS.isdisjoint(self._container.format.name.split(","))
        self._exact = timed and bool(keys) and len(set(known)) == len(times)
        if self._exact:
            self._number = {time: index for index, time in enumerate(known)}
            self._keys = sorted((self._number[time], time) for time in keys)
            self._length = len(known)
        else:
            self._length = sum(1 for _ in self._decode_from_start())
        if self._length == 0:
            raise DecodeError(f"{self._path!r} has no frames")

    def _decode_from_start(self) -> Iterator[tuple[int, av.VideoFrame]]:
        self._container.close()
        self._container = self._open()  # raw streams cannot seek, not even to their start
        self._stream = self._container.streams.video[0]
        self._stream.codec_context.thread_count = 1
        try:
            yield from enumerate(self._container.decode(self._stream))
        except FFmpegError as error:
            raise DecodeError(f"{self._path!r} is damaged: {error}") from error

    def _decode_from(self, first: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Numbered frames from the key frame at or before `first`, in order of presentation."""
        if not self._exact:
            yield from self._decode_from_start()
            return
        time = max((key for key in self._keys if key[0] <= first), default=self._keys[0])[1]
        try:
            self._container.seek(time, stream=self._stream)
            for frame in self._container.decode(self._stream):
                if frame.pts in self._number:
                    yield self._number[frame.pts], frame
        except FFmpegError as error:
            raise DecodeError(f"{self._path!r} is damaged: {error}") from error

    def _rgb(self, frame: av.VideoFrame) -> np.ndarray:
        # One thread: the loader's workers already fill the cores, and a converter with threads
        # that is collected after a fork waits in the child for threads that are not there.
        return self._to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Decode frames by index, in the order given, repeats allowed.

        Args:
            indices: T frame numbers in [0, len).

        Returns:
            (T, H, W, C) uint8.

        Raises:
            DecodeError: a frame is missing or damaged, or frames differ in size.
        """
        wanted = set(indices)
        frames: dict[int, np.ndarray] = {}
        for number, frame in self._decode_from(min(wanted)):
            if number in wanted and number not in frames:
                frames[number] = self._rgb(frame)
            if len(frames) == len(wanted):
                break
        if len(frames) < len(wanted):
            missing = sorted(wanted - frames.keys())
            raise DecodeError(f"{self._path!r} lacks frames {missing[:5]} of {self._length}")
        shapes = {frame.shape for frame in frames.values()}
        if len(shapes) > 1:
            raise DecodeError(f"{self._path!r} changes its frame size: {sorted(shapes)}")
        return np.stack([frames[index] for index in indices])
