"""Mixup and cutmix, as in timm: each clip is mixed with its mirror image in the batch's order.

mixup: Zhang et al., arXiv:1710.09412. CutMix: Yun et al., arXiv:1905.04899. Reference:
timm/data/mixup.py. Shapes: B batch, C, T, H, W, K classes.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kinetics400.batch import Batch
from kinetics400.data import keys
from kinetics400.data.sampling import Box

# Rejected less often than once in twenty, so all sixteen once in 10^20.
GAMMA_ATTEMPTS = 16
GAMMA_DRAWS = 1 + 3 * GAMMA_ATTEMPTS
# So many frames of two clips of 224 × 224, and a copy of one, stay in a core's cache.
CPU_FRAMES = 2


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How clips are mixed; alpha 0 turns mixup or cutmix off.

    Attributes:
        num_classes: K of the targets.
        mixup_alpha: both parameters of the Beta distribution of a clip's own share.
        cutmix_alpha: likewise, of cutmix.
        probability: with which a batch, pair or clip is mixed at all.
        switch_probability: with which it is cutmix and not mixup, where both are on.
        mode: what shares its random numbers: the batch, the pair of clips, or nothing ("elem").
    """

    num_classes: int
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    probability: float = 1.0
    switch_probability: float = 0.5
    mode: Literal["batch", "pair", "elem"] = "batch"

    def __post_init__(self) -> None:
        alphas = self.mixup_alpha, self.cutmix_alpha
        if min(alphas) < 0 or max(alphas) <= 0:
            raise ValueError(f"alphas {alphas} must be at least 0, and one of them more")
        for name in ("probability", "switch_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is not between 0 and 1")
        if self.mode not in ("batch", "pair", "elem"):
            raise ValueError(f"mode {self.mode!r} is not batch, pair or elem")


class Mix(NamedTuple):
    """What a clip takes from its partner."""

    share: float
    """Of the clip itself; 1 takes nothing."""
    box: Box | None
    """The partner's pixels are put here; None blends the whole frame."""


def mix(batch: Batch, mixing: Mixing) -> Batch:
    """Mix float32 clips, in place, and their labels; see `Mixing`.

    In an odd batch the clip in the middle is its own partner and stays as it is.

    Returns:
        The batch with the changed clips and `targets` (B, K) float32, which are not smoothed.
    """
    clips = batch.clips
    mixes = draw_mixes(batch.host_keys, mixing, clips.shape[-2], clips.shape[-1])
    step = CPU_FRAMES if clips.device.type == "cpu" else clips.shape[2]
    for place in range(len(mixes) // 2):
        partner = len(mixes) - 1 - place
        for own, other in zip(
            clips[place].split(step, 1), clips[partner].split(step, 1), strict=True
        ):
            kept = _region(own, mixes[partner]).clone()
            _put(_region(own, mixes[place]), _region(other, mixes[place]), mixes[place])
            _put(_region(other, mixes[partner]), kept, mixes[partner])
    classes = torch.zeros(len(batch), mixing.num_classes, device=batch.labels.device)
    classes.scatter_(1, batch.labels.unsqueeze(1), 1.0)
    shares = torch.tensor([each.share for each in mixes], dtype=torch.float32)
    shares = shares.to(classes.device, non_blocking=True).unsqueeze(1)
    return batch.with_targets(classes * shares + classes.flip(0) * (1 - shares))


def _region(clip: Tensor, how: Mix) -> Tensor:
    """The part of a clip (C, T, H, W) that changes."""
    if how.box is None:
        return clip
    top, left, height, width = how.box
    return clip[..., top : top + height, left : left + width]


def _put(own: Tensor, other: Tensor, how: Mix) -> None:
    if how.box is not None:
        own.copy_(other)
    elif how.share != 1:
        own.lerp_(other, 1 - how.share)


# --- drawing --------------------------------------------------------------------------------------


def draw_mixes(host_keys: Tensor, mixing: Mixing, height: int, width: int) -> list[Mix]:
    """How each clip is mixed: by the key of the batch's first, the pair's first, or its own."""
    count = len(host_keys)
    deciding = {
        "batch": [0] * count,
        "pair": [min(place, count - 1 - place) for place in range(count)],
        "elem": list(range(count)),
    }[mixing.mode]
    drawn = {place: draw_mix(host_keys[place], mixing, height, width) for place in {*deciding}}
    mixes = [drawn[place] for place in deciding]
    if count % 2:
        mixes[count // 2] = Mix(1.0, None)
    return mixes


def draw_mix(key: Tensor, mixing: Mixing, height: int, width: int) -> Mix:
    """Share and box from one key; the share is what the box, cut at the border, leaves."""
    u_apply, u_switch, u_down, u_across = keys.draws(key, "mix", 4)
    if u_apply >= mixing.probability:
        return Mix(1.0, None)
    both = mixing.mixup_alpha > 0 and mixing.cutmix_alpha > 0
    if u_switch >= mixing.switch_probability if both else mixing.mixup_alpha > 0:
        return Mix(symmetric_beta(key, mixing.mixup_alpha), None)
    side = math.sqrt(1 - symmetric_beta(key, mixing.cutmix_alpha))
    top, box_height = _cut(height, int(height * side), int(u_down * height))
    left, box_width = _cut(width, int(width * side), int(u_across * width))
    share = 1 - box_height * box_width / (height * width)
    return Mix(share, Box(top, left, box_height, box_width))


def _cut(size: int, length: int, centre: int) -> tuple[int, int]:
    """Start and length of what lies within [0, size) of `length` pixels about a centre."""
    start = max(centre - length // 2, 0)
    return start, min(centre + (length + 1) // 2, size) - start


def symmetric_beta(key: Tensor, alpha: float) -> float:
    """A number from Beta(alpha, alpha): G1 / (G1 + G2) of two Gamma(alpha) variates.

    In logarithms, as for small alpha both may be smaller than any float.
    """
    u = keys.draws(key, "mix beta", 2 * GAMMA_DRAWS)
    difference = log_gamma_variate(alpha, u[GAMMA_DRAWS:]) - log_gamma_variate(
        alpha, u[:GAMMA_DRAWS]
    )
    return 1 / (1 + math.exp(min(difference, 700.0)))


def log_gamma_variate(shape: float, u: list[float]) -> float:
    """Logarithm of a Gamma(shape) variate from `GAMMA_DRAWS` uniform numbers.

    Marsaglia and Tsang (ACM TOMS 26, 2000), who reject: exact but for the sixteenth attempt, which
    counts whatever it is. Smaller shapes than 1 take Gamma(shape + 1) · U^(1 / shape).
    """
    boost = math.log(1 - u[0]) / shape if shape < 1 else 0.0
    d = shape + (1 if shape < 1 else 0) - 1 / 3
    log_gamma = math.log(d)
    for attempt in range(GAMMA_ATTEMPTS):
        u_radius, u_turn, u_accept = u[1 + 3 * attempt : 4 + 3 * attempt]
        normal = math.sqrt(-2 * math.log(1 - u_radius)) * math.cos(2 * math.pi * u_turn)
        root = 1 + normal / math.sqrt(9 * d)
        if root > 0:
            cube = root**3
            log_gamma = math.log(d * cube)
            if math.log(1 - u_accept) < normal**2 / 2 + d * (1 - cube + math.log(cube)):
                break
    return log_gamma + boost
