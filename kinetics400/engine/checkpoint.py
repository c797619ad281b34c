"""Checkpoints of a run: safetensors and JSON, no pickle, complete or absent.

Tensors are whole in it, however they are sharded, so that a run may go on in another way.

<save_dir>/checkpoints/step-0000012000/   appears only by rename
    model.safetensors  optimizer.safetensors  average.safetensors (with an average of the weights)
    rank-00000.safetensors ...            random state of each rank
    state.json                            counters, what the run must agree on, what made it
    manifest.json                         written last: size and sha256 of every file
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.optim import Optimizer

from kinetics400 import __version__
from kinetics400.data.storage import fsync_folder, write_atomic
from kinetics400.engine.agreement import Agreement
from kinetics400.engine.average import WeightAverage
from kinetics400.engine.generators import random_state, restore_random_state
from kinetics400.engine.optim import blank_state, load_optimizer_state, optimizer_state
from kinetics400.engine.retention import drop_from_cache, prune, step_folders
from kinetics400.engine.sharding import gathered, put
from kinetics400.errors import InputError, StorageError
from kinetics400.methods.base import Method
from kinetics400.tensors import load_tensors, save_tensors

SCHEMA = 1
MODEL, OPTIMIZER, AVERAGE = (f"{of}.safetensors" for of in ("model", "optimizer", "average"))
DAMAGED = ".bad-"  # before the name of a checkpoint that could not be read
_MEANS = "means."


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    step: int
    state: dict[str, Any]


def save_checkpoint(
    fabric: Fabric,
    root: Path,
    *,
    step: int,
    method: Method,
    optimizer: Optimizer,
    agreed: Mapping[str, Any],
    agreement: Agreement,
    average: WeightAverage | None = None,
    means: Mapping[str, Tensor] | None = None,
    keep_every: int = 0,
) -> None:
    """Write a checkpoint, read it back, then remove those that need not stay. By all ranks.

    Args:
        fabric: the ranks.
        root: `<save_dir>/checkpoints`.
        step: steps done.
        method: its parameters and buffers are saved.
        optimizer: its moments are saved.
        agreed: facts that a run continuing from here must share.
        agreement: how ranks tell each other whether they have succeeded.
        average: is saved as well.
        means: this rank's sums since the last log line.
        keep_every: see `retention.prune`.

    Raises:
        StorageError: some rank could not write, or the disk gives back something else; older
            checkpoints are as they were, and nothing is left of the new one.
    """
    final = root / f"step-{step:010}"
    temporary = root / f".tmp-step-{step:010}"

    def begin() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)

    def write_rank() -> None:
        state = {f"{_MEANS}{name}": value for name, value in (means or {}).items()}
        name = f"rank-{fabric.global_rank:05}.safetensors"
        save_tensors(temporary / name, {**random_state(), **state})

    def write_whole(name: str, tensors: Mapping[str, Tensor]) -> None:
        found = gathered(tensors, keep=fabric.is_global_zero)
        if fabric.is_global_zero:
            save_tensors(temporary / name, found)

    def seal() -> None:
        state = {
            "schema": SCHEMA,
            "step": step,
            "precision": fabric.strategy.precision.state_dict(),  # the loss scale of float16
            "agreed": dict(agreed),
            "made_with": made_with(fabric.device),
        }
        write_atomic(temporary / "state.json", json.dumps(state, indent=2))
        manifest = {
            file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)}
            for file in sorted(temporary.iterdir())
        }
        write_atomic(temporary / "manifest.json", json.dumps(manifest, indent=2))
        if final.exists():  # the same step again
            shutil.rmtree(final)
        temporary.rename(final)
        fsync_folder(root)

    def verify() -> None:
        drop_from_cache(final)
        try:
            read_checkpoint(final)
        except InputError as damage:
            shutil.rmtree(final)
            raise StorageError(f"what was written does not read back: {damage}") from damage

    error: OSError | StorageError | None = None
    for on_rank_zero_only, part in (
        (True, begin),
        (False, write_rank),
        (False, lambda: write_whole(MODEL, method.state_dict())),
        (False, lambda: write_whole(OPTIMIZER, optimizer_state(optimizer))),
        (False, lambda: write_whole(AVERAGE, average.state()) if average else None),
        (True, seal),
        (True, verify),
    ):
        if fabric.is_global_zero or not on_rank_zero_only:
            try:
                part()
            except (OSError, StorageError) as caught:
                error = caught
        if agreement.any(error is not None):
            if fabric.is_global_zero:
                shutil.rmtree(temporary, ignore_errors=True)
            reason = "another rank could not write" if error is None else str(error)
            raise StorageError(f"checkpoint {final.name} could not be written: {reason}") from error
    if fabric.is_global_zero:
        prune(root, keep_every=keep_every)


def refuse_later(root: Path, step: int) -> None:
    """Make sure that a run continued at `step` finds no checkpoints from beyond it.

    It would neither know them for another run's nor keep its own older ones beside them.

    Raises:
        InputError: there are some; they are the user's to remove.
    """
    later = [folder.name for there, folder in step_folders(root).items() if there > step]
    if later:
        raise InputError(
            f"{root} holds checkpoints later than step {step} ({', '.join(later)}): move them "
            "away, or choose another --save_dir"
        )


def remove_unfinished(root: Path) -> None:
    """Remove what a killed save left."""
    for folder in root.glob(".tmp-step-*"):
        shutil.rmtree(folder)


def find_checkpoint(root: Path) -> tuple[Checkpoint | None, str]:
    """The newest checkpoint that can be read, None where there is none.

    One damaged checkpoint is passed over, for the one before it; more than one is a failing disk.

    Returns:
        The checkpoint, and what was wrong with the one passed over ("" if none was).

    Raises:
        InputError: the newest is damaged and there is none before it, or that is damaged, too.
    """
    folders = list(step_folders(root).values())
    if not folders:
        return None, ""
    try:
        return read_checkpoint(folders[-1]), ""
    except InputError as error:
        if len(folders) < 2:
            raise
        return read_checkpoint(folders[-2]), str(error)


def set_aside_later(root: Path, step: int) -> None:
    """Rename the checkpoints beyond `step`, which could not be read: another name, nothing lost."""
    for there, folder in step_folders(root).items():
        if there > step:
            target = root / f"{DAMAGED}{folder.name}"
            shutil.rmtree(target, ignore_errors=True)
            folder.rename(target)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Verify a checkpoint folder against its manifest.

    Raises:
        InputError: it is no checkpoint, a file is damaged or missing, or it is of a newer schema.
    """
    remedy = "Remove that folder to continue from the one before it"
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        there = {file.name for file in folder.iterdir()} - {"manifest.json"}
        if there != set(manifest):
            unlike = ", ".join(sorted(there ^ set(manifest)))
            raise InputError(
                f"{folder} is not a complete checkpoint: it and its manifest differ in {unlike}. "
                + remedy
            )
        for name, entry in manifest.items():
            found = {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
            if found != entry:
                raise InputError(
                    f"checkpoint {folder}: {name} is damaged (its size or sha256 differs from the "
                    f"manifest's). {remedy}"
                )
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder} is not a complete checkpoint: {error}. {remedy}") from error
    if not isinstance(state, dict) or state.get("schema") != SCHEMA:
        schema = state.get("schema") if isinstance(state, dict) else None
        raise InputError(f"checkpoint {folder} has schema {schema}, this version reads {SCHEMA}")
    kinds = {"step": int, "agreed": dict, "precision": dict, "made_with": dict}
    if wrong := [name for name, kind in kinds.items() if type(state.get(name)) is not kind]:
        raise InputError(f"checkpoint {folder}: state.json has no {', '.join(wrong)}. {remedy}")
    return Checkpoint(folder, state["step"], state)


