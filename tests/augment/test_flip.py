"""Flipping is decided per clip, by its key."""

import torch

from kinetics400.augment.flip import draw_flips, flip
from kinetics400.batch import Batch


def batch(n: int, *, seed: int = 0) -> Batch:
    clips = torch.randint(256, (n, 3, 2, 4, 5), generator=torch.Generator().manual_seed(seed))
    return Batch(clips.to(torch.uint8), torch.arange(n), torch.arange(n) + 1000)


def random_flip(batch: Batch, probability: float) -> torch.Tensor:
    return flip(batch.clips, draw_flips(batch.host_keys, probability))


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
    many = Batch(torch.zeros(5_000, 1, 1, 1, 2), torch.zeros(5_000), torch.arange(5_000))
    many.clips[..., 1] = 1
    flipped = random_flip(many, 0.3)[:, 0, 0, 0, 0].mean().item()
    assert abs(flipped - 0.3) < 4 * (0.3 * 0.7 / 5_000) ** 0.5
    assert torch.equal(random_flip(many, 0.0), many.clips)
    assert torch.equal(random_flip(many, 1.0), many.clips.flip(-1))


def test_the_key_decides_not_the_place_in_the_batch() -> None:
    whole = batch(32)
    part = Batch(whole.clips[10:20], whole.labels[10:20], whole.keys[10:20])
    assert torch.equal(random_flip(part, 0.5), random_flip(whole, 0.5)[10:20])


def test_the_clips_themselves_are_not_changed() -> None:
    before = batch(8)
    copy = before.clips.clone()
    strided = before.with_clips(copy.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3))
    assert torch.equal(random_flip(before, 1.0), copy.flip(-1))
    assert torch.equal(before.clips, copy)
    flipped = random_flip(strided, 1.0)
    assert torch.equal(flipped, copy.flip(-1)) and flipped.is_contiguous()
