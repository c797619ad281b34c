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
from kinetics400.data.decode import DecodeError, VideoReader
from kinetics400.data.sampling import Box

# A video that cannot be read is replaced by another one; this many in a row mean that it is not
# the videos: the disk is gone.
MAX_SUBSTITUTES = 8

FrameSampler = Callable[[int, float], list[int]]  # (length, u) -> frame numbers
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


def crop_resize(frames: np.ndarray, box: Box, size: int, *, antialias: bool) -> Tensor:
    """Cut a box out of all frames and scale it: (T, H, W, C) to (C, T, size, size) uint8.

    Bilinear with `align_corners=False`. Pretraining's published code scales with PIL, which
    antialiases; finetuning's and testing's (F.interpolate, cv2) does not.
    """
    top, left, height, width = box
    cut = torch.from_numpy(frames[:, top : top + height, left : left + width])
    return resize(cut.permute(0, 3, 1, 2), (size, size), antialias=antialias).permute(1, 0, 2, 3)


def resize(images: Tensor, size: tuple[int, int], *, antialias: bool) -> Tensor:
    """Scale (T, C, H, W) uint8 images bilinearly."""
    if images.shape[2:] == size:
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=antialias)


class ClipDataset(Dataset[Sample]):
    """Training clips. An item is (video index, epoch, slot); nothing else decides the result.

    Args:
        table: paths and labels.
        sample_frames: from the video's length and a random number, the frames.
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
        sample_box: BoxSampler,
        num_box_draws: int,
        size: int,
        antialias: bool,
        seed: int,
    ) -> None:
        self.table = table
        self.sample_frames = sample_frames
        self.sample_box = sample_box
        self.num_box_draws = num_box_draws
        self.size = size
        self.antialias = antialias
        self.seed = seed

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
        substitutes = keys.uniform(key, "substitute", MAX_SUBSTITUTES).tolist()
        for draw in [*substitutes, None]:
            try:
                return Sample(self._load(index, key), self.table.label(index), key, failures)
            except DecodeError as error:
                path = self.table.path(index)
                failures.append(Unreadable(path, str(error), gave_up=draw is None))
                if draw is not None:
                    index = int(draw * len(self.table))
        num_frames = len(self.sample_frames(1, 0.0))
        blank = torch.zeros(3, num_frames, self.size, self.size, dtype=torch.uint8)
        return Sample(blank, self.table.label(index), key, failures)

    def _load(self, index: int, key: Tensor) -> Tensor:
        draw = keys.uniform(key, "clip", 1).item()
        with VideoReader(self.table.path(index)) as reader:
            frames = reader.read(self.sample_frames(len(reader), draw))
        height, width = frames.shape[1:3]
        box = self.sample_box(height, width, keys.uniform(key, "crop", self.num_box_draws).tolist())
        return crop_resize(frames, box, self.size, antialias=self.antialias)


class ViewDataset(Dataset[VideoViews]):
    """All views of each video, decoded once, in the list's order.

    Args:
        table: paths and labels.
        num_frames: per clip.
        sampling_rate: every how many frames of the video one is taken.
        num_segments: clips along time.
        num_crops: squares along the long side.
        size: side of the output, pixels; the short side is scaled to it.
    """

    def __init__(
        self,
        table: VideoTable,
        *,
        num_frames: int,
        sampling_rate: int,
        num_segments: int,
        num_crops: int,
        size: int,
    ) -> None:
        self.table = table
        self.num_frames = num_frames
        self.sampling_rate = sampling_rate
        self.num_segments = num_segments
        self.num_crops = num_crops
        self.size = size

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
            views = sampling.views_of(
                len(reader),
                height,
                width,
                num_frames=self.num_frames,
                sampling_rate=self.sampling_rate,
                num_segments=self.num_segments,
                num_crops=self.num_crops,
            )
            used = sorted({frame for view in views for frame in view.frames})
            frames = reader.read(used)
        scaled = resize(
            torch.from_numpy(frames).permute(0, 3, 1, 2), (height, width), antialias=False
        )
        position = {frame: place for place, frame in enumerate(used)}
        return torch.stack(
            [
                scaled[
                    [position[frame] for frame in view.frames],
                    :,
                    view.box.top : view.box.top + self.size,
                    view.box.left : view.box.left + self.size,
                ].transpose(0, 1)
                for view in views
            ]
        )
