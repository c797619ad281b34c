"""Flags of `kinetics400 demo`."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class FolderFlags:
    """Folders."""

    work_dir: Path = Path("runs/demo")
    """Where the demo's dataset and runs go; emptied first when an earlier demo wrote it."""
    results_dir: Path = Path("results/demo")
    """Where the outcome goes."""


@dataclass(frozen=True, kw_only=True)
class SizeFlags:
    """Size."""

    n_train_per_class: int = 40
    """Training videos of each motion class."""
    n_val_per_class: int = 20
    """Validation videos of each motion class."""
    pretrain_epochs: int = 15
    """Epochs of pretraining."""
    finetune_epochs: int = 24
    """Epochs of finetuning, with and without pretraining."""
    n_worker: int = 2
    """Processes that draw, verify and decode videos."""
    seed: int = 0
    """Of the dataset and of every run."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """All flags of the demo."""

    folder: FolderFlags = field(default_factory=FolderFlags)
    size: SizeFlags = field(default_factory=SizeFlags)
