"""The formula against torch's counter, on tensors without storage."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kinetics400.methods.classification import Classification
from kinetics400.methods.videomae import VideoMAE
from kinetics400.models import flops
from kinetics400.models.architectures import ARCHITECTURES
from kinetics400.models.vit import VitConfig

BATCH = 2


def vit_config(size: str) -> VitConfig:
    one = ARCHITECTURES[size]
    return VitConfig(embed_dim=one.embed_dim, depth=one.depth, num_heads=one.num_heads)


@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_a_pretraining_step_has_the_operations_that_torch_counts(size):
    config, decoder = vit_config(size), ARCHITECTURES[size].decoder
    with torch.device("meta"):
        method = VideoMAE(config, decoder)
        clips = torch.empty(BATCH, 3, 16, 224, 224)
        keep = torch.empty(BATCH, method.num_visible, dtype=torch.long)
        hidden = torch.empty(BATCH, config.num_tokens - method.num_visible, dtype=torch.long)
    # The fused kernels compute some products of the backward pass twice.
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            loss = method.reconstruct(clips, keep, hidden).sum()
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    expected = flops.pretraining_flops(config, decoder, method.num_visible)
    assert forward.get_total_flops() == BATCH * expected
    trained = flops.training_flops(expected, flops.embedding_flops(config, method.num_visible))
    counted = forward.get_total_flops() + backward.get_total_flops()
    assert counted == pytest.approx(BATCH * trained, rel=0.01)


@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_a_finetuning_step_has_the_operations_that_torch_counts(size):
    config = vit_config(size)
    with torch.device("meta"):
        method = Classification(config, 400)
        clips = torch.empty(BATCH, 3, 16, 224, 224)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            loss = method.predict(clips).sum()
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    expected = flops.classification_flops(config, 400)
    assert forward.get_total_flops() == BATCH * expected
    trained = flops.training_flops(expected, flops.embedding_flops(config, config.num_tokens))
    counted = forward.get_total_flops() + backward.get_total_flops()
    assert counted == pytest.approx(BATCH * trained, rel=0.01)


def test_a_vit_base_needs_the_published_operations():
    # 180 GFLOPs (multiply-adds) per finetuning view, VideoMAE MODEL_ZOO.md.
    assert flops.classification_flops(vit_config("base"), 400) / 2e9 == pytest.approx(180, rel=0.01)
