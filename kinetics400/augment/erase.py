"""Random erasing: noise in a box of the frame, the same box in all frames of a clip.

Zhong et al., arXiv:1708.04896, as in timm's RandomErasing (mode "pixel", one box) and VideoMAE.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kinetics400.data import keys
from kinetics400.data.sampling import Box

# Of the frame's area; height / width, drawn uniformly in its logarithm.
AREA = (0.02, 1 / 3)
ASPECT = (0.3, 1 / 0.3)
ATTEMPTS = 10
DRAWS = 1 + 4 * ATTEMPTS
# So many pairs of numbers, and what they are made from, stay in a core's cache.
CPU_PAIRS = 2**16


def random_erase(clips: Tensor, host_keys: Tensor, probability: float) -> Tensor:
    """Fill a random box of each clip with noise, with a probability, in place.

    Args:
        clips: (B, C, T, H, W) float32, normalised; they are changed.
        host_keys: (B,) int64, in the host's memory.
        probability: of erasing a clip.

    Returns:
        The clips.
    """
    height, width = clips.shape[-2:]
    for place, u in enumerate(keys.uniform(host_keys, "erase", DRAWS).tolist()):
        box = erased_box(height, width, u[1:]) if u[0] < probability else None
        if box is not None:
            part = clips[
                place, :, :, box.top : box.top + box.height, box.left : box.left + box.width
            ]
            key = host_keys[place].to(clips.device, non_blocking=True)
            part.copy_(normal_noise(key, part.numel()).view(part.shape))
    return clips


def erased_box(height: int, width: int, u: Sequence[float]) -> Box | None:
    """The box to erase: strictly smaller than the frame, or None after ten attempts.

    `u` holds four numbers per attempt: area, aspect, top, left.
    """
    low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
    for attempt in range(ATTEMPTS):
        u_area, u_aspect, u_top, u_left = u[4 * attempt : 4 * attempt + 4]
        area = height * width * (AREA[0] + u_area * (AREA[1] - AREA[0]))
        aspect = math.exp(low + u_aspect * (high - low))
        box_height = round(math.sqrt(area * aspect))
        box_width = round(math.sqrt(area / aspect))
        if box_height < height and box_width < width:
            top = int(u_top * (height - box_height + 1))
            left = int(u_left * (width - box_width + 1))
            return Box(top, left, box_height, box_width)
    return None


def normal_noise(key: Tensor, count: int) -> Tensor:
    """`count` normally distributed float32 numbers of a key, on its device.

    Box–Muller on the two halves of each 64-bit number: the same everywhere, but for the last bits
    of the logarithm and the cosine.
    """
    pairs = (count + 1) // 2
    noise = torch.empty(2, pairs, dtype=torch.float32, device=key.device)
    step = CPU_PAIRS if key.device.type == "cpu" else max(pairs, 1)
    for start in range(0, pairs, step):
        part = noise[:, start : start + step]
        bits = keys.bits(key, "erase noise", part.shape[1], skip=start)
        # In (0, 1] for the logarithm.
        high = (bits >> 32).add_(2**31 + 1).float().mul_(2.0**-32)
        radius = high.log_().mul_(-2).sqrt_()
        turn = bits.bitwise_and_(2**32 - 1).float().mul_(2 * math.pi * 2.0**-32)
        torch.mul(radius, turn.cos(), out=part[0])
        torch.mul(radius, turn.sin_(), out=part[1])
    return noise.view(-1)[:count]
