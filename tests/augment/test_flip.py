"""Flipping is decided per clip, by its key, and normalisation comes after it."""

import torch

from kinetics400.augment.flip import random_flip
from kinetics400.augment.pipeline import training_augment
from kinetics400.batch import Batch


def batch(n: int, *, seed: int = 0) -> Batch:
    clips = torch.randint(256, (n, 3, 2, 4, 5), generator=torch.Generator().manual_seed(seed))
    return Batch(clips.to(torch.uint8), torch.arange(n), torch.arange(n) + 1000)


def mirrored(clip: torch.Tensor) -> torch.Tensor:
    return clip[..., torch.arange(clip.shape[-1] - 1, -1, -1)]


def test_a_clip_is_mirrored_as_a_whole_or_not_at_all() -> None:
    before = batch(64)
    after = random_flip(before, 0.5)
    same = [torch.equal(a, b) for a, b in zip(after, before.clips, strict=True)]
    turned = [torch.equal(a, mirrored(b)) for a, b in zip(after, before.clips, strict=True)]
    assert all(a != b for a, b in zip(same, turned, strict=True))
    assert 16 < sum(turned) < 48


def test_probability_is_kept() -> None:
    many = Batch(torch.zeros(20_000, 1, 1, 1, 2), torch.zeros(20_000), torch.arange(20_000))
    many.clips[..., 1] = 1
    flipped = random_flip(many, 0.3)[:, 0, 0, 0, 0].mean().item()
    assert abs(flipped - 0.3) < 4 * (0.3 * 0.7 / 20_000) ** 0.5
    assert torch.equal(random_flip(many, 0.0), many.clips)
    assert torch.equal(random_flip(many, 1.0), many.clips.flip(-1))


def test_the_key_decides_not_the_place_in_the_batch() -> None:
    whole = batch(32)
    part = Batch(whole.clips[10:20], whole.labels[10:20], whole.keys[10:20])
    assert torch.equal(random_flip(part, 0.5), random_flip(whole, 0.5)[10:20])


def test_pipeline_normalises_with_the_imagenet_statistics() -> None:
    before = batch(4)
    after = training_augment(flip_probability=0)(before)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1, 1)
    torch.testing.assert_close(after.clips * std + mean, before.clips / 255)
    assert after.clips.dtype == torch.float32
    assert torch.equal(after.labels, before.labels) and torch.equal(after.keys, before.keys)


def test_pipeline_flips_when_asked() -> None:
    before = batch(32)
    plain = training_augment(flip_probability=0)(before).clips
    flipped = training_augment(flip_probability=1)(before).clips
    assert torch.equal(flipped, plain.flip(-1))
