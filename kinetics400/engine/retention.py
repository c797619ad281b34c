"""Which of a run's checkpoints stay, and how much room they take.

The two newest, those of every n-th epoch if asked for, and the one with the best evaluation.
"""

import json
import os
import re
import shutil
from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from kinetics400.data.storage import write_atomic
from kinetics400.engine.optim import MOMENTS
from kinetics400.errors import StorageError

KEEP = 2
_BEST = "best.json"
_NAME = re.compile(r"step-(\d{10})")


def step_folders(root: Path) -> dict[int, Path]:
    """Checkpoint folders by step, oldest first; by name, their content is not looked at."""
    folders = {f: _NAME.fullmatch(f.name) for f in root.glob("step-*")}
    return dict(sorted((int(match[1]), folder) for folder, match in folders.items() if match))


def prune(root: Path, *, keep_every: int = 0) -> None:
    """Remove the checkpoints that need not stay.

    Args:
        root: `<save_dir>/checkpoints`.
        keep_every: steps; checkpoints of multiples of it stay; 0 for none.
    """
    folders = step_folders(root)
    best = best_step(root)
    for step in list(folders)[:-KEEP]:
        if step != best and not (keep_every and step % keep_every == 0):
            shutil.rmtree(folders[step], ignore_errors=True)


def note_score(root: Path, step: int, score: float) -> None:
    """Have the checkpoint of a step stay if none that is there has done better.

    Args:
        root: `<save_dir>/checkpoints`.
        step: evaluated; nothing happens where it was not saved.
        score: larger is better; of two equals the earlier stays.
    """
    if step not in step_folders(root):
        return
    if best_step(root) is None or score > json.loads((root / _BEST).read_text())["score"]:
        write_atomic(root / _BEST, json.dumps({"step": step, "score": score}))


def best_step(root: Path) -> int | None:
    """The step of the best checkpoint, None where it is not known or not there any more."""
    try:
        step = json.loads((root / _BEST).read_text(encoding="utf-8"))["step"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return step if step in step_folders(root) else None


def checkpoint_bytes(method: nn.Module, optimizer: Optimizer, *, has_average: bool) -> int:
    """Bytes of tensors in a checkpoint: weights, moments as large as these, and their average."""
    weights = sum(tensor.nbytes for tensor in method.state_dict().values())
    trained = sum(p.nbytes for p in method.parameters() if p.requires_grad)
    n_moments = len([name for name in MOMENTS[type(optimizer)] if name != "step"])
    return weights + trained * (n_moments + has_average)


def require_space(root: Path, size: int) -> None:
    """Make sure that the checkpoints fit, before days of work depend on it.

    While one is written, those it replaces are there still; those there are already count.

    Args:
        root: `<save_dir>/checkpoints`.
        size: of one, in bytes.

    Raises:
        StorageError: they do not fit.
    """
    place = root
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    needed = int(1.1 * size * (KEEP + 1 - min(KEEP, len(step_folders(root)))))
    if free < needed:
        raise StorageError(
            f"{root}: a checkpoint takes {size / 1e9:.3g} GB and {KEEP + 1} are there while one is "
            f"written: {needed / 1e9:.3g} GB are needed, {free / 1e9:.3g} GB are free. Free space "
            "or choose another --save_dir"
        )


def drop_from_cache(folder: Path) -> None:
    """Have the next reading of a folder's files come from the disk."""
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