def load_checkpoint(
    fabric: Fabric,
    checkpoint: Checkpoint,
    *,
    method: Method,
    optimizer: Optimizer,
    average: WeightAverage | None = None,
) -> dict[str, Tensor]:
    """Put model, moments, average, loss scale and this rank's random state back.

    Raises:
        InputError: a file does not hold what it should, though it is as its manifest says.

    Returns:
        This rank's sums since the last log line; none when the number of ranks has changed.
    """
    folder = checkpoint.folder
    put(method.state_dict(), load_tensors(folder / MODEL, method.state_dict()))
    moments = load_tensors(folder / OPTIMIZER, blank_state(optimizer))
    load_optimizer_state(optimizer, moments)
    if average is not None:
        average.load_state(load_tensors(folder / AVERAGE, average.state()))
    try:
        fabric.strategy.precision.load_state_dict(checkpoint.state["precision"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{folder}/state.json: no loss scale of this precision") from error
    own = folder / f"rank-{fabric.global_rank:05}.safetensors"
    if not own.exists():  # the number of ranks has grown: then they start afresh
        return {}
    state = load_tensors(own)
    try:
        restore_random_state(state)
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError(f"{own} does not hold the state of the generators: {error}") from error
    if len(list(folder.glob("rank-*.safetensors"))) != fabric.world_size:
        return {}
    return {
        name.removeprefix(_MEANS): value for name, value in state.items() if name.startswith(_MEANS)
    }


def check_agreement(checkpoint: Checkpoint, agreed: Mapping[str, Any]) -> None:
    """Refuse to continue a run with another one's settings.

    Raises:
        InputError: lists every difference.
    """
    before = checkpoint.state["agreed"]
    now = json.loads(json.dumps(dict(agreed)))
    changed = [
        f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise InputError(
            f"the run in {checkpoint.folder.parent.parent} was started with other settings: "
            f"{'; '.join(changed)}. Repeat its command, or choose another --save_dir"
        )


def versions() -> dict[str, str]:
    """Of what a run's bits depend on."""
    return {"kinetics400": __version__, "torch": torch.__version__, "av": version("av")}


def made_with(device: torch.device) -> dict[str, str]:
    """Versions and device whose arithmetic a run's bits depend on."""
    return {
        **versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def made_otherwise(checkpoint: Checkpoint, device: torch.device) -> list[str]:
    """In words, what has changed of `made_with`: none of it forbids to go on."""
    before = checkpoint.state["made_with"]
    return [
        f"{name} {now} instead of {before.get(name)}"
        for name, now in made_with(device).items()
        if before.get(name) != now
    ]


def _sha256(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
