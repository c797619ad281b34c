"""Random horizontal flip."""

import torch
from torch import Tensor

from kinetics400.batch import Batch
from kinetics400.data import keys


def random_flip(batch: Batch, probability: float) -> Tensor:
    """Mirror each clip (B, C, T, H, W) as a whole, with a probability, drawn from its key."""
    flipped = keys.uniform(batch.keys, "flip", 1)[:, 0] < probability
    return torch.where(flipped[:, None, None, None, None], batch.clips.flip(-1), batch.clips)
