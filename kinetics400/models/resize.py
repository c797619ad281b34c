"""Starting from weights of other clips: whose positions, and a patch embedding of another size."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from kinetics400.errors import InputError
from kinetics400.models.pretrained import Weights
from kinetics400.models.vit import VitConfig

KERNEL = "encoder.patch_embed.proj.weight"
# Of files that state no sizes: what all published models were trained on.
PUBLISHED_FRAMES, PUBLISHED_PIXELS = 16, 224


def starting_grid(
    weights: Weights, config: VitConfig, pos_embed: Literal["sinusoid", "interpolate"] | None
) -> tuple[int, int, int] | None:
    """The grid that the model's positions are interpolated from, None to compute its own.

    Args:
        weights: what the model starts from.
        config: the model's sizes.
        pos_embed: what the user asked for; None keeps the positions that the weights were trained
            with, where the model has their grid.

    Raises:
        InputError: the grids differ and nothing was asked for.
    """
    if pos_embed == "sinusoid":
        return None
    stated = weights.sizes
    if stated is None and pos_embed is None:
        return None  # nobody knows their grid; the official code computes positions as well
    grid = _grid(weights)
    trained_on = (stated or {}).get("pos_grid") or grid
    if pos_embed == "interpolate":
        return None if trained_on == config.grid else trained_on
    if grid != config.grid:
        raise InputError(
            f"{weights.source} has positions on a grid of {_times(grid)} tokens, asked for "
            f"{_times(config.grid)}. Say where positions come from: --pos_embed interpolate or "
            "sinusoid (docs/weights.md)"
        )
    return None if trained_on == grid else trained_on


def _grid(weights: Weights) -> tuple[int, int, int]:
    """The token grid of the clips that the weights were trained on."""
    stated = weights.sizes or {}
    tubelet, patch = _kernel(weights).shape[2:4]
    side = stated.get("image_size", PUBLISHED_PIXELS) // patch
    return stated.get("num_frames", PUBLISHED_FRAMES) // tubelet, side, side


def _kernel(weights: Weights) -> Tensor:
    kernel = weights.state.get(KERNEL)
    if kernel is None or kernel.dim() != 5:
        raise InputError(f"{weights.source} has no patch embedding of 5 dimensions")
    return kernel


def _times(grid: tuple[int, int, int]) -> str:
    return " x ".join(map(str, grid))


def with_kernel(weights: Weights, config: VitConfig) -> Weights:
    """The weights with their patch embedding resized to the model's tubelets.

    Raises:
        InputError: they have no patch embedding.
    """
    size = (config.tubelet_size, config.patch_size, config.patch_size)
    kernel = resize_kernel(_kernel(weights), size)
    return replace(weights, state={**weights.state, KERNEL: kernel})


def resize_kernel(kernel: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Resize a patch embedding's kernel, (D, C, t, h, w) to (D, C, *size).

    Linear along each axis, antialiased where it shrinks, and every old value keeps its sum: so a
    constant input has the same response, and inflation over time divides by the ratio (I3D,
    Carreira and Zisserman 2017, arXiv:1705.07750).
    """
    resized = kernel.double()
    for axis, new in zip((2, 3, 4), size, strict=True):
        old = resized.shape[axis]
        if new != old:
            spread = _spread(old, new).to(resized.device)
            resized = (resized.movedim(axis, -1) @ spread.T).movedim(-1, axis)
    return resized.to(kernel.dtype).contiguous()


def _spread(old: int, new: int) -> Tensor:
    """(new, old): where each old value goes; every column sums to 1."""
    scale = max(old / new, 1.0)
    centres = (torch.arange(new, dtype=torch.float64) + 0.5) * (old / new) - 0.5
    places = torch.arange(old, dtype=torch.float64)
    distance = (centres[:, None].clamp(0, old - 1) - places).abs() / scale
    weights = (1 - distance).clamp_min(0)
    weights = weights / weights.sum(dim=1, keepdim=True)
    return weights / weights.sum(dim=0)
