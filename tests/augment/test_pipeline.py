"""The whole augmentation: its order, its independence of the batch, and that it never waits."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kinetics400.augment.erase import random_erase
from kinetics400.augment.mix import Mixing, mix
from kinetics400.augment.pipeline import training_augment
from kinetics400.augment.randaugment import parse_randaugment
from kinetics400.batch import Batch

RANDAUGMENT = parse_randaugment("rand-m7-n4-mstd0.5-inc1")
MIXING = Mixing(num_classes=6, mode="elem")


def batch(n: int) -> Batch:
    """As a loader has it: channel last in memory."""
    numbers = torch.Generator().manual_seed(0)
    clips = torch.randint(256, (n, 2, 16, 18, 3), generator=numbers, dtype=torch.uint8)
    return Batch(clips.permute(0, 4, 1, 2, 3), torch.arange(n) % 6, torch.arange(n) + 1000)


def by_imagenet(pixels: torch.Tensor) -> torch.Tensor:
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1, 1)
    return (pixels / 255 - mean) / std


def test_it_normalises_with_the_imagenet_statistics() -> None:
    before = batch(4)
    after = training_augment()(before)
    torch.testing.assert_close(after.clips, by_imagenet(before.clips))
    assert after.clips.dtype == torch.float32 and after.targets is None
    assert torch.equal(after.labels, before.labels) and torch.equal(after.keys, before.keys)


def test_it_flips_when_asked() -> None:
    before = batch(32)
    plain = training_augment()(before).clips
    assert torch.equal(training_augment(flip_probability=1)(before).clips, plain.flip(-1))


def test_the_order_is_the_published_one() -> None:
    before = batch(12)
    copy = before.clips.clone()
    augment = training_augment(
        flip_probability=1, randaugment=RANDAUGMENT, erase_probability=0.5, mixing=MIXING
    )
    after = augment(before)
    clips = by_imagenet(RANDAUGMENT(before.clips, before.host_keys).flip(-1))
    expected = mix(before.with_clips(random_erase(clips, before.host_keys, 0.5)), MIXING)
    torch.testing.assert_close(after.clips, expected.clips, rtol=0, atol=1e-5)
    assert after.targets is not None and expected.targets is not None
    assert torch.equal(after.targets, expected.targets)
    assert torch.equal(before.clips, copy) and before.targets is None


def test_a_clip_does_not_depend_on_its_batch() -> None:
    """But for mixing, which is between clips."""
    whole = batch(10)
    augment = training_augment(flip_probability=0.5, randaugment=RANDAUGMENT, erase_probability=0.5)
    part = Batch(whole.clips[3:6], whole.labels[3:6], whole.keys[3:6])
    assert torch.equal(augment(part).clips, augment(whole).clips[3:6])


WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal", "unique")


class Waits(TorchDispatchMode):
    """Collects operations whose result the host has to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        on_device = any(tensor.device.type == "meta" for tensor in tensors)
        if on_device and func.overloadpacket.__name__.removeprefix("_unique").startswith(WAITS):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_the_host_never_waits_for_the_device(mode: str) -> None:
    """The meta device has no values: whoever asks it for one fails."""
    before = batch(64).to("meta")
    mixing = Mixing(num_classes=6, mode=mode)
    augment = training_augment(
        flip_probability=0.5, randaugment=RANDAUGMENT, erase_probability=0.5, mixing=mixing
    )
    waits = Waits()
    with waits:
        after = augment(before)
    assert waits.found == []
    assert after.clips.device.type == "meta" and after.clips.shape == before.clips.shape
    assert after.targets is not None and after.targets.device.type == "meta"


@pytest.mark.parametrize("ask", [torch.Tensor.item, torch.Tensor.nonzero, bool])
def test_asking_the_device_would_be_noticed(ask: object) -> None:
    waits = Waits()
    with waits, pytest.raises((RuntimeError, NotImplementedError)):
        ask(torch.zeros((), device="meta") + 1)  # type: ignore[operator]
    assert len(waits.found) == 1
