"""Flags of `preprocess`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PreprocessConfig:
    """Unpack the archive safely and keep only the videos that decode."""

    data_dir: Path = Path("data")
    """Folder with Kinetics-400.tar.gz, with its parts .0000, .0001 …, or with an unpacked
    Kinetics-400 folder."""
    num_classes: int = 400
    """Labels in the list files must be from 0 to this number minus one."""
    max_bad_share: float = 0.02
    """Stop with exit code 3 when more than this share of the listed videos is absent or
    undecodable; below it they are quarantined."""
    n_worker: int | None = None
    """Videos verified at the same time, each in a process of its own. Default: all CPUs."""
    timeout: float = 120.0
    """Seconds after which the verification of one video is killed."""
    train_list: Path | None = None
    """List file to use instead of the archive's kinetics400_train_list_videos.txt."""
    val_list: Path | None = None
    """List file to use instead of the archive's kinetics400_val_list_videos.txt."""
