"""RandAugment on batches of clips: the "increasing" operations of SlowFast and VideoMAE.

Cubuk et al., arXiv:1909.13719; the operations and what a magnitude means to each are timm's
(timm/data/auto_augment.py), the reference in docs/augmentation.md. What happens to a clip is
drawn on the host, from its key; nothing is read back from the device.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kinetics400.augment import geometry, operations
from kinetics400.batch import contiguous
from kinetics400.data import keys

MAX_MAGNITUDE = 10
# So many frames of 224 × 224, in float32, fit into a core's cache.
CPU_FRAMES = 4


class Operation(NamedTuple):
    """What is done to clips, and how strongly."""

    apply: Callable[..., Tensor]
    """(clips) or (clips, arguments (B,)) -> clips."""
    argument: Callable[[float, int], float] | None = None
    """(magnitude 0 to 10, sign) -> the operation's argument; None where it takes none."""
    frame_by_frame: bool = True
    """Some frames cost what they weigh. Geometry prepares something for all of them."""


def _enhancement(magnitude: float, sign: int) -> float:
    return max(0.1, 1.0 + sign * (magnitude / MAX_MAGNITUDE * 0.9))


def _signed(most: float) -> Callable[[float, int], float]:
    return lambda magnitude, sign: sign * (magnitude / MAX_MAGNITUDE * most)


# In timm's order, under timm's names.
OPERATIONS: dict[str, Operation] = {
    "AutoContrast": Operation(operations.autocontrast),
    "Equalize": Operation(operations.equalize),
    "Invert": Operation(operations.invert),
    "Rotate": Operation(geometry.rotate, _signed(30.0), frame_by_frame=False),
    "PosterizeIncreasing": Operation(
        operations.posterize, lambda magnitude, _: 4 - int(magnitude / MAX_MAGNITUDE * 4)
    ),
    "SolarizeIncreasing": Operation(
        operations.solarize, lambda magnitude, _: 256 - int(magnitude / MAX_MAGNITUDE * 256)
    ),
    "SolarizeAdd": Operation(
        operations.solarize_add, lambda magnitude, _: int(magnitude / MAX_MAGNITUDE * 110)
    ),
    "ColorIncreasing": Operation(operations.color, _enhancement),
    "ContrastIncreasing": Operation(operations.contrast, _enhancement),
    "BrightnessIncreasing": Operation(operations.brightness, _enhancement),
    "SharpnessIncreasing": Operation(operations.sharpness, _enhancement),
    "ShearX": Operation(geometry.shear_x, _signed(0.3), frame_by_frame=False),
    "ShearY": Operation(geometry.shear_y, _signed(0.3), frame_by_frame=False),
    "TranslateXRel": Operation(geometry.translate_x, _signed(0.45), frame_by_frame=False),
    "TranslateYRel": Operation(geometry.translate_y, _signed(0.45), frame_by_frame=False),
}
NAMES = tuple(OPERATIONS)


class Draw(NamedTuple):
    """What one layer does to one clip."""

    name: str
    applied: bool
    magnitude: float
    sign: int

    @property
    def argument(self) -> float | None:
        """Of the operation; None where it takes none."""
        argument = OPERATIONS[self.name].argument
        return None if argument is None else argument(self.magnitude, self.sign)


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """`num_layers` operations per clip, each drawn with replacement and applied or not.

    Attributes:
        magnitude: 0 to 10.
        num_layers: operations per clip.
        magnitude_std: standard deviation of the magnitude, which is cut to 0..10.
        probability: with which each operation is applied.
    """

    magnitude: int
    num_layers: int
    magnitude_std: float
    probability: float

    def draw(self, host_keys: Tensor) -> list[list[Draw]]:
        """What happens to the clips with these keys (B,): `num_layers` draws for each clip."""
        n = self.num_layers
        chosen = (keys.uniform(host_keys, "randaugment operation", n) * len(NAMES)).long()
        applied = keys.uniform(host_keys, "randaugment apply", n) < self.probability
        radius, turn = keys.uniform(host_keys, "randaugment magnitude", 2 * n).chunk(2, dim=-1)
        normal = (-2 * torch.log1p(-radius)).sqrt() * (2 * math.pi * turn).cos()
        magnitude = (self.magnitude + self.magnitude_std * normal).clamp(0, MAX_MAGNITUDE)
        sign = 1 - 2 * (keys.uniform(host_keys, "randaugment sign", n) < 0.5).long()
        drawn = (part.tolist() for part in (chosen, applied, magnitude, sign))
        return [
            [Draw(NAMES[i], *rest) for i, *rest in zip(*clip, strict=True)]
            for clip in zip(*drawn, strict=True)
        ]

    def __call__(self, clips: Tensor, host_keys: Tensor) -> Tensor:
        """Augment clips (B, C, T, H, W) uint8 of any size and strides.

        Args:
            clips: on any device; they are not changed.
            host_keys: (B,) int64, in the host's memory.

        Returns:
            The same shape, contiguous; new memory unless nothing was to be done.
        """
        return augmented(clips, self.draw(host_keys))


