"""Geometric operations give PIL's bicubic pixels, up to a level where a sum is nearly whole."""

import pytest
import torch

from kinetics400.augment.geometry import CPU_FRAMES, CPU_ROWS, FRAMES_AT_ONCE
from kinetics400.augment.randaugment import OPERATIONS
from kinetics400.bench.augment_peers import timm_operation, to_clip, to_images

ARGUMENTS = {
    "Rotate": [0.0, 20.7, -18.9, 30.0, -30.0, 5.3],
    "ShearX": [0.0, 0.2134, -0.1871, 0.3],
    "ShearY": [0.0, 0.2134, -0.1871, 0.3],
    "TranslateXRel": [0.0, 0.3117, -0.2986, 0.125, -0.5],
    "TranslateYRel": [0.0, 0.3117, -0.2986, 0.125, -0.5],
}
# The least share of pixels that may differ: 1 in 1000, and always a few.
SHARE, FEW = 0.001, 3


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(5), dtype=torch.uint8)


def ours(name: str, clips: torch.Tensor, arguments: list[float]) -> torch.Tensor:
    return OPERATIONS[name].apply(clips, torch.tensor(arguments, dtype=torch.float64))


@pytest.mark.parametrize("size", [(33, 47), (60, 40), (48, 48), (1, 5), (7, 1)])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_pixels_are_pils(name: str, size: tuple[int, int]) -> None:
    clips = noise(len(ARGUMENTS[name]), 3, 4, *size)
    before = clips.clone()
    results = ours(name, clips, ARGUMENTS[name])
    assert torch.equal(clips, before) and results.is_contiguous()
    for clip, argument, result in zip(clips, ARGUMENTS[name], results, strict=True):
        expected = to_clip(timm_operation(name, to_images(clip), argument))
        difference = (result.int() - expected.int()).abs()
        assert difference.max() <= 1
        assert difference.count_nonzero() <= max(FEW, SHARE * difference.numel()), argument


FAR = {
    "Rotate": [180.0, -91.3],
    "ShearX": [1.7, -2.3],
    "ShearY": [1.7, -2.3],
    "TranslateXRel": [0.9971, -1.3, 40.0],
    "TranslateYRel": [0.9971, -1.3, 40.0],
}


@pytest.mark.parametrize("name", FAR)
def test_far_moves_are_pils(name: str) -> None:
    """Beyond what a magnitude means, up to nothing of the clip left."""
    clips = noise(len(FAR[name]), 3, 2, 33, 47)
    for clip, argument, result in zip(clips, FAR[name], ours(name, clips, FAR[name]), strict=True):
        expected = to_clip(timm_operation(name, to_images(clip), argument))
        difference = (result.int() - expected.int()).abs()
        assert difference.max() <= 1
        assert difference.count_nonzero() <= max(FEW, SHARE * difference.numel()), argument


@pytest.mark.parametrize("shape", [(1, 97, 93), (FRAMES_AT_ONCE + 3, 41, 30)])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_parts_are_put_together(name: str, shape: tuple[int, ...]) -> None:
    """One frame, of more places than a CPU takes at a time; more frames than a table has."""
    clips = noise(1, 3, *shape)
    result, argument = ours(name, clips, ARGUMENTS[name][1:2])[0], ARGUMENTS[name][1]
    difference = (result.int() - to_clip(timm_operation(name, to_images(clips[0]), argument))).abs()
    assert difference.max() <= 1
    assert difference.count_nonzero() <= SHARE * difference.numel()
    assert shape[1] * shape[2] > CPU_ROWS or shape[0] > FRAMES_AT_ONCE > CPU_FRAMES


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_flat_clip_stays_flat_and_grey_comes_in(name: str) -> None:
    """No weight is lost: sums of a constant are that constant, to the last level."""
    clips = torch.full((4, 3, 2, 50, 60), 1, dtype=torch.uint8)
    clips += torch.tensor([0, 6, 199, 254], dtype=torch.uint8).view(-1, 1, 1, 1, 1)
    results = ours(name, clips, ARGUMENTS[name][-1:] * 4)
    for result, level in zip(results, (1, 7, 200, 255), strict=True):
        assert result.unique().tolist() == sorted({128, level})


@pytest.mark.parametrize("name", ARGUMENTS)
def test_zero_moves_nothing(name: str) -> None:
    clips = noise(2, 3, 2, 20, 30)
    assert torch.equal(ours(name, clips, [0.0, 0.0]), clips)


def test_directions() -> None:
    """A positive share takes pixels from the right and from below; the rest is grey."""
    clips = noise(1, 3, 2, 10, 20)
    left = ours("TranslateXRel", clips, [0.5])
    assert torch.equal(left[..., :10], clips[..., 10:]) and left[..., 10:].unique().tolist() == [
        128
    ]
    up = ours("TranslateYRel", clips, [0.5])
    assert torch.equal(up[..., :5, :], clips[..., 5:, :])
    assert up[..., 5:, :].unique().tolist() == [128]
    square = noise(1, 3, 2, 12, 12)
    assert torch.equal(ours("Rotate", square, [90.0]), square.rot90(1, (3, 4)))
