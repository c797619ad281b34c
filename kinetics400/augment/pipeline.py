"""What happens to a batch on the training device, between the loader and the method."""

from collections.abc import Callable

from kinetics400.augment.erase import random_erase
from kinetics400.augment.flip import random_flip
from kinetics400.augment.mix import Mixing, mix
from kinetics400.augment.randaugment import RandAugment
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
        if randaugment is not None:
            batch = batch.with_clips(randaugment(batch.clips, batch.host_keys))
        if flip_probability > 0:
            batch = batch.with_clips(random_flip(batch, flip_probability))
        batch = batch.with_clips(normalize(batch.clips))  # ours from here on
        if erase_probability > 0:
            random_erase(batch.clips, batch.host_keys, erase_probability)
        return batch if mixing is None else mix(batch, mixing)

    return augment
