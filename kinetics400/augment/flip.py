"""Random horizontal flip."""

import torch
from torch import Tensor

from kinetics400.batch import contiguous
from kinetics400.data import keys


def draw_flips(host_keys: Tensor, probability: float) -> list[bool]:
    """Whether the clips with these keys (B,) are mirrored."""
    return (keys.uniform(host_keys, "flip", 1)[:, 0] < probability).tolist()


def flip(clips: Tensor, flipped: list[bool]) -> Tensor:
    """Mirror those clips (B, C, T, H, W) as a whole; contiguous, whatever their memory's order."""
    clips = contiguous(clips)
    if not any(flipped):
        return clips
    if all(flipped):
        return clips.flip(-1)
    turns = zip(clips.unbind(0), flipped, strict=True)
    return torch.stack([clip.flip(-1) if turn else clip for clip, turn in turns])
