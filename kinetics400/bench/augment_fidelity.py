"""Is our augmentation the published one? Pixels against the references on shared parameters.

Every row names what was compared with what, the largest difference, the share of numbers that
differ, and what is allowed. Distributions: augment_draws.py.
Shapes: B batch, C channels (RGB), T frames, H, W.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any
from unittest import mock

import numpy as np
import timm.data.mixup
import timm.data.random_erasing
import torch
import torch.nn.functional as F
from torch import Tensor

from kinetics400.augment.erase import AREA, DRAWS, erased_box
from kinetics400.augment.flip import draw_flips, flip
from kinetics400.augment.mix import Mixing, mix, symmetric_beta
from kinetics400.augment.randaugment import (
    MAX_MAGNITUDE,
    NAMES,
    OPERATIONS,
    Draw,
    augmented,
    parse_randaugment,
)
from kinetics400.batch import IMAGENET_MEAN, IMAGENET_STD, Batch, normalize
from kinetics400.bench.augment_draws import compare_draws
from kinetics400.bench.augment_peers import timm_operation, to_clip, to_images
from kinetics400.bench.videos import texture
from kinetics400.data import keys, sampling
from kinetics400.data.dataset import to_square

SEED = 0
PUBLISHED = "rand-m7-n4-mstd0.5-inc1"
# A level on one pixel in a thousand, where a bicubic sum is next to a whole number.
GEOMETRY_TOLERANCE = (1.0, 0.001)
EXACT = (0.0, 0.0)
# Of numbers that are not levels: float32 sums in another order.
ROUNDING = (1e-5, 1.0)
LEAST_P = 0.001


@dataclass(frozen=True)
class Pixels:
    """One rule, compared number by number."""

    rule: str
    reference: str
    unit: str
    compared: int
    """How many numbers."""
    largest: float
    """Difference."""
    share: float
    """Of the numbers that differ."""
    allowed_difference: float
    allowed_share: float

    @property
    def holds(self) -> bool:
        return self.largest <= self.allowed_difference and self.share <= self.allowed_share


def augment_fidelity(*, num_draws: int = 80_000) -> dict[str, Any]:
    """Compare everything; the result is plain JSON.

    Args:
        num_draws: clips of each sampler; an operation is applied to an eighth of them.
    """
    pixels = [*operation_rows(), *whole_rows(), *batch_rows()]
    draws = compare_draws(PUBLISHED, seed=SEED, count=num_draws)
    packages = ("torch", "torchvision", "timm", "pillow", "scipy", "numpy")
    return {
        "benchmark": "augment-fidelity",
        "passed": all(row.holds for row in pixels) and all(d.p_value >= LEAST_P for d in draws),
        "least_p_value": LEAST_P,
        "seed": SEED,
        "pixels": [asdict(row) | {"holds": row.holds} for row in pixels],
        "draws": [asdict(row) for row in draws],
        "versions": {package: metadata.version(package) for package in packages},
    }


def example_clips() -> dict[str, Tensor]:
    """Clips (C, T, H, W) uint8: noise, pictures with the spectrum of photographs, flat ones."""
    rng = np.random.default_rng(SEED)
    sizes = {"224×224": (224, 224), "256×340": (256, 340), "33×47": (33, 47), "90×41": (90, 41)}
    clips: dict[str, Tensor] = {}
    for name, (height, width) in sizes.items():
        noise = torch.from_numpy(rng.integers(0, 256, (3, 2, height, width), dtype=np.uint8))
        frames = [texture(rng, height, width + 1, 25)[:, :width, :3] for _ in range(2)]
        pictures = torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2).contiguous()
        clips |= {f"noise {name}": noise, f"pictures {name}": pictures}
    clips["flat 64×48"] = torch.tensor([0, 77, 255]).to(torch.uint8).view(3, 1, 1, 1)
    clips["flat 64×48"] = clips["flat 64×48"].expand(3, 2, 64, 48).contiguous()
    return clips


# --- operations -----------------------------------------------------------------------------------


def operation_rows() -> Iterator[Pixels]:
    """Each of the fifteen, at magnitudes over the whole range."""
    clips = example_clips()
    for number, name in enumerate(NAMES):
        u = keys.draws(keys.combine(SEED, number), "magnitudes", 2 * len(clips))
        pairs = []
        for place, clip in enumerate(clips.values()):
            # Below the most: there timm keeps no bits at all, and PIL refuses.
            for magnitude in (MAX_MAGNITUDE * u[2 * place], 6.0 + 2 * u[2 * place + 1]):
                drawn = Draw(name, True, magnitude, 1 if magnitude > 6.5 else -1)
                images = timm_operation(name, to_images(clip), drawn.argument)
                pairs.append((augmented(clip.unsqueeze(0), [[drawn]])[0], to_clip(images)))
        geometric = not OPERATIONS[name].frame_by_frame
        tolerance = GEOMETRY_TOLERANCE if geometric else EXACT
        yield compare(name, f"timm {name}, PIL", "levels", pairs, tolerance)


def compare(
    rule: str,
    reference: str,
    unit: str,
    pairs: Sequence[tuple[Tensor, Tensor]],
    tolerance: tuple[float, float],
) -> Pixels:
    """The largest difference in all pairs, and the share of numbers that differ."""
    differences = [(ours.double() - theirs.double()).abs() for ours, theirs in pairs]
    compared = sum(each.numel() for each in differences)
    different = sum(int(each.count_nonzero()) for each in differences)
    largest = max(each.max().item() for each in differences)
    return Pixels(rule, reference, unit, compared, largest, different / compared, *tolerance)


# --- several in a row -----------------------------------------------------------------------------


def whole_rows() -> Iterator[Pixels]:
    """RandAugment as drawn, and the published order from whole frames to normalised crops."""
    randaugment = parse_randaugment(PUBLISHED)
    clip = example_clips()["pictures 256×340"]
    host_keys = keys.combine(SEED, torch.arange(24))
    colour, all_of_them, official = [], [], []
    for key, drawn in zip(host_keys, randaugment.draw(host_keys), strict=True):
        images = to_images(clip)
        for each in drawn:
            if each.applied:
                images = timm_operation(each.name, images, each.argument)
        ours, theirs = randaugment(clip.unsqueeze(0), key.view(1))[0], to_clip(images)
        all_of_them.append((ours, theirs))
        if all(OPERATIONS[each.name].frame_by_frame for each in drawn if each.applied):
            colour.append((ours, theirs))
        official.append(_official_order(ours, theirs, key))
    rule = f"RandAugment {PUBLISHED}"
    yield compare(f"{rule}, colour only", "timm RandAugment, PIL", "levels", colour, EXACT)
    # Equalize, contrast and their like spread one level of difference to more.
    yield compare(rule, "timm RandAugment, PIL", "levels", all_of_them, (16.0, 0.005))
    # torch scales uint8 in two passes, with whole levels between; theirs is rounded at last.
    reference = "F.interpolate (bilinear, no antialias) in float32"
    scaled = [_official_order(clip, clip, key) for key in host_keys]
    yield compare("crop and scaling", reference, "levels", scaled, (1.0, 0.25))
    reference = f"timm RandAugment, PIL, then {reference}"
    yield compare("official order: frames to crop", reference, "levels", official, (16.0, 0.25))


def _official_order(ours: Tensor, theirs: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Crop, scale and flip whole frames (C, T, H, W) uint8; theirs in float32, rounded at last."""
    height, width = ours.shape[-2:]
    u = keys.draws(key, "crop", sampling.RESIZED_CROP_DRAWS)
    box = sampling.random_resized_box(height, width, (0.08, 1.0), (0.75, 4 / 3), u)
    rows = slice(box.top, box.top + box.height)
    columns = slice(box.left, box.left + box.width)
    crop = ours[..., rows, columns].permute(1, 2, 3, 0).contiguous().numpy()
    square = to_square(crop, 224, antialias=False).unsqueeze(0)
    published = theirs.float()[..., rows, columns].transpose(0, 1)
    scaled = F.interpolate(published, (224, 224), mode="bilinear", align_corners=False)
    turned = keys.uniform(key, "flip", 1).item() < 0.5
    scaled = scaled.flip(-1) if turned else scaled
    return flip(square, draw_flips(key.view(1), 0.5))[0], scaled.transpose(0, 1).round()


