"""How much shared memory a loader needs: workers hand batches over through it. No torch."""

import os
import shutil
from pathlib import Path

# Where POSIX shared memory lies on Linux; elsewhere it has no folder, and no limit to check.
FOLDER = Path("/dev/shm")
# Batches that each worker prepares ahead of the training loop.
PREFETCH = 2
# Of what is free: other programs need some, and a full /dev/shm kills a worker with SIGBUS.
USABLE_SHARE = 0.6


def clip_bytes(num_frames: int, size: int) -> int:
    """Bytes of one uint8 clip (C, T, size, size)."""
    return 3 * num_frames * size * size


def needed_bytes(
    *, clips_per_batch: int, bytes_per_clip: int, num_workers: int, num_loaders: int = 1
) -> int:
    """Shared memory that loaders hold when their workers have run as far ahead as they may.

    One batch more per loader is in the training loop's hands.

    Args:
        clips_per_batch: of one loader's batch, repeats counted.
        bytes_per_clip: see `clip_bytes`.
        num_workers: per loader; without workers nothing is shared.
        num_loaders: training processes on this machine.
    """
    if num_workers == 0:
        return 0
    batches = num_workers * PREFETCH + 1
    return num_loaders * batches * clips_per_batch * bytes_per_clip


def free_bytes() -> int | None:
    """Free shared memory of this machine; None where it has no limit of its own."""
    return shutil.disk_usage(FOLDER).free if os.path.isdir(FOLDER) else None


def shortage(need: int) -> str | None:
    """What to tell the user when `need` bytes are more than this machine can share, else None."""
    free = free_bytes()
    if free is None or need <= USABLE_SHARE * free:
        return None
    return (
        f"shared memory: the loader's workers need {need / 1e9:.2f} GB of {FOLDER} and only "
        f"{USABLE_SHARE * free / 1e9:.2f} GB of the {free / 1e9:.2f} GB free there may be used. "
        "Lower --n_worker or --batch_size, or give the machine more (docker run --shm-size=16g; "
        f"mount -o remount,size=16G {FOLDER})"
    )
