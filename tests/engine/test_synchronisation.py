"""A step never waits for the device: the host reads numbers only when it logs."""

import pytest
import torch
from lightning.fabric import Fabric
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from kinetics400.batch import Batch, normalize
from kinetics400.data import keys
from kinetics400.engine.log import RunLog
from kinetics400.engine.optim import build_optimizer
from kinetics400.engine.trainer import Plan, fit
from kinetics400.methods.base import Method
from kinetics400.methods.classification import Classification
from kinetics400.methods.videomae import VideoMAE
from kinetics400.models.vit import DecoderConfig, VitConfig

VIT = VitConfig(embed_dim=24, depth=2, num_heads=2, image_size=16, patch_size=8, num_frames=4)
# What reads a tensor's value on the host: it would wait for a GPU.
READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")


def reads_of(kind: str, steps: int, log_every: int, clip_grad: float | None, optimizer: str) -> int:
    torch.manual_seed(0)
    method: Method = Classification(VIT, 3)
    if kind == "pretraining":
        method = VideoMAE(VIT, DecoderConfig(embed_dim=16, depth=1, num_heads=2), mask_ratio=0.5)
    groups = method.param_groups(0.05, 0.75)
    key = torch.stack([keys.sample_key(0, 0, slot) for slot in range(4)])
    clips = torch.zeros(4, 3, 4, 16, 16, dtype=torch.uint8)
    batches = [(Batch(clips, torch.arange(4) % 3, key), []) for _ in range(steps)]
    plan = Plan(
        total_steps=steps,
        steps_per_epoch=steps,
        global_batch_size=4,
        lr=lambda step: 1e-3,
        clip_grad=clip_grad,
        log_every=log_every,
    )
    with RunLog(None, total_steps=steps) as log, profile(activities=[ProfilerActivity.CPU]) as seen:
        fit(
            Fabric(accelerator="cpu", devices=1),
            method,
            build_optimizer(optimizer, groups, betas=(0.9, 0.95), fused=True),
            batches,
            augment=lambda batch: batch.with_clips(normalize(batch.clips)),
            plan=plan,
            log=log,
        )
    return sum(event.name in READS and not in_the_kernel(event) for event in seen.events())


def in_the_kernel(event: FunctionEvent) -> bool:
    """On a CPU fused AdamW reads its step counters, which are on a GPU where the kernel is."""
    parent = event.cpu_parent
    return parent is not None and ("_fused_adamw_" in parent.name or in_the_kernel(parent))


@pytest.mark.parametrize("clip_grad", [None, 1.0])
@pytest.mark.parametrize("kind", ["pretraining", "finetuning"])
def test_a_step_reads_nothing(kind: str, clip_grad: float | None) -> None:
    """(The log's line at the end reads whole tensors, which is not counted.)"""
    assert reads_of(kind, 9, 100, clip_grad, "adamw") == 0


def test_the_count_would_notice() -> None:
    """Lion has no fused kernel: the host asks after every step whether it counts."""
    few, many = (reads_of("finetuning", steps, 100, None, "lion") for steps in (3, 9))
    assert many >= few + 6
