"""RandAugment's geometric operations: PIL's bicubic transforms, on whole clips.

Clips are uint8 (B, C, T, H, W); results are new, contiguous. Parameters are (B,), on the clips'
device. All frames of a clip move alike; what comes from outside the frame is grey.

Every pixel of the result is a weighted sum of pixels, the same for all frames and channels. Where
rows move, or the frame as a whole, it is a sum of four clips that are shifted by whole pixels.
Where columns do, or everything turns, a clip becomes a table with a row of C·T numbers for every
place, and the sum of 4 or 4 × 4 of its rows is an embedding bag. Both run on any device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kinetics400.augment.operations import to_levels

FILL = 128.0
# PIL cuts float64 sums off; these are float32. A sum that should be 7 may be 6.99999 here.
MARGIN = 2.0**-13
# In one table: its rows are 48 numbers, a whole number of cache lines.
FRAMES_AT_ONCE = 16
# What a CPU's cache holds, as float32: frames of 224 × 224; rows of a table.
CPU_FRAMES, CPU_ROWS = 2, 2**13


def rotate(clips: Tensor, degrees: Tensor) -> Tensor:
    """Turn anticlockwise about the centre."""
    height, width = clips.shape[-2:]
    # The way back, from the result to the clip, in PIL's order of operations.
    angle = -torch.deg2rad(degrees.double().remainder(360)).view(-1, 1, 1)
    cos, sin = angle.cos().round(decimals=15), angle.sin().round(decimals=15)
    y, x = (_along(axis, _centres(clips.shape[axis], clips)) for axis in (-2, -1))
    source_x = cos * x + sin * y + (width / 2 - (cos * (width / 2) + sin * (height / 2)))
    source_y = -sin * x + cos * y + (height / 2 - (cos * (height / 2) - sin * (width / 2)))
    return _resample(clips, source_y, source_x)


def shear_x(clips: Tensor, factor: Tensor) -> Tensor:
    """Shift each row to the left by `factor` times its y."""
    pixels = factor.double().view(-1, 1, 1) * _along(-2, _centres(clips.shape[-2], clips))
    return _shift(clips, pixels, -1)


def shear_y(clips: Tensor, factor: Tensor) -> Tensor:
    """Shift each column upwards by `factor` times its x."""
    y, x = (_along(axis, _centres(clips.shape[axis], clips)) for axis in (-2, -1))
    return _resample(clips, factor.double().view(-1, 1, 1) * x + y, None)


def translate_x(clips: Tensor, share: Tensor) -> Tensor:
    """Shift to the left by a share of the width."""
    return _shift(clips, share.double().view(-1, 1, 1) * clips.shape[-1], -1)


def translate_y(clips: Tensor, share: Tensor) -> Tensor:
    """Shift upwards by a share of the height."""
    return _shift(clips, share.double().view(-1, 1, 1) * clips.shape[-2], -2)


def _centres(size: int, clips: Tensor) -> Tensor:
    """Coordinates of the pixels' centres on an axis, float64."""
    return torch.arange(size, device=clips.device, dtype=torch.float64) + 0.5


def _shift(clips: Tensor, pixels: Tensor, axis: int) -> Tensor:
    """Shift rows to the left (axis -1), or the frame upwards (axis -2).

    Args:
        clips: (B, C, T, H, W) uint8.
        pixels: how far; float64 (B, 1, 1), for rows by themselves (B, H, 1).
        axis: along which.
    """
    num_frames, size = clips.shape[2], clips.shape[axis]
    whole = pixels.floor()
    source = _along(axis, _centres(size, clips)) + pixels
    outside = ((source < 0) | (source >= size)).float()
    weights = [_planes(each * (1 - outside)) for each in _cubic((pixels - whole).float())]
    from_outside = _planes(outside * FILL + MARGIN)
    around = _along(axis, torch.arange(-1, size + 2, device=clips.device))
    places = _planes((whole.long() + around).clamp_(0, size - 1))
    result = torch.empty_like(clips)
    step = CPU_FRAMES if clips.device.type == "cpu" else num_frames
    for start in range(0, num_frames, step):
        # With one pixel more before and two after, so that the neighbours of all are slices.
        levels = _looked_up(clips[:, :, start : start + step], places, axis).float()
        sums = levels.narrow(axis, 0, size) * weights[0]
        for tap in (1, 2, 3):
            sums.addcmul_(levels.narrow(axis, tap, size), weights[tap])
        result[:, :, start : start + step] = to_levels(sums.add_(from_outside))
    return result


