"""RandAugment's geometric operations: PIL's bicubic transforms, on whole clips.

Clips are uint8 (B, C, T, H, W); results are new, contiguous. Parameters are (B,), on the clips'
device. All frames of a clip move alike; what comes from outside the frame is grey.

Every pixel of the result is a weighted sum of at most 4 × 4 pixels, the same for all frames and
channels. So a clip becomes a table with a row of C·T numbers for every place, and the sum of rows
is an embedding bag: one gather-and-add over contiguous memory, on any device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

FILL = 128.0
# PIL cuts float64 sums off; these are float32. A sum that should be 7 may be 6.99999 here.
MARGIN = 2.0**-13
# So many frames of 224 × 224, as float32, fit into the second level of a CPU's cache or nearly so.
FRAMES_AT_ONCE = 8


def rotate(clips: Tensor, degrees: Tensor) -> Tensor:
    """Turn anticlockwise about the centre."""
    height, width = clips.shape[-2:]
    # The way back, from the result to the clip, in PIL's order of operations.
    angle = -torch.deg2rad(degrees.double().remainder(360)).view(-1, 1, 1)
    cos, sin = angle.cos().round(decimals=15), angle.sin().round(decimals=15)
    y, x = _centres(clips)
    source_x = cos * x + sin * y + (width / 2 - (cos * (width / 2) + sin * (height / 2)))
    source_y = -sin * x + cos * y + (height / 2 - (cos * (height / 2) - sin * (width / 2)))
    return _resample(clips, source_y, source_x)


def shear_x(clips: Tensor, factor: Tensor) -> Tensor:
    """Shift each row to the left by `factor` times its y."""
    y, x = _centres(clips)
    return _resample(clips, None, x + factor.double().view(-1, 1, 1) * y)


def shear_y(clips: Tensor, factor: Tensor) -> Tensor:
    """Shift each column upwards by `factor` times its x."""
    y, x = _centres(clips)
    return _resample(clips, factor.double().view(-1, 1, 1) * x + y, None)


def translate_x(clips: Tensor, share: Tensor) -> Tensor:
    """Shift to the left by a share of the width."""
    _, x = _centres(clips)
    return _resample(clips, None, x + share.double().view(-1, 1, 1) * clips.shape[-1])


def translate_y(clips: Tensor, share: Tensor) -> Tensor:
    """Shift upwards by a share of the height."""
    y, _ = _centres(clips)
    return _resample(clips, y + share.double().view(-1, 1, 1) * clips.shape[-2], None)


def _centres(clips: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates of the pixels' centres: y (1, H, 1), x (1, 1, W), float64."""
    height, width = clips.shape[-2:]
    y = torch.arange(height, device=clips.device, dtype=torch.float64) + 0.5
    x = torch.arange(width, device=clips.device, dtype=torch.float64) + 0.5
    return y.view(1, -1, 1), x.view(1, 1, -1)


def _resample(clips: Tensor, source_y: Tensor | None, source_x: Tensor | None) -> Tensor:
    """Look up each pixel of the result at its place in the clip.

    Args:
        clips: (B, C, T, H, W) uint8.
        source_y: where to look, pixel centres at .5; float64, broadcasts to (B, H, W). None stays
            in the row, which takes a fourth of the pixels.
        source_x: likewise; None stays in the column.
    """
    num_clips, num_channels, num_frames, height, width = clips.shape
    y, x = _centres(clips)
    rows, row_weights, above_or_below = _taps(y, source_y, height)
    columns, column_weights, beside = _taps(x, source_x, width)
    outside = (above_or_below | beside).expand(num_clips, height, width).float()
    first = torch.arange(num_clips, device=clips.device, dtype=torch.int32) * (height * width)
    places = (rows * width).unsqueeze(-1) + columns.unsqueeze(-2) + first.view(-1, 1, 1, 1, 1)
    row_weights = row_weights * (1 - outside).unsqueeze(-1)
    weights = row_weights.unsqueeze(-1) * column_weights.unsqueeze(-2)
    table_size = num_clips * height * width
    places, weights = places.view(table_size, -1), weights.view(table_size, -1)
    from_outside = outside.view(table_size, 1).mul_(FILL).add_(MARGIN)
    result = torch.empty_like(clips)
    for start in range(0, num_frames, FRAMES_AT_ONCE):
        frames = clips[:, :, start : start + FRAMES_AT_ONCE]
        # Turned as uint8: a fourth of the bytes.
        table = frames.permute(0, 3, 4, 1, 2).contiguous().view(table_size, -1).float()
        sums = F.embedding_bag(places, table, mode="sum", per_sample_weights=weights)
        levels = sums.add_(from_outside).clamp_(0, 255).to(torch.uint8)
        levels = levels.view(num_clips, height, width, num_channels, -1)
        result[:, :, start : start + FRAMES_AT_ONCE] = levels.permute(0, 3, 4, 1, 2)
    return result


def _taps(centres: Tensor, source: Tensor | None, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels around a place on one axis, and their weights in the cubic with a = -1.

    Returns:
        Places (…, K) int32 and weights (…, K) float32 of the 4 nearest pixels (of the pixel itself
        without a source), and whether the place is outside the frame. At the border the outermost
        pixel stands in for those beyond it.
    """
    if source is None:
        inside = torch.ones_like(centres)
        return centres.int().unsqueeze(-1), inside.float().unsqueeze(-1), inside.logical_not()
    before = (source - 0.5).floor()
    d = (source - 0.5 - before).float()
    weights = (
        d * (-1 + d * (2 - d)),
        1 + d * d * (d - 2),
        d * (1 + d * (1 - d)),
        d * d * (d - 1),
    )
    offsets = torch.arange(-1, 3, device=source.device, dtype=torch.int32)
    places = (before.int().unsqueeze(-1) + offsets).clamp_(0, size - 1)
    return places, torch.stack(weights, -1), (source < 0) | (source >= size)
