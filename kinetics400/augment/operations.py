"""RandAugment's colour operations, as PIL computes them, to the last bit.

Clips are uint8 (B, C, T, H, W), C = 3, of any strides. Results are uint8 and contiguous;
they share no memory with the clips, which are not changed.
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
    reached = _per_sample(threshold.clamp(max=LEVELS - 1).to(torch.uint8))
    turned = _per_sample((threshold < LEVELS).to(torch.uint8) * (LEVELS - 1))
    # Not into bool, which torch compares into one by one on a CPU.
    above = torch.ge(clips, reached, out=torch.empty_like(clips))
    return above.mul_(turned).bitwise_xor_(clips)


def solarize_add(clips: Tensor, add: Tensor) -> Tensor:
    """Raise levels below 128 by `add` (0 to 128)."""
    below = torch.lt(clips, 128, out=torch.empty_like(clips))
    return below.mul_(_per_sample(add.to(torch.uint8))).add_(clips)


def brightness(clips: Tensor, factor: Tensor) -> Tensor:
    """Blend with black: 0 gives black, 1 the clip, more than 1 a brighter one."""
    return to_levels(clips.float().mul_(_per_sample(factor.float())))


def color(clips: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey clip: 0 gives grey, 1 the clip, more than 1 stronger colours."""
    levels = clips.float()
    return to_levels(_blend(_luma(levels), levels, factor))


def contrast(clips: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean luma of each frame, rounded to a level."""
    levels = clips.float()
    count = levels[0, 0, 0].numel()
    # Whole numbers throughout: float32 counts a row's levels, but would round a frame's.
    total = _luma(levels).sum(4, keepdim=True).sum(3, keepdim=True, dtype=torch.int64)
    mean = (2 * total + count).div(2 * count, rounding_mode="floor")
    return to_levels(_blend(mean.float(), levels, factor))


def sharpness(clips: Tensor, factor: Tensor) -> Tensor:
    """Blend with the smoothed clip; the frame's border stays as it is.

    The smoothing kernel has weight 5 in the centre and 1 around it; its sum is 13.
    """
    levels = clips.float()
    rows = levels[..., :-2, :] + levels[..., 1:-1, :]
    rows += levels[..., 2:, :]
    total = rows[..., :-2] + rows[..., 1:-1]
    total += rows[..., 2:]
    inner = levels[..., 1:-1, 1:-1]
    total.add_(inner, alpha=4)
    # Rounded to the nearest level; a sum is never half-way, as 13 is odd.
    smooth = total.add_(6.5).mul_(1 / 13).floor_()
    _blend(smooth, inner, factor)
    return to_levels(levels)


def autocontrast(clips: Tensor) -> Tensor:
    """Stretch the levels of each frame and channel to 0..255; a flat one stays as it is."""
    flat = clips.flatten(3)
    low, high = (bound.double().unsqueeze(-1) for bound in (flat.amin(3), flat.amax(3)))
    levels = torch.arange(LEVELS, device=clips.device, dtype=torch.float64)
    # In float64 and in PIL's order, as the highest level may come out as 254.999….
    scale = torch.full_like(low, 255).div_((high - low).clamp_(min=1))
    stretched = (levels * scale - low * scale).clamp_(0, 255).floor_()
    table = torch.where(high > low, stretched, levels).to(torch.uint8)
    return table.gather(3, flat.long()).view_as(clips)


def equalize(clips: Tensor) -> Tensor:
    """Make the histogram of each frame and channel flat, as far as whole levels allow."""
    flat = clips.flatten(3)
    pixels = flat.long()
    one = torch.ones((), dtype=torch.int32, device=clips.device).expand_as(pixels)
    counts = torch.zeros(*pixels.shape[:3], LEVELS, dtype=torch.int32, device=clips.device)
    counts.scatter_add_(3, pixels, one)
    below = counts.cumsum(3) - counts
    # What the highest level in use does not hold, in 255 steps.
    step = below.gather(3, flat.amax(3, keepdim=True).long()) // 255
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    levels = torch.arange(LEVELS, device=clips.device)
    table = torch.where(step > 0, table, levels).to(torch.uint8)
    return table.gather(3, pixels).view_as(clips)


def to_levels(values: Tensor) -> Tensor:
    """float32 to uint8: cut off at 0, at 255, and after the point; `values` are changed.

    By way of int16, as torch takes float32 to uint8 one by one on a CPU, three times as slowly.
    """
    return values.clamp_(0, 255).to(torch.int16).to(torch.uint8)


def _per_sample(values: Tensor) -> Tensor:
    """(B,) to (B, 1, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1, 1)


def _luma(levels: Tensor) -> Tensor:
    """Grey levels (B, 1, T, H, W) of float32 ones; sums are whole and below 2**24, so exact."""
    red, green, blue = levels.unbind(1)
    total = (red * LUMA[0]).add_(0x8000)
    total.add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
    return total.mul_(2.0**-16).floor_().unsqueeze(1)


def _blend(degenerate: Tensor, levels: Tensor, factor: Tensor) -> Tensor:
    """Go from `degenerate` to `levels` and beyond, in place: the second is changed, and returned.

    A product and a sum, each rounded to float32: a fused one would differ in the last bit.
    """
    return levels.sub_(degenerate).mul_(_per_sample(factor.float())).add_(degenerate)
