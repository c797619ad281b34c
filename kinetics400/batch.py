"""What crosses from the loader to augmentation to the method, and what its pixels mean.

Shapes: B batch, C channels, T frames, H, W.
"""

import torch
from torch import Tensor

# The statistics that every VideoMAE model was trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Batch:
    """One batch of clips with their labels and random keys.

    Not a dataclass, on purpose: Lightning Fabric casts every float tensor it finds in a dataclass
    to the training precision, and reconstruction targets need the clips in float32.

    Attributes:
        clips: (B, C, T, H, W); uint8 from the loader, float32 and normalised after augmentation.
        labels: (B,) int64 class indices.
        keys: (B,) int64, one random key per sample (`kinetics400.data.keys`).
    """

    __slots__ = ("clips", "keys", "labels")

    def __init__(self, clips: Tensor, labels: Tensor, keys: Tensor) -> None:
        self.clips = clips
        self.labels = labels
        self.keys = keys

    def __len__(self) -> int:
        return self.clips.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Copy to a device."""
        parts = (self.clips, self.labels, self.keys)
        return Batch(*(part.to(device, non_blocking=non_blocking) for part in parts))

    def pin_memory(self) -> "Batch":
        """Copy to page-locked memory (called by DataLoader)."""
        return Batch(*(part.pin_memory() for part in (self.clips, self.labels, self.keys)))

    def with_clips(self, clips: Tensor) -> "Batch":
        """The same samples with other clips."""
        return Batch(clips, self.labels, self.keys)


def _statistics(like: Tensor, channel_dim: int) -> tuple[Tensor, Tensor]:
    shape = [1] * like.dim()
    shape[channel_dim] = 3
    # The type is said: in Fabric's true half precisions the default type is not float32.
    mean = torch.tensor(IMAGENET_MEAN, dtype=torch.float32, device=like.device).view(shape)
    std = torch.tensor(IMAGENET_STD, dtype=torch.float32, device=like.device).view(shape)
    return mean, std


def normalize(clips: Tensor, channel_dim: int = 1) -> Tensor:
    """Pixels in 0..255 to float32 with zero mean and unit variance on ImageNet; same shape."""
    mean, std = _statistics(clips, channel_dim)
    return (clips.float() / 255 - mean) / std


def denormalize(clips: Tensor, channel_dim: int = 1) -> Tensor:
    """Normalised float32 clips to pixels in [0, 1]; same shape."""
    mean, std = _statistics(clips, channel_dim)
    return clips * std + mean
