"""Weights in a pickle (`.pth`, `.bin`): read in a child process, which hands over safetensors.

`weights_only` keeps code in a pickle from running, by a reader that has had holes before
(CVE-2025-32434, CVE-2026-24747). So it works where a hole leads nowhere: without network, with
limits, and whatever it returns is checked like any stranger's file.
"""

import argparse
import pickle
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kinetics400.data.isolation import JobLimits, run_isolated
from kinetics400.errors import InputError, StorageError
from kinetics400.tensors import load_tensors, save_tensors

# What torch.load raises for damaged files; its unpickler checks little of what it reads.
DAMAGED_PICKLE = (
    *(pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError, TypeError),
    *(LookupError, AttributeError, AssertionError, struct.error),
)
SECONDS = 600  # after which a reader counts as hung
SPARE = 1 << 30  # bytes of memory and disk that reading may take beyond the file's own size


@dataclass(frozen=True)
class _Job:
    file: Path
    target: Path


def read_pickle(file: Path) -> dict[str, Tensor]:
    """The tensors of a state dict that `torch.save` has written, alone or under `model`, `module`.

    Raises:
        InputError: the file is damaged, or holds something else than dense tensors.
        StorageError: there is no room for a copy in the folder for temporary files.
    """
    try:
        size = file.stat().st_size
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    limits = JobLimits(seconds=SECONDS, address_space=4 * size + SPARE, file_bytes=2 * size + SPARE)
    with tempfile.TemporaryDirectory(prefix="kinetics400-") as folder:
        job = _Job(file, Path(folder) / "model.safetensors")
        (result,) = run_isolated(_translate, [job], n_worker=1, limits=limits, fork=True)
        if result.failure is not None:
            raise InputError(
                f"{file} cannot be loaded safely: the process that read it {result.failure} "
                f"({result.detail})"
            )
        kind, told = result.value or ("", "")
        if kind == "storage":
            raise StorageError(f"{told} (a copy of {file}; TMPDIR says where such copies go)")
        if kind:
            raise InputError(f"{file} {told}")
        try:
            return load_tensors(job.target)
        except InputError as error:
            raise InputError(f"{file} cannot be loaded safely: its reader left {error}") from error


def _reason(error: BaseException) -> str:
    """What torch found, in a line, without its advice to load the file unsafely."""
    lines = [line for line in str(error).splitlines() if line] or [type(error).__name__]
    is_told = not isinstance(error, pickle.UnpicklingError)
    otherwise = lines[0] if is_told else "it holds something else than tensors and plain values"
    return next((line for line in lines if "nsupported" in line), otherwise).partition(". Please")[
        0
    ]


def _translate(job: _Job) -> tuple[str, str] | None:
    """In the child: what is wrong, or None and the tensors are in `job.target`."""
    torch.set_num_threads(1)  # the threads of the process that this is a copy of are not here
    try:
        # Official training checkpoints carry their command line beside the weights, as a plain
        # Namespace; nothing else but tensors and containers is let in.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(job.file, map_location="cpu", weights_only=True)
    except DAMAGED_PICKLE as error:
        return "input", f"cannot be loaded safely as tensors (weights_only=True): {_reason(error)}"
    for key in ("model", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        return "input", "holds no state dict"
    if not all(isinstance(value, Tensor) for value in content.values()):
        return "input", "holds other things than tensors in its state dict"
    if sparse := [name for name, value in content.items() if value.layout != torch.strided]:
        return "input", f"holds sparse tensors ({sparse[0]!r}), which no model here has"
    most = job.file.stat().st_size
    if larger := [name for name, value in content.items() if value.nbytes > most]:
        return "input", f"is smaller than the tensor {larger[0]!r} that it claims to hold"
    try:
        # Copies: two names may share their memory, which the format does not know.
        save_tensors(job.target, {str(name): value.clone() for name, value in content.items()})
    except StorageError as error:
        return "storage", str(error)
    return None
