"""Random horizontal flip."""

import torch
from torch import Tensor

from kinetics400.batch import Batch, contiguous
from kinetics400.data import keys


def random_flip(batch: Batch, probability: float) -> Tensor:
    """Mirror each clip (B, C, T, H, W) as a whole, with a probability, drawn from its key.

    The result is contiguous, whatever the order of the clips' memory.
    """
    flipped = (keys.uniform(batch.host_keys, "flip", 1)[:, 0] < probability).tolist()
    clips = contiguous(batch.clips)
    if not any(flipped):
        return clips
    turns = zip(clips.unbind(0), flipped, strict=True)
    return torch.stack([clip.flip(-1) if turn else clip for clip, turn in turns])
