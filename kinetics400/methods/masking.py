"""Masks as index tensors: which tokens the encoder sees, which it must predict. Pure functions.

Shapes: B batch, N tokens, S tokens of one frame pair (height * width of the token grid).
"""

import torch
from torch import Tensor


def num_masked(num_positions: int, mask_ratio: float) -> int:
    """How many of the positions are hidden: rounded down, as published.

    >>> num_masked(196, 0.9)  # ViT-B at 224: 176.4
    176
    """
    return int(mask_ratio * num_positions)


def tube_mask(scores: Tensor, num_times: int, mask_ratio: float) -> tuple[Tensor, Tensor]:
    """Hide the same random places at all times (VideoMAE masking_generator.py).

    Args:
        scores: (B, S) random, one per place; the places with the lowest stay visible.
        num_times: token grid's length in time.
        mask_ratio: share hidden, in (0, 1).

    Returns:
        `keep_indices` (B, N - M) and `mask_indices` (B, M), each ascending, over N = num_times * S.
    """
    num_places = scores.shape[1]
    num_kept = num_places - num_masked(num_places, mask_ratio)
    order = scores.argsort(dim=1)
    offsets = torch.arange(num_times, device=scores.device)[:, None] * num_places

    def over_time(places: Tensor) -> Tensor:
        return (places.sort(dim=1).values[:, None] + offsets).flatten(1)

    return over_time(order[:, :num_kept]), over_time(order[:, num_kept:])