# --- normalised clips -----------------------------------------------------------------------------


def batch_rows() -> Iterator[Pixels]:
    """Normalising, erasing and mixing."""
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 16, 16).expand(1, 3, 1, 16, 16)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    pair = normalize(levels), (levels.double() / 255 - mean.double()) / std.double()
    yield compare("normalise", "float64", "1", [pair], (1e-6, 1.0))
    pairs = [_erased(key) for key in keys.combine(SEED, torch.arange(300))]
    yield compare("erased box", "timm RandomErasing", "pixels", pairs, EXACT)
    for mode in ("batch", "elem"):
        mixed = [_mixed(mode, seed) for seed in range(24)]
        name = f"mixup and cutmix, mode {mode}"
        clips, targets = zip(*mixed, strict=True)
        yield compare(f"{name}: clips", "timm Mixup", "1", clips, ROUNDING)
        yield compare(f"{name}: targets", "timm Mixup", "1", targets, ROUNDING)


def _erased(key: Tensor) -> tuple[Tensor, Tensor]:
    """Masks (H, W) of the box to erase, from the same uniform numbers."""
    height, width = 48, 64
    u = keys.uniform(key, "erase", DRAWS).tolist()
    attempts = iter([iter(u[1 + start : 5 + start]) for start in range(0, DRAWS - 1, 4)])
    attempt: list[Iterator[float]] = []

    def uniform(low: float, high: float) -> float:
        if low == AREA[0]:  # the first number of an attempt
            attempt[:] = [next(attempts)]
        return low + next(attempt[0]) * (high - low)

    drawer = mock.Mock()
    drawer.random.return_value = u[0]
    drawer.uniform.side_effect = uniform
    drawer.randint.side_effect = lambda low, high: low + int(next(attempt[0]) * (high - low + 1))
    theirs = torch.zeros(1, height, width)
    with mock.patch.object(timm.data.random_erasing, "random", drawer):
        eraser = timm.data.random_erasing.RandomErasing(1.0, mode="pixel", device="cpu")
        theirs = eraser(theirs) != 0
    ours = torch.zeros(height, width, dtype=torch.bool)
    if (box := erased_box(height, width, u[1:])) is not None:
        ours[box.top : box.top + box.height, box.left : box.left + box.width] = True
    return ours, theirs[0]


