"""Flags of `python -m pretraining`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kinetics400.config.common import (
    ClipFlags,
    DataFlags,
    DeviceFlags,
    ModelFlags,
    OptimizationFlags,
    RunFlags,
    SavingFlags,
)


@dataclass(frozen=True, kw_only=True)
class MaskingFlags:
    """Masked autoencoding."""

    mask_ratio: float = 0.9
    """Share of tokens hidden from the encoder, between 0 and 1."""
    norm_pix_loss: bool = True
    """Predict pixels normalised per tubelet and channel rather than raw ones."""


@dataclass(frozen=True, kw_only=True)
class AugmentationFlags:
    """Augmentation."""

    flip: float = 0.0
    """Probability of a horizontal flip. VideoMAE has none, AVION 0.5."""


@dataclass(frozen=True, kw_only=True)
class PretrainOptimizationFlags(OptimizationFlags):
    """Optimization."""

    optimizer: Literal["adamw", "lion"] = "adamw"
    """adamw, or lion as in AVION's fast VideoMAE; betas 0.9 and 0.95 either way."""


@dataclass(frozen=True, kw_only=True)
class PretrainSavingFlags(SavingFlags):
    """Saving."""

    save_dir: Path = Path("pretrained_weights")
    """Run directory: config.yaml, metrics.jsonl, checkpoints/ and, at the end, model/."""
    save_frequency: int = 20
    """Epochs between checkpoints."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """All flags of pretraining."""

    model: ModelFlags = field(default_factory=ModelFlags)
    masking: MaskingFlags = field(default_factory=MaskingFlags)
    data: DataFlags = field(default_factory=DataFlags)
    clips: ClipFlags = field(default_factory=ClipFlags)
    augmentation: AugmentationFlags = field(default_factory=AugmentationFlags)
    optimization: PretrainOptimizationFlags = field(default_factory=PretrainOptimizationFlags)
    device: DeviceFlags = field(default_factory=DeviceFlags)
    saving: PretrainSavingFlags = field(default_factory=PretrainSavingFlags)
    run: RunFlags = field(default_factory=RunFlags)
