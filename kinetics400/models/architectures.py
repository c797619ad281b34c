"""Model names and the sizes they stand for. Names are those of the Hugging Face hub."""

from dataclasses import dataclass
from difflib import get_close_matches

from kinetics400.errors import InputError
from kinetics400.models.vit import DecoderConfig


@dataclass(frozen=True)
class Architecture:
    """Widths and depths of a model size (VideoMAE modeling_pretrain.py, modeling_finetune.py)."""

    embed_dim: int
    depth: int
    num_heads: int
    decoder: DecoderConfig


def _decoder(embed_dim: int, depth: int, num_heads: int) -> DecoderConfig:
    return DecoderConfig(embed_dim=embed_dim, depth=depth, num_heads=num_heads)


ARCHITECTURES = {
    "tiny": Architecture(128, 4, 4, _decoder(64, 1, 2)),  # ours, for the demo and the tests
    "small": Architecture(384, 12, 6, _decoder(192, 4, 3)),
    "base": Architecture(768, 12, 12, _decoder(384, 4, 6)),
    "large": Architecture(1024, 24, 16, _decoder(512, 12, 8)),
    "huge": Architecture(1280, 32, 16, _decoder(640, 12, 8)),
}

# Attention heads by width, as published: weights look alike under any number of heads. 1408 is
# VideoMAE V2's ViT-g, whose decoder is as wide as the large one's.
HEADS = {size.embed_dim: size.num_heads for size in ARCHITECTURES.values()} | {1408: 16}
DECODER_HEADS = {size.decoder.embed_dim: size.decoder.num_heads for size in ARCHITECTURES.values()}

# Names on the Hugging Face hub, and the size each stands for.
MODEL_NAMES = {
    "tiny": "tiny",
    "MCG-NJU/videomae-small": "small",
    "MCG-NJU/videomae-small-finetuned-kinetics": "small",
    "MCG-NJU/videomae-small-finetuned-ssv2": "small",
    "MCG-NJU/videomae-base": "base",
    "MCG-NJU/videomae-base-finetuned-kinetics": "base",
    "MCG-NJU/videomae-base-finetuned-ssv2": "base",
    "MCG-NJU/videomae-base-short": "base",
    "MCG-NJU/videomae-base-short-finetuned-kinetics": "base",
    "MCG-NJU/videomae-base-short-finetuned-ssv2": "base",
    "MCG-NJU/videomae-base-short-ssv2": "base",
    "MCG-NJU/videomae-base-ssv2": "base",
    "MCG-NJU/videomae-large": "large",
    "MCG-NJU/videomae-large-finetuned-kinetics": "large",
    "MCG-NJU/videomae-huge": "huge",
    "MCG-NJU/videomae-huge-finetuned-kinetics": "huge",
}


def model_size(model_name: str) -> str:
    """The size ("small", "base" ...) that a model name stands for.

    Raises:
        InputError: the name is unknown.
    """
    if model_name not in MODEL_NAMES:
        close = get_close_matches(model_name, MODEL_NAMES, n=3, cutoff=0.4) or list(MODEL_NAMES)
        raise InputError(
            f"--model_name {model_name!r} is unknown. Perhaps you meant {', '.join(close)}?"
        )
    return MODEL_NAMES[model_name]