def _mixed(mode: Any, seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Clips and targets, ours and timm's, from the same uniform numbers and Beta variates."""
    count, num_classes = 6, 5
    host_keys = keys.combine(SEED, seed, torch.arange(count))
    numbers = torch.Generator().manual_seed(seed)
    clips = torch.randn(count, 3, 2, 20, 28, generator=numbers)
    labels = torch.randint(num_classes, (count,), generator=numbers)
    mixing = Mixing(num_classes=num_classes, mode=mode, probability=0.9)
    after = mix(Batch(clips.clone(), labels, host_keys), mixing)
    used = host_keys[:1] if mode == "batch" else host_keys
    u = [keys.draws(key, "mix", 4) for key in used]
    mixer = timm.data.mixup.Mixup(
        mixup_alpha=mixing.mixup_alpha,
        cutmix_alpha=mixing.cutmix_alpha,
        prob=mixing.probability,
        switch_prob=mixing.switch_probability,
        mode=mode,
        label_smoothing=0.0,
        num_classes=num_classes,
    )
    # timm asks first for the probability per batch, first for the switch per clip.
    order = (0, 1) if mode == "batch" else (1, 0)
    uniforms = iter([[row[place] for row in u] for place in order])
    # One box for the batch, or one for each clip that gets one, in order.
    cut = [row for row in u if row[0] < mixing.probability and row[1] < mixing.switch_probability]
    centres = iter([number for row in cut for number in row[2:]])

    def shaped(values: list[float], shaped_like: object) -> Any:
        return values[0] if shaped_like in ((), None) else np.array(values)

    def beta(alpha: float, _: float, size: int | None = None) -> Any:
        return shaped([symmetric_beta(key, alpha) for key in used], size)

    drawer = mock.Mock()
    drawer.rand.side_effect = lambda *shape: shaped(next(uniforms), shape)
    drawer.beta.side_effect = beta
    drawer.randint.side_effect = lambda low, high, size: low + int(next(centres) * (high - low))
    with mock.patch.object(timm.data.mixup.np, "random", drawer):
        # Frames as channels: timm's boxes are on the third and fourth axis.
        theirs, targets = mixer(clips.flatten(1, 2), labels)
    assert after.targets is not None
    return (after.clips, theirs.view(clips.shape)), (after.targets, targets)
