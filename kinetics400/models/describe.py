"""What a model is, read off its `config.json`, or off the shapes of its weights.

Shapes do not tell everything: numbers of heads come from the published widths or from the user,
frames and pixels (whose positions are computed, not stored) from the user alone.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from kinetics400.errors import InputError
from kinetics400.models.architectures import DECODER_HEADS, HEADS
from kinetics400.models.vit import DecoderConfig, VitConfig


@dataclass(frozen=True, kw_only=True)
class Description:
    """A pretraining model (it has a decoder) or a classifier (it has classes)."""

    encoder: VitConfig
    decoder: DecoderConfig | None = None
    num_classes: int | None = None
    norm_pix_loss: bool = True
    label_names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the user says of a model; None leaves it to the weights."""

    num_heads: int | None = None
    decoder_num_heads: int | None = None
    num_frames: int | None = None
    input_size: int | None = None


def stated_sizes(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The encoder's sizes by our names; absent ones are the Hugging Face class's defaults.

    Raises:
        InputError: they are no numbers.
    """
    defaults = {
        "image_size": 224,
        "patch_size": 16,
        "num_channels": 3,
        "num_frames": 16,
        "tubelet_size": 2,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    }
    theirs = {key: config.get(key, default) for key, default in defaults.items()}
    wrong = [f"{key} {value!r}" for key, value in theirs.items() if type(value) is not int]
    if wrong:
        raise InputError(f"{file}: not whole numbers: {', '.join(wrong)}")
    if config.get("hidden_act", "gelu") != "gelu":
        raise InputError(f"{file}: hidden_act {config['hidden_act']!r} is not a VideoMAE's (gelu)")
    pos_grid = config.get("pos_grid")
    if pos_grid is not None and not _three_numbers(pos_grid):
        raise InputError(f"{file}: pos_grid {pos_grid!r} is not three whole numbers")
    width = theirs.pop("hidden_size")
    return {
        "embed_dim": width,
        "depth": theirs.pop("num_hidden_layers"),
        "num_heads": theirs.pop("num_attention_heads"),
        "in_channels": theirs.pop("num_channels"),
        "mlp_ratio": theirs.pop("intermediate_size") / max(width, 1),
        "pos_grid": None if pos_grid is None else tuple(pos_grid),
        **theirs,
    }


def _three_numbers(value: object) -> bool:
    return isinstance(value, list) and [type(size) for size in value] == [int] * 3


def describe(
    state: Mapping[str, Tensor], config: Mapping[str, Any] | None, source: str, told: Told
) -> Description:
    """Describe a model from its weights, from what its folder states, and from what the user says.

    Args:
        state: weights under our names.
        config: the folder's `config.json`, None for a bare file.
        source: where they come from, for messages.
        told: what the user says.

    Raises:
        InputError: it is neither a pretraining model nor a classifier; something is unknown and
            must be told; or two of the three contradict each other.
    """
    _check_kind(state, source)
    stated = None if config is None else stated_sizes(config, Path(source) / "config.json")
    sizes = shaped_sizes(state, source)
    decoder = _decoder(state, config, source, told)
    stated_heads = None if stated is None else stated["num_heads"]
    width = sizes["embed_dim"]
    sizes["num_heads"] = _heads("num_heads", width, told.num_heads, stated_heads, source)
    sizes |= _clips(stated, told, source)
    if stated is not None:
        sizes["pos_grid"] = stated["pos_grid"]
        wrong = [
            f"{name} is {sizes[name]:g}, config.json says {stated[name]:g}"
            for name in sizes
            if name not in ("num_heads", "pos_grid") and sizes[name] != stated[name]
        ]
        if wrong:
            raise InputError(f"{source} contradicts its config.json: {'; '.join(wrong)}")
    try:
        encoder = VitConfig(**sizes)
    except ValueError as error:
        raise InputError(f"{source}: these sizes make no model: {error}") from error
    head = state.get("head.weight")
    names: dict[str, object] = {} if head is None else (config or {}).get("id2label") or {}
    return Description(
        encoder=encoder,
        decoder=decoder,
        num_classes=None if head is None else len(head),
        norm_pix_loss=bool((config or {}).get("norm_pix_loss", True)),
        label_names=tuple(str(names[key]) for key in sorted(names, key=int)),
    )


def _clips(stated: Mapping[str, Any] | None, told: Told, source: str) -> dict[str, int]:
    """Frames and pixels of a clip: as stated, or, where nothing is, as told or published."""
    if stated is None:
        return {
            "num_frames": 16 if told.num_frames is None else told.num_frames,
            "image_size": 224 if told.input_size is None else told.input_size,
        }
    sizes = {"num_frames": told.num_frames, "input_size": told.input_size}
    for (flag, value), name in zip(sizes.items(), ("num_frames", "image_size"), strict=True):
        if value not in (None, stated[name]):
            raise InputError(
                f"--{flag} {value}: {source} states {name} {stated[name]}; the flag is for files "
                "that state none"
            )
    return {name: stated[name] for name in ("num_frames", "image_size")}


def _check_kind(state: Mapping[str, Tensor], source: str) -> None:
    pretraining, classifier = "encoder_to_decoder.weight" in state, "head.weight" in state
    if pretraining == classifier:
        raise InputError(
            f"{source} is neither a pretraining model (with a decoder) nor a classifier (with a "
            f"head): it has {'both' if classifier else 'neither decoder nor head'}"
        )
    if classifier and "fc_norm.weight" not in state:
        raise InputError(
            f"{source} is a classifier without fc_norm: it reads its first token instead of the "
            "mean over all (use_mean_pooling false), which the published models do not"
        )


def shaped_sizes(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The encoder's sizes that its weights' shapes tell, by the names of `VitConfig`.

    Raises:
        InputError: the weights that tell them are absent or of other dimensions.
    """
    width, channels, tubelet, patch, columns = _shape(
        state, "encoder.patch_embed.proj.weight", 5, source
    )
    if patch != columns:
        raise InputError(f"{source}: patches of {patch} x {columns} pixels are not square")
    return {
        "embed_dim": width,
        "depth": _depth(state, "encoder"),
        "patch_size": patch,
        "tubelet_size": tubelet,
        "in_channels": channels,
        "mlp_ratio": _shape(state, "encoder.blocks.0.mlp.fc1.weight", 2, source)[0] / width,
    }


def _decoder(
    state: Mapping[str, Tensor], config: Mapping[str, Any] | None, source: str, told: Told
) -> DecoderConfig | None:
    if "encoder_to_decoder.weight" not in state:
        if told.decoder_num_heads is not None:
            raise InputError(
                f"--decoder_num_heads {told.decoder_num_heads}: {source} is a classifier and has "
                "no decoder"
            )
        return None
    width = _shape(state, "encoder_to_decoder.weight", 2, source)[0]
    # The Hugging Face class takes 6 where its config.json says nothing.
    stated = None if config is None else config.get("decoder_num_attention_heads", 6)
    heads = _heads("decoder_num_heads", width, told.decoder_num_heads, stated, source)
    try:
        return DecoderConfig(embed_dim=width, depth=_depth(state, "decoder"), num_heads=heads)
    except ValueError as error:
        raise InputError(f"{source}: these sizes make no model: {error}") from error


def _heads(name: str, width: int, told: int | None, stated: int | None, source: str) -> int:
    """The number of heads: as told, else as published and stated, which must agree."""
    if told is not None:
        if told < 1:
            raise InputError(f"--{name} {told} must be positive")
        return told
    if stated is not None and (type(stated) is not int or stated < 1):
        raise InputError(f"{source}/config.json: {stated!r} is no number of heads")
    known = (DECODER_HEADS if name.startswith("decoder") else HEADS).get(width)
    if stated is not None and known is not None and stated != known:
        raise InputError(
            f"{source} states {stated} heads, but published models of width {width} have {known}. "
            "Weights fit any number of heads, and a wrong one costs much of the accuracy (some "
            f"public configs of the small model say 16): give --{name} {known}, or "
            f"--{name} {stated} if it was trained so"
        )
    heads = known if stated is None else stated
    if heads is None:
        raise InputError(
            f"{source}: weights do not tell their number of heads, and width {width} is none of "
            f"the published ones: give --{name}"
        )
    return heads


def _depth(state: Mapping[str, Tensor], stack: str) -> int:
    numbers = (re.match(rf"{stack}\.blocks\.(\d+)\.", key) for key in state)
    return 1 + max((int(match[1]) for match in numbers if match), default=-1)


def _shape(state: Mapping[str, Tensor], key: str, num_dims: int, source: str) -> tuple[int, ...]:
    if key not in state or state[key].dim() != num_dims or not state[key].numel():
        raise InputError(
            f"{source} has no weight {key} of {num_dims} dimensions, as a VideoMAE has"
        )
    return tuple(state[key].shape)
