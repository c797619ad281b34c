"""Flags of `kinetics400 doctor`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DoctorConfig:
    """Find what is wrong with this machine and with the data, before training does."""

    data_dir: Path = Path("data/Kinetics-400")
    """The folder with lists and videos, or the folder that contains Kinetics-400."""
    full: bool = False
    """Decode every video from the first frame to the last, in isolated processes, and hold it
    against its stored SHA-256. Repeating the command continues."""
    json: Path | None = None
    """File for everything that was found, each video by name."""
    n_worker: int | None = None
    """Videos read at the same time; training is taken to use as many workers per device. Default:
    all CPUs."""
    num_classes: int = 400
    """Labels in the list files must be from 0 to this number minus one."""
    label_names: Path | None = None
    """File with one class name per line. Default: Kinetics-400's when num_classes is 400."""
    num_frames: int = 16
    """Frames of a training clip."""
    sampling_rate: int = 4
    """A clip takes one of this many frames: videos shorter than num_frames x sampling_rate are
    noted."""
