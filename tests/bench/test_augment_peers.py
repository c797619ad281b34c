"""The peers do what was drawn: the same clips come out as ours, as near as each of them can."""

import torch

from kinetics400.augment.mix import Mix, Mixing, mix
from kinetics400.augment.pipeline import training_augment
from kinetics400.augment.randaugment import NAMES, Draw, RandAugment, augmented
from kinetics400.batch import Batch
from kinetics400.bench import augment_peers as peers
from kinetics400.bench.videos import texture
from kinetics400.data.sampling import Box

MIXING = Mixing(num_classes=4)
RANDAUGMENT = RandAugment(magnitude=7, num_layers=3, magnitude_std=0.5, probability=0.7)


def picture(height: int = 40, width: int = 48) -> torch.Tensor:
    """(C, 2, H, W): photograph-like, so that bilinear and bicubic are alike."""
    import numpy as np

    drawn = texture(np.random.default_rng(1), 2 * height, width, 25)[..., :3]
    return torch.from_numpy(drawn.reshape(2, height, width, 3).copy()).permute(3, 0, 1, 2)


def batch(erase_probability: float) -> tuple[Batch, peers.Drawn, torch.Tensor]:
    clips = torch.stack([picture().roll(5 * k, -1) for k in range(4)])
    keys = torch.arange(4) + 20
    options = {"randaugment": RANDAUGMENT, "flip_probability": 0.5, "mixing": MIXING}
    options["erase_probability"] = erase_probability
    drawn = peers.draw(keys, (40, 48), **options)
    before = Batch(clips, torch.arange(4), keys)
    return before, drawn, training_augment(**options)(before).clips


def test_timm_gives_the_batch_that_ours_gives() -> None:
    before, drawn, ours = batch(0.0)
    assert True in drawn.flips and False in drawn.flips
    assert any(draw.applied for clip in drawn.operations for draw in clip)
    theirs = peers.timm_batch(before.clips, drawn)
    share = ((theirs - ours).abs() > 1e-5).float().mean()
    assert share < 0.01


def test_torchvision_gives_nearly_that_batch() -> None:
    """Bilinear, and other roundings."""
    before, drawn, ours = batch(0.0)
    theirs = peers.torchvision_batch(before.clips, drawn)
    assert (theirs - ours).abs().mean() < 0.15


def test_both_erase_the_drawn_boxes() -> None:
    before, drawn, _ = batch(1.0)
    assert all(box is not None for box in drawn.boxes)
    plain = peers.Drawn(drawn.operations, drawn.flips, [None] * 4, Mix(1.0, None))
    erased = peers.Drawn(drawn.operations, drawn.flips, drawn.boxes, Mix(1.0, None))
    for whole in (peers.timm_batch, peers.torchvision_batch):
        changed = whole(before.clips, plain) != whole(before.clips, erased)
        for clip, box in zip(changed, drawn.boxes, strict=True):
            assert isinstance(box, Box)
            inside = clip[..., box.top : box.top + box.height, box.left : box.left + box.width]
            assert inside.float().mean() > 0.999 and clip.sum() == inside.sum()


def test_cutmix_of_the_peers_is_ours() -> None:
    how = Mix(0.8, Box(2, 3, 10, 12))
    clips = torch.randn(4, 3, 2, 20, 30)
    expected = clips.clone()
    expected[..., 2:12, 3:15] = clips.flip(0)[..., 2:12, 3:15]
    assert torch.equal(peers.mix(clips.clone(), how), expected)
    keys = torch.arange(4) + 2
    mixed = mix(Batch(clips.clone(), torch.arange(4), keys), MIXING).clips
    drawn = peers.draw(
        keys,
        (20, 30),
        randaugment=RANDAUGMENT,
        flip_probability=0.0,
        erase_probability=0.0,
        mixing=MIXING,
    )
    torch.testing.assert_close(peers.mix(clips.clone(), drawn.mix), mixed, rtol=0, atol=1e-5)


def test_torchvision_knows_every_operation_and_its_direction() -> None:
    """Its mean difference from ours, and how much the operation changes at all."""
    clip = picture(64, 64)
    frames = clip.transpose(0, 1).contiguous()
    assert tuple(peers.TORCHVISION) == NAMES
    for name in NAMES:
        drawn = Draw(name, True, 7.0, 1)
        ours = augmented(clip.unsqueeze(0), [[drawn]])[0].float()
        theirs = peers.torchvision_operation(name, frames, drawn.argument).transpose(0, 1).float()
        difference, change = (ours - theirs).abs().mean(), (ours - clip.float()).abs().mean()
        assert difference < 0.2 * change, name
