"""What crosses from the loader to augmentation to the method, and what its pixels mean.

Shapes: B batch, C channels, T frames, H, W.
"""

from collections.abc import Callable
from functools import partial

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
        host_keys: the same keys in the host's memory, wherever the batch is: who has to decide
            something per sample reads these, and never waits for the device.
        targets: (B, K) float32 shares of the classes where clips were mixed; None where they were
            not, and `labels` say all.
    """

    __slots__ = ("clips", "host_keys", "keys", "labels", "targets")

    def __init__(
        self,
        clips: Tensor,
        labels: Tensor,
        keys: Tensor,
        *,
        host_keys: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> None:
        self.clips = clips
        self.labels = labels
        self.keys = keys
        self.host_keys = keys.cpu() if host_keys is None else host_keys
        self.targets = targets

    def __len__(self) -> int:
        return self.clips.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Copy to a device."""
        return self._each(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Copy to page-locked memory (called by DataLoader)."""
        return self._each(Tensor.pin_memory)

    def with_clips(self, clips: Tensor) -> "Batch":
        """The same samples with other clips."""
        return Batch(clips, self.labels, self.keys, host_keys=self.host_keys, targets=self.targets)

    def with_targets(self, targets: Tensor) -> "Batch":
        """The same samples with shares of the classes."""
        return Batch(self.clips, self.labels, self.keys, host_keys=self.host_keys, targets=targets)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        targets = None if self.targets is None else change(self.targets)
        parts = (change(part) for part in (self.clips, self.labels, self.keys))
        return Batch(*parts, host_keys=self.host_keys, targets=targets)


def _statistics(like: Tensor, channel_dim: int) -> tuple[Tensor, Tensor]:
    shape = [1] * like.dim()
    shape[channel_dim] = 3
    # Filled on the device: a copy of the host's numbers would wait for it. And the type is said: in
    # Fabric's true half precisions the default type is not float32.
    filled = partial(torch.full, (), dtype=torch.float32, device=like.device)
    mean, std = (
        torch.stack([filled(value) for value in values]).view(shape)
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return mean, std


def contiguous(clips: Tensor) -> Tensor:
    """The clips in the order of their dimensions in memory, too; themselves if they are already.

    A loader's clips lie in memory channel last. torch's own copy of such uint8 views goes pixel by
    pixel and takes twice the time of this one, which goes channel by channel.
    """
    if clips.is_contiguous():
        return clips
    ordered = torch.empty_like(clips, memory_format=torch.contiguous_format)
    for channel in range(clips.shape[1]):
        ordered[:, channel].copy_(clips[:, channel])
    return ordered


def normalize(clips: Tensor, channel_dim: int = 1, *, out: Tensor | None = None) -> Tensor:
    """Pixels in 0..255 to float32 with zero mean and unit variance on ImageNet.

    The result has the same shape, and is contiguous memory of its own, or `out`.
    """
    mean, std = _statistics(clips, channel_dim)
    clips = contiguous(clips)
    result = torch.empty_like(clips, dtype=torch.float32) if out is None else out
    return result.copy_(clips).div_(255).sub_(mean).div_(std)


def denormalize(clips: Tensor, channel_dim: int = 1) -> Tensor:
    """Normalised float32 clips to pixels in [0, 1]; same shape."""
    mean, std = _statistics(clips, channel_dim)
    return clips * std + mean
