"""Erasing: which box, of whom, and what it is filled with."""

import math

import numpy as np
import pytest
import torch

from kinetics400.augment.erase import CPU_PAIRS, DRAWS, erased_box, normal_noise, random_erase
from kinetics400.data import keys

HEIGHT, WIDTH = 24, 32


def zeros(count: int) -> torch.Tensor:
    return torch.zeros(count, 3, 4, HEIGHT, WIDTH)


def erased(count: int, probability: float = 1.0) -> torch.Tensor:
    return random_erase(zeros(count), torch.arange(count), probability)


def test_one_box_over_all_frames_and_channels_is_filled() -> None:
    boxes = set()
    for clip in erased(20):
        changed = clip != 0
        assert torch.equal(changed, changed[:1, :1].expand_as(changed))
        rows, columns = changed[0, 0].nonzero().unbind(1)
        (top, left), (bottom, right) = (
            (int(rows.min()), int(columns.min())),
            (int(rows.max()), int(columns.max())),
        )
        assert changed[0, 0, top : bottom + 1, left : right + 1].all()
        boxes.add((top, left, bottom, right))
    assert len(boxes) > 15


def test_noise_differs_in_every_pixel_frame_and_channel() -> None:
    filled = erased(10)
    values = filled[filled != 0]
    assert len(values.unique()) > 0.999 * len(values)


def test_it_happens_in_place_and_to_nobody_else() -> None:
    clips = torch.full((6, 3, 2, HEIGHT, WIDTH), 9.0)
    assert random_erase(clips, torch.arange(6), 1.0) is clips
    (changed, untouched) = (clips != 9).flatten(1).any(1), (clips == 9).flatten(1).any(1)
    assert changed.all() and untouched.all()


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_probability_is_kept(probability: float) -> None:
    clips = random_erase(torch.zeros(4000, 1, 1, 8, 8), torch.arange(4000), probability)
    share = (clips != 0).flatten(1).any(1).float().mean().item()
    assert abs(share - probability) <= 4 * math.sqrt(probability * (1 - probability) / 4000)


def test_the_key_decides_not_the_place_in_the_batch() -> None:
    whole = erased(8, 0.5)
    part = random_erase(zeros(3), torch.arange(8)[[6, 2, 5]], 0.5)
    assert torch.equal(part, whole[[6, 2, 5]])


def test_boxes_have_the_published_area_and_aspect() -> None:
    for u in keys.uniform(torch.arange(3000), "test", DRAWS - 1).tolist():
        box = erased_box(400, 600, u)
        assert box is not None and box.height < 400 and box.width < 600
        assert 0 <= box.top <= 400 - box.height and 0 <= box.left <= 600 - box.width
        assert 0.0195 < box.height * box.width / 240_000 < 0.335
        assert 0.295 < box.height / box.width < 3.4


def test_a_box_by_hand() -> None:
    """Area 0.02 + 0.5 · (1/3 - 0.02) of 10,000, aspect exp(0): a square of 42; 59 places each."""
    box = erased_box(100, 100, [0.5, 0.5, 0.99, 0.0] + [0.0] * 36)
    assert box == (58, 0, 42, 42)
    box = erased_box(100, 100, [0.5, 0.5, 0.0, 0.99] + [0.0] * 36)
    assert box == (0, 58, 42, 42)


def test_a_box_as_high_as_the_frame_is_drawn_again() -> None:
    """Area and aspect at their most: 105 high in a frame of 100."""
    tall, square = [0.9999, 0.9999, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]
    assert erased_box(100, 100, tall * 9 + square) == (0, 0, 42, 42)
    assert erased_box(100, 100, tall * 10) is None
    assert erased_box(4, 10_000, [0.5, 0.5, 0.0, 0.0] * 10) is None


def test_a_frame_too_small_for_a_box_stays() -> None:
    clips = torch.zeros(5, 3, 2, 1, 1)
    assert torch.equal(random_erase(clips, torch.arange(5), 1.0), torch.zeros(5, 3, 2, 1, 1))


def test_noise_is_normal_and_uncorrelated() -> None:
    noise = normal_noise(torch.tensor(7), 200_001).double()
    assert noise.shape == (200_001,) and abs(noise.mean()) < 0.01
    for power, expected in ((2, 1.0), (3, 0.0), (4, 3.0)):
        assert abs((noise**power).mean().item() - expected) < 0.06
    half = noise[:100_000], noise[100_001:]  # the two of a pair are a half apart
    for a, b in ((noise[:-1], noise[1:]), half):
        assert abs((a * b).mean()) < 0.015 and abs((a**2 * b**2).mean() - 1) < 0.03
    inside = (noise.abs() < 1).double().mean().item()
    assert abs(inside - math.erf(2**-0.5)) < 0.005


def test_noise_is_box_and_mullers_of_the_keys_bits() -> None:
    """In float64 and in one piece; more pairs than a CPU takes at a time, and half of one."""
    count = 4 * CPU_PAIRS + 7
    bits = keys.bits(torch.tensor(11), "erase noise", count // 2 + 1).numpy().view(np.uint64)
    high = ((bits >> 32) ^ 2**31).astype(np.float64) + 1  # as if signed, from the least on
    turn = (bits & (2**32 - 1)).astype(np.float64) * (2 * np.pi * 2.0**-32)
    radius = np.sqrt(-2 * np.log(high * 2.0**-32))
    expected = np.concatenate((radius * np.cos(turn), radius * np.sin(turn)))[:count]
    # Where the logarithm's number is next to 1, float32 has few digits of the radius.
    np.testing.assert_allclose(normal_noise(torch.tensor(11), count), expected, atol=1e-3)


@pytest.mark.parametrize("bits", [-(2**63), -1, 0, 2**63 - 1])
def test_noise_never_overflows(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "bits", lambda *_, **__: torch.tensor([bits]))
    assert normal_noise(torch.tensor(1), 2).isfinite().all()
