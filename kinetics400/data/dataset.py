"""Videos to clips: what a loader's worker does. Decode, crop, resize; nothing else.

Shapes: V views, C channels (RGB), T frames, H, W, S output side.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from kinetics400.data import keys, sampling
from kinetics400.data.annotations import VideoTable
from kinetics400.data.decode import DecodeError, Scratch, VideoReader
from kinetics400.data.sampling import Box
from kinetics400.data.watch import Heartbeats

# A video that cannot be read is replaced by another one; this many in a row mean that it is not
# the videos: the disk is gone.
MAX_SUBSTITUTES = 8

# (length, fps, u) -> frame numbers
FrameSampler = Callable[[int, float, Sequence[float]], list[int]]
# (length, fps, segment, number of segments) -> frame numbers
SegmentSampler = Callable[[int, float, int, int], list[int]]
BoxSampler = Callable[[int, int, Sequence[float]], Box]  # (height, width, u) -> box
# (clips (B, C, T, H, W) uint8, which stay as they are, keys (B,)) -> clips of the same kind
FrameAugment = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Unreadable:
    """A video that could not be read."""

    path: str
    reason: str
    gave_up: bool = False
    """So many in a row that the sample is blank: the run must not go on."""


@dataclass(frozen=True)
class Sample:
    """Training clips (C, T, S, S) uint8 of one video, and the videos that failed before this one.

    There is one clip, or with repeated augmentation several: the same frames, each time cut and
    augmented in another way.
    """

    clips: list[Tensor]
    label: int
    keys: list[Tensor]
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


@contextmanager
def opened(
    table: VideoTable, index: int, beats: Heartbeats | None, quarantined: Mapping[int, str]
) -> Iterator[VideoReader]:
    """Open a video where the training process can see that it is being decoded.

    Raises:
        DecodeError: it cannot be read, or is quarantined and not even tried.
    """
    if index in quarantined:
        raise DecodeError(f"{table.path(index)!r} is quarantined: {quarantined[index]}")
    worker = get_worker_info()
    noted = nullcontext() if beats is None else beats.decoding(worker.id if worker else 0, index)
    with noted, VideoReader(table.path(index)) as reader:
        yield reader


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
        num_sample: clips of each video, all of the same frames, which are decoded once.
        augment_frames: applied to whole frames, before they are cut.
        beats: where a worker notes what it decodes.
        quarantined: videos that have ended a worker, with the reason: they are not opened.
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
        num_sample: int = 1,
        augment_frames: FrameAugment | None = None,
        beats: Heartbeats | None = None,
        quarantined: Mapping[int, str] = MappingProxyType({}),
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
        self.num_sample = num_sample
        self.augment_frames = augment_frames
        self.beats = beats
        self.quarantined = quarantined
        self._scratch = Scratch()

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, item: tuple[int, int, int]) -> Sample:
        """Load a video's clips; one that fails is replaced by another, drawn from the same key.

        After `MAX_SUBSTITUTES` the clips are blank and the last failure says so: a worker that
        raised would stop one rank alone, and the others would wait for it.
        """
        index, epoch, slot = item
        repeats = [
            keys.sample_key(self.seed, epoch, slot, repeat) for repeat in range(self.num_sample)
        ]
        failures: list[Unreadable] = []
        while len(failures) <= MAX_SUBSTITUTES:
            try:
                clips = self._load(index, repeats)
                return Sample(clips, self.table.label(index), repeats, failures)
            except DecodeError as error:
                gave_up = len(failures) == MAX_SUBSTITUTES
                failures.append(Unreadable(self.table.path(index), str(error), gave_up))
                if not gave_up:
                    draw = keys.draws(repeats[0], "substitute", len(failures))[-1]
                    index = int(draw * len(self.table))
        blank = torch.zeros(3, self.num_frames, self.size, self.size, dtype=torch.uint8)
        return Sample([blank] * self.num_sample, self.table.label(index), repeats, failures)

    def _load(self, index: int, repeats: Sequence[Tensor]) -> list[Tensor]:
        """The clips of one video. Its frames are chosen by the first key, each box by its own."""
        draws = keys.draws(repeats[0], "clip", self.num_frame_draws)
        with opened(self.table, index, self.beats, self.quarantined) as reader:
            frames = self.sample_frames(len(reader), reader.fps, draws)
            height, width = reader.height, reader.width
            boxes = [
                self.sample_box(height, width, keys.draws(key, "crop", self.num_box_draws))
                for key in repeats
            ]
            needed = sampling.union(boxes)
            if self.augment_frames is not None:
                needed = Box(0, 0, height, width)
            pixels = reader.read(frames, needed, scratch=self._scratch)
        return [
            self._cut(pixels, box.within(needed), key)
            for box, key in zip(boxes, repeats, strict=True)
        ]

    def _cut(self, pixels: np.ndarray, box: Box, key: Tensor) -> Tensor:
        """Cut (T, H, W, C) frames to a clip (C, T, S, S)."""
        if self.augment_frames is not None:
            whole = torch.from_numpy(pixels).permute(3, 0, 1, 2)
            augmented = self.augment_frames(whole[None], key[None])[0]
            pixels = augmented.permute(1, 2, 3, 0).numpy()
        top, left, height, width = box
        part = pixels[:, top : top + height, left : left + width]
        return to_square(part, self.size, antialias=self.antialias)


class ViewDataset(Dataset[VideoViews]):
    """All views of each video, decoded once, in the list's order.

    Args:
        table: paths and labels.
        segment_frames: from the video's length, its frames per second, the segment and their
            number, the frames.
        num_segments: clips along time.
        num_crops: squares along the long side.
        size: side of the output, pixels; the short side is scaled to it.
        beats: where a worker notes what it decodes.
        quarantined: videos that have ended a worker, with the reason: they are not opened.
    """

    def __init__(
        self,
        table: VideoTable,
        *,
        segment_frames: SegmentSampler,
        num_segments: int,
        num_crops: int,
        size: int,
        beats: Heartbeats | None = None,
        quarantined: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        self.table = table
        self.segment_frames = segment_frames
        self.num_segments = num_segments
        self.num_crops = num_crops
        self.size = size
        self.beats = beats
        self.quarantined = quarantined
        self._scratch = Scratch()

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> VideoViews:
        path, label = self.table.path(index), self.table.label(index)
        try:
            return VideoViews(index, label, self._views(index))
        except DecodeError as error:
            return VideoViews(index, label, None, Unreadable(path, str(error)))

    def _views(self, index: int) -> Tensor:
        with opened(self.table, index, self.beats, self.quarantined) as reader:
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
