"""Weights on disk: find, read, check key by key, load.

Told apart by their content: Hugging Face folders (ours are such folders), and the official `.pth`
of VideoMAE and VideoMAE V2 for pretraining and finetuning. All become our names (`keymaps`).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
)
from torch import Tensor, nn

from kinetics400.errors import InputError
from kinetics400.models.describe import stated_sizes
from kinetics400.models.keymaps import from_hf, from_official, some
from kinetics400.models.pickles import read_pickle
from kinetics400.models.vit import VitConfig
from kinetics400.tensors import load_tensors

WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")

_POSITIONS = (
    "For clips of other numbers of frames or pixels say where positions come from: --pos_embed "
    "interpolate or sinusoid (docs/weights.md)"
)
_KERNEL = "For other tubelets than the weights' give --resize_patch_embed (docs/weights.md)"
REMEDIES = {
    "image_size": _POSITIONS,
    "num_frames": _POSITIONS,
    "patch_size": _KERNEL,
    "tubelet_size": _KERNEL,
    "num_heads": "A wrong number of heads is put right by `kinetics400 convert --num_heads N`",
}


@dataclass(frozen=True)
class Weights:
    """Weights under our names, and what their folder states (None for a bare `.pth`).

    `sizes` are those of `VitConfig`, `config` is the whole `config.json`.
    """

    source: str
    state: dict[str, Tensor]
    sizes: dict[str, Any] | None
    config: dict[str, Any] | None = None


# --- find -----------------------------------------------------------------------------------------


def find_weights(pretrained_dir: Path | None, pretrained_name: str | None) -> Path | None:
    """Where the named weights lie on this machine, None if nowhere.

    A given directory is searched alone and never causes a download: itself, `model` in it, the
    name in it, the name's last part in it (and `model` in those), a single `.pth` in it. Without a
    directory the name is a folder, a file, or in the hub's cache.

    Raises:
        InputError: neither is given, or the directory holds several `.pth` files and no folder.
    """
    if pretrained_dir is None:
        if pretrained_name is None:
            raise InputError("--pretrained needs --pretrained_dir, --pretrained_name or both")
        if Path(pretrained_name).exists():
            return find_weights(Path(pretrained_name), None)
        cached = _cached(pretrained_name)
        return cached.parent if cached else None
    if pretrained_dir.is_file():
        return pretrained_dir.parent if pretrained_dir.name in WEIGHTS_FILES else pretrained_dir
    for folder in _candidates(pretrained_dir, pretrained_name):
        if any((folder / name).is_file() for name in WEIGHTS_FILES):
            return folder
    pth_files = sorted(pretrained_dir.glob("*.pth"))
    if len(pth_files) > 1:
        names = ", ".join(file.name for file in pth_files)
        raise InputError(
            f"--pretrained_dir {pretrained_dir} holds several .pth files ({names}): give the path "
            "of one of them"
        )
    return pth_files[0] if pth_files else None


def _candidates(folder: Path, name: str | None) -> list[Path]:
    found = [folder, folder / "model"]
    if name:
        name, _ = _hub_name(name)
        for inner in dict.fromkeys((folder / name, folder / name.rsplit("/", 1)[-1])):
            found += [inner, inner / "model"]
    return found


def _hub_name(name: str) -> tuple[str, str | None]:
    """Of "owner/model@revision" the model and the revision; None is the newest."""
    model, _, revision = name.partition("@")
    return model, revision or None


def _cached(name: str) -> Path | None:
    model, revision = _hub_name(name)
    for file in WEIGHTS_FILES:
        try:
            path = try_to_load_from_cache(model, file, revision=revision)
        except HFValidationError as error:
            raise InputError(
                f"--pretrained_name {name!r} is neither a path that exists nor a hub name: {error}"
            ) from error
        if isinstance(path, str):
            return Path(path)
    return None


def download_weights(pretrained_name: str) -> Path:
    """Fetch a model of the hub into its cache; safetensors where it has them.

    Args:
        pretrained_name: "owner/model", or "owner/model@revision" with a branch, tag or commit.

    Raises:
        InputError: the hub does not have it, cannot be reached, or holds no weights under it.
    """
    model, revision = _hub_name(pretrained_name)
    try:
        config = Path(hf_hub_download(model, "config.json", revision=revision))
        for name in WEIGHTS_FILES:
            try:
                hf_hub_download(model, name, revision=revision)
                break
            except RemoteEntryNotFoundError:
                continue
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise InputError(
            f"--pretrained_name {pretrained_name}: not in the local cache, and the hub did not "
            f"give it ({type(error).__name__}). Put the model's folder on this machine and name "
            "it with --pretrained_dir"
        ) from error
    found = find_weights(config.parent, None)
    if found is None:
        raise InputError(
            f"--pretrained_name {pretrained_name}: the hub has it, but without any of "
            f"{', '.join(WEIGHTS_FILES)}"
        )
    return found


# --- read -----------------------------------------------------------------------------------------


def read_weights(path: Path) -> Weights:
    """Read a Hugging Face folder or a file of weights into our names, whatever those in it are.

    Raises:
        InputError: the file is damaged, holds something else than tensors, or is no VideoMAE.
    """
    if path.is_dir():
        file = next(path / name for name in WEIGHTS_FILES if (path / name).is_file())
        config = _read_config(path / "config.json")
        state = _read_tensors(file)
        sizes = stated_sizes(config, path / "config.json")
        return Weights(str(path), from_hf(state, str(file)), sizes, config)
    state = _read_tensors(path)
    renamed = from_hf if any(key.startswith("videomae.") for key in state) else from_official
    return Weights(str(path), renamed(state, str(path)), None)


def _read_tensors(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return load_tensors(file)
    return read_pickle(file)


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("model_type") != "videomae":
        raise InputError(f"{file} is not a VideoMAE model's (model_type must be 'videomae')")
    if "auto_map" in config:
        raise InputError(
            f"{file} asks for code of its repository (auto_map), which is never run: take a folder "
            "without, of the same weights"
        )
    names = config.get("id2label") or {}
    if not isinstance(names, dict) or not all(re.fullmatch(r"\d+", key) for key in names):
        raise InputError(f"{file}: id2label must map numbers to class names")
    return config


# --- check and load -------------------------------------------------------------------------------


def check_architecture(
    weights: Weights, config: VitConfig, *, may_differ: Sequence[str] = ()
) -> None:
    """Compare the sizes that a folder states with those asked for.

    Args:
        weights: what `read_weights` gave.
        config: what is asked for.
        may_differ: sizes to leave out, by name.

    Raises:
        InputError: they differ; lists every difference, and what to do about those that can be
            helped.
    """
    wrong = {
        name: value
        for name, value in (weights.sizes or {}).items()
        if name not in ("pos_grid", *may_differ) and value != getattr(config, name)
    }
    if wrong:
        listed = "; ".join(f"{k} is {v}, asked for {getattr(config, k)}" for k, v in wrong.items())
        remedies = dict.fromkeys(REMEDIES[name] for name in wrong if name in REMEDIES)
        raise InputError(
            ". ".join([f"{weights.source} is another architecture: {listed}", *remedies])
        )


def load_pretrained(
    module: nn.Module,
    weights: Weights,
    *,
    may_miss: Sequence[str] = (),
    may_drop: Sequence[str] = (),
) -> None:
    """Copy weights into a module, key by key.

    Args:
        module: its parameters' names are ours.
        weights: what `read_weights` gave.
        may_miss: prefixes of parameters that may keep their initial values.
        may_drop: prefixes of weights that may be left unused.

    Raises:
        InputError: keys are missing or unexpected, or shapes differ; lists them.
    """
    own = module.state_dict()
    theirs = {k: v for k, v in weights.state.items() if k in own or not _begins(k, may_drop)}
    missing = [key for key in own if key not in theirs and not _begins(key, may_miss)]
    unexpected = [key for key in theirs if key not in own]
    shapes = [
        f"{key} is {tuple(value.shape)}, asked for {tuple(own[key].shape)}"
        for key, value in theirs.items()
        if key in own and value.shape != own[key].shape
    ]
    problems = [
        f"{title}: {some(keys)}"
        for title, keys in (
            ("missing keys", missing),
            ("unexpected keys", unexpected),
            ("another architecture", shapes),
        )
        if keys
    ]
    if problems:
        raise InputError(
            f"{weights.source} does not fit the model asked for. {'. '.join(problems)}"
        )
    # A model built for its shapes alone (a dry run) has nowhere to copy to.
    shapes_only = any(value.is_meta for value in own.values())
    module.load_state_dict(theirs, strict=False, assign=shapes_only)


def _begins(key: str, prefixes: Sequence[str]) -> bool:
    return key.startswith(tuple(prefixes))
