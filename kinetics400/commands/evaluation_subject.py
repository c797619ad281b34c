"""What `evaluate` scores: find a classifier's weights, read them, and what its run knows."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from kinetics400.commands.plan import vit_config
from kinetics400.config.common import ModelFlags
from kinetics400.config.parse import named_flags
from kinetics400.data.listing import read_names
from kinetics400.engine.checkpoint import AVERAGE, find_checkpoint, read_checkpoint
from kinetics400.errors import InputError, MissingInput
from kinetics400.methods.classification import Classification
from kinetics400.models.architectures import ARCHITECTURES
from kinetics400.models.pretrained import (
    WEIGHTS_FILES,
    Weights,
    find_weights,
    load_pretrained,
    read_weights,
)
from kinetics400.models.vit import VitConfig
from kinetics400.tensors import load_tensors

# Flags of finetuning that say what is scored and how; none that depends on the machine.
RUN_FLAGS = ("data_dir", "val_list", "sampling", "sampling_rate", "target_fps", "views", "merge")
# A flag of the user's also overrules what belongs to it: frames are not timed and sparse at once,
# and a list names the videos of one folder.
OVERRULES = {"sampling": {"target_fps"}, "data_dir": {"val_list"}}


# --- the run --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunFacts:
    """What the run that made a model says about it.

    Attributes:
        sources: files that say it.
        flags: values by flag.
    """

    sources: tuple[Path, ...]
    flags: Mapping[str, Any]

    def as_flags(self, argv: Sequence[str]) -> list[str]:
        """Flags to put before the user's own, which overrule them."""
        named = named_flags(argv)
        overruled = named.union(*(OVERRULES.get(name, set()) for name in named))
        known = ((name, self.flags.get(name)) for name in RUN_FLAGS if name not in overruled)
        return [f"--{name}={value}" for name, value in known if value is not None]


def read_run(checkpoint: Path) -> RunFacts:
    """Read config.yaml of the run that a model lies in, and the state of a checkpoint.

    Raises:
        InputError: one of the files is damaged.
    """
    place = checkpoint.resolve()  # a link to the newest checkpoint still lies in its run
    if place.name in WEIGHTS_FILES:
        place = place.parent
    if place.parent.name == "checkpoints":
        run = place.parents[1]
    else:
        run = place.parent if place.name == "model" else place
    sources: list[Path] = []
    flags: dict[str, Any] = {}
    for file, read in ((run / "config.yaml", _recipe), (place / "state.json", _agreed)):
        if file.is_file() and (found := read(file)):
            sources.append(file)
            flags.update(found)
    return RunFacts(tuple(sources), flags)


def _recipe(file: Path) -> dict[str, Any]:
    """Flags of a run; none where the file is something else's, as its name is not ours alone."""
    try:
        flags = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    is_ours = isinstance(flags, dict) and {"model_name", "save_dir"} <= flags.keys()
    return flags if is_ours else {}


def _agreed(file: Path) -> dict[str, Any]:
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        return {name: value for name, value in state["agreed"].items() if value is not None}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is not the state of a checkpoint: {error}") from error


# --- the model ------------------------------------------------------------------------------------


def load_classifier(
    checkpoint: Path,
    *,
    dtype: torch.dtype = torch.float32,
    num_frames: int | None = None,
    input_size: int | None = None,
) -> Classification:
    """Load a finetuned model: run directory, model folder, checkpoint folder or official `.pth`.

    Args:
        checkpoint: where it lies.
        dtype: type in which clips reach it.
        num_frames: of a `.pth`, which does not say; 16 by default.
        input_size: likewise; 224 by default.

    Raises:
        InputError: it is absent, damaged, not a classifier, or of other sizes than those given.
    """
    given = {"num_frames": num_frames, "image_size": input_size}
    weights = _read(_find(checkpoint), {k: v for k, v in given.items() if v is not None})
    if "head.weight" not in weights.state:
        if any(key.startswith(("decoder.", "mask_token")) for key in weights.state):
            raise InputError(
                f"{weights.source} is a pretraining model: it has a decoder, and no head that "
                "tells classes apart. Finetune it first: python -m train --pretrained "
                f"--pretrained_dir {checkpoint}"
            )
        raise InputError(f"{weights.source} is not a finetuned classifier: it has no head")
    assert weights.sizes is not None
    for name, value in given.items():
        if value is not None and weights.sizes[name] != value:
            flag = {"image_size": "input_size"}.get(name, name)
            raise InputError(
                f"--{flag} {value}: {weights.source} was made for {weights.sizes[name]}; "
                "leave the flag out"
            )
    try:
        config = VitConfig(**weights.sizes)
    except ValueError as error:
        raise InputError(f"{weights.source} does not describe a model: {error}") from error
    method = Classification(config, len(weights.state["head.weight"]), dtype=dtype)
    load_pretrained(method, weights)
    return method


