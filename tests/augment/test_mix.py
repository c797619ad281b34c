"""Mixup and cutmix: who is mixed with whom, how much, where; and the labels with them."""

import math

import pytest
import torch

from kinetics400.augment.mix import Mix, Mixing, draw_mixes, mix, symmetric_beta
from kinetics400.batch import Batch

HEIGHT, WIDTH, CLASSES = 12, 20, 9
MODES = ("batch", "pair", "elem")


def batch(count: int, first_key: int = 0) -> Batch:
    numbers = torch.Generator().manual_seed(1)
    clips = torch.randn(count, 3, 5, HEIGHT, WIDTH, generator=numbers)
    labels = torch.randint(CLASSES, (count,), generator=numbers)
    return Batch(clips, labels, torch.arange(count) + first_key)


def mixing(**options: object) -> Mixing:
    return Mixing(**{"num_classes": CLASSES, **options})


def expected(before: Batch, mixes: list[Mix]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixel by pixel from copies, in float64."""
    clips, count = before.clips.double(), len(before)
    mixed, targets = clips.clone(), torch.zeros(count, CLASSES, dtype=torch.float64)
    for i, (share, box) in enumerate(mixes):
        j = count - 1 - i
        if box is None:
            mixed[i] = share * clips[i] + (1 - share) * clips[j]
        else:
            for y in range(box.top, box.top + box.height):
                for x in range(box.left, box.left + box.width):
                    mixed[i, :, :, y, x] = clips[j, :, :, y, x]
        targets[i, before.labels[i]] += share
        targets[i, before.labels[j]] += 1 - share
    return mixed, targets


@pytest.mark.parametrize("count", [1, 2, 6, 7])
@pytest.mark.parametrize("mode", MODES)
def test_clips_and_targets_are_mixed_with_their_mirror_image(mode: str, count: int) -> None:
    kinds = set()
    for first_key in range(0, 120, 20):
        before = batch(count, first_key)
        how = mixing(mode=mode, probability=0.8)
        mixes = draw_mixes(before.host_keys, how, HEIGHT, WIDTH)
        kinds |= {(each.box is None, each.share == 1) for each in mixes}
        clips, targets = expected(before, mixes)
        after = mix(before.with_clips(before.clips.clone()), how)
        assert after.clips.dtype == torch.float32 and after.targets is not None
        torch.testing.assert_close(after.clips.double(), clips, rtol=0, atol=1e-5)
        torch.testing.assert_close(after.targets.double(), targets, rtol=0, atol=1e-6)
        assert after.targets.dtype == torch.float32 and after.labels is before.labels
    assert count == 1 or kinds >= {(True, False), (False, False)}


def test_clips_are_mixed_in_place() -> None:
    before = batch(4)
    assert mix(before, mixing()).clips is before.clips


def test_the_middle_of_an_odd_batch_stays() -> None:
    for mode in MODES:
        before = batch(5)
        middle = before.clips[2].clone()
        after = mix(before, mixing(mode=mode))
        assert torch.equal(after.clips[2], middle) and after.targets is not None
        assert after.targets[2].tolist() == [float(k == before.labels[2]) for k in range(CLASSES)]


def test_modes_share_their_draws() -> None:
    keys = torch.arange(6) + 4
    drawn = {mode: draw_mixes(keys, mixing(mode=mode), HEIGHT, WIDTH) for mode in MODES}
    assert drawn["batch"] == [drawn["elem"][0]] * 6
    assert drawn["pair"] == drawn["elem"][:3] + drawn["elem"][2::-1]
    assert len(set(drawn["elem"])) == 6
    own = [draw_mixes(key.view(1), mixing(mode="elem"), HEIGHT, WIDTH) for key in keys]
    assert own == [[Mix(1.0, None)]] * 6  # alone, a clip is its own partner


def test_cutmix_shares_are_what_the_box_leaves() -> None:
    how = mixing(mode="elem", mixup_alpha=0.0)
    mixes = draw_mixes(torch.arange(400), how, HEIGHT, WIDTH)
    cut = 0
    for share, box in mixes:
        assert box is not None
        top, left, height, width = box
        assert 0 <= top <= top + height <= HEIGHT and 0 <= left <= left + width <= WIDTH
        assert share == pytest.approx(1 - height * width / (HEIGHT * WIDTH))
        cut += top == 0 or left == 0
    assert 0 < cut < 400


def test_cutmix_boxes_have_the_area_that_was_drawn() -> None:
    """A Beta distribution this narrow gives 0.5: sides of 0.707, where the border cuts nothing."""
    how = mixing(mode="elem", mixup_alpha=0.0, cutmix_alpha=1e9)
    boxes = [each.box for each in draw_mixes(torch.arange(300), how, 100, 200)]
    sides = [(box.height, box.width) for box in boxes if box is not None]
    assert max(height for height, _ in sides) == 70 and max(width for _, width in sides) == 141


@pytest.mark.parametrize(
    ("options", "share_of_boxes"),
    [
        ({}, 0.5),
        ({"switch_probability": 0.2}, 0.2),
        ({"switch_probability": 0.0}, 0.0),
        ({"switch_probability": 1.0}, 1.0),
        ({"mixup_alpha": 0.0, "switch_probability": 0.0}, 1.0),
        ({"cutmix_alpha": 0.0, "switch_probability": 1.0}, 0.0),
    ],
)
def test_switching(options: dict[str, float], share_of_boxes: float) -> None:
    how = mixing(mode="elem", **options)
    mixes = draw_mixes(torch.arange(3000), how, HEIGHT, WIDTH)
    share = sum(each.box is not None for each in mixes) / 3000
    assert abs(share - share_of_boxes) <= 4 * math.sqrt(0.25 / 3000) * (0 < share_of_boxes < 1)


def test_probability_leaves_clips_alone() -> None:
    how = mixing(mode="elem", probability=0.3)
    untouched = [m == Mix(1.0, None) for m in draw_mixes(torch.arange(3000), how, HEIGHT, WIDTH)]
    assert abs(sum(untouched) / 3000 - 0.7) < 4 * math.sqrt(0.21 / 3000)
    before = batch(6)
    copy = before.clips.clone()
    after = mix(before, mixing(probability=0.0))
    assert torch.equal(after.clips, copy) and after.targets is not None
    assert torch.equal(after.targets.argmax(1), before.labels)
    assert after.targets.unique().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("alpha", [0.05, 0.8, 1.0, 2.5, 40.0])
def test_beta_moments(alpha: float) -> None:
    """Mean 1/2, variance 1 / (4 (2a + 1)), fourth central moment 3 / (16 (2a + 1) (2a + 3))."""
    n = 3000
    x = torch.tensor([symmetric_beta(torch.tensor(key), alpha) for key in range(n)]).double()
    assert ((x >= 0) & (x <= 1)).all()
    variance = 1 / (4 * (2 * alpha + 1))
    fourth = 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3))
    assert abs(x.mean() - 0.5) < 4 * math.sqrt(variance / n)
    error = 4 * math.sqrt((fourth - variance**2) / n)
    assert abs(((x - 0.5) ** 2).mean() - variance) < error + 1e-9


def test_beta_of_tiny_alpha_is_a_coin() -> None:
    values = [symmetric_beta(torch.tensor(key), 1e-4) for key in range(50)]
    assert sum(value < 1e-6 for value in values) + sum(value > 1 - 1e-6 for value in values) == 50
    assert 10 < sum(value > 0.5 for value in values) < 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixup_alpha": -1.0}, "alphas"),
        ({"mixup_alpha": 0.0, "cutmix_alpha": 0.0}, "alphas"),
        ({"probability": 1.5}, "^probability 1.5 is not between 0 and 1"),
        ({"switch_probability": -0.1}, "switch_probability -0.1 is not"),
        ({"mode": "half"}, "mode 'half' is not batch, pair or elem"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixing(**options)
