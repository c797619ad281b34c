"""A model as a folder in Hugging Face's layout, loadable with `from_pretrained`.

Needs nothing of transformers; tests/models/test_huggingface.py loads the folders with it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from kinetics400.batch import IMAGENET_MEAN, IMAGENET_STD
from kinetics400.data.storage import replaced_folder
from kinetics400.models.keymaps import to_hf
from kinetics400.models.vit import LAYER_NORM_EPS, DecoderConfig, VitConfig, mlp_width
from kinetics400.tensors import save_tensors

PRETRAINING = "VideoMAEForPreTraining"
CLASSIFICATION = "VideoMAEForVideoClassification"
_NOTE_ON_POSITIONS = """
**Positions.** They are interpolated from a grid of {} tokens (`pos_grid` in `config.json`, time x
height x width). transformers does not read that key and computes positions of its own, so there
this model gives other outputs; kinetics400 gives the right ones. Trained further there, it gets
used to those other positions: then delete the key.
"""


def save_pretrained(
    folder: Path, *, state: Mapping[str, Tensor], config: Mapping[str, Any], card: str
) -> None:
    """Write a model folder, whole or not at all; an older one is replaced.

    Args:
        folder: where; usually `<save_dir>/model`.
        state: weights under our names, as `Method.state_dict()` gives them.
        config: what `hf_config` gave.
        card: text of the model card, Markdown.
    """
    if config.get("pos_grid"):
        card += _NOTE_ON_POSITIONS.format("x".join(map(str, config["pos_grid"])))
    with replaced_folder(folder) as temporary:
        save_tensors(temporary / "model.safetensors", to_hf(state), metadata={"format": "pt"})
        for name, content in (
            ("config.json", config),
            ("preprocessor_config.json", preprocessor_config(config["image_size"])),
        ):
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (temporary / name).write_text(text, encoding="utf-8")
        (temporary / "README.md").write_text(card, encoding="utf-8")


def preprocessor_config(image_size: int) -> dict[str, Any]:
    """How to turn frames into model input; the class default would normalise with 0.5."""
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "video_processor_type": "VideoMAEVideoProcessor",
        "do_resize": True,
        "size": {"shortest_edge": image_size},
        "resample": 2,
        "do_center_crop": True,
        "crop_size": {"height": image_size, "width": image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
    }


def hf_config(
    config: VitConfig,
    *,
    decoder: DecoderConfig | None = None,
    norm_pix_loss: bool = True,
    label_names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The `config.json` of a model: with a decoder for pretraining, with names for a classifier."""
    common = {
        "model_type": "videomae",
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.in_channels,
        "num_frames": config.num_frames,
        "tubelet_size": config.tubelet_size,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": mlp_width(config.embed_dim, config.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": LAYER_NORM_EPS,
        "qkv_bias": True,
    }
    if config.pos_grid is not None:
        common["pos_grid"] = list(config.pos_grid)  # transformers does not know it: see the card
    if decoder is not None:
        return {
            "architectures": [PRETRAINING],
            **common,
            "use_mean_pooling": False,
            "norm_pix_loss": norm_pix_loss,
            "decoder_hidden_size": decoder.embed_dim,
            "decoder_num_hidden_layers": decoder.depth,
            "decoder_num_attention_heads": decoder.num_heads,
            "decoder_intermediate_size": mlp_width(decoder.embed_dim, config.mlp_ratio),
        }
    names = list(label_names or ())
    return {
        "architectures": [CLASSIFICATION],
        **common,
        "use_mean_pooling": True,
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }
