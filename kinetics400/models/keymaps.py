"""Names of weights: ours, Hugging Face's and the official ones.

Ours are the official pretraining names: `encoder.`, `decoder.`, `encoder_to_decoder.`,
`mask_token`, and `fc_norm.`, `head.` for classification.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kinetics400.errors import InputError

# (ours, Hugging Face's), longest first where one begins like another.
_BLOCK_PARTS = (
    ("norm1", "layernorm_before"),
    ("norm2", "layernorm_after"),
    ("attn.proj", "attention.output.dense"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
)
_STEMS = (
    ("encoder.patch_embed.proj", "videomae.embeddings.patch_embeddings.projection"),
    ("encoder.norm", "videomae.layernorm"),
    ("encoder_to_decoder", "encoder_to_decoder"),
    ("decoder.norm", "decoder.norm"),
    ("decoder.head", "decoder.head"),
    ("fc_norm", "fc_norm"),
    ("head", "classifier"),
)
_STACKS = (
    ("encoder.blocks", "videomae.encoder.layer"),
    ("decoder.blocks", "decoder.decoder_layers"),
)


def to_hf(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names to those of `VideoMAEForPreTraining` and `VideoMAEForVideoClassification`."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.endswith(".attn.qkv.weight"):
            stem = _translate(key.removesuffix(".attn.qkv.weight"), 0, 1)
            for part, weight in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[f"{stem}.attention.attention.{part}.weight"] = weight.contiguous()
        else:
            renamed[_translate(key, 0, 1)] = value
    return renamed


def from_hf(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The Hugging Face names to ours.

    Raises:
        InputError: a key is not a VideoMAE's.
    """
    if any(key.startswith("embeddings.") for key in state):  # a bare VideoMAEModel
        state = {f"videomae.{key}": value for key, value in state.items()}
    renamed: dict[str, Tensor] = {}
    unknown: list[str] = []
    products: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        match = re.fullmatch(r"(.*)\.attention\.attention\.(query|key|value)\.weight", key)
        ours = _translate(match[1] if match else key, 1, 0)
        if not ours:
            unknown.append(key)
        elif match:
            products.setdefault(ours, {})[match[2]] = value
        else:
            renamed[ours] = value
    for stem, parts in products.items():
        if len(parts) == 3:
            renamed[f"{stem}.attn.qkv.weight"] = torch.cat(
                [parts[name] for name in ("query", "key", "value")]
            )
        else:
            unknown += [f"{stem} with only {sorted(parts)}"]
    if unknown:
        raise InputError(f"{source} has keys that are not a VideoMAE's: {some(unknown)}")
    return renamed


def _translate(key: str, source: int, target: int) -> str:
    """One key from naming `source` to `target` (0 ours, 1 Hugging Face's); "" when unknown."""
    if key == "mask_token":
        return key
    for stack in _STACKS:
        match = re.match(re.escape(stack[source]) + r"\.(\d+)(?:$|\.)", key)
        if match:
            stem, rest = f"{stack[target]}.{match[1]}", key[match.end() :]
            if not rest:
                return stem
            inner = _translate_block_part(rest, source, target)
            return f"{stem}.{inner}" if inner else ""
    for names in _STEMS:
        if key.startswith(names[source] + "."):
            return names[target] + key.removeprefix(names[source])
    return ""


def _translate_block_part(part: str, source: int, target: int) -> str:
    for letter, name in (("q", "query"), ("v", "value")):
        ours, legacy = f"attn.{letter}_bias", f"attention.attention.{letter}_bias"
        # transformers writes the legacy name and has the other one in memory since version 5.
        if part in (ours, legacy, f"attention.attention.{name}.bias"):
            return (ours, legacy)[target]
    for names in _BLOCK_PARTS:
        if part.startswith(names[source] + "."):
            return names[target] + part.removeprefix(names[source])
    return ""


def from_official(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The official names to ours: pretraining's are ours, finetuning's lack `encoder.`.

    Raises:
        InputError: it is neither.
    """
    if "encoder.patch_embed.proj.weight" in state:
        return dict(state)
    if "patch_embed.proj.weight" in state:
        ours = ("fc_norm.", "head.")
        return {
            key if key.startswith(ours) else f"encoder.{key}": value for key, value in state.items()
        }
    raise InputError(
        f"{source} is not a VideoMAE checkpoint: no 'patch_embed.proj.weight' among its keys "
        f"({some(list(state))})"
    )


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names to the official ones, of pretraining or, without a decoder, of finetuning."""
    if any(key.startswith("decoder.") for key in state):
        return dict(state)
    return {key.removeprefix("encoder."): value for key, value in state.items()}


def some(keys: Sequence[str], most: int = 10) -> str:
    """The first keys, for a message."""
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more