def augmented(clips: Tensor, draws: list[list[Draw]]) -> Tensor:
    """Do to each clip what was drawn for it, layer by layer; shapes as in `RandAugment`."""
    result = contiguous(clips)
    result = result.clone() if result is clips else result
    on_cpu, num_frames = clips.device.type == "cpu", clips.shape[2]
    for layer in zip(*draws, strict=True):
        for name, places in _groups(layer, on_cpu):
            operation = OPERATIONS[name]
            values = [layer[place].argument for place in places]
            arguments = () if None in values else (_to_device(values, clips.device),)
            step = CPU_FRAMES if on_cpu and operation.frame_by_frame else num_frames
            for frames in result.split(step, 2):
                parts = [frames[place : place + 1] for place in places]
                together = parts[0] if len(parts) == 1 else torch.cat(parts)
                done = operation.apply(together, *arguments)
                for part, clip in zip(parts, done.split(1), strict=True):
                    part.copy_(clip)
    return result


def _groups(layer: tuple[Draw, ...], on_cpu: bool) -> list[tuple[str, list[int]]]:
    """Operations, and the places of the clips that each takes at a time.

    All that it applies to, for the sake of few launches; on a CPU one by one, as its cache holds
    little.
    """
    applied = [(draw.name, place) for place, draw in enumerate(layer) if draw.applied]
    if on_cpu:
        return [(name, [place]) for name, place in applied]
    places: dict[str, list[int]] = {}
    for name, place in applied:
        places.setdefault(name, []).append(place)
    return list(places.items())


def _to_device(values: list[float | None], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).to(device, non_blocking=True)


ALLOWED = (
    "rand-mM-nN-mstdS-inc1, perhaps with -pP: magnitude M 0 to 10; N operations, 1 or more "
    "(2 where absent); standard deviation S of the magnitude (0 where absent); probability P "
    "0 to 1 (0.5 where absent)"
)
NUMBER = {"m": r"\d+", "n": r"\d+", "inc": r"1", "mstd": r"\d+(\.\d+)?", "p": r"\d+(\.\d+)?"}


def parse_randaugment(text: str) -> RandAugment:
    """Read timm's notation, such as "rand-m7-n4-mstd0.5-inc1".

    Raises:
        ValueError: it is something else; the message says what is allowed.
    """
    kind, *sections = text.split("-")
    found: dict[str, str] = {}
    for section in sections:
        name = section.rstrip("0123456789.")
        number = section[len(name) :]
        known = name in NUMBER and name not in found
        if not known or not re.fullmatch(NUMBER[name], number, re.ASCII):
            raise ValueError(f"{text!r}: {section!r} is not understood; allowed is {ALLOWED}")
        found[name] = number
    if kind != "rand" or not {"m", "inc"} <= found.keys():
        raise ValueError(f"{text!r} is not understood; allowed is {ALLOWED}")
    randaugment = RandAugment(
        magnitude=int(found["m"]),
        num_layers=int(found.get("n", "2")),
        magnitude_std=float(found.get("mstd", "0")),
        probability=float(found.get("p", "0.5")),
    )
    within = randaugment.magnitude <= MAX_MAGNITUDE and randaugment.probability <= 1
    if not within or randaugment.num_layers < 1:
        raise ValueError(f"{text!r} is out of range; allowed is {ALLOWED}")
    return randaugment
