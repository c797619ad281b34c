"""The same augmentation by others: timm on PIL images, as the published code runs it; torchvision.

All take what was drawn (`Drawn`), so that everybody does the same to the same clips.
Shapes: B batch, C channels (RGB), T frames, H, W.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from kinetics400.augment.erase import DRAWS, erased_box
from kinetics400.augment.mix import Mix, Mixing, draw_mixes
from kinetics400.augment.randaugment import Draw, RandAugment
from kinetics400.batch import IMAGENET_MEAN, IMAGENET_STD
from kinetics400.data import keys
from kinetics400.data.sampling import Box

# What VideoMAE passes: bicubic, grey from outside.
GREY = 128
PIL_OPTIONS = {"fillcolor": (GREY, GREY, GREY), "resample": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Drawn:
    """What happens to a batch."""

    operations: list[list[Draw]]
    flips: list[bool]
    boxes: list[Box | None]
    """To erase."""
    mix: Mix
    """Of the whole batch."""


def draw(
    host_keys: Tensor,
    size: tuple[int, int],
    *,
    randaugment: RandAugment,
    flip_probability: float,
    erase_probability: float,
    mixing: Mixing,
) -> Drawn:
    """What our augmentation does to the clips with these keys; `mixing` in the mode "batch"."""
    flips = keys.uniform(host_keys, "flip", 1)[:, 0] < flip_probability
    erase = keys.uniform(host_keys, "erase", DRAWS).tolist()
    boxes = [erased_box(*size, u[1:]) if u[0] < erase_probability else None for u in erase]
    mixes = draw_mixes(host_keys, mixing, *size)
    return Drawn(randaugment.draw(host_keys), flips.tolist(), boxes, mixes[0])


# --- timm and PIL ---------------------------------------------------------------------------------


def to_images(clip: Tensor) -> list[Image.Image]:
    """A clip (C, T, H, W) uint8 as pictures."""
    frames = clip.permute(1, 2, 3, 0).contiguous().numpy()
    return [Image.fromarray(frame) for frame in frames]


def to_clip(images: list[Image.Image]) -> Tensor:
    """Pictures as a clip (C, T, H, W) uint8."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(3, 0, 1, 2)


def timm_operation(
    name: str, images: list[Image.Image], argument: float | None
) -> list[Image.Image]:
    """Apply one of timm's operations to every picture; `argument` is what its level comes to."""
    arguments = () if argument is None else (argument,)
    apply: Any = auto_augment.NAME_TO_OP[name]
    return [apply(image, *arguments, **PIL_OPTIONS) for image in images]


def timm_batch(clips: Tensor, drawn: Drawn) -> Tensor:
    """The published way: pictures one by one, then normalised, flipped, erased, mixed."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    done = []
    for clip, operations, flip, box in zip(
        clips, drawn.operations, drawn.flips, drawn.boxes, strict=True
    ):
        images = to_images(clip)
        for operation in operations:
            if operation.applied:
                images = timm_operation(operation.name, images, operation.argument)
        frames = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
        normal = ((frames.float() / 255 - mean) / std).permute(3, 0, 1, 2)
        normal = normal.flip(-1) if flip else normal
        erase(normal, box)
        done.append(normal)
    return mix(torch.stack(done), drawn.mix)


def erase(clip: Tensor, box: Box | None) -> None:
    """Fill a box with torch's normal noise, as timm does."""
    if box is not None:
        rows = slice(box.top, box.top + box.height)
        columns = slice(box.left, box.left + box.width)
        clip[..., rows, columns] = torch.empty_like(clip[..., rows, columns]).normal_()


def mix(clips: Tensor, how: Mix) -> Tensor:
    """Mix a batch with itself in reverse, as timm does."""
    if how.box is None:
        partners = clips.flip(0).mul_(1 - how.share)
        return clips.mul_(how.share).add_(partners)
    top, left, height, width = how.box
    rows, columns = slice(top, top + height), slice(left, left + width)
    clips[..., rows, columns] = clips.flip(0)[..., rows, columns]
    return clips


# --- torchvision ----------------------------------------------------------------------------------


def _affine(frames: Tensor, **how: Any) -> Tensor:
    """All frames as channels of one picture: a grid for each would take longer."""
    options: dict[str, Any] = {"angle": 0.0, "translate": [0.0, 0.0], "scale": 1.0}
    options |= {"shear": [0.0, 0.0], "interpolation": InterpolationMode.BILINEAR, "fill": [GREY]}
    flat = frames.flatten(0, 1).unsqueeze(0)
    return tv.affine(flat, **(options | how)).view(frames.shape)


def _sheared(frames: Tensor, factor: float, axis: int) -> Tensor:
    degrees = float(np.rad2deg(np.arctan(factor)))
    shear = [degrees, 0.0] if axis == 0 else [0.0, degrees]
    return _affine(frames, shear=shear, center=[0.0, 0.0])


def _translated(frames: Tensor, share: float, axis: int) -> Tensor:
    pixels = -share * frames.shape[-1 - axis]
    return _affine(frames, translate=[pixels, 0.0] if axis == 0 else [0.0, pixels])


# The nearest thing it has; it knows no bicubic transform of uint8 frames.
TORCHVISION: dict[str, Callable[..., Tensor]] = {
    "AutoContrast": tv.autocontrast,
    "Equalize": tv.equalize,
    "Invert": tv.invert,
    "Rotate": lambda frames, degrees: _affine(frames, angle=-degrees),
    "PosterizeIncreasing": tv.posterize,
    "SolarizeIncreasing": tv.solarize,
    "SolarizeAdd": lambda frames, add: torch.where(frames < 128, frames + add, frames),
    "ColorIncreasing": tv.adjust_saturation,
    "ContrastIncreasing": tv.adjust_contrast,
    "BrightnessIncreasing": tv.adjust_brightness,
    "SharpnessIncreasing": tv.adjust_sharpness,
    "ShearX": lambda frames, factor: _sheared(frames, factor, 0),
    "ShearY": lambda frames, factor: _sheared(frames, factor, 1),
    "TranslateXRel": lambda frames, share: _translated(frames, share, 0),
    "TranslateYRel": lambda frames, share: _translated(frames, share, 1),
}


def torchvision_operation(name: str, frames: Tensor, argument: float | None) -> Tensor:
    """Apply torchvision's counterpart to frames (T, C, H, W) uint8."""
    return TORCHVISION[name](frames, *(() if argument is None else (argument,)))


def torchvision_batch(clips: Tensor, drawn: Drawn) -> Tensor:
    """The same with torchvision on tensors (T, C, H, W), each clip by itself."""
    done = []
    for clip, operations, flip, box in zip(
        clips, drawn.operations, drawn.flips, drawn.boxes, strict=True
    ):
        frames = clip.permute(1, 0, 2, 3).contiguous()
        for operation in operations:
            if operation.applied:
                frames = torchvision_operation(operation.name, frames, operation.argument)
        frames = tv.horizontal_flip(frames) if flip else frames
        levels = tv.to_dtype(frames, torch.float32, scale=True)
        normal = tv.normalize(levels, list(IMAGENET_MEAN), list(IMAGENET_STD), inplace=True)
        erase(normal, box)
        done.append(normal.transpose(0, 1))
    return mix(torch.stack(done), drawn.mix)
