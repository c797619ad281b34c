"""Flags of `python -m train`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kinetics400.config.common import (
    DataFlags,
    DeviceFlags,
    LabelledClipFlags,
    ModelFlags,
    OptimizationFlags,
    RunFlags,
    SavingFlags,
)
from kinetics400.config.evaluation import ProtocolFlags


@dataclass(frozen=True, kw_only=True)
class PretrainedFlags:
    """Pretrained weights."""

    pretrained: bool = False
    """Start from pretrained weights instead of random ones."""
    pretrained_name: str | None = None
    """Hugging Face name of the weights, with @revision for a certain commit, tag or branch; also
    looked for below pretrained_dir."""
    pretrained_dir: Path | None = None
    """Folder of the weights: searched itself, then its model/, then the name in it, then for a
    single .pth. Given, nothing is ever downloaded."""
    pos_embed: Literal["sinusoid", "interpolate"] | None = None
    """Positions where num_frames or input_size are not the weights': computed for the new grid of
    tokens, as the official code does, or interpolated from the weights'. Default: other clips than
    the weights' are refused."""
    resize_patch_embed: bool = False
    """Resize the patch embedding's kernel to patch_size and tubelet_size where the weights have
    others."""


@dataclass(frozen=True, kw_only=True)
class ClassifierFlags:
    """Classifier."""

    num_classes: int = 400
    """Labels run from 0 to num_classes - 1."""
    label_names: Path | None = None
    """File with one class name per line. Default: Kinetics-400's when num_classes is 400."""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes."""
    drop_path_rate: float | None = None
    """Largest stochastic depth. Default: as published for the model's size."""
    head_dropout: float | None = None
    """Dropout before the head. Default: as published for the model's size."""
    head_init_scale: float = 0.001
    """Factor on the head's initial weights."""
    layer_decay: float = 0.75
    """Factor on the learning rate from each layer to the one below it."""


@dataclass(frozen=True, kw_only=True)
class AugmentationFlags:
    """Augmentation."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Least and largest share of the frame's area in a random crop."""
    flip: float = 0.5
    """Probability of a horizontal flip; 0 where left and right matter."""
    auto_augment: str = "rand-m7-n4-mstd0.5-inc1"
    """RandAugment in timm's notation: magnitude, operations per clip, standard deviation of the
    magnitude. none leaves it out."""
    reprob: float = 0.25
    """Probability of random erasing: one box over all frames, filled with noise."""
    mixup: float = 0.8
    """Alpha of mixup; 0 leaves it out."""
    cutmix: float = 1.0
    """Alpha of cutmix; 0 leaves it out."""
    mixup_prob: float = 1.0
    """Probability of mixing where mixup or cutmix is on."""
    mixup_switch_prob: float = 0.5
    """Probability of cutmix rather than mixup where both are on."""
    mixup_mode: Literal["batch", "pair", "elem"] = "batch"
    """What shares its mixing: the batch, a pair of clips, or nothing."""
    official_augment: bool = False
    """Apply RandAugment to whole frames before they are cropped, in the published order, in the
    workers. Default: to the crop, on the training device."""


@dataclass(frozen=True, kw_only=True)
class FinetuneOptimizationFlags(OptimizationFlags):
    """Optimization."""

    ema_decay: float | None = None
    """Keep an average of the weights with this decay (0.9999, say): it is what is evaluated and
    saved in model/. Default: the weights themselves, as published."""


@dataclass(frozen=True, kw_only=True)
class EvaluationFlags(ProtocolFlags):
    """Evaluation."""

    eval_frequency: int = 1
    """Epochs between evaluations with a single centre view; the protocol above runs at the end."""


@dataclass(frozen=True, kw_only=True)
class FinetuneSavingFlags(SavingFlags):
    """Saving."""

    save_dir: Path = Path("weights")
    """Run directory: config.yaml, metrics.jsonl, checkpoints/ and, at the end, model/ and
    results.json."""
    save_frequency: int = 5
    """Epochs between checkpoints."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All flags of finetuning."""

    model: ModelFlags = field(default_factory=ModelFlags)
    pretrained: PretrainedFlags = field(default_factory=PretrainedFlags)
    classifier: ClassifierFlags = field(default_factory=ClassifierFlags)
    data: DataFlags = field(default_factory=DataFlags)
    clips: LabelledClipFlags = field(default_factory=LabelledClipFlags)
    augmentation: AugmentationFlags = field(default_factory=AugmentationFlags)
    optimization: FinetuneOptimizationFlags = field(default_factory=FinetuneOptimizationFlags)
    evaluation: EvaluationFlags = field(default_factory=EvaluationFlags)
    device: DeviceFlags = field(default_factory=DeviceFlags)
    saving: FinetuneSavingFlags = field(default_factory=FinetuneSavingFlags)
    run: RunFlags = field(default_factory=RunFlags)