def _along(axis: int, values: Tensor) -> Tensor:
    """(N,) to (1, 1, N) for the axis -1, to (1, N, 1) for -2."""
    return values.view(1, 1, -1).transpose(-1, axis)


def _planes(values: Tensor) -> Tensor:
    """(B, H, W) to (B, 1, 1, H, W)."""
    return values.unsqueeze(1).unsqueeze(1)


def _looked_up(frames: Tensor, places: Tensor, axis: int) -> Tensor:
    """The levels (B, C, T, …) at places on an axis: (B, 1, 1, h, W + 3) or (B, 1, 1, H + 3, 1)."""
    shape = list(frames.shape)
    shape[axis] = places.shape[axis]
    if axis == -1:
        return frames.gather(-1, places.expand(shape))
    rows = frames.flatten(0, 3)
    first = torch.arange(0, len(rows), frames.shape[3], device=frames.device)
    return rows.index_select(0, (first.view(*shape[:3], 1, 1) + places).flatten()).view(shape)


def _resample(clips: Tensor, source_y: Tensor, source_x: Tensor | None) -> Tensor:
    """Look up each pixel of the result at its place in the clip.

    Args:
        clips: (B, C, T, H, W) uint8.
        source_y: where to look, pixel centres at .5; float64 (B, H, W).
        source_x: likewise; None stays in the column, which takes a fourth of the pixels.
    """
    num_clips, num_frames, (height, width) = len(clips), clips.shape[2], clips.shape[-2:]
    table_size = num_clips * height * width
    rows, weights, outside = _taps(source_y, height)
    first = torch.arange(num_clips, device=clips.device, dtype=torch.int32) * (height * width)
    places = (rows * width + first.view(-1, 1, 1)).unsqueeze(1)
    if source_x is None:
        places = places + torch.arange(width, device=clips.device, dtype=torch.int32)
    else:
        columns, column_weights, beside = _taps(source_x, width)
        places, outside = places + columns, outside | beside
        weights = weights.unsqueeze(1) * column_weights
    outside = outside.float()
    weights = weights * (1 - outside)
    # Planes are quick to compute with; a bag wants its numbers next to each other.
    places = places.reshape(-1, table_size).t().contiguous()
    weights = weights.reshape(-1, table_size).t().contiguous()
    from_outside = (outside * FILL + MARGIN).view(table_size, 1)
    step = CPU_ROWS if clips.device.type == "cpu" else table_size
    result = torch.empty_like(clips)
    for start in range(0, num_frames, FRAMES_AT_ONCE):
        # Turned as uint8: a fourth of the bytes.
        turned = clips[:, :, start : start + FRAMES_AT_ONCE].permute(0, 3, 4, 1, 2).contiguous()
        levels = turned.view(table_size, -1)
        table = levels.float()
        for row in range(0, table_size, step):
            part = slice(row, row + step)
            sums = F.embedding_bag(
                places[part], table, mode="sum", per_sample_weights=weights[part]
            )
            levels[part] = to_levels(sums.add_(from_outside[part]))
        result[:, :, start : start + FRAMES_AT_ONCE] = turned.permute(0, 3, 4, 1, 2)
    return result


def _taps(source: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels around a place on one axis.

    Returns:
        Places (4, …) int32 and weights (4, …) float32 of the nearest pixels, and whether the place
        is outside the frame. At the border the outermost pixel stands in for those beyond it.
    """
    before = (source - 0.5).floor()
    weights = torch.stack(_cubic((source - 0.5 - before).float()))
    offsets = torch.arange(-1, 3, device=source.device, dtype=torch.int32).view(-1, 1, 1, 1)
    places = (before.int() + offsets).clamp_(0, size - 1)
    return places, weights, (source < 0) | (source >= size)


def _cubic(d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights, in the cubic with a = -1, of the pixels at -1, 0, 1, 2, for a place at `d`."""
    return (
        d * (-1 + d * (2 - d)),
        1 + d * d * (d - 2),
        d * (1 + d * (1 - d)),
        d * d * (d - 1),
    )
