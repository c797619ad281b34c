"""Videos to clips: what a loader's worker does. Decode, crop, resize; nothing else.

Shapes: V views, C channels (RGB), T frames, H, W, S output side.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from kinetics400.data import keys, sampling
from kinetics400.data.annotations import VideoTable
from kinetics400.data.decode import DecodeError, Scratch, VideoReader
from kinetics400.data.sampling import Box

# A video that cannot be read is replaced by another one; this many in a row mean that it is not
# the videos: the disk is gone.
MAX_SUBSTITUTES = 8

# (length, fps, u) -> frame numbers
FrameSampler = Callable[[int, float, Sequence[float]], list[int]]
# (length, fps, segment, number of segments) -> frame numbers
SegmentSampler = Callable[[int, float, int, int], list[int]]
BoxSampler = Callable[[int, int, Sequence[float]], Box]  # (height, width, u) -> box


@dataclass(frozen=True)
class Unreadable:
    """A video that could not be read."""

    path: str
    reason: str
    gave_up: bool = False
    """So many in a row that the sample is blank: the run must not go on."""


@dataclass(frozen=True)
class Sample:
    """One training clip (C, T, S, S) uint8, and the videos that failed before this one."""

    clip: Tensor
    label: int
    key: Tensor
    failures: list[Unreadable] = field(default_factory=list)


@dataclass(frozen=True)
class VideoViews:
    """All views (V, C, T, S, S) uint8 of one video of a test; None when it cannot be read."""

    index: int
    label: int
    views: Tensor | None
    failure: Unreadable | None = None


def to_square(frames: np.ndarray, size: int, *, antialias: bool) -> Tensor:
    """Scale a crop of all frames: (T, H, W, C) to (C, T, size, size) uint8.

    Bilinear with `align_corners=False`. Pretraining's published code scales with PIL, which
    antialiases; finetuning's and testing's (F.interpolate, cv2) does not.
    """
    images = torch.from_numpy(frames).permute(0, 3, 1, 2)
    return resize(images, (size, size), antialias=antialias).permute(1, 0, 2, 3)


def resize(images: Tensor, size: tuple[int, int], *, antialias: bool) -> Tensor:
    """Scale (T, C, H, W) uint8 images bilinearly; the result has memory of its own."""
    if images.shape[2:] == size:
        return images.clone()
    return F.interpolate(images, size, mode="bilinear", antialias=antialias)


class ClipDataset(Dataset[Sample]):
    """Training clips. An item is (video index, epoch, slot); nothing else decides the result.

    Args:
        table: paths and labels.
        sample_frames: from the video's length, its frames per second and random numbers, the
            frames.
        num_frame_draws: how many numbers `sample_frames` takes.
        num_frames: how many frames it gives.
        sample_box: from height, width and random numbers, the box.
        num_box_draws: how many numbers `sample_box` takes.
        size: side of the output, pixels.
        antialias: of the scaling.
        seed: of the run.
    """

    def __init__(
        self,
        table: VideoTable,
        *,
        sample_frames: FrameSampler,
        num_frame_draws: int,
        num_frames: int,
        sample_box: BoxSampler,
        num_box_draws: int,
        size: int,
        antialias: bool,
        seed: int,
    ) -> None:
        self.table = table
        self.sample_frames = sample_frames
        self.num_frame_draws = num_frame_draws
        self.num_frames = num_frames
        self.sample_box = sample_box
        self.num_box_draws = num_box_draws
        self.size = size
        self.antialias = antialias
        self.seed = seed
        self._scratch = Scratch()

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, item: tuple[int, int, int]) -> Sample:
        """Load a clip; a video that fails is replaced by one drawn from the same key.

        After `MAX_SUBSTITUTES` the clip is blank and its last failure says so: a worker that
        raised would stop one rank alone, and the others would wait for it.
        """
        index, epoch, slot = item
        key = keys.sample_key(self.seed, epoch, slot)
        failures: list[Unreadable] = []
        while len(failures) <= MAX_SUBSTITUTES:
            try:
                return Sample(self._load(index, key), self.table.label(index), key, failures)
            except DecodeError as error:
                gave_up = len(failures) == MAX_SUBSTITUTES
                failures.append(Unreadable(self.table.path(index), str(error), gave_up))
                if not gave_up:
                    draw = keys.draws(key, "substitute", len(failures))[-1]
                    index = int(draw * len(self.table))
        blank = torch.zeros(3, self.num_frames, self.size, self.size, dtype=torch.uint8)
        return Sample(blank, self.table.label(index), key, failures)

    def _load(self, index: int, key: Tensor) -> Tensor:
        draws = keys.draws(key, "clip", self.num_frame_draws)
        with VideoReader(self.table.path(index)) as reader:
            frames = self.sample_frames(len(reader), reader.fps, draws)
            draws = keys.draws(key, "crop", self.num_box_draws)
            box = self.sample_box(reader.height, reader.width, draws)
            pixels = reader.read(frames, box, scratch=self._scratch)
        return to_square(pixels, self.size, antialias=self.antialias)


class ViewDataset(Dataset[VideoViews]):
    """All views of each video, decoded once, in the list's order.

    Args:
        table: paths and labels.
        segment_frames: from the video's length, its frames per second, the segment and their
            number, the frames.
        num_segments: clips along time.
        num_crops: squares along the long side.
        size: side of the output, pixels; the short side is scaled to it.
    """

    def __init__(
        self,
        table: VideoTable,
        *,
        segment_frames: SegmentSampler,
        num_segments: int,
        num_crops: int,
        size: int,
    ) -> None:
        self.table = table
        self.segment_frames = segment_frames
        self.num_segments = num_segments
        self.num_crops = num_crops
        self.size = size
        self._scratch = Scratch()

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> VideoViews:
        path, label = self.table.path(index), self.table.label(index)
        try:
            return VideoViews(index, label, self._views(path))
        except DecodeError as error:
            return VideoViews(index, label, None, Unreadable(path, str(error)))

    def _views(self, path: str) -> Tensor:
        with VideoReader(path) as reader:
            height, width = sampling.short_side_size(reader.height, reader.width, self.size)
            segments = [
                self.segment_frames(len(reader), reader.fps, segment, self.num_segments)
                for segment in range(self.num_segments)
            ]
            views = sampling.views_of(segments, height, width, self.num_crops)
            used = sorted({frame for view in views for frame in view.frames})
            frames = reader.read(used, scratch=self._scratch)
        images = torch.from_numpy(frames).permute(0, 3, 1, 2)
        scaled = resize(images, (height, width), antialias=False).permute(0, 2, 3, 1).numpy()
        position = {frame: place for place, frame in enumerate(used)}
        # Pixels stay in the order in which they were decoded, so that whole rows are copied.
        size, num_frames = self.size, len(views[0].frames)
        cut = np.empty((len(views), num_frames, size, size, 3), np.uint8)
        for view, place in zip(views, cut, strict=True):
            top, left = view.box.top, view.box.left
            for frame, target in zip(view.frames, place, strict=True):
                target[:] = scaled[position[frame], top : top + size, left : left + size]
        return torch.from_numpy(cut).permute(0, 4, 1, 2, 3)
