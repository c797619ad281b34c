"""Where speed departs from a published rule: how far, and that the switch goes back.

docs/fidelity.md lists them; data/pyramid.py and docs/augmentation.md say why.
Shapes: C channels, T frames, H, W.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from kinetics400.augment.randaugment import parse_randaugment
from kinetics400.bench.augment_fidelity import PUBLISHED, example_clips
from kinetics400.bench.fidelity.clips import finetuning_clip, pretraining_clip
from kinetics400.data import keys, pyramid, sampling
from kinetics400.data.dataset import to_square

SEED = 0
LENGTHS = range(64, 400, 7)


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """One rule that ours departs from unless told not to."""

    rule: str
    """As published."""
    ours: str
    """What is done by default."""
    why: str
    switch: str
    """The flag that goes back."""
    test: str
    unit: str
    compared: int
    mean: float
    """Absolute difference, ours by default."""
    largest: float
    with_switch: float
    """Largest difference with the flag."""
    allowed_with_switch: float

    @property
    def holds(self) -> bool:
        return self.with_switch <= self.allowed_with_switch


def deviations(augment: Mapping[str, Any]) -> list[Deviation]:
    """Measure each.

    Args:
        augment: what `augment_fidelity` measured.
    """
    return [*frame_deviations(), order_deviation(augment)]


def frame_deviations() -> Iterator[Deviation]:
    """Frames on the store's grid against the published ones, for the same random numbers."""
    grids = pyramid.common_grid(4), pyramid.near_grid(64 / 15)
    for name, ours, published, grid, test in (
        ("pretraining's start: any frame", _pretraining, _pretraining_published, grids[0],
         "test_starts_on_a_grid_are_all_its_multiples_equally_often"),
        ("finetuning's frames: 64/15 apart from any start", _finetuning, _finetuning_published,
         grids[1], "test_finetuning_frames_move_to_the_nearest_on_the_grid"),
    ):  # fmt: skip
        moved, exact = [], []
        for length in LENGTHS:
            for u in np.linspace(0, 1, 97, endpoint=False) + 0.001:
                expected = np.asarray(published(length, u))
                moved.append(np.abs(np.asarray(ours(length, u, grid=grid)) - expected))
                exact.append(np.abs(np.asarray(ours(length, u, grid=1)) - expected).max())
        shifts = np.stack(moved)
        yield Deviation(
            rule=name,
            ours=f"moved to a multiple of {grid}",
            why="so that a clip decodes one layer of the store",
            switch="--exact_frames",
            test=f"data/test_sampling.py::{test}",
            unit="frames",
            compared=shifts.size,
            mean=float(shifts.mean()),
            largest=float(shifts.max()),
            with_switch=float(max(exact)),
            allowed_with_switch=0.0,
        )


def _pretraining(length: int, u: float, *, grid: int) -> list[int]:
    return sampling.pretraining_frames(length, 16, 4, u, grid=grid)


def _pretraining_published(length: int, u: float) -> np.ndarray:
    return pretraining_clip(length, int(u * (length - 64 + 1)))


def _finetuning(length: int, u: float, *, grid: int) -> list[int]:
    return sampling.finetuning_frames(length, 16, 4, u, grid=grid)


def _finetuning_published(length: int, u: float) -> np.ndarray:
    return finetuning_clip(length, 64 + int(u * (length - 64)))


def order_deviation(augment: Mapping[str, Any]) -> Deviation:
    """RandAugment of crops against crops of RandAugment's frames, for the same random numbers."""
    randaugment = parse_randaugment(PUBLISHED)
    clip = example_clips()["pictures 256×340"]
    differences = []
    for key in keys.combine(SEED, torch.arange(48)):
        u = keys.draws(key, "crop", sampling.RESIZED_CROP_DRAWS)
        box = sampling.random_resized_box(256, 340, (0.08, 1.0), (0.75, 4 / 3), u)
        cut = partial(_cut, box=box)
        apply = partial(_apply, randaugment, key=key)
        differences.append((apply(cut(clip)).double() - cut(apply(clip)).double()).abs())
    found = torch.stack(differences)
    rule = "official order: frames to crop"
    (switched,) = (row for row in augment["pixels"] if row["rule"] == rule)
    return Deviation(
        rule="RandAugment on whole frames, then crop and scaling",
        ours="crop and scaling, then RandAugment on the crop",
        why="workers decode only the crop, and RandAugment runs on the training device",
        switch="--official_augment",
        test="commands/test_augmentation.py::test_the_official_order_is_another_one",
        unit="of 255 levels",
        compared=found.numel(),
        mean=found.mean().item(),
        largest=found.max().item(),
        with_switch=switched["largest"],
        allowed_with_switch=switched["allowed_difference"],
    )


def _cut(clip: torch.Tensor, box: sampling.Box) -> torch.Tensor:
    rows, columns = (slice(a, a + b) for a, b in ((box.top, box.height), (box.left, box.width)))
    return to_square(clip[..., rows, columns].permute(1, 2, 3, 0).numpy(), 224, antialias=False)


def _apply(randaugment: Any, clip: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return randaugment(clip.unsqueeze(0), key.view(1))[0]
