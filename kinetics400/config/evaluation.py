"""Flags of `kinetics400 evaluate`, and of the evaluation at the end of finetuning."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kinetics400.config.common import DeviceFlags, LabelledClipFlags
from kinetics400.data.watch import DECODE_TIMEOUT


@dataclass(frozen=True, kw_only=True)
class ProtocolFlags:
    """Evaluation."""

    views: str = "5x3"
    """Test protocol: clips along time x crops along the long side."""
    merge: Literal["prob", "logit"] = "prob"
    """Average the views' softmaxes, as published, or their logits."""


@dataclass(frozen=True, kw_only=True)
class SubjectFlags:
    """What to evaluate."""

    checkpoint: Path
    """A finetuned model: run directory, model folder (Hugging Face layout), checkpoint folder of a
    run (checkpoints/step-...), or official .pth. What its run's config.yaml says of the videos,
    the frames and the protocol is the default of the flags below."""
    data_dir: Path = Path("data")
    """The preprocessed folder Kinetics-400, or the folder that contains it."""
    val_list: Path | None = None
    """Another list of validation videos; names without a leading / start from videos_val."""
    label_names: Path | None = None
    """File with one class name per line. Default: the names that the model has with it, else
    Kinetics-400's when it has 400 classes."""
    num_frames: int | None = None
    """Frames of a clip, for a .pth, which does not say. Default there: 16."""
    input_size: int | None = None
    """Side of the square input in pixels, for a .pth, which does not say. Default there: 224."""
    batch_size: int = 32
    """Clips per device that go through the model at once."""
    n_worker: int = 8
    """Processes per device that decode videos; 0 decodes in this process."""
    decode_timeout: float = DECODE_TIMEOUT
    """Seconds after which a worker counts as hung over a video: with --output_dir the repeated
    command continues without the video."""
    output_dir: Path | None = None
    """Where to leave results.json, predictions.csv, per_class.csv and confusion.csv, and scores
    meanwhile, so that a repeated command continues. Default: nothing is written."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """All flags of evaluation."""

    subject: SubjectFlags
    protocol: ProtocolFlags = field(default_factory=ProtocolFlags)
    clips: LabelledClipFlags = field(default_factory=LabelledClipFlags)
    device: DeviceFlags = field(default_factory=DeviceFlags)
