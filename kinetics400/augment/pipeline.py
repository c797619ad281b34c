"""What happens to a batch on the training device, between the loader and the method."""

from collections.abc import Callable

import torch

from kinetics400.augment.erase import random_erase
from kinetics400.augment.flip import draw_flips, flip
from kinetics400.augment.mix import Mixing, mix
from kinetics400.augment.randaugment import RandAugment, augmented
from kinetics400.batch import Batch, normalize

Augment = Callable[[Batch], Batch]


def training_augment(
    *,
    flip_probability: float = 0.0,
    randaugment: RandAugment | None = None,
    erase_probability: float = 0.0,
    mixing: Mixing | None = None,
) -> Augment:
    """From uint8 clips to float32 ones, in the published order (docs/augmentation.md).

    RandAugment, flip, normalise, erase, mix; by default only the third. With `mixing` the batch
    gets targets. What is drawn depends on the clips' keys alone, and is drawn on the host.
    """

    def augment(batch: Batch) -> Batch:
        host_keys = batch.host_keys
        draws = None if randaugment is None else randaugment.draw(host_keys)
        flipped = draw_flips(host_keys, flip_probability)
        result = torch.empty(batch.clips.shape, dtype=torch.float32, device=batch.clips.device)
        # One by one on a CPU: what a step leaves in its cache is there for the next.
        step = 1 if result.device.type == "cpu" else len(batch)
        for start in range(0, len(batch), step):
            part = slice(start, start + step)
            clips = batch.clips[part]
            if draws is not None:
                clips = augmented(clips, draws[part])
            normalize(flip(clips, flipped[part]), out=result[part])
        if erase_probability > 0:
            random_erase(result, host_keys, erase_probability)
        batch = batch.with_clips(result)
        return batch if mixing is None else mix(batch, mixing)

    return augment
