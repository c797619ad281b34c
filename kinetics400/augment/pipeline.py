"""What happens to a batch on the training device, between the loader and the method."""

from collections.abc import Callable

from kinetics400.augment.flip import random_flip
from kinetics400.batch import Batch, normalize

Augment = Callable[[Batch], Batch]


def training_augment(*, flip_probability: float) -> Augment:
    """Flip and normalise: uint8 clips to float32 ones."""

    def augment(batch: Batch) -> Batch:
        if flip_probability > 0:
            batch = batch.with_clips(random_flip(batch, flip_probability))
        return batch.with_clips(normalize(batch.clips))

    return augment
