"""Frames and boxes against golden views, slow loops, typed facts and torchvision."""

import json
import math
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from kinetics400.data import keys
from kinetics400.data.sampling import (
    RESIZED_CROP_DRAWS,
    Box,
    crop_box,
    finetuning_frames,
    multi_scale_box,
    pretraining_frames,
    random_resized_box,
    segment_frames,
    short_side_size,
    snap,
    sparse_frames,
    sparse_segment_frames,
    timed_frames,
    timed_segment_frames,
    views_of,
)

GOLDEN = json.loads(
    (Path(__file__).resolve().parents[1] / "golden" / "eval_views.json").read_text("utf-8")
)
ALMOST_ONE = 1 - 2**-53  # the largest number that keys.uniform gives


def draws(n: int, width: int, stream: str) -> np.ndarray:
    return keys.uniform(keys.combine(11, torch.arange(n)), stream, width).numpy()


def equally_likely(counts: Collection[int]) -> bool:
    """Whether counts of equally likely outcomes stay within five sigma."""
    expected = sum(counts) / len(counts)
    freedom = len(counts) - 1
    statistic = sum((count - expected) ** 2 / expected for count in counts)
    return statistic < freedom + 5 * math.sqrt(2 * freedom)


# --- test protocol --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(len(GOLDEN)))
def test_every_golden_view(case: int) -> None:
    facts = GOLDEN[case]
    segments = [
        segment_frames(
            facts["num_frames"],
            facts["clip_len"],
            facts["sampling_rate"],
            segment,
            facts["num_segments"],
        )
        for segment in range(facts["num_segments"])
    ]
    views = views_of(segments, facts["height"], facts["width"], facts["num_crops"])
    ours = [
        {
            "segment": view.segment,
            "crop": view.crop,
            "frames": list(view.frames),
            **view.box._asdict(),
        }
        for view in views
    ]
    assert ours == facts["views"]


def test_golden_views_cover_both_protocols_and_all_kinds_of_videos() -> None:
    protocols = {(f["num_segments"], f["num_crops"]) for f in GOLDEN}
    assert protocols == {(5, 3), (2, 3)}
    assert any(f["num_frames"] < 64 for f in GOLDEN) and any(f["num_frames"] > 64 for f in GOLDEN)
    assert any(f["height"] > f["width"] for f in GOLDEN)
    assert all(len(f["views"]) == f["num_segments"] * f["num_crops"] for f in GOLDEN)


def test_one_segment_and_one_crop_are_the_centre() -> None:
    # 250 frames: 63 strided ones, 47 more than a clip needs, 23 of them before it.
    assert segment_frames(250, 16, 4, 0, 1) == list(range(23 * 4, 23 * 4 + 64, 4))
    assert crop_box(224, 300, 224, 0, 1) == Box(0, 38, 224, 224)
    assert crop_box(401, 224, 224, 0, 1) == Box(88, 0, 224, 224)
    views = views_of([segment_frames(250, 16, 4, 0, 1)], 224, 300, 1)
    assert [(v.segment, v.crop, v.box.left, v.frames[0]) for v in views] == [(0, 0, 38, 92)]


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (240, 320, (224, 298)),  # 298.67 down
        (320, 240, (298, 224)),
        (256, 256, (224, 224)),
        (1080, 1920, (224, 398)),
        (100, 150, (224, 336)),
        (224, 237, (224, 237)),  # in floats 237 / 224 * 224 is less than 237
        (230, 224, (230, 224)),
    ],
)
def test_long_side_is_rounded_down(height: int, width: int, expected: tuple[int, int]) -> None:
    assert short_side_size(height, width, 224) == expected


# --- training clips -------------------------------------------------------------------------------