def _find(checkpoint: Path) -> Path:
    """The folder or file that holds the weights."""
    if not checkpoint.exists():
        raise MissingInput(f"--checkpoint {checkpoint} does not exist")
    if _is_checkpoint(checkpoint):
        return checkpoint
    try:
        found = find_weights(checkpoint, None)
    except InputError as error:  # in the words of another flag
        raise InputError(
            f"--checkpoint {checkpoint} holds several .pth files: give the path of one of them"
        ) from error
    if found is not None:
        return found
    root = checkpoint if checkpoint.name == "checkpoints" else checkpoint / "checkpoints"
    newest, _ = find_checkpoint(root)
    if newest is not None:
        raise InputError(
            f"--checkpoint {checkpoint} holds no finished model; the newest checkpoint of its run "
            f"is {newest.folder}: name that"
        )
    raise MissingInput(
        f"--checkpoint {checkpoint} holds no model: expected model.safetensors in it or in its "
        "model/, a checkpoint of a run, or an official .pth"
    )


def _is_checkpoint(folder: Path) -> bool:
    return (folder / "manifest.json").is_file() and (folder / "state.json").is_file()


def _read(found: Path, given: Mapping[str, int]) -> Weights:
    """Read weights with the sizes of their model, as far as they lead to a classifier."""
    if _is_checkpoint(found):
        return _read_checkpoint(found)
    weights = read_weights(found)
    if weights.sizes is None and "head.weight" in weights.state:
        return replace(weights, sizes={**_sizes_of(weights), **given})
    return weights


def _read_checkpoint(folder: Path) -> Weights:
    agreed = read_checkpoint(folder).state["agreed"]
    state = load_tensors(folder / "model.safetensors")
    if (folder / AVERAGE).is_file():
        state |= load_tensors(folder / AVERAGE)
    if "head.weight" not in state:
        return Weights(str(folder), state, None)
    model = ModelFlags(**{f.name: agreed[f.name] for f in fields(ModelFlags) if f.name in agreed})
    vit = vit_config(model)
    return Weights(str(folder), state, {f.name: getattr(vit, f.name) for f in fields(vit)})


def _sizes_of(weights: Weights) -> dict[str, int]:
    """Sizes of a bare `.pth`, from its shapes; frames and pixels are the published 16 and 224."""
    kernel = weights.state["encoder.patch_embed.proj.weight"].shape
    if len(kernel) != 5:
        raise InputError(f"{weights.source}: its patch embedding is not one of videos")
    blocks = {re.match(r"encoder\.blocks\.(\d+)\.", key) for key in weights.state}
    depth = len({match[1] for match in blocks if match})
    heads = {(size.embed_dim, size.depth): size.num_heads for size in ARCHITECTURES.values()}
    if (kernel[0], depth) not in heads:
        raise InputError(
            f"{weights.source} has width {kernel[0]} and depth {depth}, which is no published "
            "size: its number of heads cannot be read off its weights. Make a model folder of it"
        )
    return {
        "embed_dim": kernel[0],
        "depth": depth,
        "num_heads": heads[kernel[0], depth],
        "tubelet_size": kernel[2],
        "patch_size": kernel[3],
        "num_frames": 16,
        "image_size": 224,
    }


# --- the classes ----------------------------------------------------------------------------------


def class_names(
    checkpoint: Path, given: Path | None, facts: RunFacts, num_classes: int
) -> tuple[str, ...]:
    """Names of the classes, by label: the user's, the model folder's, its run's, Kinetics-400's.

    Raises:
        InputError: a file of names cannot be read, or has another number of them.
    """
    config = _find(checkpoint) / "config.json"
    if given is None and config.is_file():
        names = json.loads(config.read_text(encoding="utf-8")).get("id2label") or {}
        if set(map(int, names)) == set(range(num_classes)):
            return tuple(str(names[key]) for key in sorted(names, key=int))
    named = facts.flags.get("label_names")
    path = Path(named) if given is None and named is not None else given
    return read_names(path, num_classes) or tuple(f"class {i}" for i in range(num_classes))
