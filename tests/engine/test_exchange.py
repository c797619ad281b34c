"""Gradients of several ranks meet once per step, at its last micro-batch."""

from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy
from torch import distributed, nn

from kinetics400.batch import Batch, normalize
from kinetics400.data import keys
from kinetics400.engine.log import RunLog
from kinetics400.engine.optim import build_optimizer, count_parameters
from kinetics400.engine.trainer import Plan, fit
from kinetics400.methods.classification import Classification
from kinetics400.models.vit import VitConfig

VIT = VitConfig(embed_dim=24, depth=2, num_heads=2, image_size=16, patch_size=8, num_frames=4)


@pytest.fixture
def exchanged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each bucket that DDP hands over."""
    sizes: list[int] = []
    real = DDPStrategy.setup_module

    def setup_module(self: DDPStrategy, module: nn.Module) -> Any:
        wrapped = real(self, module)

        def count(_: Any, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
            sizes.append(bucket.buffer().nbytes)
            done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done

        wrapped.register_comm_hook(None, count)
        return wrapped

    monkeypatch.setattr(DDPStrategy, "setup_module", setup_module)
    return sizes


@pytest.mark.parametrize("accumulate", [1, 4])
def test_every_gradient_is_handed_over_once_per_step(exchanged: list[int], accumulate: int) -> None:
    steps = 3
    method = Classification(VIT, 3)
    fabric = Fabric(
        accelerator="cpu", devices=1, strategy=DDPStrategy(gradient_as_bucket_view=True)
    )
    fabric.launch()
    key = torch.stack([keys.sample_key(0, 0, slot) for slot in range(4)])
    batch = Batch(torch.zeros(4, 3, 4, 16, 16, dtype=torch.uint8), torch.arange(4) % 3, key)
    plan = Plan(
        total_steps=steps,
        steps_per_epoch=steps,
        global_batch_size=4 * accumulate,
        lr=lambda step: 1e-3,
        accumulate=accumulate,
    )
    groups = method.param_groups(0.05)
    try:
        with RunLog(None, total_steps=steps) as log:
            fit(
                fabric,
                method,
                build_optimizer("adamw", groups, betas=(0.9, 0.95), fused=True),
                [(batch, [])] * (steps * accumulate),
                augment=lambda batch: batch.with_clips(normalize(batch.clips)),
                plan=plan,
                log=log,
            )
    finally:
        distributed.destroy_process_group()
    assert sum(exchanged) == steps * 4 * count_parameters(method)
