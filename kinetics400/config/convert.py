"""Flags of `kinetics400 convert`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """All flags of conversion."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Official .pth of VideoMAE or VideoMAE V2, model folder (Hugging Face layout), or run
    directory; told apart by what they hold."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    """What to write: a name that ends in .pth becomes an official checkpoint, others a model
    folder."""
    num_heads: int | None = None
    """Attention heads. Default: as the folder states, as published for the width."""
    decoder_num_heads: int | None = None
    """Attention heads of a pretraining model's decoder. Default: as num_heads."""
    num_frames: int | None = None
    """Frames of a clip, for a .pth, which does not state them. Default: 16."""
    input_size: int | None = None
    """Side of the input in pixels, for a .pth, which does not state it. Default: 224."""
    label_names: Path | None = None
    """File with one class name per line. Default: the folder's; Kinetics-400's for 400 classes."""
