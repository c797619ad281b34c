"""Flags of `preprocess`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kinetics400.config.common import Preset
from kinetics400.data.transcode import EncodeSettings


@dataclass(frozen=True)
class PreprocessConfig:
    """Verify every video and store it for fast training."""

    data_dir: Path = Path("data")
    """Folder that gets Kinetics-400/; by default it also holds the source: Kinetics-400.tar.gz, its
    parts .0000, .0001 …, or an unpacked Kinetics-400 folder."""
    source: Path | None = None
    """Where the originals are if not in data_dir: an archive, a folder with one, CVDF's folder with
    train/part_*.tar.gz, or a folder of videos (videos_train/ and videos_val/, or train/ and val/,
    with list files or one folder per class). It is only read, unless
    it is Kinetics-400/ itself."""
    store: Literal["pyramid", "original"] = "pyramid"
    """pyramid re-encodes every video so that training decodes only what it needs
    (docs/data.md). original verifies the videos and keeps the files as they are."""
    short_side: int = EncodeSettings.short_side
    """Larger videos are scaled down to this short side, pixels."""
    enlarge: bool = False
    """Scale smaller videos up to short_side as well."""
    crf: int = EncodeSettings.crf
    """x264's constant rate factor, 1 to 51: lower is better and larger. (0 has no layers.)"""
    preset: Preset = "veryfast"
    """x264's preset: slower ones make smaller files."""
    keyframe_interval: int = EncodeSettings.keyframe_interval
    """Frames from one key frame to the next, a multiple of 4: fewer make clips cheaper to start
    and files larger."""
    num_classes: int = 400
    """Labels in the list files must be from 0 to this number minus one."""
    label_names: Path | None = None
    """File with one class name per line, for CSV annotations and class folders. Default:
    Kinetics-400's when num_classes is 400, otherwise the folders in alphabetical order."""
    train_list: Path | None = None
    """List of the training videos to use instead of the source's: lines of `<path> <label>`, or
    a .csv in CVDF's format."""
    val_list: Path | None = None
    """List of the validation videos, likewise."""
    max_bad_share: float = 0.02
    """Stop with exit code 3 when more than this share of the listed videos is absent or
    undecodable; below it they are quarantined."""
    n_worker: int | None = None
    """Videos worked on at the same time, each in a process of its own. Default: all CPUs."""
    timeout: float = 120.0
    """Seconds after which the work on one video is given up."""
    executor: Literal["local", "ray"] = "local"
    """Where the work is done: by processes of this machine, or on a Ray cluster whose nodes all see
    source and data_dir under the same paths (docs/clusters.md). n_worker is by default the number
    of the cluster's CPUs then."""
    ray_address: str = "auto"
    """The cluster of --executor ray, HOST:PORT; auto is $RAY_ADDRESS, or the one that this machine
    belongs to."""
    shard: str | None = None
    """i/n: store only share i of n, from 1 to n, beside processes that store the others in the same
    data_dir. The same command without --shard then takes all in and writes the lists. Default:
    the place of a task in its SLURM array; 1/1 is a whole run even there."""
