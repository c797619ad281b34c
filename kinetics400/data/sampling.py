"""Which frames and which part of them a clip takes. Pure functions of sizes and random numbers.

Random numbers `u` are uniform in [0, 1). File references are to MCG-NJU/VideoMAE.

Words: *span* `num_frames * sampling_rate`, the frames of the video that a clip stretches over;
*box* (top, left, height, width) in pixels; *view* one clip and one box at test.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Box(NamedTuple):
    """Part of a frame, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def within(self, outer: "Box") -> "Box":
        """The same box, counted from another one's corner."""
        return self._replace(top=self.top - outer.top, left=self.left - outer.left)


class View(NamedTuple):
    """One clip and one crop of a test protocol."""

    segment: int
    crop: int
    frames: tuple[int, ...]
    box: Box


# --- frames ---------------------------------------------------------------------------------------


def pretraining_frames(
    length: int, num_frames: int, sampling_rate: int, u: float, *, grid: int = 1
) -> list[int]:
    """Frames of a pretraining clip: exact stride from a uniform start (kinetics.py:515-575).

    A video shorter than the span starts at 0 and repeats the last frame that the published loop
    reaches. That loop stops one frame before the video's last. With a `grid` the start is uniform
    among its multiples.

    >>> pretraining_frames(250, 4, 4, 0.5)
    [117, 121, 125, 129]
    >>> pretraining_frames(250, 4, 4, 0.5, grid=4)
    [116, 120, 124, 128]
    >>> pretraining_frames(9, 4, 4, 0.5)
    [0, 4, 4, 4]
    """
    span = num_frames * sampling_rate
    frame = grid * int(u * ((length - span) // grid + 1)) if length >= span else 0
    frames = []
    for _ in range(num_frames):
        frames.append(frame)
        if frame + sampling_rate < length - 1:
            frame += sampling_rate
    return frames


def finetuning_frames(
    length: int, num_frames: int, sampling_rate: int, u: float, *, grid: int = 1
) -> list[int]:
    """Frames of a finetuning clip: evenly spread over the span (kinetics.py:252-266).

    The spacing is span / (num_frames - 1), 64 / 15 = 4.27 for the published clip, and the video's
    last frame is never used. A video no longer than the span gives every fourth frame or so, and
    repeats its last. With a `grid` each frame moves to the nearest of its multiples.

    >>> finetuning_frames(250, 4, 4, 0.0)
    [0, 5, 10, 15]
    >>> finetuning_frames(250, 4, 4, 0.0, grid=4)
    [0, 4, 12, 16]
    """
    span = num_frames * sampling_rate
    if length > span:
        end = span + int(u * (length - span))
        frames = _spread(end - span, end, num_frames, end - 1)
    else:
        frames = _spread(0, length, length // sampling_rate, length - 1)
        frames += [length - 1] * (num_frames - len(frames))
    return snap(frames, length, grid)


def timed_frames(
    length: int,
    fps: float,
    num_frames: int,
    sampling_rate: int,
    target_fps: float,
    u: float,
    *,
    grid: int = 1,
) -> list[int]:
    """Frames of a clip that lasts as long as at `target_fps`, whatever the video's own rate.

    The clip covers num_frames * sampling_rate / target_fps seconds from a uniform start, and its
    frames are spread evenly over it, both ends included, as SlowFast does
    (facebookresearch/SlowFast slowfast/datasets/decoder.py, temporal_sampling). A video that is too
    short repeats its last frame. One that does not tell its rate (fps 0) is taken to have the
    target's.

    >>> timed_frames(250, 15, 4, 4, 30, 0.0)
    [0, 2, 4, 7]
    """
    span = num_frames * sampling_rate * (fps / target_fps if fps else 1.0)
    start = u * max(length - span, 0.0)
    step = (span - 1) / (num_frames - 1) if num_frames > 1 else 0.0
    frames = [min(max(int(start + i * step), 0), length - 1) for i in range(num_frames)]
    return snap(frames, length, grid)


def sparse_frames(length: int, num_frames: int, u: Sequence[float]) -> list[int]:
    """One random frame of each of `num_frames` equal parts of the video (ssv2.py, as in TSN).

    A video with fewer frames than parts gives its first frame throughout, as published. `u` holds
    `num_frames` numbers.

    >>> sparse_frames(11, 4, [0.0, 0.9, 0.0, 0.9])
    [0, 3, 4, 7]
    """
    part = length // num_frames
    return [part * i + int(u[i] * part) for i in range(num_frames)]


def snap(frames: Sequence[int], length: int, grid: int) -> list[int]:
    """Move each frame to the nearest multiple of `grid` in a video of `length` frames.

    >>> snap([0, 5, 6, 9], 10, 4)
    [0, 4, 8, 8]
    """
    last = (length - 1) // grid * grid
    return [min((frame + grid // 2) // grid * grid, last) for frame in frames]


def _spread(start: int, stop: int, n: int, last: int) -> list[int]:
    """`n` points from start to stop, both included, cut to `last` and rounded down."""
    step = (stop - start) / (n - 1) if n > 1 else 0.0
    points = [min(int(start + i * step), last) for i in range(n)]
    if n > 1:
        points[-1] = min(stop, last)
    return points


def segment_frames(
    length: int, num_frames: int, sampling_rate: int, segment: int, num_segments: int
) -> list[int]:
    """Frames of one test clip out of `num_segments` (kinetics.py:245-250).

    The whole video is taken every `sampling_rate` frames, padded with its last such frame, and
    the clips' starts are spread over it. One segment alone, which the published code cannot do,
    is the centre.

    >>> segment_frames(250, 4, 4, 4, 5)
    [236, 240, 244, 248]
    """
    strided = list(range(0, length, sampling_rate))
    strided += [strided[-1]] * (num_frames - len(strided))
    free = len(strided) - num_frames
    if num_segments == 1:
        start = free // 2
    else:
        start = int(segment * (free / (num_segments - 1)))
    return strided[start : start + num_frames]


def timed_segment_frames(
    length: int,
    fps: float,
    num_frames: int,
    sampling_rate: int,
    target_fps: float,
    segment: int,
    num_segments: int,
) -> list[int]:
    """Frames of one test clip at a target frame rate: the starts of `timed_frames` spread evenly.

    >>> timed_segment_frames(250, 15, 4, 4, 30, 4, 5)
    [242, 244, 246, 249]
    """
    u = segment / (num_segments - 1) if num_segments > 1 else 0.5
    return timed_frames(length, fps, num_frames, sampling_rate, target_fps, u)


def sparse_segment_frames(
    length: int, num_frames: int, segment: int, num_segments: int
) -> list[int]:
    """Frames of one test clip that takes one frame of each part of the video (ssv2.py).

    Two clips take the beginning and the middle of each part, as published; more divide the part
    likewise; one alone takes its middle (as TSN does).

    >>> [sparse_segment_frames(10, 4, segment, 2) for segment in (0, 1)]
    [[0, 2, 5, 7], [1, 3, 6, 8]]
    """
    part = length / num_frames
    offset = part / 2 if num_segments == 1 else part * segment / num_segments
    return [int(offset + part * i) for i in range(num_frames)]


# --- boxes ----------------------------------------------------------------------------------------

MULTI_SCALES = (1.0, 0.875, 0.75, 0.66)
# Offsets in quarters of the free space (horizontal, vertical): corners, centre, edge middles, and
# the middles between centre and corners (transforms.py, fill_fix_offset).
_QUARTERS = (
    *((0, 0), (4, 0), (0, 4), (4, 4), (2, 2)),
    *((0, 2), (4, 2), (2, 4), (2, 0)),
    *((1, 1), (3, 1), (1, 3), (3, 3)),
)


def multi_scale_box(height: int, width: int, size: int, u: Sequence[float]) -> Box:
    """Crop of pretraining: four scales, fixed offsets (transforms.py, GroupMultiScaleCrop).

    Height and width take scales of the short side at most one step apart; a side within 2 pixels
    of the output `size` becomes that size. `u` holds 2 numbers: scale pair, offset.
    """
    short = min(height, width)
    sides = [int(short * scale) for scale in MULTI_SCALES]
    sides = [size if abs(side - size) < 3 else side for side in sides]
    pairs = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    box_height, box_width = pairs[int(u[0] * len(pairs))]
    # The published code pads with black where the rounding to `size` leaves the frame.
    box_height, box_width = min(box_height, height), min(box_width, width)
    across, down = _QUARTERS[int(u[1] * len(_QUARTERS))]
    top = down * ((height - box_height) // 4)
    left = across * ((width - box_width) // 4)
    return Box(top, left, box_height, box_width)


RESIZED_CROP_ATTEMPTS = 10
RESIZED_CROP_DRAWS = 4 * RESIZED_CROP_ATTEMPTS


def random_resized_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    u: Sequence[float],
) -> Box:
    """Crop of finetuning: random area share and aspect ratio (video_transforms.py).

    Ten attempts, then the largest centre box whose ratio is allowed. `u` holds
    `RESIZED_CROP_DRAWS` numbers.

    Args:
        height: of the frame.
        width: of the frame.
        scale: least and largest share of the frame's area.
        ratio: least and largest width / height, drawn uniformly in its logarithm.
        u: uniform random numbers.
    """
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(RESIZED_CROP_ATTEMPTS):
        u_area, u_ratio, u_top, u_left = u[4 * attempt : 4 * attempt + 4]
        area = height * width * (scale[0] + u_area * (scale[1] - scale[0]))
        aspect = math.exp(log_low + u_ratio * (log_high - log_low))
        box_width = round(math.sqrt(area * aspect))
        box_height = round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(u_top * (height - box_height + 1))
            left = int(u_left * (width - box_width + 1))
            return Box(top, left, box_height, box_width)
    aspect = min(max(width / height, ratio[0]), ratio[1])
    box_width = min(width, round(height * aspect))
    box_height = min(height, round(width / aspect))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def union(boxes: Sequence[Box]) -> Box:
    """The smallest box that holds all of them.

    >>> union([Box(0, 4, 2, 2), Box(3, 1, 1, 1)])
    Box(top=0, left=1, height=4, width=5)
    """
    top, left = min(box.top for box in boxes), min(box.left for box in boxes)
    bottom = max(box.top + box.height for box in boxes)
    right = max(box.left + box.width for box in boxes)
    return Box(top, left, bottom - top, right - left)


def short_side_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width after scaling the short side; the long one is rounded down, as published.

    In whole numbers: 237 / 224 * 224 is less than 237.
    """
    if height <= width:
        return short_side, short_side * width // height
    return short_side * height // width, short_side


def crop_box(height: int, width: int, size: int, crop: int, num_crops: int) -> Box:
    """One of `num_crops` squares spread along the long side; one alone is the centre.

    `size` is the short side. Portrait and square frames are cropped along the height, as published.
    """
    free = max(height, width) - size
    offset = free // 2 if num_crops == 1 else int(crop * (free / (num_crops - 1)))
    top, left = (offset, 0) if height >= width else (0, offset)
    return Box(top, left, size, size)


def views_of(
    segments: Sequence[Sequence[int]], height: int, width: int, num_crops: int
) -> list[View]:
    """All views of a video whose short side is already the input size, segments first.

    Args:
        segments: frames of each clip.
        height: of the scaled video.
        width: of the scaled video.
        num_crops: squares along the long side.
    """
    size = min(height, width)
    return [
        View(segment, crop, tuple(frames), crop_box(height, width, size, crop, num_crops))
        for segment, frames in enumerate(segments)
        for crop in range(num_crops)
    ]
