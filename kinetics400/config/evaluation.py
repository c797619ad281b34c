"""Flags of `kinetics400 evaluate`, and of the evaluation at the end of finetuning."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kinetics400.config.common import DeviceFlags, LabelledClipFlags


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
    """Run directory or model folder of a finetuned model (Hugging Face layout)."""
    data_dir: Path = Path("data")
    """The preprocessed folder Kinetics-400, or the folder that contains it."""
    val_list: Path | None = None
    """Another list of validation videos; names without a leading / start from videos_val."""
    batch_size: int = 32
    """Clips per device that go through the model at once."""
    n_worker: int = 8
    """Processes per device that decode videos; 0 decodes in this process."""
    json: Path | None = None
    """Where to write the result as JSON as well."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """All flags of evaluation."""

    subject: SubjectFlags
    protocol: ProtocolFlags = field(default_factory=ProtocolFlags)
    clips: LabelledClipFlags = field(default_factory=LabelledClipFlags)
    device: DeviceFlags = field(default_factory=DeviceFlags)
