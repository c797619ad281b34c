"""timm's augmentation, frame by frame on PIL images, as the published code runs it.

Shapes: C channels (RGB), T frames, H, W.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment
from torch import Tensor

# What VideoMAE passes: bicubic, grey from outside.
PIL_OPTIONS = {"fillcolor": (128, 128, 128), "resample": Image.Resampling.BICUBIC}


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
