"""Flags of `kinetics400 bench`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kinetics400.config.common import ModelFlags, Preset
from kinetics400.data.transcode import EncodeSettings


@dataclass(frozen=True, kw_only=True)
class MeasureFlags:
    """What to measure."""

    videos: Path | None = None
    """Folder with original videos. Default: Kinetics-like ones are made, 340×256, 10 s."""
    quick: bool = False
    """Answer within a minute: fewer videos, clips and repeats."""
    repeats: int | None = None
    """How often everything is measured; medians are reported. Default: 5, and 3 with --quick; less
    for what is slow."""
    scaling: bool = False
    """Measure the training loader with 0, 1, 2 … workers as well."""
    json: str | None = None
    """File for the result as JSON; - is standard output, the table then goes to standard error."""


@dataclass(frozen=True, kw_only=True)
class EncodeFlags:
    """How the videos are stored, as in `preprocess`."""

    short_side: int = EncodeSettings.short_side
    """Larger videos are scaled down to this short side, pixels."""
    crf: int = EncodeSettings.crf
    """x264's constant rate factor, 1 to 51: lower is better and larger. (0 has no layers.)"""
    preset: Preset = "veryfast"
    """x264's preset: slower ones make smaller files."""
    keyframe_interval: int = EncodeSettings.keyframe_interval
    """Frames from one key frame to the next, a multiple of 4."""


@dataclass(frozen=True, kw_only=True)
class BenchLoaderConfig:
    """All flags of `kinetics400 bench loader`."""

    measure: MeasureFlags = field(default_factory=MeasureFlags)
    encode: EncodeFlags = field(default_factory=EncodeFlags)


@dataclass(frozen=True, kw_only=True)
class BenchAugmentConfig:
    """All flags of `kinetics400 bench augment`."""

    quick: bool = False
    """Answer within a minute: fewer batches and repeats."""
    json: str | None = None
    """File for the result as JSON; - is standard output, the table then goes to standard error."""


@dataclass(frozen=True, kw_only=True)
class BenchFidelityConfig:
    """All flags of `kinetics400 bench augment-fidelity`, `fidelity` and `fidelity-curves`."""

    json: str | None = None
    """File for the result as JSON; - is standard output, the table then goes to standard error."""


@dataclass(frozen=True, kw_only=True)
class BenchedModelFlags(ModelFlags):
    """Model."""

    model_name: str = "MCG-NJU/videomae-small"
    """Architecture, by its Hugging Face name."""


@dataclass(frozen=True, kw_only=True)
class BenchedStepFlags:
    """What to measure."""

    method: Literal["pretraining", "finetuning"] = "pretraining"
    """VideoMAE, or classification with labels of 400 classes."""
    batch_size: int | None = None
    """Clips of a step. Default: 64 on CUDA, 2 on a CPU."""
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] = "32-true"
    """Type of the weights, or `mixed` for autocast."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to measure; auto takes CUDA where there is any."""
    quick: bool = False
    """Fewer repeats, nothing compiled, no search for the largest batch: within a minute for the
    default model on a core of its own."""
    repeats: int | None = None
    """How often everything is measured; medians are reported. Default: 7, and 3 with --quick."""
    json: str | None = None
    """File for the result as JSON; - is standard output, the table then goes to standard error."""


@dataclass(frozen=True, kw_only=True)
class BenchStepConfig:
    """All flags of `kinetics400 bench step`."""

    model: BenchedModelFlags = field(default_factory=BenchedModelFlags)
    measure: BenchedStepFlags = field(default_factory=BenchedStepFlags)


@dataclass(frozen=True, kw_only=True)
class BenchRunConfig:
    """All flags of `kinetics400 bench run`; what follows `--` goes to the training command."""

    method: Literal["pretraining", "finetuning"] = "pretraining"
    """Which command to run: `pretraining` or `train`."""
    steps: int = 60
    """Steps to run; the first third of them warms up and does not count."""
    profile: Path | None = None
    """Folder for a trace of all steps (for a viewer of Chrome traces) and a table of the kernels
    that take most time. Profiling slows steps down."""
    json: str | None = None
    """File for the result as JSON; - is standard output, the table then goes to standard error."""
