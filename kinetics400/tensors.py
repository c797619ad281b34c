"""Tensors on disk: safetensors, durable when the call returns."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from kinetics400.data.storage import fsync_file
from kinetics400.errors import StorageError


def save_tensors(
    file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors from any device to a safetensors file.

    Raises:
        StorageError: the disk is full, read-only or failing.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(on_cpu, file, metadata=metadata)
    except SafetensorError as error:  # also what it makes of an OSError
        raise StorageError(
            f"writing {file}: {error}. Free space, then repeat the command"
        ) from error
    fsync_file(file)
