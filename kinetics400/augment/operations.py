"""RandAugment's colour operations, as PIL computes them, to the last bit.

Clips are uint8 (B, C, T, H, W), C = 3, contiguous; so are the results, which are new tensors.
Parameters are (B,), on the clips' device. What PIL takes from a whole picture, its histogram and
its mean, is taken from each frame by itself.
"""

import torch
from torch import Tensor

LEVELS = 256
# ITU-R 601 luma as PIL's `convert("L")` has it, in units of 2**-16.
LUMA = (19595, 38470, 7471)


def invert(clips: Tensor) -> Tensor:
    """Turn every level v into 255 - v."""
    return clips.bitwise_not()


def posterize(clips: Tensor, bits: Tensor) -> Tensor:
    """Keep the `bits` (0 to 8) highest bits of every level."""
    mask = LEVELS - 2 ** (8 - bits.to(torch.int32))
    return clips & _per_sample(mask.to(torch.uint8))


def solarize(clips: Tensor, threshold: Tensor) -> Tensor:
    """Invert levels from the threshold (0 to 256) on."""
    above = (clips >= _per_sample(threshold.to(torch.int16))).view(torch.uint8)
    return above.mul_(LEVELS - 1).bitwise_xor_(clips)


def solarize_add(clips: Tensor, add: Tensor) -> Tensor:
    """Raise levels below 128 by `add` (0 to 128)."""
    below = (clips < 128).view(torch.uint8)
    return below.mul_(_per_sample(add.to(torch.uint8))).add_(clips)


def brightness(clips: Tensor, factor: Tensor) -> Tensor:
    """Blend with black: 0 gives black, 1 the clip, more than 1 a brighter one."""
    return _blend(torch.zeros((), device=clips.device), clips, factor)


def color(clips: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey clip: 0 gives grey, 1 the clip, more than 1 stronger colours."""
    return _blend(_luma(clips), clips, factor)


def contrast(clips: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean luma of each frame, rounded to a level."""
    luma = _luma(clips)
    count = luma[0, 0, 0].numel()
    # Whole numbers throughout: a sum of floats would be rounded.
    total = luma.sum((3, 4), keepdim=True, dtype=torch.int64)
    mean = (2 * total + count).div(2 * count, rounding_mode="floor")
    return _blend(mean.float(), clips, factor)


def sharpness(clips: Tensor, factor: Tensor) -> Tensor:
    """Blend with the smoothed clip; the frame's border stays as it is.

    The smoothing kernel has weight 5 in the centre and 1 around it; its sum is 13.
    """
    levels = clips.to(torch.int16)
    rows = levels[..., :-2, :] + levels[..., 1:-1, :]
    rows += levels[..., 2:, :]
    total = rows[..., :-2] + rows[..., 1:-1]
    total += rows[..., 2:]
    inner = levels[..., 1:-1, 1:-1]
    total.add_(inner, alpha=4)
    # Rounded to the nearest level; a sum is never half-way, as 13 is odd.
    smooth = total.float().add_(6.5).mul_(1 / 13).floor_()
    sharper = clips.clone()
    sharper[..., 1:-1, 1:-1] = _blend(smooth, inner, factor)
    return sharper


def autocontrast(clips: Tensor) -> Tensor:
    """Stretch the levels of each frame and channel to 0..255; a flat one stays as it is."""
    flat = clips.flatten(3)
    low, high = (bound.double().unsqueeze(-1) for bound in (flat.amin(3), flat.amax(3)))
    levels = torch.arange(LEVELS, device=clips.device, dtype=torch.float64)
    # In float64 and in PIL's order, as the highest level may come out as 254.999….
    scale = torch.full_like(low, 255).div_((high - low).clamp_(min=1))
    stretched = (levels * scale - low * scale).clamp_(0, 255).floor_()
    return _look_up(clips, torch.where(high > low, stretched, levels))


def equalize(clips: Tensor) -> Tensor:
    """Make the histogram of each frame and channel flat, as far as whole levels allow."""
    pixels = clips.flatten(3).long()
    one = torch.ones((), dtype=torch.int64, device=clips.device).expand_as(pixels)
    counts = torch.zeros(*pixels.shape[:3], LEVELS, dtype=torch.int64, device=clips.device)
    counts.scatter_add_(3, pixels, one)
    below = counts.cumsum(3) - counts
    # What the highest level in use does not hold, in 255 steps.
    step = below.gather(3, pixels.amax(3, keepdim=True)) // 255
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    levels = torch.arange(LEVELS, device=clips.device)
    return _look_up(clips, torch.where(step > 0, table, levels))


def _per_sample(values: Tensor) -> Tensor:
    """(B,) to (B, 1, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1, 1)


def _luma(clips: Tensor) -> Tensor:
    """Grey levels (B, 1, T, H, W) float32; every sum is a whole number below 2**24, so exact."""
    red, green, blue = clips.unbind(1)
    total = red.float().mul_(LUMA[0]).add_(0x8000)
    total.add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
    return total.mul_(2.0**-16).floor_().unsqueeze(1)


def _blend(degenerate: Tensor, clips: Tensor, factor: Tensor) -> Tensor:
    """Go from `degenerate` (float32 levels) to the clip and beyond; cut off, not rounded.

    A product and a sum, each rounded to float32: a fused one would differ in the last bit.
    """
    blended = clips.float().sub_(degenerate).mul_(_per_sample(factor.float())).add_(degenerate)
    return blended.clamp_(0, 255).to(torch.uint8)


def _look_up(clips: Tensor, table: Tensor) -> Tensor:
    """Replace the levels of each frame and channel by its table's: (B, C, T, 256)."""
    return table.to(torch.uint8).gather(3, clips.flatten(3).long()).view_as(clips)
