"""From flags to what happens to finetuning's clips."""

import math

from kinetics400.augment.mix import Mixing
from kinetics400.augment.pipeline import Augment, training_augment
from kinetics400.augment.randaugment import RandAugment, parse_randaugment
from kinetics400.commands.plan import Problems
from kinetics400.config.finetuning import AugmentationFlags


def check_augmentation(flags: AugmentationFlags, clips_at_once: int, problems: Problems) -> None:
    """Check the flags that say what happens to clips, of which a device gets so many at once."""
    scale = flags.crop_scale
    problems.require(
        0 < scale[0] <= scale[1] <= 1, f"--crop_scale {scale[0]} {scale[1]} must lie in (0, 1]"
    )
    for name in ("flip", "reprob", "mixup_prob", "mixup_switch_prob"):
        share = getattr(flags, name)
        problems.require(0 <= share <= 1, f"--{name} {share} must lie in [0, 1]")
    for name in ("mixup", "cutmix"):
        alpha = getattr(flags, name)
        problems.require(0 <= alpha < math.inf, f"--{name} {alpha} must be at least 0, and finite")
    problems.require(
        not (mixes(flags) and flags.mixup_mode == "pair" and clips_at_once % 2),
        f"--mixup_mode pair needs pairs: {clips_at_once} clips (--batch_size x --num_sample) are "
        "an odd number",
    )
    try:
        operations = randaugment(flags)
    except ValueError as error:
        problems.add(f"--auto_augment {error}; or none")
        return
    problems.require(
        operations is not None or not flags.official_augment,
        "--official_augment means nothing with --auto_augment none: leave it out",
    )


def randaugment(flags: AugmentationFlags) -> RandAugment | None:
    """RandAugment as asked for.

    Raises:
        ValueError: it is not in timm's notation.
    """
    return None if flags.auto_augment == "none" else parse_randaugment(flags.auto_augment)


def on_whole_frames(flags: AugmentationFlags) -> RandAugment | None:
    """What the workers apply before they cut."""
    return randaugment(flags) if flags.official_augment else None


def mixes(flags: AugmentationFlags) -> bool:
    """Whether clips are mixed at all."""
    return flags.mixup_prob > 0 and (flags.mixup > 0 or flags.cutmix > 0)


def device_augment(flags: AugmentationFlags, num_classes: int) -> Augment:
    """What happens on the training device."""
    mixing = (
        Mixing(
            num_classes=num_classes,
            mixup_alpha=flags.mixup,
            cutmix_alpha=flags.cutmix,
            probability=flags.mixup_prob,
            switch_probability=flags.mixup_switch_prob,
            mode=flags.mixup_mode,
        )
        if mixes(flags)
        else None
    )
    return training_augment(
        flip_probability=flags.flip,
        randaugment=None if flags.official_augment else randaugment(flags),
        erase_probability=flags.reprob,
        mixing=mixing,
    )