def published_finetuning_frames(length: int, end: int) -> list[int]:
    """16 frames every 4 as the recipe states them; `end` is what it draws from [64, length)."""
    if length <= 64:
        index = np.linspace(0, length, num=length // 4)
        index = np.concatenate((index, np.full(16 - length // 4, length)))
        return np.clip(index, 0, length - 1).astype(np.int64).tolist()
    index = np.linspace(end - 64, end, num=16)
    return np.clip(index, end - 64, end - 1).astype(np.int64).tolist()


def test_finetuning_frames_for_every_length_and_draw() -> None:
    for length in [*range(1, 90), *range(90, 401, 31), 400]:
        choices = max(length - 64, 1)
        for choice in range(choices):
            frames = finetuning_frames(length, 16, 4, (choice + 0.5) / choices)
            assert frames == published_finetuning_frames(length, 64 + choice), length
            assert all(type(frame) is int for frame in frames)


def test_finetuning_frames_at_the_ends_of_every_length() -> None:
    for length in range(1, 401):
        for u, end in ((0.0, 64), (ALMOST_ONE, length - 1)):
            frames = finetuning_frames(length, 16, 4, u)
            assert frames == published_finetuning_frames(length, end), length
            assert len(frames) == 16 and frames[0] >= 0 and frames[-1] < length
            if length > 64:
                assert frames[-1] < length - 1  # the last frame is never used


def published_pretraining_frames(duration: int, offset: int) -> list[int]:
    """The published loop; `offset` counts from 1, frames from 0."""
    frames = []
    for _ in range(16):
        frames.append(offset - 1)
        if offset + 4 < duration:
            offset += 4
    return frames


def test_pretraining_frames_for_every_length_and_draw() -> None:
    for length in [*range(1, 90), *range(90, 401, 31), 400]:
        choices = max(length - 64 + 1, 1)
        for choice in range(choices):
            frames = pretraining_frames(length, 16, 4, (choice + 0.5) / choices)
            assert frames == published_pretraining_frames(length, choice + 1), length
            assert len(frames) == 16 and frames[-1] < length
            if length >= 64:
                assert np.diff(frames).tolist() == [4] * 15 and frames[0] == choice
        assert pretraining_frames(length, 16, 4, 0.0)[0] == 0
        assert pretraining_frames(length, 16, 4, ALMOST_ONE)[0] == choices - 1


def test_short_pretraining_videos_stop_one_before_the_last_frame() -> None:
    assert pretraining_frames(20, 16, 4, 0.9) == [0, 4, 8, 12] + [16] * 12
    assert pretraining_frames(17, 16, 4, 0.9) == [0, 4, 8] + [12] * 13
    assert pretraining_frames(1, 16, 4, 0.9) == [0] * 16


def test_clip_starts_are_uniform() -> None:
    length = 100
    u = draws(20_000, 1, "clip")[:, 0]
    for sample, choices in ((pretraining_frames, 37), (finetuning_frames, 36)):
        starts = Counter(sample(length, 16, 4, float(value))[0] for value in u)
        assert set(starts) == set(range(choices)) and equally_likely(starts.values())


# --- grids ----------------------------------------------------------------------------------------

ALL_LENGTHS = range(1, 301)


def test_starts_on_a_grid_are_all_its_multiples_equally_often() -> None:
    length, stride, n = 203, 4, 8  # 172 is the last start, 171 frames lie before it
    u = draws(20_000, 1, "clip")[:, 0]
    for grid, starts in ((4, range(0, 172, 4)), (2, range(0, 172, 2))):
        found = Counter(
            pretraining_frames(length, n, stride, float(value), grid=grid)[0] for value in u
        )
        assert set(found) == set(starts) and equally_likely(found.values())


@pytest.mark.parametrize(("stride", "grid"), [(4, 4), (4, 2), (2, 2), (8, 4), (6, 2)])
def test_pretraining_clips_on_a_grid_keep_stride_and_grid(stride: int, grid: int) -> None:
    for length in ALL_LENGTHS:
        for u in (0.0, 0.3, 0.77, ALMOST_ONE):
            frames = pretraining_frames(length, 8, stride, u, grid=grid)
            assert len(frames) == 8 and frames[0] >= 0 and frames[-1] < length
            assert all(frame % grid == 0 for frame in frames)
            if length >= 8 * stride:
                assert set(np.diff(frames)) == {stride}
            else:  # as published
                assert frames == pretraining_frames(length, 8, stride, u)
        if length >= 8 * stride:  # the last start that fits
            assert frames[0] == (length - 8 * stride) // grid * grid


def nearest_on(grid: int, frame: int, length: int) -> int:
    """By trying them all; of two as near the later, except beyond the end."""
    return min(range(0, length, grid), key=lambda on: (abs(on - frame), -on))


@pytest.mark.parametrize("grid", [1, 2, 4])
def test_finetuning_frames_move_to_the_nearest_on_the_grid(grid: int) -> None:
    for length in ALL_LENGTHS:
        for u in (0.0, 0.5, ALMOST_ONE):
            exact = finetuning_frames(length, 16, 4, u)
            frames = finetuning_frames(length, 16, 4, u, grid=grid)
            assert frames == [nearest_on(grid, frame, length) for frame in exact], length


@pytest.mark.parametrize("grid", [1, 2, 4])
def test_snapping_moves_a_frame_to_the_nearest_on_the_grid(grid: int) -> None:
    for length in range(1, 40):
        frames = list(range(length))
        assert snap(frames, length, grid) == [nearest_on(grid, f, length) for f in frames]


# --- clips of the same duration -------------------------------------------------------------------


def slowfast_frames(length: int, span: float, start: float, num_frames: int) -> list[float]:
    """`temporal_sampling` before its truncation: an even spread from the first to the last."""
    return np.clip(np.linspace(start, start + span - 1, num_frames), 0, length - 1).tolist()


def rounded_down(frames: list[int], places: list[float]) -> bool:
    """A place within a billionth of a whole number may fall on either side of it."""
    return len(frames) == len(places) and all(
        frame in {math.floor(place - 1e-9), math.floor(place + 1e-9)}
        for frame, place in zip(frames, places, strict=True)
    )


@pytest.mark.parametrize("fps", [8.0, 15.0, 24.0, 25.0, 30000 / 1001, 30.0, 50.0, 60.0])
@pytest.mark.parametrize("target_fps", [15.0, 30.0])
def test_timed_frames_spread_over_the_clips_duration(fps: float, target_fps: float) -> None:
    span = 16 * 4 * fps / target_fps
    for length in [*range(1, 140), 250, 300, 301]:
        for u in (0.0, 0.123, 0.5, 0.987, ALMOST_ONE):
            frames = timed_frames(length, fps, 16, 4, target_fps, u)
            exact = slowfast_frames(length, span, u * max(length - span, 0), 16)
            assert rounded_down(frames, exact), length
            assert frames[0] >= 0 and frames[-1] < length


def test_timed_clips_last_as_long_at_any_rate() -> None:
    """64 frames of 30 per second are 2.1 s: 51 of 24 per second, 128 of 60."""
    for fps, frames in ((24, 51.2), (30, 64.0), (60, 128.0)):
        clip = timed_frames(1000, fps, 16, 4, 30, 0.0)
        assert clip[0] == 0 and clip[-1] == int(frames - 1)


def test_timed_frames_of_an_unknown_rate_are_those_of_the_targets() -> None:
    for u in (0.0, 0.4, ALMOST_ONE):
        assert timed_frames(200, 0.0, 16, 4, 25, u) == timed_frames(200, 25.0, 16, 4, 25, u)


def test_timed_frames_of_one_frame() -> None:
    assert timed_frames(200, 30.0, 1, 4, 30, 0.5) == [98]  # 196 frames are free


@pytest.mark.parametrize("grid", [2, 4])
def test_timed_frames_move_to_the_nearest_on_the_grid(grid: int) -> None:
    for length in ALL_LENGTHS:
        for u in (0.0, 0.6, ALMOST_ONE):
            exact = timed_frames(length, 25.0, 16, 4, 30, u)
            frames = timed_frames(length, 25.0, 16, 4, 30, u, grid=grid)
            assert frames == [nearest_on(grid, frame, length) for frame in exact], length


def test_timed_starts_are_uniform() -> None:
    u = draws(20_000, 1, "clip")[:, 0]
    starts = Counter(timed_frames(104, 30.0, 16, 4, 30, float(value))[0] for value in u)
    assert set(starts) == set(range(40)) and equally_likely(starts.values())


def test_timed_segments_begin_evenly_spread() -> None:
    for length in ALL_LENGTHS:
        span = 64 * 25 / 30
        free = max(length - span, 0.0)
        for num_segments in (2, 5):
            starts = np.linspace(0, free, num_segments)
            for segment, start in enumerate(starts):
                frames = timed_segment_frames(length, 25.0, 16, 4, 30, segment, num_segments)
                exact = slowfast_frames(length, span, start, 16)
                assert rounded_down(frames, exact), length
        centre = timed_segment_frames(length, 25.0, 16, 4, 30, 0, 1)
        exact = slowfast_frames(length, span, free / 2, 16)
        assert rounded_down(centre, exact), length


# --- one frame of each part -----------------------------------------------------------------------


def published_sparse_frames(length: int, offsets: list[int]) -> list[int]:
    """ssv2.py, training: `offsets` are what it draws below the length of a part."""
    average_duration = length // 16
    if average_duration > 0:
        return (np.multiply(list(range(16)), average_duration) + np.array(offsets)).tolist()
    return np.zeros(16, int).tolist()


def published_sparse_test_frames(length: int, chunk: int) -> list[int]:
    """ssv2.py, test: the middles and the beginnings of all parts, sorted; each clip takes half."""
    tick = length / 16.0
    indices = [int(tick / 2.0 + tick * x) for x in range(16)] + [int(tick * x) for x in range(16)]
    return np.sort(np.array(indices))[chunk::2].tolist()


def test_sparse_frames_for_every_length_and_offset() -> None:
    rng = np.random.default_rng(0)
    for length in ALL_LENGTHS:
        part = length // 16
        for _ in range(5):
            offsets = rng.integers(0, max(part, 1), 16).tolist()
            u = [(offset + 0.5) / max(part, 1) for offset in offsets]
            assert sparse_frames(length, 16, u) == published_sparse_frames(length, offsets), length
        for u, offset in ((0.0, 0), (ALMOST_ONE, part - 1)):
            frames = sparse_frames(length, 16, [u] * 16)
            assert frames == published_sparse_frames(length, [offset] * 16), length
            assert frames[0] >= 0 and frames[-1] < length


def test_each_frame_of_a_part_is_equally_likely() -> None:
    found = [sparse_frames(83, 4, u) for u in draws(10_000, 4, "clip").tolist()]
    for part in range(4):
        counts = Counter(frames[part] for frames in found)
        assert set(counts) == set(range(20 * part, 20 * part + 20))
        assert equally_likely(counts.values())


def test_sparse_segments_for_every_length() -> None:
    for length in ALL_LENGTHS:
        for segment in (0, 1):
            frames = sparse_segment_frames(length, 16, segment, 2)
            assert frames == published_sparse_test_frames(length, segment), length


def test_sparse_segments_divide_each_part() -> None:
    """One alone takes the middles; of three the second begins a third of a part later."""
    assert sparse_segment_frames(60, 3, 0, 1) == [10, 30, 50]
    found = [sparse_segment_frames(90, 3, segment, 3) for segment in range(3)]
    assert found == [[0, 30, 60], [10, 40, 70], [20, 50, 80]]


# --- all samplers ---------------------------------------------------------------------------------


def test_every_frame_of_every_sampler_is_in_the_video() -> None:
    for length in ALL_LENGTHS:
        clips = []
        for u in (0.0, 0.5, ALMOST_ONE):
            for grid in (1, 2, 4):
                clips.append(pretraining_frames(length, 16, 4, u, grid=grid))
                clips.append(finetuning_frames(length, 16, 4, u, grid=grid))
                clips.append(timed_frames(length, 24.0, 16, 4, 30, u, grid=grid))
            clips.append(sparse_frames(length, 16, [u] * 16))
        for num_segments in (1, 2, 5):
            for segment in range(num_segments):
                clips.append(segment_frames(length, 16, 4, segment, num_segments))
                clips.append(timed_segment_frames(length, 24.0, 16, 4, 30, segment, num_segments))
                clips.append(sparse_segment_frames(length, 16, segment, num_segments))
        for clip in clips:
            assert len(clip) == 16 and all(type(frame) is int for frame in clip)
            assert min(clip) >= 0 and max(clip) < length
            assert clip == sorted(clip)


@pytest.mark.parametrize("num_segments", [2, 3, 5, 10])
def test_segments_for_every_length(num_segments: int) -> None:
    """The whole video every 4 frames, padded with its last; starts spread, rounded down."""
    for length in ALL_LENGTHS:
        strided = np.arange(0, length, 4)
        strided = np.pad(strided, (0, max(0, 16 - len(strided))), mode="edge")
        step = max((len(strided) - 16) / (num_segments - 1), 0)
        for segment in range(num_segments):
            start = int(segment * step)
            expected = strided[start : start + 16].tolist()
            assert segment_frames(length, 16, 4, segment, num_segments) == expected


# --- pretraining boxes ----------------------------------------------------------------------------

# A 480 x 640 frame: scales 1, .875, .75 and .66 of 480, at most one step apart.
SIDES = [(480, 480), (480, 420), (420, 480), (420, 420), (420, 360)] + [
    *((360, 420), (360, 360), (360, 316), (316, 360), (316, 316))
]
# Where a 360 x 420 box may lie: 120 rows and 220 columns are free, a quarter is 30 and 55.
CORNERS_CENTRE = [(0, 0), (0, 220), (120, 0), (120, 220), (60, 110)]
EDGES = [(60, 0), (60, 220), (120, 110), (0, 110)]
BETWEEN = [(30, 55), (30, 165), (90, 55), (90, 165)]


def test_multi_scale_boxes_have_the_ten_published_sizes() -> None:
    found = [multi_scale_box(480, 640, 224, ((i + 0.5) / 10, 0.0)) for i in range(10)]
    assert [(box.height, box.width) for box in found] == SIDES


def test_multi_scale_boxes_lie_at_the_thirteen_published_places() -> None:
    pair = SIDES.index((360, 420))
    u = [((pair + 0.5) / 10, (i + 0.5) / 13) for i in range(13)]
    found = [multi_scale_box(480, 640, 224, draw) for draw in u]
    assert {(box.height, box.width) for box in found} == {(360, 420)}
    places = [(box.top, box.left) for box in found]
    assert len(set(places)) == 13
    assert set(places) == {*CORNERS_CENTRE, *EDGES, *BETWEEN}


def test_free_space_is_cut_in_four_before_multiplying() -> None:
    # 346 - 256 = 90 columns are free: a quarter is 22, and the last box begins at 88.
    draws_of_all_places = [(0.0, (i + 0.5) / 13) for i in range(13)]
    lefts = {multi_scale_box(256, 346, 224, u).left for u in draws_of_all_places}
    tops = {multi_scale_box(346, 256, 224, u).top for u in draws_of_all_places}
    assert lefts == tops == {0, 22, 44, 66, 88}


def test_a_side_within_two_pixels_becomes_the_output_size() -> None:
    # 256 * .875 = 224 as is; 258 * .875 = 225 becomes 224; 260 * .875 = 227 stays.
    for short, expected in ((258, 224), (260, 227)):
        box = multi_scale_box(short, 340, 224, (3.5 / 10, 0.0))
        assert (box.height, box.width) == (expected, expected)


@pytest.mark.parametrize("shape", [(222, 300), (223, 223), (300, 222)])
def test_multi_scale_boxes_stay_inside_a_frame_just_below_the_output_size(
    shape: tuple[int, int],
) -> None:
    for i in range(130):
        u = ((i // 13 + 0.5) / 10, (i % 13 + 0.5) / 13)
        box = multi_scale_box(*shape, 224, u)
        assert box.top >= 0 and box.top + box.height <= shape[0]
        assert box.left >= 0 and box.left + box.width <= shape[1]


def test_multi_scale_sizes_and_places_are_equally_likely() -> None:
    found = [multi_scale_box(480, 640, 224, u) for u in draws(20_000, 2, "crop").tolist()]
    sizes = Counter((box.height, box.width) for box in found)
    assert set(sizes) == set(SIDES) and equally_likely(sizes.values())
    places = Counter(box for box in found if (box.height, box.width) == (360, 420))
    assert len(places) == 13 and equally_likely(places.values())


# --- finetuning boxes -----------------------------------------------------------------------------

SCALE, RATIO = (0.08, 1.0), (0.75, 4 / 3)


def two_sample_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Kolmogorov-Smirnov: the largest gap between two cumulative distributions."""
    points = np.union1d(a, b)
    cumulative = [np.searchsorted(np.sort(x), points, side="right") / len(x) for x in (a, b)]
    return float(np.abs(cumulative[0] - cumulative[1]).max())


@pytest.mark.parametrize("shape", [(240, 320), (320, 180), (224, 224)])
def test_resized_boxes_are_distributed_as_torchvisions(shape: tuple[int, int]) -> None:
    n = 10_000
    ours = np.array(
        [
            random_resized_box(*shape, SCALE, RATIO, u)
            for u in draws(n, RESIZED_CROP_DRAWS, "crop").tolist()
        ]
    )
    torch.manual_seed(0)
    frame = torch.empty(1, *shape)
    theirs = np.array(
        [RandomResizedCrop.get_params(frame, list(SCALE), list(RATIO)) for _ in range(n)]
    )
    for values in (ours, theirs):
        derived = values[:, 2] * values[:, 3], values[:, 3] / values[:, 2]
        assert np.all(values[:, :2] >= 0)
        assert np.all(values[:, 0] + values[:, 2] <= shape[0])
        assert np.all(values[:, 1] + values[:, 3] <= shape[1])
        assert np.all(derived[0] >= 0.07 * shape[0] * shape[1])
        assert np.all((derived[1] > 0.72) & (derived[1] < 1.39))
    bound = 1.95 * math.sqrt(2 / n)  # 0.1 %
    for column in range(4):
        assert two_sample_distance(ours[:, column], theirs[:, column]) < bound
    ratios = [np.log(values[:, 3] / values[:, 2]) for values in (ours, theirs)]
    assert two_sample_distance(*ratios) < bound


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((100, 400), Box(0, 133, 100, 133)),  # too wide: 100 * 4/3
        ((400, 100), Box(133, 0, 133, 100)),  # too tall: 100 / 0.75
        ((90, 100), Box(0, 0, 90, 100)),
    ],
)
def test_resized_box_falls_back_to_the_largest_centre_box(
    shape: tuple[int, int], expected: Box
) -> None:
    u = [0.999999, 0.999999, 0.0, 0.0] * 10  # the whole area and the widest ratio never fit
    box = random_resized_box(*shape, (1.0, 1.0), RATIO, u)
    assert box == expected
    torch.manual_seed(0)
    if shape != (90, 100):  # there torchvision may find a box in its own draws
        frame = torch.empty(1, *shape)
        assert RandomResizedCrop.get_params(frame, [1.0, 1.0], list(RATIO)) == tuple(expected)


def test_resized_box_takes_the_first_attempt_that_fits() -> None:
    too_wide = [0.99, 0.999, 0.0, 0.0]
    fits = [0.5, 0.5, 0.0, ALMOST_ONE]
    # 0.625 of the area as a square, 158 x 158, at the right edge.
    for u in (fits + [0.1] * 36, too_wide + fits + [0.1] * 32):
        assert random_resized_box(200, 200, (0.25, 1.0), RATIO, u) == Box(0, 42, 158, 158)


def test_resized_box_can_be_the_whole_frame() -> None:
    u = [ALMOST_ONE, 0.5, ALMOST_ONE, ALMOST_ONE] * 10
    assert random_resized_box(224, 224, SCALE, RATIO, u) == Box(0, 0, 224, 224)
