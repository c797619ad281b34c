"""Model names and sizes: heads, and numbers of parameters counted by hand and by transformers."""

import pytest
import torch
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification
from transformers.models.videomae import modeling_videomae

from kinetics400.engine.optim import count_parameters
from kinetics400.errors import InputError
from kinetics400.methods.classification import Classification
from kinetics400.methods.videomae import VideoMAE
from kinetics400.models.architectures import ARCHITECTURES, MODEL_NAMES, Architecture, model_size
from kinetics400.models.huggingface import hf_config
from kinetics400.models.vit import VitConfig


def test_unknown_model_name_gets_suggestions() -> None:
    with pytest.raises(InputError, match=r"'videomae-bse' is unknown.*MCG-NJU/videomae-base\b"):
        model_size("videomae-bse")
    with pytest.raises(InputError, match="MCG-NJU/videomae-large"):
        model_size("MCG-NJU/VideoMAE-large")
    with pytest.raises(InputError, match=r"is unknown\. Perhaps you meant tiny, "):
        model_size("@@@")


def test_every_name_has_a_size() -> None:
    assert set(MODEL_NAMES.values()) == set(ARCHITECTURES)
    assert all(size in name for name, size in MODEL_NAMES.items())


# Counted by hand, for width D and depth L: 1537 D + 12 L D (D + 1) + 2 D in patch embedding,
# blocks and norm; then 400 (D + 1) for the head, or, for a decoder of width d and depth l,
# D d + d + 12 l d (d + 1) + 2 d + 1536 (d + 1).
PUBLISHED = {  # size: (pretraining, finetuning on 400 classes)
    "small": (24_029_376, 22_033_936),
    "base": (94_210_944, 86_534_800),
    "large": (342_996_992, 304_270_736),
    "huge": (692_487_296, 632_119_440),
}


def shape_of(size: Architecture) -> VitConfig:
    return VitConfig(embed_dim=size.embed_dim, depth=size.depth, num_heads=size.num_heads)


def test_published_sizes_have_the_published_heads() -> None:
    """The number of parameters does not depend on them."""
    heads = {size: (a.num_heads, a.decoder.num_heads) for size, a in ARCHITECTURES.items()}
    del heads["tiny"]
    assert heads == {"small": (6, 3), "base": (12, 6), "large": (16, 8), "huge": (16, 8)}


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes_have_the_published_number_of_parameters(size: str) -> None:
    architecture = ARCHITECTURES[size]
    with torch.device("meta"):
        pretraining = VideoMAE(shape_of(architecture), architecture.decoder)
        finetuning = Classification(shape_of(architecture), 400)
    assert (count_parameters(pretraining), count_parameters(finetuning)) == PUBLISHED[size]
    assert pretraining.num_visible == 160


@pytest.mark.parametrize("size", PUBLISHED)
def test_transformers_builds_as_many_parameters_from_our_configuration(
    size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its table of positions is no parameter and takes seconds.
    monkeypatch.setattr(
        modeling_videomae, "get_sinusoid_encoding_table", lambda n, dim: torch.empty(1, n, dim)
    )
    architecture = ARCHITECTURES[size]
    config = shape_of(architecture)
    names = [str(index) for index in range(400)]
    with torch.device("meta"):
        pretraining = VideoMAEForPreTraining(
            VideoMAEConfig(**hf_config(config, decoder=architecture.decoder))
        )
        finetuning = VideoMAEForVideoClassification(
            VideoMAEConfig(**hf_config(config, label_names=names))
        )
    assert (count_parameters(pretraining), count_parameters(finetuning)) == PUBLISHED[size]
