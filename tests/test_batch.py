"""What crosses from the loader to the methods: pixels there and back, keys and labels beside."""

import pickle

import pytest
import torch

from kinetics400.batch import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Batch,
    contiguous,
    denormalize,
    normalize,
)


def all_values() -> torch.Tensor:
    """A clip in which every channel takes every one of the 256 values."""
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 4, 8, 8)
    return torch.cat((values, values.flip(2), values.flip(3)), dim=1)


def test_statistics_are_imagenets() -> None:
    assert IMAGENET_MEAN == (0.485, 0.456, 0.406)
    assert IMAGENET_STD == (0.229, 0.224, 0.225)


def test_normalize_by_hand() -> None:
    clips = torch.tensor([0, 255, 51], dtype=torch.uint8).reshape(1, 3, 1, 1, 1)
    expected = [-0.485 / 0.229, (1 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    normalized = normalize(clips)
    assert normalized.dtype == torch.float32 and normalized.shape == clips.shape
    assert normalized.flatten().tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("channel_dim", [1, 2])
def test_every_pixel_value_survives_the_round_trip(channel_dim: int) -> None:
    clips = all_values().transpose(1, channel_dim)
    back = denormalize(normalize(clips, channel_dim), channel_dim)
    assert back.shape == clips.shape and back.min() > -1e-6 and back.max() < 1 + 1e-6
    torch.testing.assert_close(back, clips.float() / 255, rtol=0, atol=2e-7)
    assert torch.equal((back * 255).round().to(torch.uint8), clips)


def channel_last(clips: torch.Tensor) -> torch.Tensor:
    """The same clips, in memory as a loader has them."""
    return clips.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)


def test_strides_change_no_number() -> None:
    clips = torch.cat((all_values(), all_values().flip(3)))
    strided = channel_last(clips)
    before = strided.clone()
    normalized = normalize(strided)
    assert not strided.is_contiguous() and normalized.is_contiguous()
    assert torch.equal(normalized, normalize(clips)) and torch.equal(strided, before)
    assert torch.equal(contiguous(strided), clips) and contiguous(strided).is_contiguous()
    assert contiguous(clips) is clips


def test_normalize_fills_what_it_is_given() -> None:
    given = torch.full((3, 3, 4, 8, 8), 7.0)
    result = normalize(all_values(), out=given[1:2])
    assert torch.equal(given[1:2], normalize(all_values())) and torch.equal(result, given[1:2])
    assert given[0].unique().tolist() == given[2].unique().tolist() == [7.0]


def test_normalizing_floats_leaves_them_alone() -> None:
    clips = all_values().float()
    normalized = normalize(clips)
    assert torch.equal(clips, all_values().float())
    assert torch.equal(normalized, normalize(all_values()))


def test_batch_keeps_its_parts_together() -> None:
    batch = Batch(all_values(), torch.tensor([3]), torch.tensor([-5]))
    changed = batch.with_clips(normalize(batch.clips))
    assert len(batch) == 1 and changed.clips.dtype == torch.float32
    assert changed.labels is batch.labels and changed.keys is batch.keys
    moved = batch.to("meta")
    assert {moved.clips.device.type, moved.labels.device.type, moved.keys.device.type} == {"meta"}


def test_batch_survives_the_way_from_a_worker_process() -> None:
    batch = Batch(all_values(), torch.tensor([3]), torch.tensor([-5]))
    copy = pickle.loads(pickle.dumps(batch))
    for name in ("clips", "labels", "keys"):
        assert torch.equal(getattr(copy, name), getattr(batch, name))


def test_statistics_are_float32_whatever_the_default_type() -> None:
    """Fabric's true half precisions change the default type around a forward pass."""
    pixels = torch.rand(2, 3, 2, 4, 4)
    expected = denormalize(pixels)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(denormalize(pixels), expected)
    finally:
        torch.set_default_dtype(torch.float32)
