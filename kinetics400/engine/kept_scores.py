"""Scores that an evaluation leaves on disk as it goes: repeated after a kill it does the rest."""

import base64
import hashlib
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from kinetics400.data.dataset import Unreadable
from kinetics400.data.storage import append_json_lines, disk_errors, read_json_lines

FOLDER = ".scores"
FLUSH_SECONDS = 30.0  # what a kill costs at most


@dataclass(frozen=True)
class Scored:
    """What is known of one video.

    Attributes:
        index: its place in the list.
        label: its class.
        scores: (K,) float64, merged; NaN where it has none.
        failure: why it has none.
    """

    index: int
    label: int
    scores: Tensor
    failure: Unreadable | None = None


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of all parameters and buffers, with their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class KeptScores:
    """One rank's part of an evaluation's memory; all ranks make it together, and close it so.

    Each rank appends to a journal of its own. What other evaluations have left in the folder is
    removed: their scores would be of something else.

    Args:
        output_dir: where the journals lie, in a hidden folder.
        fabric: the ranks. They see the same folder, or else what rank 0 sees is what is known.
        about: everything that scores depend on, as JSON has it.
    """

    def __init__(self, output_dir: Path, fabric: Fabric, about: Mapping[str, Any]) -> None:
        self._folder = output_dir / FOLDER
        self._fabric = fabric
        self._file = self._folder / f"rank-{fabric.global_rank:05}.jsonl"
        self._unsaved: list[Scored] = []
        self._flushed = time.monotonic()
        self._head = {"about": dict(about)}
        found: dict[int, Scored] = {}
        if fabric.is_global_zero and self._folder.is_dir():
            with disk_errors(f"preparing {self._folder}"):
                for file in sorted(self._folder.iterdir()):
                    first, *rows = read_json_lines(file) or [{}]
                    if first == self._head:
                        found |= {row["index"]: _from_row(row) for row in rows}
                    else:
                        file.unlink()
        self._own = list(found.values())
        """Known before, on rank 0, which speaks for all."""
        self.done: set[int] = fabric.broadcast(set(found))
        """Places of the videos that are scored already."""

    def known(self) -> list[Scored]:
        """What was scored before, for rank 0 to count; nothing on the others."""
        return list(self._own)

    def add(self, scored: list[Scored]) -> None:
        """Take in what was scored; it is on the disk within half a minute.

        Failures are left out: who repeats the command may have mended them.

        Raises:
            StorageError: the disk is full, read-only or failing.
        """
        self._unsaved += [one for one in scored if one.failure is None]
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was taken in.

        Raises:
            StorageError: the disk is full, read-only or failing.
        """
        if self._unsaved:
            self._folder.mkdir(parents=True, exist_ok=True)
            head = [] if self._file.exists() else [self._head]
            append_json_lines(self._file, [*head, *map(_to_row, self._unsaved)])
        self._unsaved.clear()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Forget everything: the report is written."""
        self._fabric.barrier()
        if self._fabric.is_global_zero and self._folder.is_dir():
            shutil.rmtree(self._folder)


def _to_row(scored: Scored) -> dict[str, Any]:
    return {
        "index": scored.index,
        "label": scored.label,
        "scores": base64.b64encode(scored.scores.numpy().tobytes()).decode(),
    }


def _from_row(row: Mapping[str, Any]) -> Scored:
    scores = np.frombuffer(base64.b64decode(row["scores"]), np.float64)
    return Scored(row["index"], row["label"], torch.from_numpy(scores.copy()))
