"""Colour operations give PIL's pixels, all of them, for every clip of a batch by itself."""

import pytest
import torch

from kinetics400.augment.randaugment import OPERATIONS
from kinetics400.bench.augment_peers import timm_operation, to_clip, to_images

NONE = [None]
FACTORS = [0.1, 0.37, 0.9999, 1.0, 1.63, 1.9]
ARGUMENTS = {
    "AutoContrast": NONE,
    "Equalize": NONE,
    "Invert": NONE,
    "PosterizeIncreasing": [1, 2, 3, 4, 8],
    "SolarizeIncreasing": [0, 1, 77, 128, 255, 256],
    "SolarizeAdd": [0, 1, 77, 110, 128],
    "ColorIncreasing": FACTORS,
    "ContrastIncreasing": FACTORS,
    "BrightnessIncreasing": FACTORS,
    "SharpnessIncreasing": FACTORS,
}
SIZES = [(33, 47), (40, 24), (2, 2), (1, 5), (3, 3)]


def clips_of(height: int, width: int) -> dict[str, torch.Tensor]:
    """(3, 3, H, W): noise, few levels, a narrow range, a gradient, one level."""
    numbers = torch.Generator().manual_seed(height)

    def drawn(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, (3, 3, height, width), generator=numbers)

    ramp = torch.linspace(0, 255, width).round().expand(3, 3, height, width)
    clips = {"noise": drawn(0, 256), "few levels": drawn(0, 3) * 90, "narrow": drawn(100, 131)}
    clips |= {"gradient": ramp * torch.tensor([1, 0.5, 0.2]).view(1, 3, 1, 1), "flat": drawn(7, 8)}
    return {name: clip.to(torch.uint8) for name, clip in clips.items()}


def ours(name: str, clip: torch.Tensor, arguments: list[float | None]) -> torch.Tensor:
    """The clip once with each argument, in one batch."""
    batch = torch.stack([clip] * len(arguments))
    if arguments == NONE:
        return OPERATIONS[name].apply(batch)
    return OPERATIONS[name].apply(batch, torch.tensor(arguments, dtype=torch.float64))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_pixel_is_pils(name: str, size: tuple[int, int]) -> None:
    for kind, clip in clips_of(*size).items():
        before = clip.clone()
        results = ours(name, clip, ARGUMENTS[name])
        assert torch.equal(clip, before) and results.dtype == torch.uint8
        for argument, result in zip(ARGUMENTS[name], results, strict=True):
            expected = to_clip(timm_operation(name, to_images(clip), argument))
            assert torch.equal(result, expected), (kind, argument)


def test_no_bits_leave_black() -> None:
    """PIL itself refuses what timm's level 10 means."""
    clip = clips_of(4, 5)["noise"]
    assert torch.equal(ours("PosterizeIncreasing", clip, [0])[0], torch.zeros_like(clip))


@pytest.mark.parametrize("name", ["AutoContrast", "Equalize"])
def test_a_batch_is_its_clips(name: str) -> None:
    batch = torch.stack(list(clips_of(12, 14).values()))
    alone = [OPERATIONS[name].apply(clip.unsqueeze(0))[0] for clip in batch]
    assert torch.equal(OPERATIONS[name].apply(batch), torch.stack(alone))


def test_the_mean_of_a_large_frame_is_exact() -> None:
    """Its sum of levels is beyond what float32 can count; the mean is just below a half."""
    clip = torch.full((1, 3, 1, 1024, 1024), 254, dtype=torch.uint8)
    clip[..., 0::2, :] = 253
    clip[..., 0, 0] = 252
    flattened = OPERATIONS["ContrastIncreasing"].apply(clip, torch.zeros(1))
    assert flattened.unique().tolist() == [253]
