"""Frames and boxes against the published rules, written out here, over all sizes and choices.

The rules come from the paper's code as it is described in words (docs/fidelity.md), never from our
functions. Lengths are in frames, sizes in pixels.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torchvision.transforms.transforms
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from kinetics400.bench.fidelity.rules import EXACT, Rule, difference
from kinetics400.data import keys, sampling
from kinetics400.data.dataset import to_square

SEED = 0
LENGTHS = (*range(1, 130), *range(130, 400, 7))
SIZES = ((256, 340), (340, 256), (480, 640), (240, 320), (258, 345), (360, 202), (224, 224))
SAMPLING_TESTS = "data/test_sampling.py"


def clip_rules(golden: Path) -> Iterator[Rule]:
    """Every rule of which frames, and which part of them.

    Args:
        golden: the folder of reference numbers, tests/golden.
    """
    yield from training_rules()
    yield from view_rules(json.loads((golden / "eval_views.json").read_text("utf-8")))
    yield from box_rules()


# --- frames of training ---------------------------------------------------------------------------


def training_rules() -> Iterator[Rule]:
    """Pretraining's and finetuning's clips of 16 frames, stride 4; sparse ones."""
    pairs = []
    for length in LENGTHS:
        choices = max(length - 64 + 1, 1)
        for start in range(choices):
            ours = sampling.pretraining_frames(length, 16, 4, (start + 0.5) / choices)
            pairs.append((ours, pretraining_clip(length, start)))
    yield _frames(
        rule="start uniform in [0, n − 64], then every 4th frame; a short video starts at 0 and "
        "repeats the last frame reached",
        source="kinetics.py:515-575",
        ours="data.sampling.pretraining_frames",
        test="test_pretraining_frames_for_every_length_and_draw",
        pairs=pairs,
    )
    pairs = []
    for length in LENGTHS:
        choices = max(length - 64, 1)
        for place in range(choices):
            ours = sampling.finetuning_frames(length, 16, 4, (place + 0.5) / choices)
            pairs.append((ours, finetuning_clip(length, 64 + place)))
    yield _frames(
        rule="end uniform in [64, n), 16 frames linspace(end − 64, end), so 4.27 apart; the last "
        "frame is never used; n ≤ 64: linspace(0, n, n // 4), then the last",
        source="kinetics.py:252-266",
        ours="data.sampling.finetuning_frames",
        test="test_finetuning_frames_for_every_length_and_draw",
        pairs=pairs,
    )
    rng = np.random.default_rng(SEED)
    pairs = []
    for length in LENGTHS:
        part = length // 16
        offsets = rng.integers(max(part, 1), size=16)
        u = (offsets + 0.5) / max(part, 1)
        theirs = np.arange(16) * part + offsets if part else np.zeros(16)
        pairs.append((sampling.sparse_frames(length, 16, u.tolist()), theirs))
    yield _frames(
        rule="Something-Something: one uniform frame of each of 16 equal parts",
        source="ssv2.py",
        ours="data.sampling.sparse_frames",
        test="test_sparse_frames_for_every_length_and_offset",
        pairs=pairs,
    )


def pretraining_clip(length: int, start: int) -> np.ndarray:
    """The stride of 4 goes on while its next frame lies before the video's last one."""
    most = max(-(-(length - 1 - start) // 4) - 1, 0)
    return start + 4 * np.minimum(np.arange(16), most)


def finetuning_clip(length: int, end: int) -> np.ndarray:
    """As published, with numpy."""
    if length > 64:
        index = np.linspace(end - 64, end, num=16)
        return np.clip(index, end - 64, end - 1).astype(np.int64)
    index = np.linspace(0, length, num=length // 4)
    index = np.append(index, np.full(16 - length // 4, length))
    return np.clip(index, 0, length - 1).astype(np.int64)


def _frames(
    *, rule: str, source: str, ours: str, test: str, pairs: Sequence[tuple[Any, Any]]
) -> Rule:
    return Rule(
        part="frames",
        rule=rule,
        source=f"VideoMAE {source}",
        ours=ours,
        reference="numpy, written out",
        test=f"{SAMPLING_TESTS}::{test}",
        unit="frames",
        allowed=EXACT,
        **difference(pairs)._asdict(),
    )


# --- the test protocol ----------------------------------------------------------------------------


def view_rules(golden: Sequence[dict[str, Any]]) -> Iterator[Rule]:
    """Frames and squares of a test's views."""
    yield Rule(
        part="test views",
        rule="5 × 3 and 2 × 3 views of a video: frames and squares",
        source="VideoMAE kinetics.py:171-250",
        ours="data.sampling.views_of",
        reference="golden numbers",
        test=f"{SAMPLING_TESTS}::test_every_golden_view",
        unit="frames, pixels",
        allowed=EXACT,
        **difference(_golden_views(facts) for facts in golden)._asdict(),
    )
    pairs = [
        (sampling.segment_frames(length, 16, 4, k, count), _test_clip(length, k, count))
        for length in LENGTHS
        for count in (2, 3, 5, 10)
        for k in range(count)
    ]
    yield Rule(
        part="test views",
        rule="every 4th frame of the whole video, padded with its last; starts spread evenly",
        source="VideoMAE kinetics.py:245-250",
        ours="data.sampling.segment_frames",
        reference="numpy, written out",
        test=f"{SAMPLING_TESTS}::test_segments_for_every_length",
        unit="frames",
        allowed=EXACT,
        **difference(pairs)._asdict(),
    )
    sparse = [
        (
            sampling.sparse_segment_frames(length, 16, k, 2),
            [(2 * i + k) * length // 32 for i in range(16)],
        )
        for length in LENGTHS
        for k in range(2)
    ]
    yield Rule(
        part="test views",
        rule="Something-Something: beginnings of 16 equal parts, then their middles",
        source="VideoMAE ssv2.py",
        ours="data.sampling.sparse_segment_frames",
        reference="whole numbers (floor division)",
        test=f"{SAMPLING_TESTS}::test_sparse_segments_for_every_length",
        unit="frames",
        allowed=EXACT,
        **difference(sparse)._asdict(),
    )
    shapes = [(h, w) for h in range(100, 500, 4) for w in range(100, 900, 7)]
    shapes += [(h, round(h * k / 32)) for h in range(112, 1081, 56) for k in range(20, 64)]
    scaled = [(sampling.short_side_size(*shape, 224), _scaled(*shape)) for shape in shapes]
    yield Rule(
        part="test views",
        rule="short side to 224, the long one cut to a whole number",
        source="VideoMAE functional.py",
        ours="data.sampling.short_side_size",
        reference="whole numbers (floor division)",
        test=f"{SAMPLING_TESTS}::test_long_side_is_rounded_down",
        unit="pixels",
        allowed=EXACT,
        **difference(scaled)._asdict(),
    )
    crops = [
        (sampling.crop_box(h, w, 224, k, 3), _third(h, w, k))
        for side in range(224, 500)
        for h, w in ((224, side), (side, 224))
        for k in range(3)
    ]
    yield Rule(
        part="test views",
        rule="3 squares at int(k · (long − 224) / 2), along the height where H ≥ W",
        source="VideoMAE kinetics.py:171-250",
        ours="data.sampling.crop_box",
        reference="numpy, written out",
        test=f"{SAMPLING_TESTS}::test_every_golden_view",
        unit="pixels",
        allowed=EXACT,
        **difference(crops)._asdict(),
    )


def _golden_views(facts: dict[str, Any]) -> tuple[list[list[int]], list[list[int]]]:
    segments = [
        sampling.segment_frames(
            facts["num_frames"], facts["clip_len"], facts["sampling_rate"], k, facts["num_segments"]
        )
        for k in range(facts["num_segments"])
    ]
    views = sampling.views_of(segments, facts["height"], facts["width"], facts["num_crops"])
    box = ("top", "left", "height", "width")
    return (
        [[view.segment, view.crop, *view.frames, *view.box] for view in views],
        [
            [v["segment"], v["crop"], *v["frames"], *(v[name] for name in box)]
            for v in facts["views"]
        ],
    )


def _test_clip(length: int, segment: int, count: int) -> np.ndarray:
    whole = np.arange(0, length, 4)
    whole = np.pad(whole, (0, max(16 - len(whole), 0)), mode="edge")
    start = int(segment * max((len(whole) - 16) / (count - 1), 0))
    return whole[start : start + 16]


def _scaled(height: int, width: int) -> tuple[int, int]:
    return (224, 224 * width // height) if height <= width else (224 * height // width, 224)


def _third(height: int, width: int, crop: int) -> tuple[int, int, int, int]:
    start = crop * (max(height, width) - 224) // 2
    return (start, 0, 224, 224) if height >= width else (0, start, 224, 224)


# --- boxes of training ----------------------------------------------------------------------------


def box_rules() -> Iterator[Rule]:
    """Pretraining's and finetuning's crops, and how pretraining scales them."""
    pairs = []
    for height, width in SIZES:
        draws = [((i + 0.5) / 10, (j + 0.5) / 13) for i in range(10) for j in range(13)]
        ours = sorted(sampling.multi_scale_box(height, width, 224, u) for u in draws)
        pairs.append((ours, sorted(multi_scale_boxes(height, width))))
    yield Rule(
        part="crops",
        rule="sides of 1, .875, .75 and .66 of the short side, at most one step apart, 224 where "
        "within 2 pixels; 13 places on a grid of quarters",
        source="VideoMAE transforms.py",
        ours="data.sampling.multi_scale_box",
        reference="all 130 boxes, enumerated",
        test=f"{SAMPLING_TESTS}::test_multi_scale_boxes_lie_at_the_thirteen_published_places",
        unit="pixels",
        allowed=EXACT,
        **difference(pairs)._asdict(),
    )
    shapes = (*SIZES, (100, 1000), (1000, 100))  # of the last two no attempt fits, mostly
    boxes = [_resized_boxes(*shape, key) for shape in shapes for key in range(300)]
    yield Rule(
        part="crops",
        rule="8 % to 100 % of the area, width / height log-uniform in .75 to 1.3333, ten attempts, "
        "then the largest centre box",
        source="VideoMAE video_transforms.py",
        ours="data.sampling.random_resized_box",
        reference="torchvision RandomResizedCrop, on the same uniform numbers",
        test=f"{SAMPLING_TESTS}::test_resized_boxes_are_distributed_as_torchvisions",
        unit="pixels",
        allowed=EXACT,
        **difference(boxes)._asdict(),
    )
    rng = np.random.default_rng(SEED)
    images = []
    for height, width in ((256, 256), (224, 168), (168, 224), (300, 340)):
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        smooth = Image.fromarray(noise).resize((224, 224), Image.Resampling.BILINEAR)
        square = to_square(noise[None], 224, antialias=True)[:, 0].permute(1, 2, 0)
        images.append((square, smooth))
    yield Rule(
        part="crops",
        rule="pretraining scales with PIL, bilinear, which antialiases",
        source="VideoMAE transforms.py",
        ours="data.dataset.to_square",
        reference="PIL",
        test="data/test_dataset.py::test_with_antialias_equals_pil_within_a_level",
        unit="of 255 levels",
        allowed=1.0,
        **difference(images)._asdict(),
    )


def multi_scale_boxes(height: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """Every (top, left, height, width) that the published rule draws, once for each way to it."""
    short = min(height, width)
    sides = [int(short * scale) for scale in (1, 0.875, 0.75, 0.66)]
    sides = [224 if side in range(222, 227) else side for side in sides]
    for i in range(4):
        for j in range(max(i - 1, 0), min(i + 2, 4)):
            down, across = (height - sides[i]) // 4, (width - sides[j]) // 4
            for y in range(5):
                for x in range(5):
                    # Corners, centre and middles of edges; middles between centre and corners.
                    if (x % 2, y % 2) in ((0, 0), (1, 1)):
                        yield y * down, x * across, sides[i], sides[j]


def _resized_boxes(height: int, width: int, number: int) -> tuple[Any, Any]:
    """Ours, and torchvision's with our uniform numbers in place of its own."""
    key = keys.sample_key(SEED, height, width, number)
    u = keys.draws(key, "crop", sampling.RESIZED_CROP_DRAWS)
    ours = sampling.random_resized_box(height, width, (0.08, 1.0), (0.75, 4 / 3), u)
    attempts = iter([u[start : start + 4] for start in range(0, len(u), 4)])
    left: list[float] = []

    def uniform(low: Any, high: Any) -> torch.Tensor:
        if not isinstance(low, torch.Tensor):  # the area's bounds are floats: a new attempt
            left[:] = next(attempts)
        return torch.as_tensor(low + left.pop(0) * (high - low))

    drawer = mock.Mock(wraps=torch)
    drawer.empty.side_effect = lambda _: mock.Mock(uniform_=uniform)
    drawer.tensor.side_effect = lambda values: torch.tensor(values, dtype=torch.float64)
    drawer.randint.side_effect = lambda low, high, size: torch.tensor(
        [low + int(left.pop(0) * (high - low))]
    )
    with mock.patch.object(torchvision.transforms.transforms, "torch", drawer):
        frame = torch.empty(1, height, width)
        theirs = RandomResizedCrop.get_params(frame, [0.08, 1.0], [0.75, 4 / 3])
    return ours, theirs
