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
    views = views_of(
        facts["num_frames"],
        facts["height"],
        facts["width"],
        num_frames=facts["clip_len"],
        sampling_rate=facts["sampling_rate"],
        num_segments=facts["num_segments"],
        num_crops=facts["num_crops"],
    )
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
    views = views_of(250, 224, 300, num_frames=16, sampling_rate=4, num_segments=1, num_crops=1)
    assert [(v.segment, v.crop, v.box.left, v.frames[0]) for v in views] == [(0, 0, 38, 92)]


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (240, 320, (224, 298)),  # 298.67 down
        (320, 240, (298, 224)),
        (256, 256, (224, 224)),
        (1080, 1920, (224, 398)),
        (100, 150, (224, 336)),
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
