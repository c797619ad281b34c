"""The models and their parts against transformers, torch and numpy.

Shapes: B batch, C channels, T frames, H, W, N tokens, D width.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification
from transformers.models.videomae.modeling_videomae import get_sinusoid_encoding_table

from kinetics400.batch import Batch
from kinetics400.bench.fidelity.rules import EXACT, FORWARD, Rule, difference
from kinetics400.methods.classification import Classification
from kinetics400.methods.videomae import VideoMAE
from kinetics400.models.architectures import ARCHITECTURES
from kinetics400.models.huggingface import hf_config
from kinetics400.models.keymaps import to_hf
from kinetics400.models.vit import (
    DecoderConfig,
    PatchEmbed,
    VitConfig,
    sinusoid_table,
    split_tubelets,
)

SEED = 0


def model_rules() -> Iterator[Rule]:
    """Every rule of the models that needs no golden numbers."""
    yield from part_rules()
    yield from transformers_rules()


# --- parts ----------------------------------------------------------------------------------------


def part_rules() -> Iterator[Rule]:
    """Sizes, positions, embedding."""
    table = sinusoid_table(1568, 384)[0]
    position, column = np.meshgrid(np.arange(1568), np.arange(384), indexing="ij")
    angle = position / np.power(10000, 2 * (column // 2) / 384)
    brute = np.where(column % 2 == 0, np.sin(angle), np.cos(angle))
    positions: dict[str, Any] = {
        "part": "model",
        "source": "VideoMAE modeling_finetune.py",
        "ours": "models.vit.sinusoid_table",
        "test": "models/test_vit.py::test_sinusoid_table_equals_a_loop",
        "unit": "1",
        "allowed": 1e-7,
    }
    yield Rule(
        rule="positions: one sinusoid over the flattened T · H · W index, not learned",
        reference="numpy float64",
        **positions,
        **difference([(table, brute)])._asdict(),
    )
    theirs = get_sinusoid_encoding_table(1568, 384)[0]
    yield Rule(
        rule="positions: the same table",
        reference="transformers",
        **positions,
        **difference([(table, theirs)])._asdict(),
    )
    config = VitConfig(embed_dim=40, depth=1, num_heads=2, image_size=32, num_frames=8)
    torch.manual_seed(SEED)
    embed, clips = PatchEmbed(config), torch.randn(2, 3, 8, 32, 32)
    ours = embed(split_tubelets(clips, config))
    convolved = F.conv3d(clips, embed.proj.weight, embed.proj.bias, stride=(2, 16, 16))
    yield Rule(
        part="model",
        rule="patch embedding: a convolution of 2 × 16 × 16, tokens in the order (t h w)",
        source="VideoMAE modeling_finetune.py",
        ours="models.vit.PatchEmbed",
        reference="torch conv3d",
        test="models/test_vit.py::test_patch_embedding_equals_a_convolution",
        unit="relative",
        allowed=FORWARD,
        **difference(
            [(ours.detach(), convolved.detach().flatten(2).transpose(1, 2))], relative=True
        )._asdict(),
    )
    published = {  # width, depth, heads; of the decoder
        "small": (384, 12, 6, 192, 4, 3),
        "base": (768, 12, 12, 384, 4, 6),
        "large": (1024, 24, 16, 512, 12, 8),
        "huge": (1280, 32, 16, 640, 12, 8),
    }
    pairs = []
    for size, expected in published.items():
        one = ARCHITECTURES[size]
        two = one.decoder
        found = (one.embed_dim, one.depth, one.num_heads)
        pairs.append(((*found, two.embed_dim, two.depth, two.num_heads), expected))
    yield Rule(
        part="model",
        rule="width, depth and heads of S, B, L and H, and of their decoders",
        source="VideoMAE modeling_pretrain.py",
        ours="models.architectures.ARCHITECTURES",
        reference="the published sizes",
        test="models/test_architectures.py::"
        "test_published_sizes_have_the_published_number_of_parameters",
        unit="1",
        allowed=EXACT,
        **difference(pairs)._asdict(),
    )


# --- transformers ---------------------------------------------------------------------------------


def reference_model(method: VideoMAE | Classification) -> Any:
    """Transformers' model with our weights and LayerNorm eps 1e-6 everywhere."""
    config = method.encoder.config
    model: nn.Module
    if isinstance(method, VideoMAE):
        described = hf_config(config, decoder=method.decoder_config, norm_pix_loss=True)
        model = VideoMAEForPreTraining(VideoMAEConfig(**described))
    else:
        names = [str(number) for number in range(method.num_classes)]
        model = VideoMAEForVideoClassification(
            VideoMAEConfig(**hf_config(config, label_names=names))
        )
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):  # theirs: 1e-12 and, in two places, 1e-5
            module.eps = 1e-6
    renames = ((".q_bias", ".query.bias"), (".v_bias", ".value.bias"))
    state = to_hf(method.state_dict())
    for legacy, current in renames:
        state = {name.replace(legacy, current): value for name, value in state.items()}
    model.load_state_dict(state)
    return model


def transformers_rules() -> Iterator[Rule]:
    """Both models at the published depth, heads and token grid, narrow, randomly initialised."""
    config = VitConfig(embed_dim=96, depth=12, num_heads=6, image_size=112)
    clips = torch.randn(2, 3, 16, 112, 112, generator=torch.Generator().manual_seed(SEED))
    ids = torch.arange(2)
    torch.manual_seed(SEED)
    method = VideoMAE(config, DecoderConfig(embed_dim=48, depth=4, num_heads=3))
    _stir(method)
    drawn = method.draw(ids)
    hidden = torch.zeros(2, config.num_tokens, dtype=torch.bool)
    hidden.scatter_(1, drawn["mask_indices"], True)
    theirs = reference_model(method).eval()
    method.eval()
    with torch.no_grad():
        output = theirs(clips.transpose(1, 2), bool_masked_pos=hidden)
        predicted = method.reconstruct(clips, **drawn)
        loss = method(Batch(clips, ids, ids), drawn)["loss"]
    about: dict[str, Any] = {"part": "model", "unit": "relative", "allowed": FORWARD}
    yield Rule(
        rule="pretraining model, 12 + 4 blocks: predictions and loss",
        source="VideoMAE modeling_pretrain.py",
        ours="methods.videomae.VideoMAE",
        reference="transformers VideoMAEForPreTraining, LayerNorm eps 1e-6",
        test="models/test_huggingface.py::test_our_pretraining_folder_gives_transformers_our_numbers",
        **about,
        **difference([(predicted, output.logits), (loss, output.loss)], relative=True)._asdict(),
    )
    classifier = Classification(config, 400, head_init_scale=1.0)
    _stir(classifier)
    theirs = reference_model(classifier).eval()
    with torch.no_grad():
        logits = theirs(clips.transpose(1, 2)).logits
        ours = classifier.eval().predict(clips)
    yield Rule(
        rule="classifier, 12 blocks: logits",
        source="VideoMAE modeling_finetune.py",
        ours="methods.classification.Classification",
        reference="transformers VideoMAEForVideoClassification, use_mean_pooling, eps 1e-6",
        test="models/test_huggingface.py::test_our_classifier_folder_gives_transformers_our_numbers",
        **about,
        **difference([(ours, logits)], relative=True)._asdict(),
    )


def _stir(module: nn.Module) -> None:
    """Move every parameter off its initial value: zero biases would hide a lost one."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
