"""Tensors on disk: safetensors, durable when written, checked before they are loaded."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kinetics400.data.storage import fsync_file
from kinetics400.errors import InputError, StorageError

MOST_HEADER_BYTES = 16 << 20
# As the format names them; of what we write.
TYPES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"},
}


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


def load_tensors(file: Path, like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Read a safetensors file, on the CPU.

    Args:
        file: from anywhere; nothing in it is believed before it is checked.
        like: tensors whose names, shapes and types the file's must have; looked at before memory
            is taken for any.

    Raises:
        InputError: it is damaged, of other tensors, or one that readers understand differently.
    """
    try:
        stated = _header(file)
        if like is not None:
            _compare(stated, like)
        return load_file(file)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise InputError(f"{file} does not hold the tensors it should: {error}") from error


def _header(file: Path) -> dict[str, Any]:
    """What a file says of its tensors: name -> shape and so on.

    Raises:
        ValueError: it is no header, larger than any honest one, or names something twice.
    """
    with open(file, "rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > MOST_HEADER_BYTES:
            raise ValueError(f"its header claims {size:,} bytes")
        stated = json.loads(stream.read(size), object_pairs_hook=_without_duplicates)
    stated.pop("__metadata__", None)
    return stated


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("its header names something twice")
    return found


def _compare(stated: Mapping[str, Any], like: Mapping[str, Tensor]) -> None:
    if stated.keys() != like.keys():
        unlike = sorted(stated.keys() ^ like.keys())
        raise ValueError(f"too many or too few: {', '.join(map(repr, unlike[:5]))}")
    for name, tensor in like.items():
        if stated[name]["shape"] != list(tensor.shape):
            raise ValueError(f"{name} is {stated[name]['shape']}, not {list(tensor.shape)}")
        if stated[name]["dtype"] != TYPES[tensor.dtype]:
            raise ValueError(f"{name} is {stated[name]['dtype']}, not {TYPES[tensor.dtype]}")
