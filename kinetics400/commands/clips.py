"""From flags to the functions that choose a clip's frames."""

from collections.abc import Sequence
from functools import partial

from kinetics400.commands.plan import Problems
from kinetics400.config.common import ClipFlags, LabelledClipFlags
from kinetics400.data import pyramid, sampling
from kinetics400.data.dataset import FrameSampler, SegmentSampler


def check_clips(clips: ClipFlags, problems: Problems) -> None:
    """Check the flags that say which frames a clip takes."""
    problems.require(
        clips.sampling_rate >= 1, f"--sampling_rate {clips.sampling_rate} must be at least 1"
    )
    fps = clips.target_fps
    problems.require(
        fps is None or 0 < fps < 1000, f"--target_fps {fps} must lie between 0 and 1000"
    )
    sparse = isinstance(clips, LabelledClipFlags) and clips.sampling == "sparse"
    problems.require(
        not sparse or fps is None, "--target_fps means nothing with --sampling sparse: leave it out"
    )


def pretraining_sampler(clips: ClipFlags, num_frames: int, *, exact: bool) -> FrameSampler:
    """Frames of a pretraining clip; takes one random number."""
    if clips.target_fps is not None:
        return _timed_sampler(clips, num_frames, exact=exact)
    grid = 1 if exact else pyramid.common_grid(clips.sampling_rate)
    return partial(_pretraining, num_frames, clips.sampling_rate, grid)


def finetuning_sampler(
    clips: LabelledClipFlags, num_frames: int, *, exact: bool
) -> tuple[FrameSampler, int]:
    """Frames of a finetuning clip, and how many random numbers that takes.

    Sparse clips are always exact: their frames lie too far apart for a layer to help.
    """
    if clips.sampling == "sparse":
        return partial(_sparse, num_frames), num_frames
    if clips.target_fps is not None:
        return _timed_sampler(clips, num_frames, exact=exact), 1
    grid = 1 if exact else pyramid.near_grid(clips.sampling_rate)
    return partial(_finetuning, num_frames, clips.sampling_rate, grid), 1


def test_sampler(clips: LabelledClipFlags, num_frames: int) -> SegmentSampler:
    """Frames of a test's clips, always exact."""
    if clips.sampling == "sparse":
        return partial(_sparse_segment, num_frames)
    if clips.target_fps is not None:
        return partial(_timed_segment, num_frames, clips.sampling_rate, clips.target_fps)
    return partial(_segment, num_frames, clips.sampling_rate)


def _timed_sampler(clips: ClipFlags, num_frames: int, *, exact: bool) -> FrameSampler:
    assert clips.target_fps is not None
    return partial(_timed, num_frames, clips.sampling_rate, clips.target_fps, exact)


# Functions of a module rather than closures: workers that are spawned get them pickled.


def _pretraining(
    num_frames: int, rate: int, grid: int, length: int, fps: float, u: Sequence[float]
) -> list[int]:
    return sampling.pretraining_frames(length, num_frames, rate, u[0], grid=grid)


def _finetuning(
    num_frames: int, rate: int, grid: int, length: int, fps: float, u: Sequence[float]
) -> list[int]:
    return sampling.finetuning_frames(length, num_frames, rate, u[0], grid=grid)


def _timed(
    num_frames: int,
    rate: int,
    target: float,
    exact: bool,
    length: int,
    fps: float,
    u: Sequence[float],
) -> list[int]:
    spacing = rate * (fps / target if fps else 1.0)
    grid = 1 if exact else pyramid.near_grid(spacing)
    return sampling.timed_frames(length, fps, num_frames, rate, target, u[0], grid=grid)


def _sparse(num_frames: int, length: int, fps: float, u: Sequence[float]) -> list[int]:
    return sampling.sparse_frames(length, num_frames, u)


def _segment(
    num_frames: int, rate: int, length: int, fps: float, segment: int, num_segments: int
) -> list[int]:
    return sampling.segment_frames(length, num_frames, rate, segment, num_segments)


def _timed_segment(
    num_frames: int,
    rate: int,
    target: float,
    length: int,
    fps: float,
    segment: int,
    num_segments: int,
) -> list[int]:
    return sampling.timed_segment_frames(
        length, fps, num_frames, rate, target, segment, num_segments
    )


def _sparse_segment(
    num_frames: int, length: int, fps: float, segment: int, num_segments: int
) -> list[int]:
    return sampling.sparse_segment_frames(length, num_frames, segment, num_segments)
